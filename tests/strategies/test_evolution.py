"""The ask-and-tell core against brute force."""

import itertools
import math
from typing import Any

import pytest

from elm_nni.errors import UserError
from elm_nni.strategies.evolution import Constraints, Evolution, Individual, Limit

SPACE = {"a": [0, 1, 2, 3], "b": [0, 1, 2], "c": ["x", "y"], "d": [0, 1, 2]}
ALL = [dict(zip(SPACE, values)) for values in itertools.product(*SPACE.values())]


def quality(sample: dict[str, Any]) -> float:
    return sample["a"] * (1.5 - sample["d"] / 2) + (sample["b"] - 1) ** 2 + 2.3 * (sample["c"] == "y")


def cost(sample: dict[str, Any]) -> float:
    return 1 + sample["a"] + sample["b"] * sample["d"] + (sample["c"] == "y")


def run(search: Evolution, metric=quality) -> list[Individual]:
    proposed = []
    while (individual := search.ask()) is not None:
        search.tell(individual, metric(individual.sample))
        proposed.append(individual)
    return proposed


def settings(**changes: Any) -> dict[str, Any]:
    return {"population": 10, "generations": 6, "mutations": 5, "crossovers": 5, "mutation_prob": 0.3} | changes


@pytest.mark.parametrize("seed", range(5))
def test_it_finds_the_brute_forced_optimum_under_a_limit_with_fewer_evaluations(seed: int) -> None:
    best = max((sample for sample in ALL if cost(sample) <= 4), key=quality)
    constraints = Constraints({"cost": Limit(cost, 4)})
    search = Evolution(space=SPACE, constraints=constraints, seed=seed, **settings(generations=4))
    proposed = run(search)
    assert search.best[0] == quality(best)
    assert len(proposed) <= 40 < len(ALL)
    assert all(individual.costs == {"cost": cost(individual.sample)} for individual in proposed)
    assert max(individual.costs["cost"] for individual in proposed) <= 4


def test_no_architecture_is_proposed_twice_and_a_space_ends_when_it_is_exhausted() -> None:
    search = Evolution(space={"a": [0, 1, 2], "b": [0, 1]}, **settings(generations=50, keep=50))
    proposed = run(search, lambda sample: sample["a"] + sample["b"])
    assert len({individual.digest for individual in proposed}) == len(proposed) == 6
    assert search.finished
    assert search.constraints.counts.evaluated == 6
    assert search.constraints.counts.duplicates > 0


def test_samples_that_differ_in_unused_labels_are_one() -> None:
    space = {"block": ["p", "q"], "p_width": [1, 2], "q_width": [1, 2, 3]}

    def canonical(sample: dict[str, Any]) -> dict[str, Any]:
        return {"block": sample["block"], f"{sample['block']}_width": sample[f"{sample['block']}_width"]}

    proposed = run(Evolution(space=space, constraints=Constraints(canonical=canonical), **settings()), len)
    assert len(proposed) == 5
    assert all(len(individual.sample) == 2 for individual in proposed)


def test_generations_have_their_sizes_and_origins() -> None:
    space = {label: list(range(8)) for label in "abcdef"}
    search = Evolution(space=space, **settings(generations=3, mutations=4, crossovers=3))
    proposed = run(search, lambda sample: sum(sample.values()))
    origins = [(individual.generation, individual.origin) for individual in proposed]
    later = ["mutation"] * 4 + ["crossover"] * 3
    assert origins == [(0, "random")] * 10 + [(generation, origin) for generation in (1, 2) for origin in later]


def test_children_come_from_the_kept_parents() -> None:
    space = {label: list(range(100)) for label in "abcd"}
    search = Evolution(space=space, **settings(generations=2, keep=3, mutation_prob=0.01))
    metric = lambda sample: sum(sample.values())  # noqa: E731
    proposed = run(search, metric)
    parents = sorted((one.sample for one in proposed if one.generation == 0), key=metric, reverse=True)[:3]
    for child in (one.sample for one in proposed if one.origin == "mutation"):
        assert any(sum(child[label] != parent[label] for label in child) <= 2 for parent in parents)
    for child in (one.sample for one in proposed if one.origin == "crossover"):
        assert all(value in {parent[label] for parent in parents} for label, value in child.items())


def test_initial_samples_come_first() -> None:
    first = {"a": 0, "b": 0, "c": "x", "d": 0}
    search = Evolution(space=SPACE, initial=[first], **settings())
    assert search.ask().sample == first


def test_replaying_the_metrics_gives_the_same_proposals_whatever_order_they_are_told_in() -> None:
    proposed = [one.digest for one in run(Evolution(space=SPACE, seed=7, **settings()))]
    search = Evolution(space=SPACE, seed=7, **settings())
    again = []
    while not search.finished:
        batch = []
        while (individual := search.ask()) is not None:
            batch.append(individual)
        if not batch:
            break
        assert search.waiting
        for individual in reversed(batch):
            search.tell(individual, quality(individual.sample))
        again += [one.digest for one in batch]
    assert again == proposed
    other = [one.digest for one in run(Evolution(space=SPACE, seed=8, **settings()))]
    assert other != proposed


def test_a_failed_or_nan_evaluation_is_no_parent_and_not_the_best() -> None:
    def metric(sample: dict[str, Any]) -> float | None:
        return {0: 1.0, 1: math.nan, 2: None, 3: 0.5}[sample["a"]]

    search = Evolution(space=SPACE, **settings())
    run(search, metric)
    assert search.best[0] == 1.0
    assert {individual.sample["a"] for _, individual in search.kept} == {0, 3}


def test_no_feasible_architecture_ends_in_counts() -> None:
    limits = {"cost": Limit(cost, 0.5), "quality": Limit(lambda sample: 100 + quality(sample), 1000)}
    search = Evolution(space=SPACE, constraints=Constraints(limits), max_tries=40, **settings())
    counts = r"in 40 draws: cost <= 0.5 refused 40 \(lowest seen 1\); quality <= 1000 refused 0"
    with pytest.raises(UserError, match=counts):
        run(search)


def test_a_generation_that_failed_as_a_whole_is_an_error() -> None:
    with pytest.raises(UserError, match="every evaluation of the first generation failed"):
        run(Evolution(space=SPACE, **settings()), lambda sample: None)


def test_the_best_of_nothing_is_an_error() -> None:
    with pytest.raises(UserError, match="no architecture was evaluated"):
        _ = Evolution(space=SPACE).best


def test_a_metric_is_told_once_and_only_for_a_proposal() -> None:
    search = Evolution(space=SPACE)
    individual = search.ask()
    search.tell(individual, 1.0)
    with pytest.raises(ValueError, match=individual.digest):
        search.tell(individual, 1.0)


def test_constraints_serve_any_strategy() -> None:
    constraints = Constraints({"cost": Limit(cost, 3)})
    sample = {"a": 1, "b": 1, "c": "x", "d": 1}
    assert constraints.admit(sample)[2] == {"cost": 3.0}
    assert constraints.admit(dict(reversed(sample.items()))) is None
    assert constraints.admit({**sample, "d": 2}) is None
    assert constraints.admit({**sample, "d": 0}) is not None
    assert (constraints.counts.duplicates, constraints.counts.rejected) == (1, {"cost": 1})


@pytest.mark.parametrize(
    ("setting", "value"),
    [("population", 0), ("generations", 0), ("keep", 0), ("max_tries", 0), ("mutations", -1), ("mutation_prob", 0)],
)
def test_a_wrong_setting_is_named(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{setting}.*{value}"):
        Evolution(space=SPACE, **{setting: value})
    with pytest.raises(ValueError, match="'b'"):
        Evolution(space={"a": [1], "b": []})
    with pytest.raises(ValueError, match="maximum.*nan"):
        Limit(cost, math.nan)
