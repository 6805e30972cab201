"""The edits of NNI's node manager, by repair and file. Each old text stands exactly once in its file."""

Edit = tuple[str, str]

# Stock: whichever trial asks first gets the oldest parameters, so with several at once the web UI and the exports list
# a trial with another one's parameters. Here the trial's id is chosen first and the parameters are kept under it.
_PARAMETERS_OF_THE_TRIAL: tuple[Edit, ...] = (
    (
        """        let trialId = null;
        let envId = null;
        let submitTime = 0;
""",
        """        let trialId = null;
        let envId = null;
        let submitTime = 0;
        const newTrialId = (0, require('common/utils').uniqueString)(5);
""",
    ),
    (
        "            this.parameters.push(form.hyperParameters.value);\n",
        "            this.allocatedParameters.set(newTrialId, form.hyperParameters.value);\n",
    ),
    (
        "createTrial(envId, this.config.trialCommand, 'trial_code', form.sequenceId);",
        "createTrial(envId, this.config.trialCommand, 'trial_code', form.sequenceId, newTrialId);",
    ),
)

# Stock: all interfaces, without authentication.
_LISTEN: dict[str, tuple[Edit, ...]] = {
    "nni_node/rest_server/index.js": (
        ("app.listen(this.port);", "app.listen(this.port, process.env.ELM_NNI_LISTEN || '127.0.0.1');"),
    ),
    "nni_node/training_service/reusable/channels/webCommandChannel.js": (
        ("new ws_1.Server({ port })", "new ws_1.Server({ port, host: process.env.ELM_NNI_LISTEN || '127.0.0.1' })"),
    ),
    "nni_node/common/restServer.js": (
        ("hostName = '0.0.0.0';", "hostName = process.env.ELM_NNI_LISTEN || '127.0.0.1';"),
    ),
    "nni_node/extensions/nniTensorboardManager.js": (
        (
            "logdirCmd = '--bind_all --logdir_spec';",
            "logdirCmd = (process.env.ELM_NNI_LISTEN === '0.0.0.0' ? '--bind_all ' : '') + '--logdir_spec';",
        ),
    ),
}

# Stock: a Python experiment that is killed leaves its manager and trials behind. The manager's parent changes when the
# driver ends; that holds for threads, for every signal and against reused process numbers. A closed terminal or pipe
# must not stop the manager from cleaning up.
_END_WITH_DRIVER: tuple[Edit, ...] = (
    (
        "start().then(() => {",
        """process.stdout.on('error', () => { });
process.stderr.on('error', () => { });
const driver = Number(process.env.ELM_NNI_DRIVER || 0);
delete process.env.ELM_NNI_DRIVER;
if (driver) {
    const watch = setInterval(() => {
        if (process.ppid !== driver) {
            clearInterval(watch);
            globals_1.globals.shutdown.initiate(`The driver, process ${driver}, has ended`);
        }
    }, 500);
}
start().then(() => {""",
    ),
)

# Stock: a signal reaches the trial's shell alone, and the shell's children live on. The keeper ends the whole group.
_TRIAL_GROUPS: tuple[Edit, ...] = (
    ("            shell: shell,\n", "            shell: shell,\n            detached: process.platform !== 'win32',\n"),
    ("            this.proc.kill('SIGINT');\n", "            this.signalGroup('SIGINT');\n"),
    ("                    this.proc.kill('SIGKILL');\n", "                    this.signalGroup('SIGKILL');\n"),
    (
        """        await this.stopped.promise;
    }
    onStart""",
        """        const group = this.proc.pid;
        await this.stopped.promise;
        if (process.platform !== 'win32') {
            this.signalGroup('SIGKILL', group);
        }
    }
    signalGroup(signal, group) {
        try {
            process.kill(-(group ?? this.proc.pid), signal);
        }
        catch (error) {
            this.log.debug('No process left in the group:', error.code);
        }
    }
    onStart""",
    ),
)

# Stock: a tuner that ends at once is noticed after 10 seconds, without its message; a slow one is given up then.
_TUNER_CHANNEL: tuple[Edit, ...] = (
    (
        """        if (this.connect.settled) {
            logger.debug('Initialized.');
            return Promise.resolve();
        }""",
        """        if (this.connect.settled) {
            logger.debug('Initialized.');
            return this.connect.promise;
        }""",
    ),
    ("did not connect in 10 seconds.", "did not connect in 25 seconds."),
    ("            }, 10000);\n", "            }, 25000);\n"),
    (
        """    async stop() {
        await this.server.shutdown();
    }
    sendCommand(""",
        """    async stop() {
        await this.server.shutdown();
    }
    fail(error) {
        if (!this.connect.settled) {
            this.connect.reject(error);
        }
        else if (this.emitter.listenerCount('error') > 0) {
            this.emitter.emit('error', error);
        }
    }
    sendCommand(""",
    ),
)

_TUNER_PROCESS: tuple[Edit, ...] = (
    (
        "const stdio = ['ignore', process.stdout, process.stderr];",
        "const stdio = ['ignore', process.stdout, 'pipe'];",
    ),
    (
        """        this.dispatcherPid = tunerProc.pid;
        this.dispatcher = await (0, ipcInterface_1.createDispatcherInterface)();
        return;
""",
        """        this.dispatcherPid = tunerProc.pid;
        this.dispatcher = await (0, ipcInterface_1.createDispatcherInterface)();
        const dispatcher = this.dispatcher;
        let tail = '';
        tunerProc.stderr.on('data', (data) => {
            process.stderr.write(data);
            tail = (tail + data).slice(-4096);
        });
        tunerProc.once('close', (code) => {
            if (code !== 0 && !['STOPPING', 'STOPPED'].includes(this.status.status)) {
                dispatcher.fail(new Error(`The tuner ended with status ${code}: ${lastLine(tail)}`));
            }
        });
        return;
""",
    ),
    (
        "this.criticalError(new Error('Dispatcher stream error, tuner may have crashed.'));",
        "this.criticalError(new Error(`The tuner failed: ${lastLine(error.message)}`));",
    ),
    (
        "exports.NNIManager = NNIManager;",
        """exports.NNIManager = NNIManager;
function lastLine(text) {
    return text.trim().split('\\n').pop();
}""",
    ),
)

# Stock: nothing tells whether a trial has come as far as its parameters, or why a training service did not start.
_PROGRESS: dict[str, tuple[Edit, ...]] = {
    "nni_node/training_service/v3/compat.js": (
        (
            "        this.v3.onRequestParameter(async (trialId) => {\n",
            """        this.v3.onRequestParameter(async (trialId) => {
            globals_1.default.parametersRequested = (globals_1.default.parametersRequested ?? 0) + 1;
""",
        ),
        (
            "            logger.error('Training srevice initialize failed:', error);\n",
            """            logger.debug('The training service did not start:', error);
            logger.error(`The training service did not start: ${error.message}`);
            globals_1.default.startupErrors = [`The training service did not start: ${error.message}`];
""",
        ),
    ),
    "nni_node/core/nnimanager.js": (
        (
            """    getStatus() {
        return this.status;
    }""",
            """    getStatus() {
        return {
            status: this.status.status,
            errors: this.status.errors.concat(globals_1.default.startupErrors ?? []),
            parametersRequested: globals_1.default.parametersRequested ?? 0,
        };
    }""",
        ),
    ),
}

# Stock: after a resume, trials are numbered from 1 again, so that numbers stand twice in the web UI and the exports.
_TRIAL_NUMBERS: tuple[Edit, ...] = (
    (
        "        let maxSequeceId = 0;\n",
        "        let maxSequeceId = Math.max(-1, ...allTrialJobs.map((job) => job.sequenceId ?? -1));\n",
    ),
)

# Stock: a resumed NAS experiment is sent commands for tuners, at which its listener dies; it then hears of no trial.
_NAS_RESUME: tuple[Edit, ...] = (
    (
        "if (this.trialDataForTuner.length > 0) {",
        "if (this.trialDataForTuner.length > 0 && this.config.experimentType !== 'nas') {",
    ),
    (
        "if (this.trialDataForResume.length > 0) {",
        "if (this.trialDataForResume.length > 0 && this.config.experimentType !== 'nas') {",
    ),
)

# Stock: workers call the manager back over the network, which needs an open, unauthenticated port. Here they come back
# through the ssh connection that started them. Also: say who refused whom, survive a lost connection, and leave an NNI
# of the right version on the worker alone.
_REMOTE: dict[str, tuple[Edit, ...]] = {
    "nni_node/training_service/remote_v3/ssh.js": (
        (
            "            password: this.config.password,\n",
            "            password: this.config.password,\n            keepaliveInterval: 10000,\n",
        ),
        (
            """        await node_events_1.default.once(this.client, 'ready');
""",
            """        try {
            await node_events_1.default.once(this.client, 'ready');
        }
        catch (error) {
            const { user, host, port } = this.config;
            throw new Error(`cannot log in to ${user}@${host}, port ${port}, by ssh: ${error.message}`);
        }
        this.client.on('error', error => { this.log.error('Connection error:', error); });
""",
        ),
        (
            """    setPath(path) {""",
            """    async forwardToManager(managerPort) {
        const forwardIn = node_util_1.default.promisify(this.client.forwardIn.bind(this.client));
        let port;
        try {
            port = await forwardIn('127.0.0.1', 0);
        }
        catch (error) {
            const host = this.config.host;
            throw new Error(`${host} refuses a reverse tunnel: allow TCP forwarding in its sshd, or --listen 0.0.0.0`);
        }
        this.client.on('tcp connection', (_details, accept) => {
            const worker = accept();
            const manager = require('node:net').connect(managerPort, '127.0.0.1');
            worker.on('error', () => { manager.destroy(); });
            manager.on('error', () => { worker.end(); });
            worker.pipe(manager).pipe(worker);
        });
        return port;
    }
    setPath(path) {""",
        ),
    ),
    "nni_node/training_service/remote_v3/worker.js": (
        (
            "        await this.ssh.connect();\n",
            """        await this.ssh.connect();
        if (process.env.ELM_NNI_LISTEN !== '0.0.0.0') {
            const port = await this.ssh.forwardToManager(globals_1.globals.args.port);
            this.channelUrl = this.channelUrl.replace(/^ws:\\/\\/[^/]+/, `ws://127.0.0.1:${port}`);
        }
""",
        ),
        (
            """        await this.ssh.run(`${this.python} -m pip install nni --upgrade`);
        const remoteVersion = await this.ssh.run(`${this.python} -c "import nni ; print(nni.__version__)"`);
        this.log.info(`Installed nni v${remoteVersion}`);
        const localVersion = await (0, pythonScript_1.runPythonScript)('import nni ; print(nni.__version__)');
""",
            """        const localVersion = await (0, pythonScript_1.runPythonScript)(
            'import nni ; print(nni.__version__)');
        const versionCommand = `${this.python} -c "import nni ; print(nni.__version__)"`;
        if ((await this.ssh.exec(versionCommand)).stdout.trim() !== localVersion.trim()) {
            await this.ssh.run(`${this.python} -m pip install nni==${localVersion.trim()}`);
        }
        const remoteVersion = await this.ssh.run(versionCommand);
        this.log.info(`Installed nni v${remoteVersion}`);
""",
        ),
    ),
}

EDITS: dict[str, dict[str, tuple[Edit, ...]]] = {
    "parameters of the trial": {"nni_node/training_service/v3/compat.js": _PARAMETERS_OF_THE_TRIAL},
    "listen on loopback": _LISTEN,
    "end with the driver": {"nni_node/main.js": _END_WITH_DRIVER},
    "end all processes of a trial": {"nni_node/common/trial_keeper/process.js": _TRIAL_GROUPS},
    "errors of the tuner": {
        "nni_node/core/tuner_command_channel.js": _TUNER_CHANNEL,
        "nni_node/core/nnimanager.js": _TUNER_PROCESS,
    },
    "progress and errors of the start": _PROGRESS,
    "trial numbers after a resume": {"nni_node/core/nnimanager.js": _TRIAL_NUMBERS},
    "resumed NAS experiments": {"nni_node/core/nnimanager.js": _NAS_RESUME},
    "remote workers through ssh": _REMOTE,
}
