"""ConstrainedEvolution through NNI's experiment, against brute force."""

import itertools
import math
from pathlib import Path
from typing import Any

import nni
import pytest
import torch
from nni.mutable import ExpressionConstraint
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.experiment import NasExperiment
from nni.nas.nn.pytorch import LayerChoice, ModelSpace, MutableLinear

from elm_nni.errors import UserError
from elm_nni.search_spaces import ElmSpace
from elm_nni.strategies import ConstrainedEvolution, Limit

from .strategy_helpers import run, sequential

SMALL = {"population": 8, "generations": 8, "mutations": 4, "crossovers": 4, "mutation_prob": 0.3}


class Toy(ModelSpace):
    """Any space of NNI: no canonical form, a nested choice, and a rule of its own."""

    def __init__(self, ruled: bool = False) -> None:
        super().__init__()
        width = nni.choice("width", [1, 2, 3, 4])
        depth = nni.choice("depth", [1, 2, 3])
        self.layer = LayerChoice({"wide": MutableLinear(4, width), "plain": torch.nn.Linear(4, 2)}, label="layer")
        self.other = MutableLinear(4, depth)
        if ruled:
            self.add_mutable(ExpressionConstraint(width + depth <= 4, label="rule"))


VALUES = {"width": [1, 2, 3, 4], "depth": [1, 2, 3], "layer": ["wide", "plain"]}
ALL = [dict(zip(VALUES, values)) for values in itertools.product(*VALUES.values())]


def quality(sample: dict[str, Any]) -> float:
    return (sample["width"] if sample["layer"] == "wide" else 2.5) - (sample["depth"] - 2) ** 2 + sample["width"] / 10


def report(model: Any, calls: list[dict[str, Any]], fail: Any = None) -> None:
    sample = nni.get_current_parameter().sample
    calls.append(dict(sample))
    nni.report_final_result(quality(sample))
    if fail is not None and sample["depth"] == fail:
        raise RuntimeError("broken architecture")


def search(home: Path, space: Any, calls: list, config: Any = None, fail: Any = None, **settings: Any) -> NasExperiment:
    strategy = ConstrainedEvolution(**(SMALL | settings))
    return run(space, FunctionalEvaluator(report, calls=calls, fail=fail), strategy, config or sequential(home))


@pytest.mark.parametrize(("model_format", "ruled"), [("raw", False), ("simplified", False), ("simplified", True)])
def test_it_finds_the_brute_forced_best(home: Path, model_format: str, ruled: bool) -> None:
    limits = {"area": Limit(lambda sample: sample["width"] * sample["depth"], 7)}
    feasible = [s for s in ALL if s["width"] * s["depth"] <= 7 and not (ruled and s["width"] + s["depth"] > 4)]
    calls: list[dict[str, Any]] = []
    experiment = search(home, Toy(ruled), calls, sequential(home, model_format), limits=limits, seed=0)
    best = experiment.export_top_models()[0]
    assert best.metric == max(map(quality, feasible)) == experiment.strategy.best[0]
    assert experiment.export_top_models(formatter="dict") == [experiment.strategy.best[1].sample]
    assert len(calls) == len({tuple(sorted(call.items())) for call in calls})
    assert all(call in feasible for call in calls)
    metrics = [model.metric for model in experiment.export_top_models(top_k=3)]
    assert metrics == sorted((quality(call) for call in calls), reverse=True)[:3]


def elm_quality(model: torch.nn.Module, calls: list[dict[str, Any]]) -> None:
    calls.append(nni.get_current_parameter().sample)
    nni.report_final_result(-abs(sum(parameter.numel() for parameter in model.parameters()) - 7000.0))


@pytest.mark.parametrize("model_format", ["raw", "simplified"])
def test_an_elm_space_brings_its_canonical_form(space: ElmSpace, home: Path, model_format: str) -> None:
    widths = {label: 16 for label in space.simplify() if label.endswith("_ffn")}
    seen: list[dict[str, Any]] = []
    limit = Limit(lambda sample: seen.append(sample) or len(sample), 8)
    calls: list[dict[str, Any]] = []
    strategy = ConstrainedEvolution(limits={"labels": limit}, fixed=widths, **SMALL)
    experiment = run(space, FunctionalEvaluator(elm_quality, calls=calls), strategy, sequential(home, model_format))
    assert all(space.canonical(sample) == sample for sample in seen)
    assert len({tuple(space.canonical(call).items()) for call in calls}) == len(calls) <= 36
    assert {value for call in calls for label, value in call.items() if label.endswith("_ffn")} == {16}
    best = experiment.export_top_models()[0]
    assert space.canonical(best.sample) == strategy.best[1].sample
    total = sum(parameter.numel() for parameter in best.executable_model().parameters())
    assert best.metric == -abs(total - 7000)


def test_failed_evaluations_have_no_metric_and_the_search_goes_on(home: Path) -> None:
    calls: list[dict[str, Any]] = []
    experiment = search(home, Toy(), calls, sequential(home, continue_on_failure=True), fail=2)
    best = max(quality(sample) for sample in ALL if sample["depth"] != 2)
    assert experiment.strategy.best[0] == best
    failed = [sample for sample in calls if sample["depth"] == 2]
    assert failed
    assert len(failed) == sum(one["metric"] is None for one in experiment.strategy.state_dict()["finished"])
    assert all(model.sample["depth"] != 2 for model in experiment.strategy.list_models())


def test_the_budget_of_the_engine_is_respected(home: Path) -> None:
    calls: list[dict[str, Any]] = []
    search(home, Toy(), calls, sequential(home, max_models=5))
    assert len(calls) == 5


@pytest.mark.parametrize("evaluated", [0, 5, 13])
def test_a_resumed_search_evaluates_only_what_is_new_and_ends_the_same(home: Path, evaluated: int) -> None:
    whole: list[dict[str, Any]] = []
    undisturbed = search(home, Toy(), whole, seed=3)
    first: list[dict[str, Any]] = []
    state = {"finished": []}
    if evaluated:
        state = search(home, Toy(), first, sequential(home, max_models=evaluated), seed=3).strategy.state_dict()
    second: list[dict[str, Any]] = []
    strategy = ConstrainedEvolution(seed=3, **SMALL)
    strategy.load_state_dict(state)
    evaluator = FunctionalEvaluator(report, calls=second, fail=None)
    resumed = run(Toy(), evaluator, strategy, sequential(home))
    assert first + second == whole
    assert len(first) == evaluated
    assert strategy.state_dict() == undisturbed.strategy.state_dict()
    best = undisturbed.export_top_models()[0]
    assert (resumed.export_top_models()[0].sample, resumed.export_top_models()[0].metric) == (best.sample, best.metric)
    assert len(list(resumed.strategy.list_models())) == len(whole)


def test_what_stopped_a_run_is_evaluated_again_after_a_resume(home: Path) -> None:
    calls: list[dict[str, Any]] = []
    strategy = ConstrainedEvolution(**SMALL)
    with pytest.raises(RuntimeError, match="broken"):
        run(Toy(), FunctionalEvaluator(report, calls=calls, fail=2), strategy, sequential(home))
    finished = [one["sample"] for one in strategy.state_dict()["finished"]]
    assert finished == calls[:-1]
    again: list[dict[str, Any]] = []
    resumed = ConstrainedEvolution(**SMALL)
    resumed.load_state_dict(strategy.state_dict())
    run(Toy(), FunctionalEvaluator(report, calls=again, fail=None), resumed, sequential(home))
    assert again[0] == calls[-1]


def test_nan_counts_as_no_metric(home: Path) -> None:
    def nan_or_one(model: Any) -> None:
        nni.report_final_result(math.nan if nni.get_current_parameter().sample["depth"] == 1 else 1.0)

    experiment = run(Toy(), FunctionalEvaluator(nan_or_one), ConstrainedEvolution(**SMALL), sequential(home))
    assert {model.sample["depth"] for model in experiment.strategy.list_models()} == {2, 3}
    assert {one["metric"] for one in experiment.strategy.state_dict()["finished"]} == {None, 1.0}


def test_no_feasible_architecture_is_an_error_with_counts(home: Path) -> None:
    with pytest.raises(UserError, match=r"area <= 0.5 refused 500 \(lowest seen 1\)"):
        search(home, Toy(), [], limits={"area": Limit(lambda sample: sample["width"], 0.5)})


@pytest.mark.parametrize(("fixed", "message"), [({"widht": 1}, "'widht'.*width"), ({"width": 9}, r"9.*\[1, 2, 3, 4\]")])
def test_a_fixed_label_must_exist(home: Path, fixed: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(home, Toy(), [], fixed=fixed)


def test_wrong_settings_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="population.*0"):
        ConstrainedEvolution(population=0)
    with pytest.raises(ValueError, match="canonical.*3"):
        ConstrainedEvolution(canonical=3)
