"""``elm-nni tune`` in several processes: on a PostgreSQL server, killed, started together, and without a database."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from elm_nni import cli
from elm_nni.pipeline.store import StageStore
from elm_nni.strategies import study_storage
from elm_nni.tuning.study import ARCHITECTURE, BUILT

from ..postgresql import PASSWORD, Server

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")]

# what is trained after the search is not looked at
SHORT = {f"retrain.{step}.{key}": 2 for step in ("pretrain", "finetune") for key in ("steps", "checkpoint_every")}
TRIALS = 160 if os.environ.get("ELM_NNI_LONG_STUDIES") == "1" else 40
GRACE = 6
TuningFile = Callable[..., Path]
Start = Callable[[Path, str], subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a worker of a tuning file with a folder of its own, so that a trial's folder tells whose it is."""
    with ExitStack() as stack:

        def one(file: Path, folder: str) -> subprocess.Popen[str]:
            command = [sys.executable, "-m", "elm_nni.cli", "tune", str(file), "--dir", folder, "--store", "store"]
            process = subprocess.Popen(
                command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            stack.callback(process.kill)
            return process

        yield one


def trials_of(url: str) -> list[FrozenTrial]:
    try:
        return optuna.load_study(study_name="small", storage=url).trials
    except (KeyError, SQLAlchemyError, StorageInternalError):
        # not made yet
        return []


def kill_in_a_trial(process: subprocess.Popen[str], folder: Path, url: str, seconds: float = 120.0) -> FrozenTrial:
    """SIGKILL while the worker builds a stage; returns the trial that it was at."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit and process.poll() is None:
        time.sleep(0.1)
        if not list(folder.glob("trials/*/state.json")):
            continue
        # it stands still, so that what the database says stays true
        process.send_signal(signal.SIGSTOP)
        for trial in trials_of(url):
            if trial.state == TrialState.RUNNING and (folder / "trials" / str(trial.number) / "log.jsonl").exists():
                process.kill()
                process.communicate()
                return trial
        process.send_signal(signal.SIGCONT)
    raise AssertionError(f"no trial of this worker was seen to run; exit status {process.poll()}")


def finish(process: subprocess.Popen[str], seconds: float = 600.0) -> str:
    output, errors = process.communicate(timeout=seconds)
    assert process.returncode == 0, errors[-3000:]
    return output


def built_stages(folder: Path) -> dict[str, tuple[str, str]]:
    """Label to (stage, digest) of what a trial built itself, by its run directory."""
    stages = json.loads((folder / "state.json").read_text())["stages"] if (folder / "state.json").exists() else {}
    return {
        label: (Path(stage["folder"]).parent.name, stage["digest"])
        for label, stage in stages.items()
        if not stage["cached"]
    }


def finished_stages(store: Path) -> list[tuple[str, str]]:
    """(stage, digest) of all but the precision, which the estimate chooses before the first trial."""
    entries = StageStore(store).entries()
    return [(name, folder.name) for name, folder, _, done in entries if done and name != "precision"]


def test_two_workers_share_a_study_and_one_is_killed(
    postgresql_url: str, tuning_file: TuningFile, tmp_path: Path, start: Start
) -> None:
    space = {"prune.eta": [0.3, 0.999], "growth.top_k": [1, 3]}
    file = tuning_file(
        space={key: {"type": "categorical", "choices": values} for key, values in space.items()}, sampler="random",
        trials=TRIALS, storage=postgresql_url, grace=GRACE, overrides=SHORT,
    )  # fmt: skip
    first, second = start(file, "first"), start(file, "second")
    killed = kill_in_a_trial(first, tmp_path / "first", postgresql_url)
    assert len(killed.params) == 2
    # the other one stands still until the dead one's time is over, however fast it is
    second.send_signal(signal.SIGSTOP)
    time.sleep(GRACE + 0.5)
    second.send_signal(signal.SIGCONT)
    third = start(file, "third")
    outputs = [finish(second), finish(third)]
    assert all("best: trial" in output and PASSWORD not in output for output in outputs)

    trials = trials_of(postgresql_url)
    states = Counter(trial.state for trial in trials)
    assert states[TrialState.FAIL] == 1
    # the last two may end together
    assert states[TrialState.COMPLETE] in (TRIALS, TRIALS + 1)
    assert len(trials) == states.total() == states[TrialState.COMPLETE] + 1
    assert trials[killed.number].state == TrialState.FAIL
    (again,) = [trial for trial in trials if trial.system_attrs.get("retry_history")]
    assert (again.state, again.system_attrs["retry_history"]) == (TrialState.COMPLETE, [killed.number])
    assert again.params == killed.params == trials[killed.number].params

    results = defaultdict(set)
    for trial in trials:
        if trial.state == TrialState.COMPLETE:
            assert trial.values == [trial.user_attrs["validation"]]
            results[tuple(trial.params.items())].add((trial.value, json.dumps(trial.user_attrs[ARCHITECTURE])))
    assert {frozenset(params) for params in results} == {
        frozenset([("prune.eta", eta), ("growth.top_k", top_k)]) for eta in (0.3, 0.999) for top_k in (1, 3)
    }
    assert all(len(found) == 1 for found in results.values()), "equal keys give equal results on any worker"

    folders = {int(folder.name): folder for folder in tmp_path.glob("*/trials/*")}
    assert sorted(folders) == [trial.number for trial in trials]
    built = Counter(stage for folder in folders.values() for stage in built_stages(folder).values())
    assert set(built.values()) == {1}, "no stage is built twice"
    for trial in trials:
        if trial.number != killed.number:
            assert trial.user_attrs[BUILT] == list(built_stages(folders[trial.number]))
    stored = finished_stages(tmp_path / "store")
    # what ended as its worker was killed was not noted
    assert len(set(stored) - built.keys()) <= 1
    assert Counter(name for name, _ in stored)["supernet"] == 2


def test_four_workers_that_start_together_train_one_supernet(
    tuning_file: TuningFile, tmp_path: Path, start: Start
) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    file = tuning_file(
        space={"prune.eta": {"type": "float", "low": 0.1, "high": 0.9}}, sampler="random", trials=4, storage=url,
        overrides={"supernet.pretrain.steps": 40, **SHORT},
    )  # fmt: skip
    names = ["a", "b", "c", "d"]
    for process in [start(file, name) for name in names]:
        finish(process)
    trials = trials_of(url)
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert 4 <= len(trials) <= 7
    assert {folder.parents[1].name for folder in tmp_path.glob("*/trials/*")} == set(names)
    assert len({trial.params["prune.eta"] for trial in trials}) == len(trials), "each worker draws for itself"
    assert Counter(label for trial in trials for label in trial.user_attrs[BUILT])["supernet"] == 1
    stored = Counter(name for name, _ in finished_stages(tmp_path / "store"))
    assert (stored["teacher"], stored["supernet"], stored["supernet_tasks"], stored["search"]) == (1, 1, 1, 1)
    assert stored["prune"] == len(trials)


@pytest.fixture
def refusal(
    tuning_file: TuningFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], str]:
    """The one line of errors of ``elm-nni tune`` on a storage."""

    def run(storage: str) -> str:
        arguments = ["tune", str(tuning_file(storage=storage)), "--dir", "study", "--store", str(tmp_path / "store")]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["elm-nni", *arguments])
        started = time.monotonic()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert time.monotonic() - started < 30
        shown = capsys.readouterr()
        lines = shown.err.splitlines()
        assert (stop.value.code, len(lines)) == (2, 1), shown.err
        assert PASSWORD not in shown.out + shown.err
        return lines[0]

    return run


def test_a_database_that_cannot_be_opened_is_said_in_one_line(
    postgresql: Server, refusal: Callable[[str], str]
) -> None:
    port = f":{postgresql.port}/"
    shown = f"'postgresql+psycopg://searcher@127.0.0.1{port}postgres' cannot be opened: "
    line = refusal(postgresql.url(password="x" + PASSWORD))
    assert shown in line
    assert "password authentication failed" in line
    assert 'database "nothing" does not exist' in refusal(postgresql.url("nothing"))
    with socket.socket() as closed:
        # bound, and nobody listens
        closed.bind(("127.0.0.1", 0))
        line = refusal(postgresql.url().replace(port, f":{closed.getsockname()[1]}/"))
    assert "onnection refused" in line


HOLD = """
import sqlite3, sys, time
sqlite3.connect(sys.argv[1]).execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
time.sleep(300)
"""


def test_a_locked_file_is_said_in_one_line(
    tmp_path: Path, refusal: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # half a minute as it is shipped
    assert study_storage._LOCK_SECONDS <= 30
    monkeypatch.setattr(study_storage, "_LOCK_SECONDS", 2)
    command = [sys.executable, "-c", HOLD, str(tmp_path / "study.db")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "locked\n"
            assert "database is locked" in refusal(f"sqlite:///{tmp_path / 'study.db'}")
        finally:
            holder.kill()
