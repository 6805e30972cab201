"""A wrong configuration ends in one line within 30 seconds, and nothing keeps running."""

import os
import socket
import subprocess
import time

import pytest

from elm_nni.compat.known_files import package_folder
from elm_nni.compat.nnictl import check_config, split_listen
from elm_nni.errors import UserError

from .conftest import Home, free_port


def refused(home: Home, config) -> str:
    """The one line with which create refuses a configuration."""
    start = time.monotonic()
    done = home.elm_nni("nnictl", "create", "--config", str(config), "--port", str(free_port()))
    # the promise is for a machine that has time for it
    assert time.monotonic() - start < 30 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("elm-nni: ")
    assert home.processes() == []
    return lines[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuner": {"name": "Randomm"}}, "tuner 'Randomm' is not known; known: Anneal, "),
        ({"assessor": {"name": "Curve"}}, "assessor 'Curve' is not known; known: Curvefitting, Medianstop"),
        ({"maxTrialNumbr": 3}, "unknown key 'maxTrialNumbr'; did you mean 'maxTrialNumber'?"),
        ({"trialConcurrency": "many"}, "type of trial_concurrency ('many') is not"),
        ({"searchSpace": None}, "search_space and search_space_file must be set one"),
    ],
)
def test_keys_and_values_are_checked_before_anything_starts(home, changes, message):
    with pytest.raises(UserError) as caught:
        check_config(home.config(**changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_right_configuration_passes(home):
    check_config(home.config())


def test_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match="file .*missing.yml does not exist"):
        check_config(tmp_path / "missing.yml")
    (tmp_path / "latin.yml").write_bytes("name: caf\xe9".encode("latin-1"))
    with pytest.raises(UserError, match="latin.yml is not UTF-8: byte 0xe9 at offset 9"):
        check_config(tmp_path / "latin.yml")
    (tmp_path / "list.yml").write_text("- 1\n")
    with pytest.raises(UserError, match="expected keys and values at the top level, got list"):
        check_config(tmp_path / "list.yml")
    (tmp_path / "broken.yml").write_text("a: [1\n")
    with pytest.raises(UserError, match="cannot read .*broken.yml: while parsing"):
        check_config(tmp_path / "broken.yml")
    (tmp_path / "empty.yml").write_text("# nothing yet\n")
    with pytest.raises(UserError, match="empty.yml: .*") as caught:
        check_config(tmp_path / "empty.yml")
    assert "\n" not in str(caught.value)


def test_only_listen_is_taken_from_the_arguments():
    assert split_listen(["create", "-c", "x.yml", "--listen", "0.0.0.0", "-p", "1"]) == (
        "0.0.0.0", ["create", "-c", "x.yml", "-p", "1"],
    )  # fmt: skip
    assert split_listen(["resume", "abc", "--listen=0.0.0.0"]) == ("0.0.0.0", ["resume", "abc"])
    assert split_listen(["--help"]) == ("127.0.0.1", ["--help"])
    with pytest.raises(UserError, match="--listen needs an address"):
        split_listen(["create", "--listen"])
    with pytest.raises(UserError, match="--listen belongs to create, resume, view, not to stop"):
        split_listen(["stop", "--listen", "0.0.0.0"])


@pytest.mark.slow
def test_an_unknown_argument_of_the_tuner(home):
    line = refused(home, home.config(tuner={"name": "TPE", "classArgs": {"optimise_mode": "maximize"}}))
    assert "TypeError: TpeTuner.__init__() got an unexpected keyword argument 'optimise_mode'" in line


@pytest.mark.slow
def test_a_trial_that_cannot_import(home):
    home.write("broken_trial.py", "import package_that_is_not_there\n")
    line = refused(home, home.config(trialCommand="python3 broken_trial.py"))
    assert "ModuleNotFoundError: No module named 'package_that_is_not_there'" in line
    assert "trial.stderr" in line


@pytest.mark.slow
def test_a_busy_port(home):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        done = home.elm_nni("nnictl", "create", "--config", str(home.config()), "--port", str(port))
    assert done.returncode == 2
    assert f"elm-nni: port {port} is in use; " in done.stderr
    assert "is free: --port " in done.stderr


# accepts no key; from ssh2, which the manager itself uses
_SSH_SERVER = """
const { Server, utils } = require('ssh2');
const server = new Server({ hostKeys: [utils.generateKeyPairSync('ed25519').private] }, (client) => {
    client.on('authentication', (context) => { context.reject(['publickey']); });
    client.on('error', () => { });
});
server.listen(0, '127.0.0.1', () => { console.log(server.address().port); });
"""


@pytest.mark.slow
def test_a_wrong_ssh_key(home):
    node = package_folder("nni_node")
    server = subprocess.Popen([node / "node", "-e", _SSH_SERVER], cwd=node, stdout=subprocess.PIPE, text=True)
    try:
        port = int(server.stdout.readline())
        key = home.path / "key"
        make_key = "process.stdout.write(require('ssh2').utils.generateKeyPairSync('ed25519').private)"
        key.write_text(subprocess.run([node / "node", "-e", make_key], cwd=node, capture_output=True, text=True).stdout)
        machine = {"host": "127.0.0.1", "port": port, "user": "someone", "sshKeyFile": str(key)}
        service = {"platform": "remote", "machineList": [machine]}
        line = refused(home, home.config(trainingService=service, nniManagerIp="127.0.0.1"))
    finally:
        server.kill()
        server.wait()
    assert f"cannot log in to someone@127.0.0.1, port {port}, by ssh: All configured authentication" in line
