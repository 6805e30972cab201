"""Does PCA pick better cells to grow than other signals do, in as many steps under the same budget?

Run: python benchmarks/growth_signals.py benchmarks/recipe.yaml --seeds 3 --out growth-signals

Runs of a seed differ in growth.score alone. Compared are what grew, the scores that the same blocks inherit from each
supernet, and what each run's own search finds, trained alone at the size of what the run with PCA finds. One more
system does not grow: every cell has the width at which the mean architecture is as large as the one grown by PCA.
Stages are kept in the store and inherited scores in evaluations.jsonl: the same command goes on after a kill, and with
more seeds, signals or architectures. Test rows are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from common import at_least, checked_names, heading, limit_words, run_command
from growth_signals_results import (
    NO_GROWTH,
    PCA,
    Outcome,
    growth_steps,
    mean_block_widths,
    plot,
    result_tables,
    score_differences,
    shared_growth,
)
from quality.comparison import FULL, Comparison
from quality.estimate import stage_seconds
from quality.systems import Changes, fixed_widths, found_at_size, size_limit
from quality.trial import LeftOut, TracedRun, Trial
from ranking import draw, is_trained
from ranking_runs import missing_stages
from searches import Inherited, open_run

from elm_nni.cache import default_store
from elm_nni.cost.parameters import mean_parameters, parameters_outside_embeddings
from elm_nni.errors import UserError
from elm_nni.files import write_bytes, write_text
from elm_nni.pipeline.config import parse_assignment
from elm_nni.pipeline.prune_stage import prune_inputs
from elm_nni.pipeline.run_dir import CONFIG
from elm_nni.pipeline.runner import Architecture, Run
from elm_nni.pipeline.search_stage import make_limits, max_evaluations, search_inputs
from elm_nni.pipeline.store import StageStore, write_json
from elm_nni.pipeline.student_stage import validation_scores
from elm_nni.pipeline.supernet_stage import load_widths
from elm_nni.report.growth_files import load_growth
from elm_nni.report.style import to_png
from elm_nni.search_spaces.architecture import chosen_blocks
from elm_nni.strategies.growth_scores import SCORE_NAMES

EVALUATIONS = "evaluations.jsonl"
_VARIED = ("seed", "growth.score")


def checked_signals(text: str) -> list[str]:
    """Signals of a list with commas, PCA first: all others are compared to it.

    Raises:
        UserError: one is unknown, or there is none.

    Example:
        >>> checked_signals("random,learnable_gate")
        ['pca', 'random', 'learnable_gate']
    """
    return list(dict.fromkeys([PCA, *checked_names("--signals", text, SCORE_NAMES)]))


def open_trials(source: str, store: Path | None, out: Path, changes: Sequence[str], *, seeds: int) -> list[Trial]:
    """Seeds from 0; the run of each without changes is that of PCA.

    Raises:
        UserError: a change is one of what differs between the runs, the configuration does not grow or is refused.
    """
    for change in changes:
        key, value = parse_assignment(change)
        if key in _VARIED:
            raise UserError(f"--set {key}={value} is not allowed: the runs differ in {' and '.join(_VARIED)}")
    first = open_run(source, store, out, [*changes, "seed=0", f"growth.score={PCA}"])
    if not first.config.growth.enabled:
        raise UserError("growth.enabled: False is not allowed; signals are compared by what they grow")
    comparison = Comparison({FULL: seeds}, base=str(first.directory.path / CONFIG))
    comparison.config(0)
    return [Trial(comparison, seed, StageStore(store or default_store()), out / "runs") for seed in range(seeds)]


def changes_of(trial: Trial, system: str) -> Changes:
    """A signal, or no growth, for which PCA's supernet is trained where it is missing."""
    return fixed_widths(trial) if system == NO_GROWTH else {"growth.score": system}


def run_of(trial: Trial, system: str) -> TracedRun:
    """The run of a system."""
    return trial.run(changes_of(trial, system))


# Seed and system to the seconds of each part that is left to do.
Left = dict[tuple[int, str], dict[str, float]]


def estimate(trials: Sequence[Trial], systems: Sequence[str], number: int, path: Path) -> Left:
    """What is left to do; what cannot be named before its supernet is there counts as missing."""
    left: Left = {}
    for trial in trials:
        first = trial.run()
        seconds = stage_seconds(first.context)
        seconds["inherited scores"] = seconds["search"] * number / max_evaluations(first.config.search)
        runs = _grown(trial, systems)
        drawn = draw(runs, number) if len(runs) == len(systems) else []
        for system in systems:
            parts = _missing(trial, system, runs, [one[system] for one in drawn], path)
            left[trial.seed, system] = {part: seconds[part] for part in parts}
    return left


def _grown(trial: Trial, systems: Sequence[str]) -> dict[str, TracedRun]:
    """The runs whose supernet on text is there; the one without growth needs PCA's."""
    found: dict[str, TracedRun] = {}
    for system in systems:
        if system != NO_GROWTH or PCA in found:
            run = run_of(trial, system)
            if "supernet" not in missing_stages(run):
                found[system] = run
    return found


def _missing(
    trial: Trial, system: str, runs: Mapping[str, TracedRun], drawn: Sequence[Architecture], path: Path
) -> list[str]:
    """Stages and scores that are not there; the teacher of a seed counts for PCA."""
    if system not in runs:
        later = ["supernet", "supernet_tasks", "inherited scores", "search", "training"]
        return ["teacher", *later] if system == PCA and "teacher" in missing_stages(trial.run()) else later
    run = runs[system]
    if stages := missing_stages(run):
        own = [name for name in stages if name != "teacher" or system == PCA]
        return [*own, "inherited scores", "search", "training"]
    parts = ["inherited scores"] if not drawn or Inherited(run, path).missing(drawn) else []
    if not _is_searched(run):
        return [*parts, "search", "training"]
    return [*parts, *_missing_training(trial, system)]


def _is_searched(run: Run) -> bool:
    # asking for a stage would build it
    if missing_stages(run):
        return False
    context = run.context
    inputs = search_inputs(context, run.supernet_tasks().digest, run.latency(), run.config.limits)
    search = context.store.finished("search", inputs)
    return search is not None and context.store.finished("prune", prune_inputs(context, search.digest)) is not None


def _missing_training(trial: Trial, system: str) -> list[str]:
    """What is left of a searched run: its training, or a search under the size too; its size is PCA's search's."""
    first, changes = trial.run(), changes_of(trial, system)
    if not _is_searched(first):
        return ["training"]
    run = trial.run(changes)
    try:
        return [] if is_trained(first, trial.sized(run.architecture())) else ["training"]
    except LeftOut:
        limited = trial.run({**changes, **size_limit(trial, run)})
        if not _is_searched(limited):
            return ["search", "training"]
    try:
        return [] if is_trained(first, trial.sized(limited.architecture())) else ["training"]
    except LeftOut:
        return []


def estimate_lines(left: Left) -> list[str]:
    """A line for each seed and system with something to do, and the sum."""
    lines = [
        f"seed {seed}, {system}: {', '.join(parts)}, {sum(parts.values()) / 60:.1f} minutes"
        for (seed, system), parts in left.items()
        if parts
    ]
    return [*lines, f"about {_minutes(left):.0f} minutes to do"]


def _minutes(left: Left) -> float:
    return sum(sum(parts.values()) for parts in left.values()) / 60


def compare(
    trials: Sequence[Trial], systems: Sequence[str], number: int, path: Path, left: Left, tell: Callable[[str], None]
) -> list[Outcome]:
    """Every system with every seed, by seed.

    Args:
        left: what the estimate said; what is done is taken out, for the time left in the lines of progress.
        tell: called with a line of progress.
    """
    found: list[Outcome] = []
    total = len(trials) * len(systems)
    for trial in trials:
        runs: dict[str, TracedRun] = {}
        for system in systems:
            runs[system] = run_of(trial, system)
            widths = load_widths(runs[system].supernet().folder)
            mean = mean_parameters(widths, runs[system].context.settings)
            left[trial.seed, system].pop("supernet", None)
            tell(f"seed {trial.seed}, {system}: {mean:,.0f} mean parameters; about {_minutes(left):.0f} minutes left")
        drawn = draw(runs, number)
        for system in systems:
            found.append(outcome(trial, system, runs, [one[system] for one in drawn], path))
            left[trial.seed, system].clear()
            tell(f"{len(found)}/{total} {_progress(found[-1])}; about {_minutes(left):.0f} minutes left")
    return found


def outcome(
    trial: Trial, system: str, runs: Mapping[str, TracedRun], drawn: Sequence[Architecture], path: Path
) -> Outcome:
    """The numbers of a system and seed; what is missing of its search and training is done first.

    Args:
        runs: system to its run, PCA's among them.
        drawn: architectures at the widths of this system's supernet.
        path: file of inherited scores.
    """
    run = runs[system]
    settings, folder = run.context.settings, run.supernet().folder
    widths, reference = load_widths(folder), load_widths(runs[PCA].supernet().folder)
    inherited, changes = Inherited(run, path), changes_of(trial, system)
    numbers: dict[str, Any] = {
        "system": system, "seed": trial.seed, "widths": widths, "mean_parameters": mean_parameters(widths, settings),
        "events": sum(epoch.num_events for epoch in load_growth(folder)),
        "shared": shared_growth(growth_steps(widths, settings), growth_steps(reference, runs[PCA].context.settings)),
        "block_widths": mean_block_widths(widths), "drawn": [chosen_blocks(one) for one in drawn],
        "inherited": [inherited(one) for one in drawn],
    }  # fmt: skip
    own = run.architecture()
    try:
        found_with, found_by, architecture = found_at_size(trial, changes)
    except LeftOut as reason:
        size = parameters_outside_embeddings(own, settings)
        return Outcome(**numbers, found=own, found_size=size, trained={}, reason=str(reason))
    found = found_by.architecture()
    numbers |= {
        "found": found, "found_size": parameters_outside_embeddings(found, settings),
        "under_size": found_with != changes,
    }  # fmt: skip
    student = trial.train(system, architecture, found_by=found_by)
    scores = validation_scores(student.models)
    size = parameters_outside_embeddings(architecture, settings)
    return Outcome(**numbers, trained=scores, architecture=architecture, size=size)


def _progress(one: Outcome) -> str:
    trained = "left out" if one.mean_trained is None else f"trained {one.mean_trained:.4f}"
    return f"seed {one.seed}, {one.system}: inherited {one.mean_inherited:.4f}, {trained}"


def document(run: Run, outcomes: Sequence[Outcome]) -> tuple[list[str], str]:
    """Lines of Markdown, and the metric in words.

    Args:
        run: PCA's of the first seed.
    """
    context, growth, retrain = run.context, run.config.growth, run.config.retrain
    steps, text_steps = run.config.supernet.pretrain.steps, retrain.pretrain.steps
    tasks = list(context.tasks.values())
    searched = run.config.search.tasks or tuple(context.tasks)
    metric = ", ".join(f"{task.data.metric} ({task.name})" for task in tasks)
    rows = ", ".join(f"{task.name} {len(task.search)} and {len(task.validation)}" for task in tasks)
    limits = make_limits(context, run.latency(), run.config.limits)
    lines = [
        *heading("growth_signals.py", run),
        "",
        f"- Runs of a seed differ in growth.score alone: growth.budget {growth.budget:,.0f} mean parameters, top_k "
        f"{growth.top_k}, a growth every {growth.epoch_steps} of {steps} steps; {context.settings.num_layers} layers, "
        f"widths {context.settings.ffn_start} to {context.settings.ffn_max} by {context.settings.ffn_step}. All "
        "signals make the same number of steps unless the budget ends; a step adds more parameters to some blocks than "
        "to others. What grows after the last step on text is trained on the tasks alone.",
        f"- {NO_GROWTH}: every cell at the largest width at which the mean architecture is no larger than the one "
        f"grown by {PCA}.",
        f"- Steps shared with {PCA}: a cell's number of steps is (final width - first width) / step; the sum over "
        f"cells of the smaller of the system's and {PCA}'s number, in percent of the system's steps. Random draws "
        "among all cells; signals that prefer the same kind of block share more than it does by that alone.",
        f"- Inherited: mean over {len(outcomes[0].inherited)} architectures with the supernet's weights, on search "
        f"rows of {', '.join(searched)}. Their blocks are drawn uniformly, the same for all systems of a seed; "
        f"each has its own widths, and all are under the limits "
        f"({limit_words(limits)}).",
        f"- Trained: what each run's search and head step gave, its widths scaled to the parameters outside the "
        f"embeddings of {PCA}'s within 2 % (a search whose winner cannot be is made again with the size as a limit, "
        f"marked *), trained from its own first weights ({text_steps} steps on text, {retrain.finetune.steps} on "
        "each task); score on validation rows. Growth shows here by what the search chose alone, and not where the "
        "winner has no grown cell. The mean of a system that is left out for a seed is of other seeds; the differences "
        "are not.",
        f"- Scores: {metric}. Search and validation rows: {rows}.",
        f"- Seeds 0 to {max(one.seed for one in outcomes)}; a seed sets splits, weights, batches and architectures. "
        "± is the standard deviation over seeds.",
        *(f"- Left out: {one.system}, seed {one.seed}: {one.reason}." for one in outcomes if one.reason),
        "",
        *result_tables(outcomes),
    ]
    return lines, metric


def main(
    source: Annotated[str, typer.Argument(help="A preset, a YAML file or a run directory.")],
    out: Annotated[Path, typer.Option(help="Folder of scores, results and figure.")],
    store: Annotated[Path | None, typer.Option(help="Where stages live. Default: as elm-nni.")] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each signal.")] = 3,
    signals: Annotated[str, typer.Option(help="Names with commas; pca is always among them.")] = ",".join(SCORE_NAMES),
    architectures: Annotated[int, typer.Option(help="Of each seed, scored with every supernet.")] = 20,
    plan: Annotated[bool, typer.Option("--plan", help="Print the estimate and stop.")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any key of the configuration.")] = None,
) -> None:
    """Compares signals of growth; missing stages and models are trained first."""
    systems = [*checked_signals(signals), NO_GROWTH]
    at_least(architectures=(architectures, 1), seeds=(seeds, 1))
    trials = open_trials(source, store, out, set_ or [], seeds=seeds)
    left = estimate(trials, systems, architectures, out / EVALUATIONS)
    for line in estimate_lines(left):
        typer.echo(line, err=not plan)
    if plan:
        return
    outcomes = compare(trials, systems, architectures, out / EVALUATIONS, left, lambda line: typer.echo(line, err=True))
    lines, metric = document(trials[0].run(), outcomes)
    apart = {name: [asdict(one) for one in ones] for name, ones in score_differences(outcomes).items()}
    write_json(
        out / "growth_signals.json", {"outcomes": [asdict(one) for one in outcomes], "differences_to_pca": apart}
    )
    write_text(out / "growth_signals.md", "\n".join(lines) + "\n")
    write_bytes(out / "growth_signals.png", to_png(plot(outcomes, metric)))
    typer.echo("\n".join(lines))


if __name__ == "__main__":
    run_command(main, "growth_signals")
