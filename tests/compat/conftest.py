"""A home of its own for NNI, its command line in a process, and what the tests read from a running manager."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from .browser import Browser

# What nni does in a trial, without the seconds that importing it takes.
PROTOCOL = """
import json, os, urllib.error, urllib.request

def call(method, command=None):
    data = None if command is None else json.dumps(command).encode()
    headers = {"Content-Type": "application/json"}
    channel = os.environ["NNI_TRIAL_COMMAND_CHANNEL"].replace("localhost", "127.0.0.1")
    request = urllib.request.Request(channel, data, headers, method=method)
    with urllib.request.urlopen(request) as response:
        return response.read()

def receive():
    call("PUT", {"type": "request_parameter"})
    while True:
        try:
            return json.loads(json.loads(call("GET"))["parameter"])
        except urllib.error.HTTPError as error:
            if error.code != 408:
                raise

def report(received, kind, sequence, value):
    call("PUT", {"type": "metric", "metric": json.dumps({
        "parameter_id": received["parameter_id"], "trial_job_id": os.environ["NNI_TRIAL_JOB_ID"], "type": kind,
        "sequence": sequence, "value": json.dumps(value),
    })})
"""
# Every fourth trial imports nni, which takes seconds; the others speak its protocol and are there first. So trials that
# run at once ask for their parameters in another order than they were started.
TRIAL = PROTOCOL + """
def metric(parameters):
    return parameters["x"] * 1000 + parameters["y"]

if int(os.environ["NNI_TRIAL_SEQ_ID"]) % 4 == 0:
    import nni
    nni.report_final_result(metric(nni.get_next_parameter()))
else:
    received = receive()
    report(received, "FINAL", 0, metric(received["parameters"]))
"""
CONFIG: dict[str, Any] = {
    "searchSpace": {
        "x": {"_type": "randint", "_value": [0, 1000]},
        "y": {"_type": "randint", "_value": [0, 1000]},
    },
    "trialCommand": f"{sys.executable} trial.py",
    "trialCodeDirectory": ".",
    "trialConcurrency": 4,
    "maxTrialNumber": 12,
    "tuner": {"name": "Random"},
    "trainingService": {"platform": "local"},
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: Callable[[], Any], seconds: float = 90.0) -> Any:
    """The first true value of ``what``."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        value = what()
        if value:
            return value
        time.sleep(0.2)
    raise AssertionError(f"nothing after {seconds} s")


def listening(port: int) -> set[str]:
    """Local addresses, as /proc/net writes them, of the sockets that listen on the port."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            address, _, number = local.partition(":")
            if state == "0A" and int(number, 16) == port:
                found.add(address)
    return found


def answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


@dataclass
class Home:
    """A user's home with NNI's files, and the processes that were started from it."""

    path: Path
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.environment = {
            **os.environ, "HOME": str(self.path), "NNI_CONFIG_DIR": str(self.path / "nni-config"),
            "ELM_NNI_CACHE": str(self.path / "cache"), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore",
            "ELM_NNI_TEST_HOME": str(self.path),
        }  # fmt: skip

    def write(self, name: str, text: str) -> Path:
        path = self.path / name
        path.write_text(text)
        return path

    def config(self, **changes: Any) -> Path:
        # YAML reads JSON
        return self.write("config.yml", json.dumps(CONFIG | changes))

    def run(self, *command: str, seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=self.environment, cwd=self.path, capture_output=True, text=True, timeout=seconds,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def elm_nni(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "elm_nni.cli", *arguments)

    def nnictl(self, *arguments: str) -> str:
        done = self.elm_nni("nnictl", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stock_nnictl(self, *arguments: str) -> str:
        done = self.run(sys.executable, "-m", "nni.tools.nnictl.nnictl", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def processes(self) -> list[psutil.Process]:
        """All running processes that inherited this home."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def experiments(self) -> dict[str, Any]:
        return dict(json.loads((self.path / "nni-experiments" / ".experiment").read_text()))

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            ours = process.environ().get("ELM_NNI_TEST_HOME") == str(self.path)
            return ours and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False


def ask(port: int, api: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/nni/{api}", timeout=20) as response:
        return json.load(response)


@dataclass(frozen=True)
class Trial:
    number: int
    status: str
    parameters: dict[str, Any]
    metric: float | None

    @property
    def reproduces(self) -> bool:
        return self.metric == self.parameters["x"] * 1000 + self.parameters["y"]


def trials(port: int) -> list[Trial]:
    found = []
    for job in ask(port, "trial-jobs"):
        metrics = [json.loads(json.loads(entry["data"])) for entry in job.get("finalMetricData", [])]
        parameters = json.loads(job["hyperParameters"][0])["parameters"]
        found.append(Trial(job["sequenceId"], job["status"], parameters, metrics[0] if metrics else None))
    return found


def succeeded(port: int) -> list[Trial]:
    return [trial for trial in trials(port) if trial.status == "SUCCEEDED"]


@dataclass(frozen=True)
class Record:
    """What the experiment keeps of a trial; metrics are dictionaries, the last of all is ``final``."""

    number: int
    id: str
    status: str
    parameters: dict[str, Any]
    intermediate: list[dict[str, Any]]
    final: dict[str, Any] | None


def records(port: int) -> list[Record]:
    metrics: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in sorted(ask(port, "metric-data"), key=lambda entry: entry["sequence"]):
        metrics.setdefault((entry["trialJobId"], entry["type"]), []).append(json.loads(json.loads(entry["data"])))
    return [
        Record(
            job["sequenceId"], job["trialJobId"], job["status"], json.loads(job["hyperParameters"][0])["parameters"],
            metrics.get((job["trialJobId"], "PERIODICAL"), []), *metrics.get((job["trialJobId"], "FINAL"), [None]),
        )  # fmt: skip
        for job in ask(port, "trial-jobs")
    ]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home for one module; whatever still runs from it at the end is killed."""
    home = Home(tmp_path_factory.mktemp("home"))
    home.write("trial.py", TRIAL)
    yield home
    for process in home.processes():
        process.send_signal(signal.SIGKILL)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if shutil.which("chromium") is None:
        pytest.skip("the web page is tested in a browser: install chromium (.ci/system_packages, or apt-get)")
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser
