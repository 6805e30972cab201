"""OptunaTuner in experiments of plain nnictl, registered by the example's file: results, a failure, stop and resume."""

import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from elm_nni.tuning.optuna_tuner import PARAMETERS, trials_of

from .conftest import Home, ask, free_port, wait_for
from .test_wrong_configurations import refused

pytestmark = pytest.mark.slow

META = Path(__file__).parents[2] / "examples" / "nnictl" / "optuna_meta.yml"
NUM_TRIALS, FAILING, HELD = 6, 1, (2, 3)
# The stock manager hands parameters to whichever trial asks first, so trials ask in the order of their numbers. Trials
# in HELD run until the file "go" is there; the one that is FAILING ends without a result.
SCRIPT = f"""
import os, sys, time
from pathlib import Path
import nni

number = int(os.environ["NNI_TRIAL_SEQ_ID"])
home = Path({{home!r}})
while number and not (home / f"asked-{{{{number - 1}}}}").exists():
    time.sleep(0.1)
parameters = nni.get_next_parameter()
(home / f"asked-{{{{number}}}}").touch()
while number in {HELD} and not (home / "go").exists():
    time.sleep(0.1)
if number == {FAILING}:
    sys.exit(1)
nni.report_final_result({{{{"default": parameters["x"] * 1000 + parameters["y"], "number": number}}}})
"""


@dataclass(frozen=True)
class Record:
    """What the manager keeps: trial id to status and listed parameters, parameters to final result."""

    statuses: dict[str, str]
    parameters: dict[str, str]
    results: list[tuple[str, float]]

    @classmethod
    def read(cls, port: int) -> "Record":
        given = {job["trialJobId"]: json.loads(job["hyperParameters"][0]) for job in ask(port, "trial-jobs")}
        statuses = {job["trialJobId"]: job["status"] for job in ask(port, "trial-jobs")}
        final = [entry for entry in ask(port, "metric-data") if entry["type"] == "FINAL"]
        values = {entry["trialJobId"]: json.loads(json.loads(entry["data"]))["default"] for entry in final}
        parameters = {trial: text(one["parameters"]) for trial, one in given.items()}
        assert len(final) == len(values)
        assert {entry["trialJobId"]: int(entry["parameterId"]) for entry in final} == {
            trial: given[trial]["parameter_id"] for trial in values
        }
        return cls(statuses, parameters, [(parameters[trial], value) for trial, value in values.items()])

    def with_status(self, status: str) -> list[str]:
        """Parameters of the trials of one status."""
        return [self.parameters[trial] for trial, found in self.statuses.items() if found == status]


@dataclass(frozen=True)
class Story:
    """Records of the manager and trials of the study: in the middle, stopped, and after the resume at the end."""

    middle: Record
    stopped_study: list[FrozenTrial]
    end: Record
    study: list[FrozenTrial]


def text(parameters: dict[str, Any]) -> str:
    return json.dumps(parameters, sort_keys=True)


def of_state(study: list[FrozenTrial], state: TrialState) -> list[str]:
    return [trial.user_attrs[PARAMETERS] for trial in study if trial.state == state]


def told(study: list[FrozenTrial]) -> list[tuple[str, float]]:
    return [(trial.user_attrs[PARAMETERS], trial.value) for trial in study if trial.state == TrialState.COMPLETE]


@pytest.fixture(scope="module")
def registered(home: Home) -> Home:
    assert "Optuna registered" in home.stock_nnictl("algo", "register", "--meta", str(META))
    return home


@pytest.fixture(scope="module")
def story(registered: Home) -> Story:
    home, port = registered, free_port()
    home.write("trial.py", SCRIPT.format(home=str(home.path)))
    config = home.config(
        trialCommand=f"{sys.executable} trial.py", trialConcurrency=2, maxTrialNumber=NUM_TRIALS,
        tuner={"name": "Optuna", "classArgs": {"sampler": "tpe", "sampler_args": {"n_startup_trials": 2}, "seed": 0}},
    )  # fmt: skip
    home.stock_nnictl("create", "--config", str(config), "--port", str(port))
    (experiment,) = home.experiments()
    storage = f"sqlite:///{home.path}/nni-experiments/{experiment}/checkpoint/optuna.db"
    wait_for(lambda: all((home.path / f"asked-{number}").exists() for number in HELD))
    wait_for(lambda: told(trials_of(storage)))
    middle = Record.read(port)
    home.stock_nnictl("stop", experiment)
    stopped_study = trials_of(storage)
    for number in HELD:
        (home.path / f"asked-{number}").unlink()
    home.write("go", "")
    home.stock_nnictl("resume", experiment, "--port", str(port))
    wait_for(lambda: ask(port, "check-status")["status"] == "DONE")
    end = Record.read(port)
    home.stock_nnictl("stop", experiment)
    return Story(middle, stopped_study, end, trials_of(storage))


def test_each_result_is_in_the_study_with_its_parameters_and_value(story: Story) -> None:
    assert len(told(story.stopped_study)) == 1
    assert Counter(told(story.stopped_study)) == Counter(story.middle.results)
    for trial in story.study:
        if trial.state == TrialState.COMPLETE:
            given = json.loads(trial.user_attrs[PARAMETERS])
            assert trial.params == given
            assert trial.value == given["x"] * 1000 + given["y"]


def test_a_trial_that_failed_is_a_failed_trial_of_the_study(story: Story) -> None:
    (failed,) = story.middle.with_status("FAILED")
    assert of_state(story.stopped_study, TrialState.FAIL) == [failed]
    assert of_state(story.study, TrialState.FAIL).count(failed) == 1
    assert failed not in of_state(story.study, TrialState.COMPLETE)


def test_a_resumed_experiment_goes_on_with_its_study(story: Story) -> None:
    assert Counter(story.end.statuses.values()) == {"SUCCEEDED": NUM_TRIALS - 1, "FAILED": 1}
    assert story.middle.parameters.items() <= story.end.parameters.items()
    assert len(told(story.study)) == NUM_TRIALS - 1
    assert Counter(told(story.study)) == Counter(story.end.results)
    assert told(story.study)[:1] == told(story.stopped_study)


def test_what_ran_at_the_stop_was_made_again(story: Story) -> None:
    interrupted = of_state(story.stopped_study, TrialState.RUNNING)
    held = story.middle.with_status("RUNNING")
    assert len(held) == len(HELD)
    assert Counter(held) <= Counter(interrupted)
    assert Counter(interrupted) <= Counter(of_state(story.study, TrialState.FAIL))
    assert set(held) <= set(of_state(story.study, TrialState.COMPLETE))


def test_numbers_beside_the_metric_are_attributes(story: Story) -> None:
    (trial,) = [trial for trial in story.stopped_study if trial.state == TrialState.COMPLETE]
    assert trial.user_attrs["number"] == 0


def test_a_wrong_argument_ends_in_one_line(registered: Home, story: Story) -> None:
    tuner = {"name": "Optuna", "classArgs": {"sampler": "annealing"}}
    line = refused(registered, registered.config(tuner=tuner))
    assert "ValueError: sampler is 'annealing'; allowed: tpe, random" in line
