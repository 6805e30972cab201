"""What is read from a manager's database, and what is written into it."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from nni.tools.nnictl.config_utils import Experiments

from elm_nni.compat import nas_manager
from elm_nni.compat.nas_manager import has_database, resume_hint, settle_lost_trials, wait_for_end
from elm_nni.errors import UserError

TABLES = """
create table TrialJobEvent (timestamp integer, trialJobId text, event text, data text, logPath text,
    sequenceId integer, message text, environmentId text);
create table MetricData (timestamp integer, trialJobId text, parameterId text, type text, sequence integer, data text);
create table ExperimentProfile (params text, id text, revision integer);
"""


def database(path: Path, *events: tuple[int, str, str]) -> Path:
    with closing(sqlite3.connect(path)) as made, made:
        made.executescript(TABLES)
        made.executemany("insert into TrialJobEvent (timestamp, trialJobId, event) values (?, ?, ?)", events)
    return path


def events(path: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(path)) as made:
        return made.execute("select trialJobId, event from TrialJobEvent order by rowid").fetchall()


def test_trials_that_ended_with_their_manager_are_settled_once(tmp_path: Path) -> None:
    before = [(1, "a", "WAITING"), (2, "a", "RUNNING"), (3, "b", "WAITING"), (4, "c", "RUNNING"), (4, "c", "FAILED")]
    path = database(tmp_path / "nni.sqlite", *before, (5, "d", "RUNNING"))
    with closing(sqlite3.connect(path)) as made, made:
        for trial, kind in (("a", "PERIODICAL"), ("c", "FINAL"), ("d", "PERIODICAL"), ("d", "FINAL")):
            made.execute("insert into MetricData (trialJobId, type) values (?, ?)", (trial, kind))
    for _ in range(2):
        settle_lost_trials(path)
        assert events(path)[6:] == [("a", "SYS_CANCELED"), ("b", "SYS_CANCELED"), ("d", "SUCCEEDED")]


def test_only_a_stored_experiment_can_be_resumed(tmp_path: Path) -> None:
    path = tmp_path / "nni.sqlite"
    assert not has_database(path, "abc")
    path.touch()
    assert not has_database(path, "abc")
    database(path)
    assert not has_database(path, "abc")
    with closing(sqlite3.connect(path)) as made, made:
        made.execute("insert into ExperimentProfile values ('{}', 'abc', 1)")
    assert has_database(path, "abc")
    path.write_bytes(b"no database at all, and long enough to be looked at" * 100)
    with pytest.raises(UserError, match=r"nni.sqlite is damaged"):
        has_database(path, "abc")


def test_a_manager_that_goes_on_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Experiments.__init__, "__defaults__", (str(tmp_path),))
    monkeypatch.setattr(nas_manager, "_END_SECONDS", 0.3)
    wait_for_end("abc")
    # this process, which has the name of the experiment among its arguments
    argument = Path("/proc/self/cmdline").read_text().split("\0")[1]
    Experiments().add_experiment(argument, 8080, 0, "local", "", pid=os.getpid())
    with pytest.raises(UserError, match=r"is still running on port 8080: elm-nni nnictl stop"):
        wait_for_end(argument)
    # another process that has got the number
    Experiments().add_experiment("other", 8080, 0, "local", "", pid=os.getpid())
    wait_for_end("other")


def test_the_hint_is_for_the_class_that_ran(tmp_path: Path) -> None:
    assert "cannot be resumed" in resume_hint(tmp_path, "abc")
    (tmp_path / "experiment.json").write_text("{}")
    assert resume_hint(tmp_path, "abc").startswith("run the script of experiment abc again")
