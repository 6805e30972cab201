"""A search inside a trial: with NNI's own channel of a local trial, which reads and writes files."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import nni
import pytest
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.experiment import NasExperiment
from nni.nas.strategy import Random
from nni.runtime import trial_command_channel
from nni.runtime.env_vars import trial_env_vars
from nni.runtime.log import silence_stdout
from nni.runtime.trial_command_channel import local_legacy
from nni.tools.nnictl.config_utils import Experiments

from elm_nni.compat import known_files, trial
from elm_nni.compat.nas_experiment import ResumableNasExperiment
from elm_nni.compat.trial import nested_nas
from elm_nni.errors import UserError

from .nas_helpers import Toy, called, evaluate, sequential

# nni has a function of this name
NNI_TRIAL: ModuleType = importlib.import_module("nni.trial")


@pytest.fixture(autouse=True)
def outer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process is trial AbCdE of a local experiment; the file that its reports go to."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(Experiments.__init__, "__defaults__", (str(tmp_path / "nni-experiments"),))
    silence_stdout()
    variables = trial_env_vars._replace(
        NNI_PLATFORM="local", NNI_TRIAL_JOB_ID="AbCdE", NNI_SYS_DIR=str(tmp_path), NNI_OUTPUT_DIR=str(tmp_path)
    )
    for module in (NNI_TRIAL, local_legacy):
        monkeypatch.setattr(module, "trial_env_vars", variables)
    parameters = {"parameter_id": 41, "parameters": {"lr": 0.1}, "parameter_source": "algorithm"}
    (tmp_path / "parameter.cfg").write_text(json.dumps(parameters))
    for owner, name, value in ((NNI_TRIAL, "_params", None), (NNI_TRIAL, "_intermediate_seq", 0)):
        monkeypatch.setattr(owner, name, value)
    monkeypatch.setattr(trial_command_channel, "_channel", local_legacy.LocalLegacyTrialCommandChannel())
    return tmp_path / ".nni" / "metrics"


def reports(outer: Path) -> list[tuple[str, int, int, Any]]:
    """Type, parameter id, sequence and value of all that the trial sent."""
    found = []
    for line in outer.read_bytes().decode().splitlines():
        sent = json.loads(line[len("ME000000") :])
        assert sent["trial_job_id"] == "AbCdE"
        found.append((sent["type"], sent["parameter_id"], sent["sequence"], json.loads(sent["value"])))
    return found


def broken(model: Any, calls: str) -> None:
    nni.report_intermediate_result(8.0)
    raise RuntimeError("broken architecture")


def inner(home: Path, kind: type[NasExperiment] = ResumableNasExperiment, evaluate: Any = evaluate) -> Any:
    config = sequential(budget=3)
    config.experiment_working_directory = home / "experiments"
    evaluator = FunctionalEvaluator(evaluate, calls=str(home / "calls"))
    folder = {"folder": home / "search"} if kind is ResumableNasExperiment else {}
    experiment = kind(Toy(), evaluator, Random(seed=0), config, **folder)
    try:
        experiment.run()
    finally:
        experiment.stop()
    return experiment


def report_around(search: Any) -> None:
    assert nni.get_next_parameter() == {"lr": 0.1}
    nni.report_intermediate_result(0.1)
    nni.report_intermediate_result(0.2)
    search()
    nni.report_intermediate_result(0.3)
    nni.report_final_result(0.4)


EXPECTED = [("PERIODICAL", 41, 0, 0.1), ("PERIODICAL", 41, 1, 0.2), ("PERIODICAL", 41, 2, 0.3), ("FINAL", 41, 0, 0.4)]


def test_a_stock_search_needs_the_context_and_ours_brings_it(tmp_path: Path, outer: Path) -> None:
    with_context: list[NasExperiment] = []

    def stock() -> None:
        with nested_nas():
            with_context.append(inner(tmp_path, NasExperiment))

    report_around(stock)
    assert reports(outer) == EXPECTED
    assert nni.get_current_parameter() == {"lr": 0.1}
    assert len(called(tmp_path / "calls")) == 3
    assert all(model.metric is not None for model in with_context[0].strategy.list_models(sort=False))


def test_stock_nni_loses_the_identity_of_the_trial(tmp_path: Path, outer: Path) -> None:
    report_around(lambda: inner(tmp_path, NasExperiment))
    assert reports(outer) != EXPECTED


def test_our_search_brings_the_context(tmp_path: Path, outer: Path) -> None:
    report_around(lambda: inner(tmp_path))
    assert reports(outer) == EXPECTED
    assert nni.get_current_parameter() == {"lr": 0.1}


def test_reports_that_no_engine_takes_do_not_reach_the_trial(outer: Path) -> None:
    def outside_of_an_engine() -> None:
        with nested_nas():
            nni.report_intermediate_result(9.0)
            nni.report_final_result(9.0)

    report_around(outside_of_an_engine)
    assert reports(outer) == EXPECTED


def test_the_identity_is_back_after_an_error(tmp_path: Path, outer: Path) -> None:
    def failing() -> None:
        with pytest.raises(RuntimeError, match="broken"):
            inner(tmp_path, evaluate=broken)

    report_around(failing)
    assert reports(outer) == EXPECTED


def test_another_nni_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = known_files.KnownFile("nni/trial.py", "0" * 64)
    monkeypatch.setattr(trial, "_KNOWN", (other,))
    with pytest.raises(UserError, match=r"nni/trial.py is not the file of nni 3.0"), nested_nas():
        pass
