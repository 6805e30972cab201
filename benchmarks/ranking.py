"""Does a supernet rank architectures as training does? Under the relational and under the MSE feature loss.

Run: python benchmarks/ranking.py benchmarks/recipe.yaml --architectures 20 --out ranking

Architectures are drawn uniformly under the run's limits, the same blocks for both losses. Each gets the score that the
search gives it, with the weights of the loss's supernet, and the score on validation rows of a model that is trained on
its own with the recipe of retrain. Inherited scores are kept in evaluations.jsonl and trained models in the store: the
same command goes on after a kill, and with more architectures or seeds. Test rows are not read.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from common import at_least, heading, limit_words, metric_words, run_command
from quality.estimate import stage_seconds
from ranking_results import (
    RESAMPLES,
    Correlations,
    Scored,
    architecture_table,
    choice_table,
    correlation_table,
    correlations,
    difference_table,
    plot,
)
from ranking_runs import LOSSES, Runs, missing_stages, open_runs, supernet_estimate
from searches import Inherited

from elm_nni.analysis.ranking import MIN_PAIRS
from elm_nni.cost.parameters import count_parameters, full_heads
from elm_nni.digest import derive_seed, digest
from elm_nni.errors import UserError
from elm_nni.files import write_bytes, write_text
from elm_nni.pipeline.runner import Architecture, Run
from elm_nni.pipeline.search_stage import make_limits, with_widths
from elm_nni.pipeline.store import write_json
from elm_nni.pipeline.student_stage import finetune_inputs, pretrain_inputs, validation_scores
from elm_nni.pipeline.supernet_stage import load_widths
from elm_nni.pipeline.teacher_stage import teacher_inputs
from elm_nni.report.style import to_png
from elm_nni.search_spaces.architecture import architecture_digest, canonical, layer_label
from elm_nni.strategies.evolution import Limit

MAX_DRAWS = 10_000

# Loss to an architecture of the same blocks at the widths of that loss's supernet.
Drawn = dict[str, Architecture]


def draw(runs: Mapping[str, Run], number: int) -> list[Drawn]:
    """Distinct blocks, drawn uniformly and kept where both supernets' widths are under every limit.

    The first ones are the same for any number.

    Args:
        runs: loss to a run of one seed; its supernet is trained where it is missing.
        number: how many.

    Raises:
        UserError: too few were found in so many draws.
    """
    first = next(iter(runs.values()))
    settings, heads = first.context.settings, full_heads(first.context.settings)
    widths = {loss: load_widths(run.supernet().folder) for loss, run in runs.items()}
    limits = make_limits(first.context, first.latency(), first.config.limits)
    rng = np.random.default_rng(derive_seed(first.config.seed, "ranking/architectures"))
    found: dict[str, Drawn] = {}
    for _ in range(MAX_DRAWS):
        blocks = {layer_label(index): str(rng.choice(list(heads))) for index in range(settings.num_layers)}
        drawn = {loss: canonical(with_widths(blocks, widths[loss]), heads) for loss in runs}
        if all(_allowed(architecture, limits) for architecture in drawn.values()):
            found.setdefault(digest(blocks), drawn)
        if len(found) == number:
            return list(found.values())
    raise UserError(
        f"--architectures is {number}; {MAX_DRAWS:,} draws gave {len(found)} distinct ones under the limits"
    )


def _allowed(architecture: Architecture, limits: Mapping[str, Limit]) -> bool:
    return all(limit.measure(architecture) <= limit.maximum for limit in limits.values())


class Scores:
    """Scores of architectures under one run.

    Args:
        run: its supernet is trained where it is missing.
        path: file of inherited scores.
    """

    def __init__(self, run: Run, path: Path) -> None:
        self.run = run
        self._inherited = Inherited(run, path)

    def __call__(self, architecture: Architecture) -> Scored:
        """Scores and costs; what was scored or trained before is not done again."""
        run, name = self.run, architecture_digest(architecture)
        inherited = self._inherited(architecture)
        standalone = validation_scores(run.train(architecture, name, None))
        tasks = run.config.search.tasks or tuple(run.context.tasks)
        labels = (layer_label(index) for index in range(run.context.settings.num_layers))
        return Scored(
            seed=run.config.seed, loss=run.config.distillation.features, blocks=[architecture[one] for one in labels],
            architecture=architecture, params=count_parameters(architecture, run.context.settings),
            latency_ms=round(run.latency().predict(architecture), 5), inherited=inherited, standalone=standalone,
            mean_standalone=float(np.mean([standalone[task] for task in tasks])),
        )  # fmt: skip


def is_trained(run: Run, architecture: Architecture) -> bool:
    """Whether the store holds the architecture, trained for every task."""
    context, chosen = run.context, run.precision()
    inputs = pretrain_inputs(context, architecture, chosen, None)
    teacher = context.store.folder("teacher", teacher_inputs(context)).name
    pretrain = context.store.folder("pretrain", inputs).name
    return all(
        context.store.finished("finetune", finetune_inputs(context, pretrain, teacher, task, chosen)) is not None
        for task in context.tasks.values()
    )


def by_seed(runs: Runs) -> dict[int, dict[str, Run]]:
    """Seed to the runs of both losses."""
    return {seed: {loss: runs[seed, loss] for loss in LOSSES} for seed, _ in runs}


def estimate(runs: Runs, number: int) -> list[str]:
    """Lines on what is to train; what cannot be named before its supernet is there counts as missing."""
    steps = list(supernet_estimate(runs))
    for seed, of_seed in by_seed(runs).items():
        known = not any(missing_stages(run) for run in of_seed.values())
        drawn = draw(of_seed, number) if known else []
        for loss, run in of_seed.items():
            left = number - sum(is_trained(run, one[loss]) for one in drawn)
            each = stage_seconds(run.context)["training"]
            steps.append(
                (f"{loss}, seed {seed}: {left} of {number} architectures, {each / 60:.1f} minutes each", left * each)
            )
    total = sum(seconds for _, seconds in steps)
    return [*(line for line, _ in steps), f"about {total / 60:.0f} minutes of training to do"]


def score_all(runs: Runs, number: int, path: Path) -> list[Scored]:
    """Every architecture of every seed under both losses; progress goes to stderr."""
    scored: list[Scored] = []
    total, seconds = number * len(runs), list[float]()
    for of_seed in by_seed(runs).values():
        scores = {loss: Scores(run, path) for loss, run in of_seed.items()}
        for drawn in draw(of_seed, number):
            for loss, architecture in drawn.items():
                start, found = time.monotonic(), is_trained(of_seed[loss], architecture)
                scored.append(scores[loss](architecture))
                seconds += [] if found else [time.monotonic() - start]
                typer.echo(f"{len(scored)}/{total} {_progress(scored[-1], total - len(scored), seconds)}", err=True)
    return scored


def _progress(one: Scored, left: int, seconds: Sequence[float]) -> str:
    words = f"{one.loss}, seed {one.seed}: inherited {one.inherited:.4f}, stand-alone {one.mean_standalone:.4f}"
    if not seconds:
        return f"{words}; found trained"
    return f"{words}; at most {left * np.median(seconds) / 60:.0f} minutes left, supernets not counted"


def document(runs: Runs, scored: Sequence[Scored], found: Correlations) -> tuple[list[str], str]:
    """Lines of Markdown, and the metric in words."""
    run = next(iter(runs.values()))
    context, retrain = run.context, run.config.retrain
    tasks = [context.tasks[name] for name in run.config.search.tasks or context.tasks]
    metric = metric_words(tasks)
    rows = ", ".join(f"{task.name} {len(task.search)} and {len(task.validation)}" for task in tasks)
    limits = make_limits(context, run.latency(), run.config.limits)
    lines = [
        *heading("ranking.py", run),
        "",
        f"- Architectures: blocks of the {context.settings.num_layers} layers drawn uniformly under the limits "
        f"({limit_words(limits)}), the same for both "
        "losses; feed-forward widths are those that each loss's supernet grew to. Latency: predicted, "
        f"{run.latency().condition.describe()}.",
        f"- Score: {metric}. Inherited: with the supernet's weights, on search rows. Stand-alone: trained from its own "
        f"first weights ({retrain.pretrain.steps} steps on text, {retrain.finetune.steps} on each task, the same "
        f"feature loss), on validation rows. Rows of both: {rows}.",
        f"- Seeds: {', '.join(map(str, by_seed(runs)))}; a seed has its own supernets, splits of the rows and "
        f"architectures. Intervals: 95 % percentile bootstrap over architectures, {RESAMPLES} resamples; ± is the "
        "standard deviation.",
        "",
        *correlation_table(scored, found),
        "",
        *choice_table(scored, found),
        "",
        *difference_table(scored),
        "",
        *architecture_table(scored),
    ]
    return lines, metric


def main(
    source: Annotated[str, typer.Argument(help="A preset, a YAML file or a run directory.")],
    out: Annotated[Path, typer.Option(help="Folder of scores, results and figure.")],
    store: Annotated[Path | None, typer.Option(help="Where stages live. Default: as elm-nni.")] = None,
    architectures: Annotated[int, typer.Option(help="Of each seed, trained under both losses.")] = 20,
    seeds: Annotated[int, typer.Option(help="Supernets of each loss.")] = 1,
    plan: Annotated[bool, typer.Option("--plan", help="Print the estimate and stop.")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any key of the configuration.")] = None,
) -> None:
    """Compares inherited with stand-alone scores; missing stages and models are trained first."""
    at_least(architectures=(architectures, MIN_PAIRS), seeds=(seeds, 1))
    runs = open_runs(source, store, out, set_ or [], seeds=seeds)
    for line in estimate(runs, architectures):
        typer.echo(line, err=not plan)
    if plan:
        return
    scored = score_all(runs, architectures, out / "evaluations.jsonl")
    found = correlations(scored)
    lines, metric = document(runs, scored, found)
    results: dict[str, list[dict[str, Any]]] = {
        "correlations": [{"seed": seed, "loss": loss, **asdict(one)} for (seed, loss), one in found.items()],
        "architectures": [asdict(one) for one in scored],
    }
    write_json(out / "ranking.json", results)
    write_text(out / "ranking.md", "\n".join(lines) + "\n")
    write_bytes(out / "ranking.png", to_png(plot(scored, found, metric)))
    typer.echo("\n".join(lines))


if __name__ == "__main__":
    run_command(main, "ranking")
