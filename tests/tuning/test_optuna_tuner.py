"""The tuner as NNI's dispatcher calls it: results, failures, resumes and imports."""

import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from nni import NoMoreTrialError
from optuna.trial import TrialState

from elm_nni.tuning import optuna_tuner
from elm_nni.tuning.optuna_tuner import PARAMETERS, OptunaTuner, trials_of

SPACE = {
    "eta": {"_type": "uniform", "_value": [0.5, 1.0]},
    "block": {
        "_type": "choice",
        "_value": [{"_name": "bert"}, {"_name": "mobile", "bottleneck": {"_type": "choice", "_value": [8, 16]}}],
    },
}  # fmt: skip
FINITE = {"a": {"_type": "choice", "_value": ["x", "y"]}, "b": {"_type": "randint", "_value": [0, 3]}}


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


def tuner(storage: str, space: dict[str, Any] = SPACE, **arguments: Any) -> OptunaTuner:
    made = OptunaTuner(storage=storage, **{"seed": 0, **arguments})
    made.update_search_space(space)
    return made


def states(storage: str) -> list[TrialState]:
    return [trial.state for trial in trials_of(storage)]


def test_results_reach_the_study_with_their_parameters(storage: str) -> None:
    one = tuner(storage)
    given = {number: one.generate_parameters(number) for number in range(4)}
    # results come in another order than the parameters went out
    for number in (2, 0, 3, 1):
        one.receive_trial_result(number, given[number], {"default": number / 10, "params": 5000 + number})
        one.trial_end(number, True)
    trials = trials_of(storage)
    assert [trial.value for trial in trials] == [0.0, 0.1, 0.2, 0.3]
    assert [trial.user_attrs["params"] for trial in trials] == [5000, 5001, 5002, 5003]
    for number, trial in enumerate(trials):
        assert trial.params["eta"] == given[number]["eta"]
        assert trial.params["block"] == given[number]["block"]["_name"]
        assert trial.params.get("block/mobile/bottleneck") == given[number]["block"].get("bottleneck")


def test_what_failed_or_reported_no_number_is_a_failed_trial(storage: str) -> None:
    one = tuner(storage)
    for number in range(5):
        one.generate_parameters(number)
    one.trial_end(0, False)
    for number, value in ((1, math.nan), (2, {"loss": 1.0}), (3, "high")):
        one.receive_trial_result(number, {}, value)
        one.trial_end(number, True)
    one.receive_trial_result(4, {}, 0.5)
    one.trial_end(4, True)
    # an identifier that was never given out is left out
    one.receive_trial_result(99, {}, 0.5)
    one.trial_end(99, True)
    # as NNI does when the experiment stops
    one._on_exit()
    assert states(storage) == [TrialState.FAIL] * 4 + [TrialState.COMPLETE]


def test_an_end_that_overtakes_the_result_loses_nothing(storage: str) -> None:
    one = tuner(storage)
    given = [one.generate_parameters(number) for number in range(2)]
    for number in range(2):
        one.trial_end(number, True)
    one.receive_trial_result(0, given[0], 0.5)
    one._on_exit()
    assert [(trial.state, trial.value) for trial in trials_of(storage)] == [
        (TrialState.COMPLETE, 0.5), (TrialState.FAIL, None)
    ]  # fmt: skip


def test_a_result_is_waited_for_a_while(storage: str) -> None:
    one = tuner(storage)
    one.late_result_seconds = 3.0
    one.generate_parameters(0)
    one.trial_end(0, False)
    assert states(storage) == [TrialState.RUNNING]
    limit = time.monotonic() + 30
    while states(storage) != [TrialState.FAIL]:
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "cmaes", "qmc", "nsgaii", "nsgaiii", "bruteforce"])
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_every_sampler_tunes(storage: str, sampler: str) -> None:
    space = FINITE if sampler == "bruteforce" else {"x": {"_type": "uniform", "_value": [-1, 1]}, **FINITE}
    pytest.importorskip("cmaes" if sampler == "cmaes" else "torch" if sampler == "gp" else "optuna")
    one = tuner(storage, space, sampler=sampler)
    for number in range(6):
        found = one.generate_parameters(number)
        one.receive_trial_result(number, found, found.get("x", 0.0) + found["b"])
    assert states(storage) == [TrialState.COMPLETE] * 6


@pytest.mark.parametrize("sampler", ["grid", "bruteforce"])
def test_an_exhausted_space_ends_the_experiment(storage: str, sampler: str) -> None:
    one = tuner(storage, FINITE, sampler=sampler)
    seen = []
    for number in range(6):
        seen.append(one.generate_parameters(number))
        one.receive_trial_result(number, seen[-1], 0.0)
    with pytest.raises(NoMoreTrialError, match=f"{sampler} has drawn every"):
        one.generate_parameters(6)
    assert sorted((found["a"], found["b"]) for found in seen) == [(a, b) for a in "xy" for b in range(3)]


def test_tpe_finds_the_maximum_of_a_conditional_space(storage: str) -> None:
    def score(parameters: dict[str, Any]) -> float:
        bonus = {"bert": 0.0, "mobile": parameters["block"].get("bottleneck", 0) / 16}[parameters["block"]["_name"]]
        return bonus - (parameters["eta"] - 0.8) ** 2

    one = tuner(storage)
    found = [one.generate_parameters(number) for number in [0]]
    one.receive_trial_result(0, found[0], score(found[0]))
    for number in range(1, 60):
        found.append(one.generate_parameters(number))
        one.receive_trial_result(number, found[-1], score(found[-1]))
    late = found[40:]
    assert sum(parameters["block"] == {"_name": "mobile", "bottleneck": 16} for parameters in late) > 10
    assert abs(sum(parameters["eta"] for parameters in late) / len(late) - 0.8) < 0.05


def test_minimize_is_the_opposite(storage: str) -> None:
    one = tuner(storage, optimize_mode="minimize")
    for number in range(3):
        one.receive_trial_result(number, one.generate_parameters(number), float(number))
    assert optuna.load_study(study_name="nni", storage=storage).best_value == 0.0


def test_a_resume_goes_on_with_what_was_told_and_adds_nothing_twice(storage: str) -> None:
    first = tuner(storage)
    given = {number: first.generate_parameters(number) for number in range(4)}
    for number in (0, 1):
        first.receive_trial_result(number, given[number], {"default": float(number)})
    # 2 and 3 were running when the experiment was killed; NNI gives identifiers out again from 0
    again = tuner(storage)
    again.load_checkpoint()
    again.import_data([{"parameter": given[number], "value": {"default": float(number)}} for number in (0, 1)])
    assert states(storage) == [TrialState.COMPLETE] * 2 + [TrialState.FAIL] * 2
    # 3 reported after all: NNI hands its result over as data
    again.import_data([{"parameter": given[3], "value": 3.0}])
    fresh = again.generate_parameters(0)
    again.receive_trial_result(0, fresh, 9.0)
    values = [(trial.value, trial.user_attrs[PARAMETERS]) for trial in trials_of(storage) if trial.value is not None]
    assert [value for value, _ in values] == [0.0, 1.0, 3.0, 9.0]
    assert len({parameters for _, parameters in values}) == 4


def test_a_resume_leaves_the_running_trials_of_another_experiment(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def experiment(name: str) -> OptunaTuner:
        stock = optuna_tuner.dispatcher_env_vars
        changed = stock._replace(NNI_CHECKPOINT_DIRECTORY=str(tmp_path / name / "checkpoint"))
        monkeypatch.setattr(optuna_tuner, "dispatcher_env_vars", changed)
        return tuner(storage)

    first, second = experiment("first"), experiment("second")
    given = second.generate_parameters(0)
    first.generate_parameters(0)
    experiment("first").load_checkpoint()
    second.receive_trial_result(0, given, 0.5)
    assert states(storage) == [TrialState.COMPLETE, TrialState.FAIL]


def test_imported_results_are_trials_and_bad_ones_are_left_out(storage: str, caplog: pytest.LogCaptureFixture) -> None:
    one = tuner(storage)
    good = {"eta": 0.7, "block": {"_name": "mobile", "bottleneck": 8}}
    one.import_data([
        {"parameter": good, "value": 0.5}, {"parameter": good, "value": 0.5},
        {"parameter": {**good, "eta": 2.0}, "value": 0.5}, {"parameter": good, "value": None},
    ])  # fmt: skip
    assert [(trial.params["eta"], trial.value) for trial in trials_of(storage)] == [(0.7, 0.5)] * 2
    assert "'eta': the space does not hold 2.0" in caplog.text
    assert "no finite number" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "annealing"}, "sampler is 'annealing'; allowed: tpe, random"),
        ({"optimize_mode": "max"}, "optimize_mode is 'max'; allowed: maximize, minimize"),
        ({"sampler_args": {"trials": 3}}, "sampler_args has 'trials'; tpe takes .*multivariate"),
        ({"sampler": "nsgaii", "sampler_args": {"population_size": 1}}, "do not fit nsgaii"),
        ({"storage": "sqlite:////nowhere/at/all.db"}, "storage .*cannot be opened"),
        ({"storage": "mysterydb://x"}, "cannot be opened"),
    ],
)
def test_a_wrong_argument_is_named(storage: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptunaTuner(**{"storage": storage, **arguments})


def test_it_starts_without_heavy_packages() -> None:
    heavy = "{'torch', 'transformers', 'datasets'}"
    code = f"import sys, elm_nni.tuning.optuna_tuner; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
