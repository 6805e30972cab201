"""Trials over ssh, on an sshd of the test's own: nothing of the machine's sshd or of ~/.ssh is read or changed."""

import json
import os
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from .conftest import TRIAL, Home, Trial, answers, ask, free_port, listening, succeeded, trials
from .test_wrong_configurations import refused

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "examples" / "nnictl_remote" / "config.yml"
USER = pwd.getpwuid(os.getuid()).pw_name
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
NUM_TRIALS = 4
# SetEnv gives what runs on the "worker" a home of its own, and the mark by which the test finds its processes.
SSHD_CONFIG = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitUserRC no
Subsystem sftp internal-sftp
SetEnv HOME={worker} ELM_NNI_TEST_HOME={home}
"""


@dataclass(frozen=True)
class Server:
    """A running sshd: ``key`` opens it, ``other_key`` does not; what it starts lives in the folder ``worker``."""

    port: int
    key: Path
    other_key: Path
    worker: Path


@dataclass(frozen=True)
class Story:
    """What was seen of an experiment of four trials, two at a time."""

    config: dict[str, Any]
    port: int
    trials: list[Trial]
    listening: set[str]
    peers: set[tuple[bool, str, int]]
    worker_folders: int
    left_after_stop: list[psutil.Process]


@pytest.fixture(scope="module")
def server(home: Home) -> Iterator[Server]:
    sshd = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin:" + os.environ.get("PATH", ""))
    for name, found in (("sshd", sshd), ("ssh", shutil.which("ssh")), ("ssh-keygen", shutil.which("ssh-keygen"))):
        if not found:
            pytest.skip(f"there is no {name} here (Debian: openssh-server)")
    folder, worker, port = home.path / "ssh", home.path / "worker", free_port()
    folder.mkdir()
    worker.mkdir()
    for name in ("host_key", "key", "other_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    config = folder / "sshd_config"
    config.write_text(SSHD_CONFIG.format(port=port, folder=folder, worker=worker, home=home.path))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([sshd, "-D", "-e", "-f", config], stdin=subprocess.DEVNULL, stderr=log)
    try:
        limit = time.monotonic() + 20
        while not answers("127.0.0.1", port):
            if process.poll() is not None or time.monotonic() > limit:
                pytest.skip(f"sshd cannot start: {(folder / 'log').read_text().strip()}")
            time.sleep(0.1)
        made = Server(port, folder / "key", folder / "other_key", worker)
        _skip_where_nobody_may_log_in(made, folder / "log")
        yield made
    finally:
        process.kill()
        process.wait()


def _skip_where_nobody_may_log_in(server: Server, log: Path) -> None:
    options = ("BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "IdentitiesOnly=yes")
    command = ["ssh", "-F", "none", "-p", str(server.port), "-i", server.key, *(f"-o{option}" for option in options)]
    done = subprocess.run([*command, f"{USER}@127.0.0.1", "true"], capture_output=True, text=True, timeout=30)
    if done.returncode != 0:
        pytest.skip(f"sshd lets {USER} not in: {log.read_text().strip()}")


def configuration(home: Home, server: Server, key: Path) -> tuple[Path, dict[str, Any]]:
    """The example with values of this machine; a port beside them, since the server has no right to the usual one."""
    config = yaml.safe_load(EXAMPLE.read_text())
    assert len(config["trainingService"]["machineList"]) == 1
    python = Path(sys.executable)
    (home.path / "code").mkdir(exist_ok=True)
    home.write("code/trial.py", TRIAL)
    config |= {
        "searchSpace": {name: {"_type": "randint", "_value": [0, 1000]} for name in ("x", "y")},
        "trialCommand": f"OMP_NUM_THREADS=1 {python} trial.py", "trialCodeDirectory": "code",
        "maxTrialNumber": NUM_TRIALS,
    }  # fmt: skip
    config["trainingService"]["machineList"][0] |= {
        "host": "127.0.0.1", "port": server.port, "user": USER, "sshKeyFile": str(key),
        "pythonPath": str(python.parent),
    }  # fmt: skip
    return home.write("config.yml", json.dumps(config)), config


def peers(home: Home, server: Server) -> set[tuple[bool, str, int]]:
    """(on the worker, address, port) of what the experiment's processes are connected to just now."""
    found = set()
    for process in home.processes():
        try:
            on_worker = process.environ().get("HOME") == str(server.worker)
            connections = process.net_connections("inet")
        except psutil.Error:
            continue
        found |= {(on_worker, one.raddr.ip, one.raddr.port) for one in connections if one.raddr}
    return found


@pytest.fixture(scope="module")
def story(home: Home, server: Server) -> Story:
    path, config = configuration(home, server, server.key)
    port = free_port()
    home.nnictl("create", "--config", str(path), "--port", str(port))
    addresses, seen = listening(port), set()
    limit = time.monotonic() + 180
    while ask(port, "check-status")["status"] != "DONE":
        assert time.monotonic() < limit, [(trial.number, trial.status) for trial in trials(port)]
        seen |= peers(home, server)
    found = trials(port)
    assert found == succeeded(port)
    folders = len(list(server.worker.glob("nni-experiments/*/environments/*/trials/*/")))
    home.nnictl("stop", "--all")
    return Story(config, port, found, addresses, seen, folders, home.processes())


def test_four_of_four_trials_succeed_and_list_the_parameters_that_they_ran(story: Story) -> None:
    assert [trial.status for trial in story.trials] == ["SUCCEEDED"] * NUM_TRIALS
    assert all(trial.reproduces for trial in story.trials)
    assert story.config["trialConcurrency"] == 2


def test_they_ran_on_the_worker(story: Story) -> None:
    assert story.worker_folders == NUM_TRIALS


def test_all_connections_stay_on_this_machine_and_workers_come_back_through_ssh(story: Story) -> None:
    assert story.listening == {"0100007F"}
    assert {address for _, address, _ in story.peers} <= LOOPBACK
    from_worker = {port for on_worker, _, port in story.peers if on_worker}
    assert from_worker
    assert story.port not in from_worker


def test_stop_leaves_no_process_on_either_side(story: Story) -> None:
    assert story.left_after_stop == []


def test_a_wrong_key_ends_in_one_line(home: Home, server: Server) -> None:
    path, _ = configuration(home, server, server.other_key)
    line = refused(home, path)
    assert f"cannot log in to {USER}@127.0.0.1, port {server.port}, by ssh: All configured authentication" in line
