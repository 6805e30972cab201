"""A search by a sampler of Optuna in place of the evolution: the same limits, history and winner's rule."""

import itertools
import json
from dataclasses import asdict, replace
from pathlib import Path

import optuna
import pytest
import yaml
from typer.testing import CliRunner

from elm_nni.cli import app
from elm_nni.digest import digest
from elm_nni.errors import UserError
from elm_nni.pipeline.config import Config, SearchConfig, load_config
from elm_nni.pipeline.context import Context
from elm_nni.pipeline.runner import Run, with_strategy
from elm_nni.pipeline.sampler_search import SamplerSearch
from elm_nni.pipeline.search_stage import build_search, search_inputs
from elm_nni.pipeline.store import StageStore
from elm_nni.strategies.evolution import Limit

from .conftest import settings

SPACE = {f"layer{index}": ["a", "b", "c", "d"] for index in range(3)}
COST = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}


def size(sample: dict) -> float:
    return sum(COST[block] for block in sample.values())


def metric(sample: dict) -> float:
    # not the size alone: the order of blocks counts
    return sum(COST[block] * weight for block, weight in zip(sample.values(), (3.0, -1.0, 2.0)))


def search_of(strategy: str, evaluations: int, **changes: object) -> SamplerSearch:
    return SamplerSearch(
        SearchConfig(strategy=strategy, population=8, mutations=3, crossovers=3, **changes), space=SPACE,
        limits={"size": Limit(size, 9.0)}, measures={"params": size}, canonical=dict,
        first=[dict.fromkeys(SPACE, "a")], evaluations=evaluations, seed=3,
    )  # fmt: skip


def proposals(search: SamplerSearch) -> list:
    found = []
    while (proposal := search.ask()) is not None:
        search.tell(proposal, metric(proposal.sample))
        found.append(proposal)
    return found


def test_brute_force_sees_every_allowed_architecture_once_and_the_best_one_wins() -> None:
    search = search_of("optuna:bruteforce", 100)
    found = proposals(search)
    allowed = [dict(zip(SPACE, blocks)) for blocks in itertools.product("abcd", repeat=3)]
    allowed = [sample for sample in allowed if size(sample) <= 9]
    assert sorted(one.digest for one in found) == sorted(map(digest, allowed))
    best = max(map(metric, allowed))
    assert search.best[0] == best
    # of equal ones the first digest, as in the evolution
    assert search.best[1].digest == min(digest(sample) for sample in allowed if metric(sample) == best)
    assert search.counts.evaluated == len(allowed)
    assert search.counts.rejected["size"] == 4**3 - len(allowed)


@pytest.mark.parametrize("strategy", ["optuna:nsgaii", "optuna:tpe", "optuna:random"])
def test_told_the_same_metrics_it_proposes_the_same(strategy: str) -> None:
    first, again = (proposals(search_of(strategy, 20)) for _ in range(2))
    assert [one.digest for one in first] == [one.digest for one in again]
    assert first[0].sample == dict.fromkeys(SPACE, "a")
    assert len({one.digest for one in first}) == len(first) == 20
    # counted as the evolution's generations: 8, then 6 each
    assert [one.generation for one in first] == [0] * 8 + [1] * 6 + [2] * 6


def test_the_study_is_kept_for_the_dashboard_with_its_front(tmp_path: Path) -> None:
    search = search_of("optuna:nsgaii", 30, objectives=("metric", "params"), sampler_args={"population_size": 8})
    found = proposals(search)
    search.save(tmp_path / "study.db")
    search.save(tmp_path / "study.db")
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path / 'study.db'}")
    points = {(metric(one.sample), size(one.sample)) for one in found}
    front = {(m, s) for m, s in points if not any(a >= m and b <= s and (a, b) != (m, s) for a, b in points)}
    assert {tuple(trial.values) for trial in study.best_trials} == front
    assert len(front) > 2


@pytest.fixture(scope="module")
def config(own: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    path = tmp_path_factory.mktemp("config") / "own.yaml"
    path.write_text(yaml.safe_dump(settings(own)), encoding="utf-8")
    return load_config(str(path))


@pytest.fixture(scope="module")
def searched(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run up to the evolution's winner."""
    folder = tmp_path_factory.mktemp("run")
    run = Run(config, StageStore(folder / "store"), folder / "run")
    run.search()
    return run


@pytest.mark.slow
def test_a_sampler_searches_the_supernet_and_goes_on_after_an_interruption(searched: Run, tmp_path: Path) -> None:
    chosen = with_strategy(searched.config, "optuna:nsgaii", ("metric", "params", "latency_ms"))
    run = Run(chosen, searched.context.store, tmp_path / "run")
    folder = run.search().folder
    assert {name for name, one in run._finished.items() if not one.cached} == {"search"}
    text = (folder / "history.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert len({line["digest"] for line in lines}) == len(lines) == 4 + 2 * 4
    assert {line["origin"] for line in lines} == {"nsgaii"}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["best"]["metric"] == max(line["metric"] for line in lines)
    known = {line["digest"]: line for line in map(json.loads, _evolution_history(searched))}
    for line in lines:
        # the same supernet gives an architecture the same score, whoever proposes it
        assert line["metric"] == known.get(line["digest"], line)["metric"]

    again = tmp_path / "again"
    again.mkdir()
    (again / "history.jsonl").write_text("".join(text.splitlines(keepends=True)[:5]))
    build_search(run.context, again, run.supernet_tasks().folder, run.latency(), chosen.limits)
    assert (again / "history.jsonl").read_text() == text
    assert json.loads((again / "summary.json").read_text()) == summary


@pytest.mark.slow
def test_the_command_searches_with_a_strategy_beside_the_run(searched: Run) -> None:
    run_dir = searched.directory.path
    arguments = ["search", str(run_dir), "--store", str(searched.context.store.root), "--strategy", "optuna:random"]
    done = CliRunner().invoke(app, [*arguments, "--max-latency-ms", "900,1000"])
    assert done.exit_code == 0, done.output
    assert done.output.count("winner") == 2
    for limit in ("900", "1000"):
        history = run_dir / "optuna-random-metric" / f"latency-{limit}ms" / "search" / "history.jsonl"
        assert len(history.read_text().splitlines()) == 12


def _evolution_history(run: Run) -> list[str]:
    return (run.search().folder / "history.jsonl").read_text().splitlines()


def test_a_strategy_does_not_depend_on_settings_of_the_other(config: Config, tmp_path: Path) -> None:
    context = Context(config, StageStore(tmp_path), lambda event, **values: None)

    def inputs(**changes: object) -> dict:
        context.config = replace(config, search=replace(config.search, **changes))
        return search_inputs(context, "supernet", None, config.limits)

    assert inputs(keep=7) != inputs()
    sampler = {"strategy": "optuna:tpe", "evaluations": 9}
    assert inputs(**sampler, keep=7) == inputs(**sampler) != inputs()
    assert inputs(**sampler, objectives=("metric", "params")) != inputs(**sampler)
    # stages of releases that knew the evolution alone are found again
    assert set(inputs()["search"]) == set(asdict(config.search)) - {
        "strategy", "objectives", "evaluations", "sampler_args"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search.strategy": "evolutoin"}, "search.strategy: 'evolutoin' is not allowed.*did you mean evolution"),
        ({"search.strategy": "optuna:nsga"}, "did you mean optuna:nsga"),
        ({"search.strategy": "nsgaii"}, "it must be evolution or optuna: and one of .*did you mean optuna:nsgaii"),
        ({"search.objectives": ["metric", "params"]}, "search.objectives: 'metric, params' is not allowed"),
        ({"search.strategy": "optuna:tpe", "search.objectives": ["params"]}, "search.objectives: 'params'"),
        ({"search.strategy": "optuna:tpe", "search.objectives": ["metric", "speed"]}, "search.objectives"),
        ({"search.strategy": "optuna:cmaes", "search.objectives": ["metric", "params"]}, "'cmaes' takes one objective"),
        ({"search.evaluations": 5}, "sampler_args and evaluations belong to the strategy optuna:NAME"),
        ({"search.strategy": "optuna:tpe", "search.evaluations": 0}, "search.evaluations: 0 is not allowed"),
        ({"search.strategy": "optuna:tpe", "search.sampler_args": {"size": 3}}, "search.sampler_args has 'size'"),
        ({"search.strategy": "optuna:tpe", "search.sampler_args": 3}, "search.sampler_args: 3 is not allowed"),
    ],
)
def test_a_wrong_setting_is_named(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config("nano", changes)
