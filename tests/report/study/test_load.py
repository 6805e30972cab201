"""A study is read as it stands in its database, and nothing is written there."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from elm_nni.errors import UserError
from elm_nni.report.study.load import StudyData, load_study

from ..conftest import read_json, write_json
from .studies import (
    ETA_SPACE,
    ETAS,
    MODES,
    TRAINED,
    eta_quality,
    eta_trial,
    heads_left,
    trial_of,
    write_eta_study,
    write_many_study,
    write_pruned_study,
    write_study,
)


@pytest.fixture(scope="module")
def eta_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_eta_study(tmp_path_factory.mktemp("eta"))


@pytest.fixture(scope="module")
def eta(eta_folder: Path) -> StudyData:
    return load_study(eta_folder)


def optuna_study(folder: Path, name: str) -> optuna.Study:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder / 'study.db'}")


def test_trials_hold_what_was_measured(eta: StudyData) -> None:
    assert [trial.state for trial in eta.trials] == ["complete"] * 9 + ["running"]
    for trial, (rate, mode) in zip(eta.trials, [(rate, mode) for rate in ETAS for mode in MODES]):
        heads = heads_left(rate, mode)
        assert dict(trial.params) == {"prune.eta": rate, "prune.mode": mode}
        # a layer without a label has all twelve; labels of candidates that were not chosen do not count
        assert trial.heads == tuple(heads)
        assert trial.values["validation"] == eta_quality(rate, mode)
        assert trial.values["params"] == 4_000_000 + 10_000 * sum(heads)
        assert list(trial.values) == ["validation", "polarity", "params", "params_outside_embeddings", "latency_ms"]
        assert trial.seconds == 100 + 10 * trial.number
        assert trial.built == ("prune", *TRAINED)
    assert eta.trials[9].seconds is None
    assert eta.proxy_trials is not None
    assert [trial.seconds for trial in eta.proxy_trials] == [11, 12, 13, 14, 15]
    assert any(12 in heads_left(rate, mode)[1:] for rate in ETAS for mode in MODES)


def test_the_front_is_that_of_optuna(tmp_path: Path) -> None:
    study = load_study(write_many_study(tmp_path))
    expected = {trial.number for trial in optuna_study(tmp_path, "many").best_trials}
    assert {trial.number for trial in study.front} == expected
    qualities = [trial.values["validation"] for trial in study.front]
    assert qualities == sorted(qualities, reverse=True)
    assert 1 < len(expected) < len(study.complete)
    assert {trial.number: trial.reason for trial in study.trials if trial.state == "failed"} == {
        5: "limits.params: 5 is too low", 18: "limits.params: 18 is too low", 26: None}


@pytest.mark.parametrize("write", [write_eta_study, write_pruned_study])
def test_the_best_trial_is_that_of_optuna(write: Any, tmp_path: Path) -> None:
    study = load_study(write(tmp_path))
    assert study.front[0].number == optuna_study(tmp_path, study.name).best_trial.number


def test_limits_of_the_file_and_of_the_trial_both_count(tmp_path: Path) -> None:
    trials = [eta_trial(0.9, "fuse", 0.7), eta_trial(0.7, "fuse", 0.6)]
    over = trial_of({"prune.eta": 0.8, "prune.mode": "fuse"}, ETA_SPACE, [0.9], limits={"latency_ms": 0.1})
    kept = trial_of({"prune.eta": 0.8, "prune.mode": "fuse"}, ETA_SPACE, [0.5], limits={"latency_ms": 0.0})
    limit = (trials[0].user_attrs["params"] + trials[1].user_attrs["params"]) / 2
    study = load_study(write_study(tmp_path, "x", {"validation": "maximize"}, [*trials, over, kept], None,
                                   {"params": limit}))
    assert [trial.broken for trial in study.trials] == [("params",), (), ("latency_ms",), ()]
    assert [trial.number for trial in study.front] == [1]


def test_numbers_that_are_not_finite_do_not_count(tmp_path: Path) -> None:
    trials = [
        trial_of({}, {}, [math.inf], measured={"params": 5}),
        trial_of({}, {}, [0.5], measured={"params": math.nan, "latency_ms": math.inf, "flag": True, "note": "x"}),
    ]  # fmt: skip
    study = load_study(write_study(tmp_path, "x", {"validation": "maximize"}, trials))
    assert [trial.number for trial in study.complete] == [1]
    assert dict(study.trials[1].values) == {"validation": 0.5}
    assert study.trials[1].heads == ()


def test_pruned_trials(tmp_path: Path) -> None:
    pruned = load_study(write_pruned_study(tmp_path))
    assert [trial.number for trial in pruned.trials if trial.state == "pruned"] == [3, 7, 11]
    assert [len(trial.reports) for trial in pruned.trials] == [3 if n % 4 == 3 else 8 for n in range(12)]


def test_reading_changes_nothing(eta_folder: Path) -> None:
    before = {path: path.read_bytes() for path in eta_folder.iterdir()}
    load_study(eta_folder)
    assert {path: path.read_bytes() for path in eta_folder.iterdir()} == before


def test_a_folder_that_was_moved(eta_folder: Path, tmp_path: Path) -> None:
    for name in ("study.db", "study.json"):
        (tmp_path / name).write_bytes((eta_folder / name).read_bytes())
    write_json(tmp_path / "study.json", read_json(tmp_path / "study.json") | {"storage": "sqlite:////gone/study.db"})
    assert len(load_study(tmp_path).trials) == 10


def test_cheap_trials_before_full_ones(tmp_path: Path) -> None:
    write_study(tmp_path, "x", {"validation": "maximize"}, [], [eta_trial(0.9, "fuse", 0.5)])
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    optuna.delete_study(study_name="x", storage=storage)
    study = load_study(tmp_path)
    assert (study.trials, len(study.proxy_trials or ())) == ((), 1)
    write_json(tmp_path / "study.json", read_json(tmp_path / "study.json") | {"proxy": "y"})
    with pytest.raises(UserError, match="has no study 'x'; it has: x-proxy"):
        load_study(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"storage": "nonsense"}, "'storage' is no database URL"),
        ({"storage": 3}, "'storage' is 3; it must be a string"),
        ({"storage": "sqlite:////gone/other.db"}, "'sqlite:////gone/other.db' cannot be read: there is no such file"),
        ({"storage": "nosuchthing://me:secret@127.0.0.1/x"}, "'nosuchthing://me:***@127.0.0.1/x' cannot be read"),
        ({"storage": "postgresql+psycopg://me:secret@127.0.0.1:1/x"}, "me:***@127.0.0.1:1/x' cannot be read"),
        ({"study": "etta", "proxy": None}, "has no study 'etta'; it has: eta, eta-proxy"),
        ({"objectives": {}}, "'objectives' is {}; it must be at least one"),
        ({"objectives": {"validation": "up"}}, "'validation' is 'up'; it must be maximize or minimize"),
        ({"objectives": {"validation": "minimize"}}, "has the directions ['maximize'], study.json ['minimize']"),
        ({"constraints": {"params": "many"}}, "'params' is 'many'; it must be a number"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    eta_folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_json(tmp_path / "study.json", read_json(eta_folder / "study.json") | changes)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_study(tmp_path)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["study.json"]


def test_no_study(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_study(tmp_path / "gone")
    with pytest.raises(UserError, match="holds no study.json"):
        load_study(tmp_path)
    (tmp_path / "empty.db").touch()
    write_json(tmp_path / "study.json", {
        "storage": f"sqlite:///{tmp_path / 'empty.db'}", "study": "x", "objectives": {"validation": "maximize"},
        "constraints": {}})
    with pytest.raises(UserError, match="cannot be read: it holds no studies of Optuna"):
        load_study(tmp_path)
    assert (tmp_path / "empty.db").stat().st_size == 0


def test_a_study_that_has_no_trial(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path, "x", {"validation": "maximize"}, []))
    assert (study.trials, study.front, study.proxy_trials) == ((), [], None)
    assert study.costs([]).shape == (0, 1)


def test_states(tmp_path: Path) -> None:
    trials = [trial_of({}, {}, state=state) for state in (TrialState.WAITING, TrialState.RUNNING, TrialState.FAIL)]
    study = load_study(write_study(tmp_path, "x", {"validation": "maximize"}, trials))
    assert [trial.state for trial in study.trials] == ["waiting", "running", "failed"]
