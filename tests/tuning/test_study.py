"""Studies over real runs: what a trial builds, what it reports, and what workers share."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from elm_nni.errors import UserError
from elm_nni.pipeline.runner import Run
from elm_nni.pipeline.store import StageStore
from elm_nni.tuning.estimate import estimate
from elm_nni.tuning.study import BUILT, REASON, TuningStudy
from elm_nni.tuning.tune_file import load_tuning

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")]

ETA_TOPK = {
    "prune.eta": {"type": "categorical", "choices": [0.3, 0.999]},
    "growth.top_k": {"type": "categorical", "choices": [1, 3]},
}
TuningFile = Callable[..., Path]


def study_of(file: Path, folder: Path, **options: object) -> TuningStudy:
    return TuningStudy(load_tuning(file), folder / "study", StageStore(folder / "store"), **options)


def test_a_trial_builds_only_what_its_keys_touch(tuning_file: TuningFile, tmp_path: Path) -> None:
    lines: list[str] = []
    study = study_of(tuning_file(space=ETA_TOPK, sampler="grid"), tmp_path, announce=lines.append)
    study.run()
    trials = study.study.trials
    assert Counter((trial.params["prune.eta"], trial.params["growth.top_k"]) for trial in trials) == Counter(
        [(0.3, 1), (0.3, 3), (0.999, 1), (0.999, 3)]
    )
    seen: set[int] = set()
    for trial in trials:
        first = trial.params["growth.top_k"] not in seen
        seen.add(trial.params["growth.top_k"])
        assert ("supernet" in trial.user_attrs[BUILT]) == first
        assert "prune" in trial.user_attrs[BUILT]
        assert trial.values == [trial.user_attrs["validation"]]
        assert not (tmp_path / "study" / "trials" / str(trial.number) / "results.json").exists()
    built = Counter(name for name, _, _, done in StageStore(tmp_path / "store").entries() if done)
    assert (built["teacher"], built["supernet"], built["search"], built["prune"]) == (1, 2, 2, 4)
    assert len(lines) == 4
    assert "prune.eta" in lines[0]
    (best,) = study.best()
    assert best.value == max(trial.value for trial in trials)

    again = study_of(tuning_file(space=ETA_TOPK, sampler="grid"), tmp_path)
    again.run()
    assert len(again.study.trials) == 4
    plan = estimate(load_tuning(tuning_file(space=ETA_TOPK)), StageStore(tmp_path / "store"))
    assert plan[1].split()[:2] == ["supernet", "2"] or plan[0].split()[:2] == ["supernet", "2"]
    assert plan[-1].endswith("h for 4 trials, one after the other")


def test_several_objectives_give_a_front_that_keeps_the_constraints(tuning_file: TuningFile, tmp_path: Path) -> None:
    file = tuning_file(
        space={"prune.eta": {"type": "categorical", "choices": [0.3, 0.7, 0.999]}}, trials=3, sampler="grid",
        objectives={"validation": "maximize", "params": "minimize"}, constraints={"params": 1e9, "latency_ms": 1e9},
    )  # fmt: skip
    study = study_of(file, tmp_path)
    study.run()
    values = [trial.values for trial in study.study.trials]
    front = {tuple(trial.values) for trial in study.best()}
    assert front == {
        (quality, size)
        for quality, size in values
        if not any(q >= quality and s <= size and (q, s) != (quality, size) for q, s in values)
    }
    assert all(trial.constraints["params"] == trial.values[1] - 1e9 for trial in study.study.trials)

    tight = study_of(tuning_file(constraints={"params": 1.0}, name="tight", trials=2, sampler="grid"), tmp_path)
    tight.run()
    assert len(tight.study.trials) == 2
    assert tight.best() == []


def test_a_pruned_trial_stops_early_and_a_mistake_fails_with_its_reason(
    tuning_file: TuningFile, tmp_path: Path
) -> None:
    file = tuning_file(
        space={"limits.max_params": {"type": "categorical", "choices": [100.0, 60000.0]}}, sampler="grid", trials=7,
        pruner="median",
    )  # fmt: skip
    study = study_of(file, tmp_path)
    # a study that knows of better trials
    study.study.add_trials(
        [create_trial(value=1.0, intermediate_values=dict.fromkeys(range(7), 1.0)) for _ in range(5)]
    )
    study.run()
    states = Counter(trial.state for trial in study.study.trials)
    assert states == {TrialState.COMPLETE: 5, TrialState.PRUNED: 1, TrialState.FAIL: 1}
    (failed,) = [trial for trial in study.study.trials if trial.state == TrialState.FAIL]
    assert "limits.max_params: 100 is not allowed; the smallest architecture has" in failed.user_attrs[REASON]
    (pruned,) = [trial for trial in study.study.trials if trial.state == TrialState.PRUNED]
    # the first report is a warm-up; the second is below the median, and nothing after it is built
    assert list(pruned.intermediate_values) == [0, 1]
    assert "supernet_tasks" not in pruned.user_attrs[BUILT]


def test_a_proxy_is_a_study_of_its_own(tuning_file: TuningFile, tmp_path: Path) -> None:
    file = tuning_file(trials=1, proxy={"retrain.init": "inherit", "retrain.pretrain.steps": 1})
    cheap = study_of(file, tmp_path, proxy=True)
    cheap.run()
    assert cheap.study.study_name == "small-proxy"
    assert "retrain pretrain" in cheap.study.trials[0].user_attrs[BUILT]
    full = study_of(file, tmp_path)
    assert full.study.trials == []
    with pytest.raises(UserError, match="proxy: the file has none"):
        study_of(tuning_file(), tmp_path, proxy=True)
    with pytest.raises(UserError, match="objectives: study small"):
        study_of(tuning_file(objectives={"params": "minimize"}), tmp_path)
    with pytest.raises(UserError, match="sampler is 'annealing'"):
        study_of(tuning_file(sampler="annealing", name="other"), tmp_path)


def test_a_worker_whose_trial_was_taken_over_goes_on_with_the_next(
    tuning_file: TuningFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    study = study_of(tuning_file(trials=2, sampler="random"), tmp_path, announce=lines.append)
    other = optuna.load_study(study_name="small", storage=study.url)
    validate = Run.validate

    def stand_still(run: Run) -> dict[str, float]:
        if len(other.trials) == 1:
            other.tell(0, state=TrialState.FAIL)
        return validate(run)

    monkeypatch.setattr(Run, "validate", stand_still)
    study.run()
    found = [trial.state for trial in study.study.trials]
    assert found[0] == TrialState.FAIL
    assert found.count(TrialState.COMPLETE) == 2
    assert "another one took its trial over" in lines[0]


def worker(file: Path, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "elm_nni.cli", "tune", str(file), "--dir", "study", "--store", "store"]
    return subprocess.Popen(
        command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def states(database: str) -> list[TrialState]:
    try:
        return [trial.state for trial in optuna.load_study(study_name="small", storage=database).trials]
    except (KeyError, SQLAlchemyError):
        # not made yet
        return []


def test_two_workers_share_a_study_and_its_stages_and_one_that_dies_loses_nothing(
    tuning_file: TuningFile, tmp_path: Path
) -> None:
    file = tuning_file(space=ETA_TOPK, sampler="random", trials=5)
    first, second = worker(file, tmp_path), worker(file, tmp_path)
    database = f"sqlite:///{tmp_path / 'study' / 'study.db'}"
    limit = time.monotonic() + 120
    while time.monotonic() < limit:
        time.sleep(0.5)
        if TrialState.COMPLETE in states(database):
            break
    first.send_signal(signal.SIGKILL)
    first.communicate()
    output, errors = second.communicate(timeout=240)
    assert second.returncode == 0, errors[-2000:]
    assert "best: trial" in output
    assert f"optuna-dashboard {database}" in output
    trials = optuna.load_study(study_name="small", storage=database).get_trials()
    assert sum(trial.state == TrialState.COMPLETE for trial in trials) >= 5
    built = Counter(name for name, _, _, done in StageStore(tmp_path / "store").entries() if done)
    assert built["teacher"] == 1
    assert built["supernet"] == len({trial.params["growth.top_k"] for trial in trials if trial.params})
