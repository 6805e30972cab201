"""The comparison of searches: equal numbers of evaluations, and numbers that follow from what is in its files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import searches
import yaml
from common import checked_names, run_command
from optuna._hypervolume import compute_hypervolume
from search_curves import Search, best_so_far, curves, differences, each_seed, table, volume_so_far
from searches import STRATEGIES, Evaluations, Problem, generations, search

from elm_nni.digest import digest
from elm_nni.errors import UserError
from elm_nni.strategies.evolution import Counts, Limit

from ..pipeline.conftest import settings

BLOCKS = ["a", "b", "c", "d"]


def params(sample: dict[str, Any]) -> float:
    return sum(10.0 + 7 * BLOCKS.index(block) for block in sample.values())


def latency(sample: dict[str, Any]) -> float:
    return 1.0 + sum((BLOCKS.index(block) - 2) ** 2 for block in sample.values())


def metric(sample: dict[str, Any], _: str = "") -> float:
    return sum(BLOCKS.index(block) * (index + 1) for index, block in enumerate(sample.values())) / 30


def toy(num_layers: int = 4, **changes: Any) -> Problem:
    """Four blocks a layer; the largest architectures are over the limit."""
    usual = {
        "space": {f"layer{index}": BLOCKS for index in range(num_layers)}, "canonical": dict, "metric": metric,
        "limits": {"params": Limit(params, 23.0 * num_layers)}, "costs": {"params": params, "latency_ms": latency},
    }  # fmt: skip
    return Problem(**(usual | changes))


def volumes_by_optuna(all_objectives: list[list[list[float]]]) -> list[list[float]]:
    """Hypervolume after each evaluation of each run, from nothing but metric, params and latency."""
    costs = [np.array(one) * [-1, 1, 1] for one in all_objectives]
    together = np.concatenate(costs)
    low, high = together.min(axis=0), together.max(axis=0)
    scaled = [(one - low) / np.where(high > low, high - low, 1) for one in costs]
    return [[compute_hypervolume(one[: end + 1], np.full(3, 1.1)) for end in range(len(one))] for one in scaled]


@pytest.mark.parametrize("evaluations", [16, 17, 80, 81, 95, 200])
@pytest.mark.parametrize("strategy", ["evolution", "evolution-short"])
def test_the_generations_of_an_evolution_add_up_to_the_evaluations(strategy: str, evaluations: int) -> None:
    one = generations(strategy, evaluations)
    later = (one["generations"] - 1) * (one["mutations"] + one["crossovers"])
    assert one["population"] + later == evaluations
    assert min(one.values()) >= 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_evaluates_as_many_as_it_may_each_once_and_none_over_a_limit(strategy: str) -> None:
    samples: dict[str, dict[str, Any]] = {}

    def noted(sample: dict[str, Any], name: str) -> float:
        samples[name] = sample
        return metric(sample)

    one = search(toy(metric=noted), strategy, 0, 20)
    assert len(set(one.digests)) == len(one.digests) == one.counts.evaluated == 20
    expected = [[metric(samples[name]), params(samples[name]), latency(samples[name])] for name in one.digests]
    assert one.objectives == expected
    assert max(row[1] for row in one.objectives) <= 92
    assert one.counts.rejected["params"] > 0
    assert one == search(toy(), strategy, 0, 20)
    assert one.digests != search(toy(), strategy, 1, 20).digests


@pytest.mark.parametrize("strategy", ["nsgaii", "nsgaiii", "tpe"])
def test_the_objectives_of_a_study_decide_what_it_draws(strategy: str) -> None:
    def slow(sample: dict[str, Any]) -> float:
        return -latency(sample)

    changed = toy(costs={"params": params, "latency_ms": slow})
    assert search(toy(), strategy, 0, 20).digests != search(changed, strategy, 0, 20).digests
    if strategy != "nsgaiii":
        alone = f"{strategy}-metric"
        assert search(toy(), alone, 0, 20).digests == search(changed, alone, 0, 20).digests


@pytest.mark.parametrize("strategy", ["evolution", "random"])
def test_a_strategy_that_has_seen_everything_ends_early_and_keeps_its_last_values(strategy: str) -> None:
    one = search(toy(num_layers=2), strategy, 0, 20)
    assert len(one.digests) < 16
    if strategy == "random":
        assert len(one.digests) == sum(params({"x": a, "y": b}) <= 46 for a in BLOCKS for b in BLOCKS)
    extent, best, volume = curves([one], 20)
    for values, last in ((best, max(row[0] for row in one.objectives)), (volume, None)):
        assert values[strategy].shape == (1, 20)
        assert set(values[strategy][0, len(one.digests) - 1 :]) == {last or values[strategy][0, -1]}
    assert volume_so_far(one, extent, 20)[-1] > 0


def test_curves_equal_those_computed_from_nothing_but_the_objectives() -> None:
    runs = [search(toy(), name, seed, 20) for seed in range(2) for name in ("evolution", "tpe")]
    expected = volumes_by_optuna([one.objectives for one in runs])
    extent, best, volume = curves(runs, 20)
    for index, (name, seed) in enumerate([("evolution", 0), ("tpe", 0), ("evolution", 1), ("tpe", 1)]):
        metrics = [row[0] for row in runs[index].objectives]
        assert best[name][seed].tolist() == [max(metrics[: end + 1]) for end in range(20)]
        assert volume[name][seed] == pytest.approx(expected[index], rel=1e-9)
    assert [-extent.low[0], extent.low[1]] == [
        max(row[0] for one in runs for row in one.objectives), min(row[1] for one in runs for row in one.objectives)
    ]  # fmt: skip


def test_what_failed_has_neither_a_best_metric_nor_a_hypervolume() -> None:
    rows = [[np.nan, 0.0, 0.0], [0.5, 2.0, 2.0], [np.nan, 0.0, 0.0], [0.75, 1.0, 3.0]]
    one = Search("random", 0, list("abcd"), rows, Counts())
    assert best_so_far(one, 4).tolist()[1:] == [0.5, 0.5, 0.75]
    extent, _, volume = curves([one], 4)
    assert extent.low == [-0.75, 1.0, 2.0]
    # costs (1, 1, 0) and (0, 0, 1) between 0 and the reference of 1.1
    expected = [0, 0.1 * 0.1 * 1.1, 0.1 * 0.1 * 1.1, 0.011 + 1.1 * 1.1 * 0.1 - 0.1**3]
    assert volume["random"][0] == pytest.approx(expected)


def test_tables_say_mean_range_and_deviation_over_seeds_and_differences_of_the_same_seed() -> None:
    best = {"evolution": np.array([[0.1] * 15 + [0.5], [0.2] * 15 + [0.6]])}
    best["random"] = best["evolution"] + [[0.1], [0.0]]
    volume = {name: np.array([np.arange(1.0, 17), np.arange(3.0, 19)]) for name in best}
    volume["random"] = volume["random"] - [[1.0], [2.0]]
    runs = [
        Search("evolution", 0, ["a"] * 16, [], Counts(16, 2, {"params": 3, "latency_ms": 4})),
        Search("evolution", 1, ["a"] * 12, [], Counts(12, 2, {"params": 0, "latency_ms": 4})),
        Search("random", 0, ["a"] * 16, [], Counts(16, 0, {})),
        Search("random", 1, ["a"] * 16, [], Counts(16, 5, {})),
    ]
    first, second = table(runs, best, volume)[2:]
    assert first == (
        "| evolution | 12 to 16 | 2 | 4 to 7 | 0.5500 (0.5000 to 0.6000) | "
        "5.0000 ± 1.4142 | 9.0000 ± 1.4142 | 17.0000 ± 1.4142 |"
    )
    assert second.startswith("| random | 16 | 0 to 5 | 0 | 0.6000 (0.6000 to 0.6000) | ")
    assert differences(best, volume, "evolution")[2:] == [
        "| random | +0.0500 (+0.0000 to +0.1000) | 1, 1, 0 | -1.5000 (-2.0000 to -1.0000) | 0, 0, 2 |"
    ]
    assert each_seed(best, volume)[2] == "| evolution | 16.0000 (0.5000) | 18.0000 (0.6000) |"


def test_an_interrupted_search_goes_on_and_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = search(toy(), "evolution", 0, 24)
    scored: list[str] = []

    def failing(sample: dict[str, Any]) -> float:
        if len(scored) == 10:
            raise KeyboardInterrupt
        scored.append(digest(sample))
        return metric(sample)

    path = tmp_path / "evaluations.jsonl"
    with pytest.raises(KeyboardInterrupt):
        search(toy(metric=Evaluations(path, "one", failing)), "evolution", 0, 24)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"supernet": "one", "dig')
    scored.clear()
    again = Evaluations(path, "one", lambda sample: scored.append(digest(sample)) or metric(sample))
    assert search(toy(metric=again), "evolution", 0, 24) == whole
    assert scored == whole.digests[10:]
    # another supernet has metrics of its own
    other = Evaluations(path, "two", lambda sample: 7.0)
    assert other({"layer0": "a"}, whole.digests[0]) == 7.0
    assert Evaluations(path, "one", metric).known[whole.digests[0]] == whole.objectives[0][0]


def test_the_command_compares_the_searches_of_a_run(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = tmp_path / "own.yaml"
    small = settings(own)
    # enough for architectures to differ in accuracy
    small["supernet"]["tasks"] = small["supernet"]["tasks"] | {"steps": 14, "lr": 1e-2}
    config.write_text(yaml.safe_dump(small), encoding="utf-8")
    given = {
        "source": str(config), "out": tmp_path / "out", "store": tmp_path / "store", "seeds": 2, "evaluations": 16,
        "strategies": "evolution,tpe,random", "set_": None,
    }  # fmt: skip
    searches.main(**given)
    printed = capsys.readouterr()
    known = (tmp_path / "out" / "evaluations.jsonl").read_text(encoding="utf-8")
    found = json.loads((tmp_path / "out" / "searches.json").read_text(encoding="utf-8"))["searches"]
    metrics = {line["digest"]: line["metric"] for line in map(json.loads, known.splitlines())}
    expected = volumes_by_optuna([one["objectives"] for one in found])
    assert [(one["strategy"], one["seed"]) for one in found] == [
        (name, seed) for seed in range(2) for name in ("evolution", "tpe", "random")
    ]
    for index, one in enumerate(found):
        assert len({row[0] for row in one["objectives"]}) > 1
        assert [row[0] for row in one["objectives"]] == [metrics[name] for name in one["digests"]]
        assert len(set(one["digests"])) == 16 or one["strategy"] == "evolution"
        volume, best = expected[index][-1], max(row[0] for row in one["objectives"])
        line = next(
            line for line in reversed(printed.out.splitlines()) if line.startswith(f"| {one['strategy']} |")
        )
        assert line.split(" | ")[1 + one["seed"]].rstrip(" |") == f"{volume:.4f} ({best:.4f})"
    assert (tmp_path / "out" / "searches.md").read_text(encoding="utf-8") == printed.out
    assert (tmp_path / "out" / "searches.png").read_bytes().startswith(b"\x89PNG")
    assert re.search(r"96 evaluations, 4 architectures known, at most 32 new ones of ", printed.err)
    assert "6/6 random, seed 1: 16 evaluated, " in printed.err

    searches.main(**(given | {"strategies": "random"}))
    assert "1/2 random, seed 0: 16 evaluated, 0 new" in capsys.readouterr().err
    assert (tmp_path / "out" / "evaluations.jsonl").read_text(encoding="utf-8") == known
    # a run under other limits has the same supernet
    searches.main(**(given | {"strategies": "random", "set_": ["limits.max_latency_ms=999"]}))
    again = capsys.readouterr()
    assert "1/2 random, seed 0: 16 evaluated, 0 new" in again.err
    assert "latency_ms <= 999" in again.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nano", "--evaluations", "15"], "--evaluations is 15; it must be at least 16"),
        (["nano", "--seeds", "1"], "--seeds is 1; it must be at least 2"),
        (["nano", "--strategies", "tpe,nsga2"], f"--strategies: 'nsga2' is unknown; allowed: {', '.join(STRATEGIES)}"),
        (["nano", "--strategies", ","], f"--strategies is empty; allowed: {', '.join(STRATEGIES)}"),
        (["nano", "--set", "seed"], "--set 'seed': expected key=value, for example growth.top_k=8"),
        (["."], ". is not a run directory: it has no config.yaml"),
    ],
)
def test_a_users_mistake_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["searches.py", *arguments, "--out", "out"])
    with pytest.raises(SystemExit) as ended:
        run_command(searches.main, "searches")
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", f"searches: {message}\n")
    assert list(tmp_path.iterdir()) == []


def test_searches_without_any_metric_are_refused() -> None:
    with pytest.raises(UserError, match="every evaluation gave NaN"):
        curves([Search("random", 0, ["a"], [[np.nan, 1.0, 1.0]], Counts())], 16)


def test_names_of_strategies_are_taken_once_in_their_order() -> None:
    assert checked_names("--strategies", " tpe, random,tpe", STRATEGIES) == ["tpe", "random"]
