"""NAS experiments that are killed, stopped and broken off, and what a resume makes of them."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.experiment import NasExperimentConfig
from nni.nas.strategy import PolicyBasedRL, Random, Strategy
from nni.nas.strategy.middleware import Chain, FailureHandler
from nni.runtime.log import silence_stdout
from nni.tools.nnictl.config_utils import Experiments

from elm_nni.compat.nas_experiment import ResumableNasExperiment
from elm_nni.compat.nas_record import EvaluationRecord
from elm_nni.errors import UserError
from elm_nni.strategies import ConstrainedEvolution, ElmOneShot, Limit

from .nas_helpers import (
    ALL,
    BUDGET,
    Toy,
    called,
    evaluate,
    finish,
    fork,
    killed_when,
    quality,
    sequential,
    stock_strategy,
)

KILLS = int(os.environ.get("ELM_NNI_KILLS", "3"))
STRATEGIES = ["Random", "GridSearch", "RegularizedEvolution", "ConstrainedEvolution"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    # NNI takes its folder from the home that was set when it was imported
    monkeypatch.setattr(Experiments.__init__, "__defaults__", (str(tmp_path / "nni-experiments"),))
    silence_stdout()
    return tmp_path


def strategy(name: str, seed: int | None = 3) -> Strategy:
    if name == "ConstrainedEvolution":
        limits = {"area": Limit(lambda sample: sample["width"] * sample["depth"], 18)}
        return ConstrainedEvolution(limits=limits, population=8, generations=9, mutations=4, crossovers=4, seed=3)
    return stock_strategy(name, seed)


def experiment(
    folder: Path, search: Strategy, config: NasExperimentConfig | None = None, **evaluator: Any
) -> ResumableNasExperiment:
    """Its evaluator counts in ``calls`` beside the folder."""
    calls = str(folder.with_suffix(".calls"))
    functional = FunctionalEvaluator(evaluate, calls=calls, **evaluator)
    return ResumableNasExperiment(Toy(), functional, search, config or sequential(), folder=folder)


def run(folder: Path, search: Strategy, config: NasExperimentConfig | None = None, **evaluator: Any) -> Any:
    one = experiment(folder, search, config, **evaluator)
    try:
        one.run()
    finally:
        one.stop()
    return one


def calls(folder: Path) -> list[dict[str, Any]]:
    return called(folder.with_suffix(".calls"))


def distinct(samples: list[dict[str, Any]]) -> int:
    return len({json.dumps(sample, sort_keys=True) for sample in samples})


def recorded(folder: Path) -> list[dict[str, Any]]:
    return [evaluation.sample for evaluation in EvaluationRecord(folder / "evaluations.jsonl").finished]


def num_lines(folder: Path) -> int:
    """Without the reader, which would cut off a line that is being written."""
    path = folder / "evaluations.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize("name", STRATEGIES)
def test_kills_at_random_moments_lose_and_repeat_nothing(tmp_path: Path, name: str) -> None:
    undisturbed = run(tmp_path / "whole", strategy(name))
    folder, log = tmp_path / "killed", tmp_path / "driver.log"
    draw = random.Random(name)
    # an evaluation writes two lines
    for target in sorted(draw.sample(range(2 * BUDGET - 2), KILLS)):
        child = fork(lambda: run(folder, strategy(name), seconds=0.02) and None, log)
        assert killed_when(child, lambda target=target: num_lines(folder) >= target, draw.uniform(0, 0.02))
        assert all(call in recorded(folder) for call in calls(folder))
        assert distinct(recorded(folder)) == len(recorded(folder))
    finish(fork(lambda: run(folder, strategy(name), seconds=0.02) and None, log))
    assert distinct(calls(folder)) == len(calls(folder))
    resumed = run(folder, strategy(name))
    expected, best = undisturbed.export_top_models()[0], resumed.export_top_models()[0]
    assert (best.sample, best.metric) == (expected.sample, expected.metric)
    samples = [model.sample for model in resumed.strategy.list_models(sort=False)]
    assert samples == [model.sample for model in undisturbed.strategy.list_models(sort=False)]
    assert samples == calls(tmp_path / "whole")
    assert len(samples) == BUDGET


@pytest.mark.parametrize("name", ["Random", "GridSearch", "RegularizedEvolution"])
@pytest.mark.parametrize("model_format", ["raw", "simplified"])
def test_a_strategy_without_a_seed_repeats_its_search(tmp_path: Path, name: str, model_format: str) -> None:
    folder = tmp_path / "search"
    run(folder, strategy(name, None), sequential(model_format, budget=10))
    resumed = run(folder, strategy(name, None), sequential(model_format, budget=15))
    assert distinct(calls(folder)) == len(calls(folder)) == 15
    assert [model.sample for model in resumed.strategy.list_models(sort=False)] == calls(folder)


def test_a_finished_search_evaluates_nothing_again(tmp_path: Path) -> None:
    folder = tmp_path / "search"
    first = run(folder, strategy("RegularizedEvolution"))
    before = (folder / "evaluations.jsonl").read_bytes()
    again = run(folder, strategy("RegularizedEvolution"))
    assert len(calls(folder)) == BUDGET
    assert (folder / "evaluations.jsonl").read_bytes() == before
    assert [m.metric for m in again.export_top_models(top_k=9)] == [m.metric for m in first.export_top_models(top_k=9)]
    assert again.export_top_models()[0].metrics.intermediates == first.export_top_models()[0].metrics.intermediates


def test_ctrl_c_in_an_evaluation_keeps_the_finished_ones(tmp_path: Path) -> None:
    def interrupted(model: Any, interrupt: Callable[[], bool], **settings: Any) -> None:
        if interrupt():
            raise KeyboardInterrupt
        evaluate(model, **settings)

    def search(interrupt: Callable[[], bool]) -> ResumableNasExperiment:
        evaluator = FunctionalEvaluator(interrupted, interrupt=interrupt, calls=str(tmp_path / "search.calls"))
        return ResumableNasExperiment(Toy(), evaluator, strategy("Random"), sequential(), folder=tmp_path / "search")

    # NNI stops the experiment and returns
    search(lambda: len(calls(tmp_path / "search")) == 7).run()
    assert len(recorded(tmp_path / "search")) == len(calls(tmp_path / "search")) == 7
    one = search(lambda: False)
    one.run()
    one.stop()
    run(tmp_path / "whole", strategy("Random"))
    assert calls(tmp_path / "search") == calls(tmp_path / "whole")


def test_an_error_that_ends_the_run_is_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "search"
    with pytest.raises(RuntimeError, match="broken"):
        run(folder, strategy("Random"), fail=2)
    finished = calls(folder)
    assert recorded(folder) == finished
    run(folder, strategy("Random"))
    run(tmp_path / "whole", strategy("Random"))
    assert calls(folder) == calls(tmp_path / "whole")


@pytest.mark.parametrize("retry", [False, True])
def test_failures_that_the_search_survived_are_not_repeated(tmp_path: Path, retry: bool) -> None:
    def search() -> Strategy:
        inner = strategy("RegularizedEvolution")
        return Chain(inner, FailureHandler(retry_patience=1)) if retry else inner

    def statuses(one: Any) -> list[tuple[Any, str, Any]]:
        return [(model.sample, model.status.value, model.metric) for model in one.strategy.list_models(sort=False)]

    undisturbed = run(tmp_path / "whole", search(), sequential(go_on=True), fail=1)
    run(tmp_path / "search", search(), sequential(budget=11, go_on=True), fail=1)
    resumed = run(tmp_path / "search", search(), sequential(go_on=True), fail=1)
    assert any(status == "failed" for _, status, _ in statuses(undisturbed))
    assert statuses(resumed) == statuses(undisturbed)
    assert calls(tmp_path / "search") == calls(tmp_path / "whole")


def test_the_duration_of_earlier_runs_counts(tmp_path: Path) -> None:
    config = sequential(budget=None)
    config.execution_engine.max_duration = 0.3
    run(tmp_path / "search", strategy("Random"), config, seconds=0.05)
    evaluated = len(calls(tmp_path / "search"))
    assert 0 < evaluated <= 6
    run(tmp_path / "search", strategy("Random"), config, seconds=0.05)
    assert len(calls(tmp_path / "search")) == evaluated


def test_other_settings_use_what_is_recorded_and_lose_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "search"
    run(folder, strategy("ConstrainedEvolution"), sequential(budget=12))
    narrow = ConstrainedEvolution(population=8, generations=9, mutations=4, crossovers=4, seed=4)
    resumed = run(folder, narrow, sequential(budget=40))
    assert "not recorded" in caplog.text
    assert distinct(calls(folder)) == len(calls(folder)) > 12
    listed = [model.sample for model in resumed.strategy.list_models(sort=False)]
    assert sorted(map(str, listed)) == sorted(map(str, calls(folder)))
    assert resumed.export_top_models()[0].metric == max(map(quality, calls(folder)))


def test_other_settings_on_a_spent_budget_are_refused(tmp_path: Path) -> None:
    run(tmp_path / "search", strategy("ConstrainedEvolution"), sequential(budget=12))
    other = ConstrainedEvolution(population=8, generations=9, mutations=4, crossovers=4, seed=4)
    with pytest.raises(UserError, match="budget is spent"):
        run(tmp_path / "search", other, sequential(budget=12))
    assert len(calls(tmp_path / "search")) == 12


def test_a_refused_or_failed_resume_leaves_the_state_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "search"
    run(folder, strategy("Random"), sequential(budget=5))
    record = folder / "evaluations.jsonl"

    def state() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in folder.rglob("*.json*")}

    before = state()
    with pytest.raises(UserError, match=r"holds a search by .*Random, not .*RegularizedEvolution"):
        run(folder, strategy("RegularizedEvolution"), sequential(budget=9))
    assert state() == before
    lines = record.read_bytes()
    record.write_bytes(b"not json\n" + lines)
    with pytest.raises(UserError, match=r"evaluations.jsonl line 1 is damaged"):
        run(folder, strategy("Random"), sequential(budget=9))
    assert record.read_bytes() == b"not json\n" + lines
    record.write_bytes(lines)
    run(folder, strategy("Random"), sequential(budget=9))
    assert distinct(calls(folder)) == len(calls(folder)) == 9


def test_the_space_is_that_of_the_folder(tmp_path: Path) -> None:
    run(tmp_path / "search", strategy("Random"), sequential(budget=1))
    one = experiment(tmp_path / "search", strategy("Random"))
    one.evaluator = one.model_space = type("Other", (), {"simplify": lambda self: {"other": None}})()
    with pytest.raises(UserError, match="another space"):
        one.run()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    folder, log = tmp_path / "search", tmp_path / "driver.log"
    child = fork(lambda: run(folder, strategy("Random"), seconds=5) and None, log)
    while not (folder / "experiment.json").exists():
        pass
    with pytest.raises(UserError, match="another process runs this search"):
        experiment(folder, strategy("Random")).run()
    assert killed_when(child, lambda: True, 0)
    run(folder, strategy("Random"), sequential(budget=2))
    assert len(calls(folder)) == 2


def test_a_record_that_cannot_be_written_ends_the_search(tmp_path: Path) -> None:
    folder = tmp_path / "search"

    def losing(model: Any, **settings: Any) -> None:
        folder.rename(tmp_path / "moved")
        evaluate(model, **settings)

    evaluator = FunctionalEvaluator(losing, calls=str(tmp_path / "search.calls"))
    one = ResumableNasExperiment(Toy(), evaluator, strategy("Random"), sequential(go_on=True), folder=folder)
    with pytest.raises(UserError, match=r"cannot write .*evaluations.jsonl"):
        one.run()
    assert len(calls(folder)) == 1


def test_nothing_is_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("unpickling")

    run(tmp_path / "search", strategy("RegularizedEvolution"), sequential(budget=9))
    for name in ("pickle.loads", "pickle.load", "cloudpickle.loads", "torch.load"):
        monkeypatch.setattr(name, refuse)
    resumed = run(tmp_path / "search", strategy("RegularizedEvolution"), sequential(budget=12))
    assert len(list(resumed.strategy.list_models())) == 12
    files = {path.name for path in (tmp_path / "search").rglob("*") if path.is_file()}
    assert files == {"experiment.json", "evaluations.jsonl", "config.json", "experiment.log", ".lock"}


def test_what_cannot_be_resumed_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="strategy ElmOneShot trains one supernet"):
        experiment(tmp_path / "search", ElmOneShot())
    # its package, tianshou, need not be there to refuse it
    with pytest.raises(UserError, match="strategy PolicyBasedRL draws from torch's global generator"):
        experiment(tmp_path / "search", PolicyBasedRL.__new__(PolicyBasedRL))
    with pytest.raises(UserError, match="model_format 'raw' cannot be sent to a trial"):
        experiment(tmp_path / "search", Random(), NasExperimentConfig("ts", "raw", "local"))
    with pytest.raises(UserError, match="nnictl view"):
        experiment(tmp_path / "search", Random()).view()
    assert not (tmp_path / "search").exists()


def test_grid_search_evaluates_the_whole_space_in_the_raw_format(tmp_path: Path) -> None:
    run(tmp_path / "search", strategy("GridSearch"), sequential("raw", budget=None))
    assert sorted(map(str, calls(tmp_path / "search"))) == sorted(
        str({label: sample[label] for label in sorted(sample)}) for sample in ALL
    )
