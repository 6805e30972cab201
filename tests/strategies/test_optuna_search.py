"""OptunaSearch through NNI's own experiment, against brute force."""

import math
from pathlib import Path
from typing import Any

import nni
import pytest
import torch
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.space import ModelStatus

from elm_nni.compat import ResumableNasExperiment
from elm_nni.errors import UserError
from elm_nni.search_spaces import ElmSpace
from elm_nni.strategies import Limit
from elm_nni.strategies.optuna_search import OptunaSearch

from .strategy_helpers import run, sequential
from .test_architecture_study import key, keys
from .test_constrained_evolution import ALL, Toy, quality

SMALL = {"sampler_args": {"population_size": 6}}


def area(sample: dict[str, Any]) -> float:
    return float(sample["width"] * sample["depth"])


def report(model: Any, calls: list[dict[str, Any]], fail: Any = None) -> None:
    sample = dict(nni.get_current_parameter().sample)
    calls.append(sample)
    if fail is not None and sample["depth"] == fail:
        raise RuntimeError("broken architecture")
    nni.report_intermediate_result(0.0)
    nni.report_final_result({"default": quality(sample), "speed": -float(sample["width"]), "note": 1})


def search(home: Path, calls: list, config: Any = None, ruled: bool = False, fail: Any = None, **settings: Any) -> Any:
    strategy = OptunaSearch(**(SMALL | settings))
    run(Toy(ruled), FunctionalEvaluator(report, calls=calls, fail=fail), strategy, config or sequential(home))
    return strategy


def front_of(samples: list[dict[str, Any]]) -> set[Any]:
    """Quality up, speed up, area down, by a double loop."""
    points = [(-quality(one), one["width"], area(one)) for one in samples]
    return {
        key(one)
        for mine, one in zip(points, samples)
        if not any(all(a <= b for a, b in zip(other, mine)) and other != mine for other in points)
    }


@pytest.mark.parametrize(("model_format", "ruled"), [("raw", False), ("simplified", True)])
def test_nni_runs_a_search_with_three_objectives(home: Path, model_format: str, ruled: bool) -> None:
    calls: list[dict[str, Any]] = []
    strategy = search(
        home, calls, sequential(home, model_format), ruled, sampler="bruteforce", sampler_args=None,
        directions={"default": "maximize", "speed": "maximize", "area": "minimize"}, objectives={"area": area},
        limits={"size": Limit(area, 7)},
    )  # fmt: skip
    allowed = [one for one in ALL if area(one) <= 7 and not (ruled and one["width"] + one["depth"] > 4)]
    assert sorted(map(key, calls)) == sorted(map(key, allowed))
    assert keys(strategy.front) == front_of(allowed)
    metrics, sample = strategy.front[0]
    assert metrics == {
        "default": quality(sample), "speed": -sample["width"], "area": area(sample), "size": area(sample), "note": 1.0,
    } | ({"space": 0.0} if ruled else {})  # fmt: skip
    models = list(strategy.list_models())
    assert {key(model.sample) for model in models[: len(strategy.front)]} == front_of(allowed)
    assert [model.metric for model in models] == [metrics["default"] for metrics, _ in strategy.search.outcomes]
    assert len(models) == len(allowed) == len(list(strategy.list_models(sort=False)))
    assert len(list(strategy.list_models(limit=2))) == 2


def test_one_objective_has_a_best(home: Path) -> None:
    calls: list[dict[str, Any]] = []
    strategy = search(home, calls, sampler="tpe", sampler_args=None, evaluations=24)
    assert strategy.best[0]["default"] == max(map(quality, ALL)) == next(strategy.list_models()).metric
    assert len(calls) == len(set(map(key, calls))) <= 24


@pytest.mark.parametrize("sampler", ["cmaes", "gp", "qmc"])
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_sampler_by_name_searches_a_space_of_nni(home: Path, sampler: str) -> None:
    calls: list[dict[str, Any]] = []
    args = {"n_startup_trials": 4} if sampler == "gp" else None
    strategy = search(home, calls, sampler=sampler, sampler_args=args, evaluations=8)
    assert len(calls) == len(set(map(key, calls))) == 8
    assert strategy.best[0]["default"] == max(map(quality, calls))


def elm_metrics(model: torch.nn.Module, calls: list[dict[str, Any]]) -> None:
    sample = nni.get_current_parameter().sample
    calls.append(sample)
    total = sum(parameter.numel() for parameter in model.parameters())
    nni.report_final_result({"default": float(len(set(sample.values()))), "params": total})


@pytest.mark.parametrize("model_format", ["raw", "simplified"])
def test_an_elm_space_brings_its_canonical_form(space: ElmSpace, home: Path, model_format: str) -> None:
    widths = {label: 16 for label in space.simplify() if label.endswith("_ffn")}
    calls: list[dict[str, Any]] = []
    strategy = OptunaSearch(
        directions={"default": "maximize", "params": "minimize"}, fixed=widths, evaluations=12, **SMALL
    )
    run(space, FunctionalEvaluator(elm_metrics, calls=calls), strategy, sequential(home, model_format))
    assert len({key(space.canonical(call)) for call in calls}) == len(calls) == 12
    assert {value for call in calls for label, value in call.items() if label.endswith("_ffn")} == {16}
    for (metrics, sample), model in zip(strategy.search.outcomes, strategy.list_models()):
        assert space.canonical(model.sample) == sample
        total = sum(parameter.numel() for parameter in model.executable_model().parameters())
        assert metrics["params"] == total
        assert metrics["default"] == model.metric


def test_a_resumed_search_evaluates_only_what_is_new(home: Path) -> None:
    storage = f"sqlite:///{home / 'search.db'}"
    first: list[dict[str, Any]] = []
    search(home, first, sequential(home, max_models=4), storage=storage, evaluations=10)
    assert len(first) == 4
    second: list[dict[str, Any]] = []
    strategy = search(home, second, storage=storage, evaluations=10)
    assert len(set(map(key, first + second))) == len(first + second) == 10
    models = list(strategy.list_models())
    assert {key(model.sample) for model in models} == set(map(key, first + second))
    assert all(model.metric == quality(model.sample) and model.status == ModelStatus.Trained for model in models)
    assert {key(m.sample) for m in strategy.list_models(sort=False)} == {key(m.sample) for m in models}


def test_the_state_of_a_strategy_resumes_it_too(home: Path) -> None:
    first: list[dict[str, Any]] = []
    state = search(home, first, evaluations=5).state_dict()
    strategy = OptunaSearch(**SMALL, evaluations=9, seed=1)
    strategy.load_state_dict(state)
    second: list[dict[str, Any]] = []
    run(Toy(), FunctionalEvaluator(report, calls=second, fail=None), strategy, sequential(home))
    assert len(set(map(key, first + second))) == len(first + second) == 9


def test_a_recorded_experiment_goes_on(home: Path) -> None:
    calls: list[dict[str, Any]] = []
    for max_models in (4, 9):
        evaluator = FunctionalEvaluator(report, calls=calls, fail=None)
        config = sequential(home, max_models=max_models)
        strategy = OptunaSearch(**SMALL, directions={"default": "maximize", "speed": "maximize"})
        experiment = ResumableNasExperiment(Toy(), evaluator, strategy, config, folder=home / "search")
        try:
            experiment.run()
        finally:
            experiment.stop()
        assert len(set(map(key, calls))) == len(calls) == max_models == len(strategy.search.finished)
    assert {metrics["speed"] for metrics, _ in strategy.search.outcomes} == {-float(call["width"]) for call in calls}


def test_failed_evaluations_have_no_metrics_and_the_search_goes_on(home: Path) -> None:
    calls: list[dict[str, Any]] = []
    strategy = search(
        home, calls, sequential(home, continue_on_failure=True), fail=2, sampler="bruteforce", sampler_args=None
    )
    assert len(calls) == len(ALL)
    assert strategy.best[0]["default"] == max(quality(sample) for sample in ALL if sample["depth"] != 2)
    assert {one.sample["depth"] for one in strategy.search.finished if one.metrics is None} == {2}
    assert all(model.sample["depth"] != 2 for model in strategy.list_models())


def test_what_stopped_a_run_is_evaluated_again_after_a_resume(home: Path) -> None:
    storage = f"sqlite:///{home / 'search.db'}"
    calls: list[dict[str, Any]] = []
    with pytest.raises(RuntimeError, match="broken"):
        search(home, calls, fail=2, storage=storage)
    again: list[dict[str, Any]] = []
    search(home, again, storage=storage, evaluations=len(calls) + 2)
    assert again[0] == calls[-1]
    assert len(set(map(key, calls + again))) == len(calls) + 2


def test_a_metric_that_is_not_reported_is_named(home: Path) -> None:
    with pytest.raises(UserError, match="the result has no 'recall', which directions name; it has default, speed"):
        search(home, [], directions={"default": "maximize", "recall": "maximize"})


def test_nan_counts_as_no_metric(home: Path) -> None:
    def nan_or_one(model: Any) -> None:
        nni.report_final_result(math.nan if nni.get_current_parameter().sample["depth"] == 1 else 1.0)

    strategy = OptunaSearch("bruteforce")
    run(Toy(), FunctionalEvaluator(nan_or_one), strategy, sequential(home))
    assert {model.sample["depth"] for model in strategy.list_models()} == {2, 3}
    assert {one.metrics is None for one in strategy.search.finished if one.sample["depth"] == 1} == {True}


@pytest.mark.parametrize(("fixed", "message"), [({"widht": 1}, "'widht'.*width"), ({"width": 9}, r"9.*\[1, 2, 3, 4\]")])
def test_a_fixed_label_must_exist(home: Path, fixed: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(home, [], fixed=fixed)


def test_wrong_settings_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="sampler is 'nsga'; allowed"):
        OptunaSearch("nsga")
    with pytest.raises(ValueError, match="canonical is 3"):
        OptunaSearch(canonical=3)
    with pytest.raises(RuntimeError, match="not been initialized"):
        _ = OptunaSearch().front
