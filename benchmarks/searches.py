"""Searches on one trained supernet at equal numbers of evaluations: evolution, and samplers of Optuna.

Run: python benchmarks/searches.py nano --seeds 5 --evaluations 80 --out searches

A metric depends on the architecture alone, so each architecture is evaluated once, kept in evaluations.jsonl, and
counted by every run that asks for it: the same command goes on after a kill, and with more seeds or evaluations.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import optuna
import typer
from common import at_least, checked_names, heading, metric_words, run_command
from matplotlib.figure import Figure
from search_curves import OBJECTIVES, REFERENCE, Search, curves, differences, each_seed, plot, table

from elm_nni.cache import default_store
from elm_nni.cost.parameters import count_parameters
from elm_nni.digest import digest
from elm_nni.errors import UserError
from elm_nni.files import write_bytes, write_text
from elm_nni.pipeline.config import load_config, parse_assignment
from elm_nni.pipeline.run_dir import CONFIG, config_digest
from elm_nni.pipeline.runner import Architecture, Run
from elm_nni.pipeline.search_stage import SupernetScorer, make_limits, with_widths
from elm_nni.pipeline.store import StageStore, append_json_line, read_json_lines, write_json
from elm_nni.pipeline.supernet_stage import load_widths
from elm_nni.report.style import to_png
from elm_nni.search_spaces.architecture import architecture_digest, layer_label
from elm_nni.strategies.architecture_study import ArchitectureStudy
from elm_nni.strategies.evolution import Constraints, Counts, Evolution, Limit, Sample
from elm_nni.strategies.study_settings import StudySettings

FEWEST = 16
METRIC_ALONE = {"metric": "maximize"}

# first generation and the later ones, in parts of all evaluations
GENERATIONS = {"evolution": (4, 2), "evolution-short": (8, 7)}
# sampler, whether it has a population, objectives
STUDIES = {
    "nsgaii": ("nsgaii", True, OBJECTIVES), "nsgaiii": ("nsgaiii", True, OBJECTIVES),
    "tpe": ("tpe", False, OBJECTIVES), "random": ("random", False, OBJECTIVES),
    "nsgaii-metric": ("nsgaii", True, METRIC_ALONE), "tpe-metric": ("tpe", False, METRIC_ALONE),
}  # fmt: skip
STRATEGIES = [*GENERATIONS, *STUDIES]


@dataclass(frozen=True)
class Problem:
    """What all strategies search.

    Attributes:
        space: label to its values.
        canonical: maps a sample to its canonical form.
        limits: name to limit, on canonical samples.
        costs: ``params`` and ``latency_ms`` as functions of a canonical sample.
        metric: of a canonical sample and its digest; higher is better.
        mutation_prob: of the evolution.
    """

    space: Mapping[str, Sequence[Any]]
    canonical: Callable[[Sample], Sample]
    limits: Mapping[str, Limit]
    costs: Mapping[str, Callable[[Sample], float]]
    metric: Callable[[Sample, str], float]
    mutation_prob: float = 0.1

    @property
    def size(self) -> int:
        """Number of samples, those over a limit included."""
        return math.prod(map(len, self.space.values()))


class Evaluations:
    """Metrics by digest, in a file of JSON lines beside those of other supernets."""

    def __init__(self, path: Path, supernet: str, score: Callable[[Sample], float]) -> None:
        self._path, self._supernet, self._score = path, supernet, score
        lines = [line for line in read_json_lines(path) if line["supernet"] == supernet]
        self.known: dict[str, float] = {line["digest"]: line["metric"] for line in lines}
        self._seconds = [line["seconds"] for line in lines]

    @property
    def seconds(self) -> float:
        """Of one evaluation, the median; NaN when there was none."""
        return float(np.median(self._seconds)) if self._seconds else math.nan

    def __call__(self, sample: Sample, name: str) -> float:
        if name not in self.known:
            start = time.monotonic()
            self.known[name] = self._score(sample)
            self._seconds.append(time.monotonic() - start)
            line = {"supernet": self._supernet, "digest": name, "sample": sample, "metric": self.known[name]}
            append_json_line(self._path, {**line, "seconds": round(self._seconds[-1], 4)})
        return self.known[name]


class Inherited:
    """Scores of architectures with a run's supernet on search rows; what the file holds is not scored again.

    Args:
        run: its supernet is trained where it is missing.
        path: file of scores.
    """

    def __init__(self, run: Run, path: Path) -> None:
        self._run, self._supernet = run, run.supernet_tasks()
        self._scorer: SupernetScorer | None = None
        # the tasks of a search do not change its supernet
        name = digest([self._supernet.digest, list(run.config.search.tasks)])
        self._evaluations = Evaluations(path, name, self._score)

    def __call__(self, architecture: Architecture) -> float:
        return self._evaluations(architecture, architecture_digest(architecture))

    def missing(self, architectures: Sequence[Architecture]) -> int:
        """How many the file does not hold."""
        return sum(architecture_digest(one) not in self._evaluations.known for one in architectures)

    def _score(self, architecture: Architecture) -> float:
        if self._scorer is None:
            self._scorer = SupernetScorer(self._run.context, self._supernet.folder)
        return self._scorer(architecture)


def generations(strategy: str, evaluations: int) -> dict[str, int]:
    """Settings of :class:`Evolution` that add up to so many evaluations.

    Example:
        >>> generations("evolution", 80)
        {'population': 40, 'generations': 3, 'mutations': 10, 'crossovers': 10, 'keep': 20}
    """
    parts, later = GENERATIONS[strategy]
    half = evaluations // (2 * parts)
    first = evaluations - later * 2 * half
    keep = evaluations // 4
    return {"population": first, "generations": later + 1, "mutations": half, "crossovers": half, "keep": keep}


def settings_line(strategy: str, evaluations: int) -> str:
    """How a strategy is set, in words."""
    if strategy in GENERATIONS:
        one = generations(strategy, evaluations)
        return (
            f"first generation {one['population']}, then {one['generations'] - 1} of {one['mutations']} mutations and "
            f"{one['crossovers']} crossovers of the {one['keep']} best; optimises the metric"
        )
    sampler, has_population, directions = STUDIES[strategy]
    population = f" with population_size {_population(evaluations)}" if has_population else ""
    return f"Optuna's {sampler}{population}; objectives: {', '.join(directions)}"


def search(problem: Problem, strategy: str, seed: int, evaluations: int) -> Search:
    """Runs a strategy until so many distinct architectures within the limits were evaluated.

    It ends earlier when a strategy finds nothing new in 500 draws.

    Raises:
        UserError: nothing within the limits was found.
    """
    found: list[str] = []
    objectives: list[list[float]] = []

    def evaluate(sample: Sample, name: str) -> float:
        metric = problem.metric(sample, name)
        found.append(name)
        objectives.append([metric, *(float(measure(sample)) for measure in problem.costs.values())])
        return metric

    run = _evolve if strategy in GENERATIONS else _study
    counts = run(problem, strategy, seed, evaluations, evaluate)
    return Search(strategy, seed, found, objectives, counts)


def _evolve(
    problem: Problem, strategy: str, seed: int, evaluations: int, evaluate: Callable[[Sample, str], float]
) -> Counts:
    constraints = Constraints(problem.limits, canonical=problem.canonical)
    evolution = Evolution(
        space=problem.space, constraints=constraints, mutation_prob=problem.mutation_prob, seed=seed,
        **generations(strategy, evaluations),
    )  # fmt: skip
    while (one := evolution.ask()) is not None:
        evolution.tell(one, evaluate(one.sample, one.digest))
    return constraints.counts


def _study(
    problem: Problem, strategy: str, seed: int, evaluations: int, evaluate: Callable[[Sample, str], float]
) -> Counts:
    sampler, has_population, directions = STUDIES[strategy]
    measures = {name: measure for name, measure in problem.costs.items() if name in directions}
    settings = StudySettings(
        sampler=sampler, sampler_args={"population_size": _population(evaluations)} if has_population else {},
        directions=directions, objectives=measures, limits=problem.limits, evaluations=evaluations, seed=seed,
    )  # fmt: skip
    study = ArchitectureStudy(problem.space, settings=settings, canonical=problem.canonical)
    while (one := study.ask()) is not None:
        study.tell(one, {"metric": evaluate(one.sample, one.digest)})
    study.close()
    return study.counts


def _population(evaluations: int) -> int:
    return evaluations // 4


def supernet_problem(run: Run, path: Path) -> tuple[Problem, Evaluations]:
    """What the pipeline's search stage searches: the block of each layer at the grown widths, under the run's limits.

    Args:
        run: its stages up to ``supernet_tasks`` are built where they are missing.
        path: of the evaluations.
    """
    context, supernet, latency = run.context, run.supernet_tasks(), run.latency()
    settings, widths = context.settings, load_widths(supernet.folder)
    scorer = SupernetScorer(context, supernet.folder)
    # the tasks of a search do not change its supernet
    evaluations = Evaluations(path, digest([supernet.digest, list(run.config.search.tasks)]), scorer)
    problem = Problem(
        space={layer_label(index): list(scorer.space.blocks) for index in range(settings.num_layers)},
        canonical=lambda sample: scorer.space.canonical(with_widths(sample, widths)),
        limits=make_limits(context, latency, run.config.limits),
        costs={"params": lambda sample: count_parameters(sample, settings), "latency_ms": latency.predict},
        metric=evaluations, mutation_prob=run.config.search.mutation_prob,
    )  # fmt: skip
    return problem, evaluations


def estimate(problem: Problem, evaluations: Evaluations, total: int) -> str:
    """Time to come, in words; the first few architectures are evaluated for it where the file has none."""
    rng = np.random.default_rng(0)
    for _ in range(4 * math.isnan(evaluations.seconds)):
        drawn = {label: values[int(rng.integers(len(values)))] for label, values in problem.space.items()}
        sample = problem.canonical(drawn)
        evaluations(sample, digest(sample))
    num_known = len(evaluations.known)
    new = max(0, min(total, problem.size - num_known))
    return (
        f"{total} evaluations, {num_known} architectures known, at most {new} new ones of {evaluations.seconds:.2f} s: "
        f"up to {new * evaluations.seconds / 60:.0f} minutes"
    )


def run_all(
    problem: Problem, strategies: Sequence[str], *, seeds: int, evaluations: int, known: Evaluations
) -> list[Search]:
    """Every strategy with every seed; progress goes to stderr."""
    plan = [(seed, strategy) for seed in range(seeds) for strategy in strategies]
    typer.echo(estimate(problem, known, len(plan) * evaluations), err=True)
    searches: list[Search] = []
    for seed, strategy in plan:
        before = len(known.known)
        one = search(problem, strategy, seed, evaluations)
        searches.append(one)
        left = (len(plan) - len(searches)) * evaluations
        typer.echo(
            f"{len(searches)}/{len(plan)} {strategy}, seed {seed}: {len(one.digests)} evaluated, "
            f"{len(known.known) - before} new, best {np.nanmax(one.objectives, axis=0)[0]:.4f}; at most "
            f"{left * known.seconds / 60:.0f} minutes left",
            err=True,
        )
    return searches


def document(run: Run, problem: Problem, searches: Sequence[Search], *, evaluations: int) -> tuple[list[str], Figure]:
    """Lines of Markdown and the figure."""
    extent, best, volume = curves(searches, evaluations)
    context = run.context
    tasks = [context.tasks[name] for name in run.config.search.tasks or context.tasks]
    metric = metric_words(tasks)
    rows = ", ".join(f"{len(task.search)} rows" for task in tasks)
    limits = ", ".join(f"{name} <= {limit.maximum:g}" for name, limit in problem.limits.items())
    ranges = ", ".join(
        f"{name} {min(abs(low), abs(high)):.5g} to {max(abs(low), abs(high)):.5g}"
        for name, low, high in zip(OBJECTIVES, extent.low, extent.high, strict=True)
    )
    num_distinct = len({name for one in searches for name in one.digests})
    lines = [
        *heading("searches.py", run),
        "",
        f"- Supernet: {context.settings.num_layers} layers of {len(next(iter(problem.space.values())))} blocks, seed "
        f"{run.config.seed}; {problem.size} architectures. Metric: {metric} on {rows} with the supernet's weights. "
        f"Latency: predicted, {run.latency().condition.describe()}. Limits: {limits or 'none'}.",
        f"- Searches: seeds 0 to {len(next(iter(best.values()))) - 1}, {evaluations} evaluations each, "
        f"{num_distinct} distinct architectures in all.",
        f"- Hypervolume: of everything evaluated, in {', '.join(OBJECTIVES)}, each from 0 (best) to 1 (worst) over all "
        f"that these searches evaluated ({ranges}); reference {REFERENCE} in each, so at most "
        f"{REFERENCE ** len(OBJECTIVES):.3f}. ± is the standard deviation over seeds.",
        *(f"- {name}: {settings_line(name, evaluations)}." for name in best),
        "",
        *table(searches, best, volume),
    ]
    for base in ("evolution", "random"):
        if base in best and len(best) > 1:
            lines += ["", *differences(best, volume, base)]
    return [*lines, "", *each_seed(best, volume)], plot(best, volume, metric)


def open_run(source: str, store: Path | None, out: Path, changes: Sequence[str]) -> Run:
    """The run of a preset, a YAML file or a run directory; its own files go to a folder of its own in ``out``.

    Raises:
        UserError: there is no such thing, or ``out`` cannot be written.
    """
    path = Path(source)
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise UserError(f"{path} is not a run directory: it has no {CONFIG}")
        source = str(path / CONFIG)
    config = load_config(source, dict(parse_assignment(item) for item in changes))
    return Run(config, StageStore(store or default_store()), out / "runs" / config_digest(config))


def main(
    source: Annotated[str, typer.Argument(help="A preset, a YAML file or a run directory.")],
    out: Annotated[Path, typer.Option(help="Folder of evaluations, results and figure.")],
    store: Annotated[Path | None, typer.Option(help="Where stages live. Default: as elm-nni.")] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each strategy, at least 2.")] = 5,
    evaluations: Annotated[int, typer.Option(help=f"Of each run, at least {FEWEST}.")] = 80,
    strategies: Annotated[str, typer.Option(help="Names with commas.")] = ",".join(STRATEGIES),
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any key of the configuration.")] = None,
) -> None:
    """Compares searches on one trained supernet; missing stages up to it are trained first."""
    names = checked_names("--strategies", strategies, STRATEGIES)
    at_least(seeds=(seeds, 2), evaluations=(evaluations, FEWEST))
    # every draw would be a line
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    run = open_run(source, store, out, set_ or [])
    problem, known = supernet_problem(run, out / "evaluations.jsonl")
    searches = run_all(problem, names, seeds=seeds, evaluations=evaluations, known=known)
    lines, figure = document(run, problem, searches, evaluations=evaluations)
    write_json(out / "searches.json", {"evaluations": evaluations, "searches": [asdict(one) for one in searches]})
    write_text(out / "searches.md", "\n".join(lines) + "\n")
    write_bytes(out / "searches.png", to_png(figure))
    typer.echo("\n".join(lines))


if __name__ == "__main__":
    run_command(main, "searches")
