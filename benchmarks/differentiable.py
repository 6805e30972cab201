"""Does the relational loss help differentiable search? NNI's DARTS and GumbelDARTS under it and under MSE.

Run: python benchmarks/differentiable.py benchmarks/recipe.yaml --seeds 3 --steps 100 --out differentiable

Each search mixes the blocks of every layer, all at one feed-forward width, and distils the run's teacher on its text.
What it exports is brought to the size of uniform bert at that width, trained alone with the recipe of retrain under the
run's own feature loss, whatever the loss of the search was, and scored on validation rows; so are random architectures
of the space. Searches and models are kept in the store: the same command goes on after a kill. Test rows are not read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from common import at_least, checked_names, heading, metric_words, run_command
from differentiable_results import (
    RANDOM,
    UNIFORM,
    Row,
    Weights,
    architecture_table,
    difference_table,
    differences,
    entropy,
    plot,
    summary_table,
    system_name,
)
from differentiable_search import (
    EPOCHS,
    STAGE,
    STRATEGIES,
    Options,
    held_rows,
    read_search,
    search_inputs,
    searched,
    step_seconds,
)
from nni.runtime.log import silence_stdout
from quality.estimate import stage_seconds
from ranking import is_trained
from ranking_runs import LOSSES
from searches import open_run
from transformers.utils.logging import disable_progress_bar

from elm_nni.cost.parameters import full_heads, match_size, parameters_outside_embeddings
from elm_nni.digest import derive_seed
from elm_nni.errors import UserError
from elm_nni.files import write_bytes, write_text
from elm_nni.pipeline.checks import check_inputs
from elm_nni.pipeline.config import parse_assignment
from elm_nni.pipeline.runner import Architecture, Run
from elm_nni.pipeline.store import write_json
from elm_nni.pipeline.student_stage import validation_scores
from elm_nni.pipeline.teacher_stage import teacher_inputs
from elm_nni.report.style import to_png
from elm_nni.search_spaces.architecture import (
    SpaceSettings,
    architecture_digest,
    canonical,
    cell_name,
    chosen_blocks,
    layer_label,
)

MAX_DRAWS = 2_000
_VARIED = ("seed", "growth.enabled", "space.ffn_start", "space.ffn_max")


def open_runs(
    source: str, store: Path | None, out: Path, changes: Sequence[str], *, seeds: int, width: int | None
) -> list[Run]:
    """Runs of seeds from 0 whose space has one feed-forward width.

    Args:
        width: of the run's grid; None takes the one nearest to the middle, the lower of two.

    Raises:
        UserError: a change is one of what differs, the width is not of the grid, or a run is refused.
    """
    for change in changes:
        key, value = parse_assignment(change)
        if key in _VARIED:
            raise UserError(f"--set {key}={value} is not allowed: this benchmark sets {', '.join(_VARIED)}")
    whole = open_run(source, store, out, changes)
    if whole.config.data.streaming:
        raise UserError("data.streaming=true is not allowed: the searches read a part of the text twice")
    chosen = _width(whole.context.settings, width)
    fixed = ["growth.enabled=false", f"space.ffn_start={chosen}", f"space.ffn_max={chosen}"]
    runs = [open_run(source, store, out, [*changes, *fixed, f"seed={seed}"]) for seed in range(seeds)]
    for run in runs:
        run.context.teacher = whole.context.teacher
        check_inputs(run.context)
    return runs


def _width(settings: SpaceSettings, given: int | None) -> int:
    widths = settings.widths
    if given is not None and given not in widths:
        raise UserError(f"--width is {given}; it must be one of {', '.join(map(str, widths))}")
    return given or min(widths, key=lambda width: abs(width - (widths[0] + widths[-1]) / 2))


def uniform(settings: SpaceSettings) -> Architecture:
    """Equal bert layers at the width; its size is that of all rows."""
    return _at_width(["bert"] * settings.num_layers, settings)


def sized(architecture: Architecture, settings: SpaceSettings) -> Architecture:
    """The architecture with widths that give it the size of all rows."""
    return match_size(architecture, parameters_outside_embeddings(uniform(settings), settings), settings)


def random_architectures(run: Run, number: int) -> list[Architecture]:
    """Distinct blocks, drawn uniformly and brought to the size; the first ones are the same for any number.

    Raises:
        UserError: too few were found in so many draws.
    """
    settings = run.context.settings
    rng = np.random.default_rng(derive_seed(run.config.seed, "differentiable/random"))
    found: list[Architecture] = []
    for _ in range(MAX_DRAWS):
        drawn = _at_width([str(rng.choice(list(full_heads(settings)))) for _ in range(settings.num_layers)], settings)
        architecture = sized(drawn, settings)
        if architecture not in found:
            found.append(architecture)
        if len(found) == number:
            return found
    raise UserError(f"--random is {number}; {MAX_DRAWS:,} draws gave {len(found)} distinct architectures")


def _at_width(blocks: Sequence[str], settings: SpaceSettings) -> Architecture:
    sample: dict[str, Any] = {}
    for index, block in enumerate(blocks):
        sample |= {layer_label(index): block, f"{cell_name(index, block)}_ffn": settings.ffn_start}
    return canonical(sample, full_heads(settings))


def estimate(runs: Sequence[Run], options: Options) -> list[str]:
    """Lines on what is to do; a few steps are timed. What an unfinished search will find counts as not trained."""
    first = runs[0].context
    step, training = step_seconds(first), stage_seconds(first)
    searches, models, teachers, total = 0, 0, 0, 0
    for run in runs:
        store = run.context.store
        inputs = [search_inputs(run.context, *pair, options) for pair in _pairs(options)]
        done = [result for one in inputs if (result := store.finished(STAGE, one))]
        known = [sized(read_search(result)[0], run.context.settings) for result in done]
        known += [*random_architectures(run, options.random), uniform(run.context.settings)]
        distinct = {architecture_digest(one): one for one in known}
        total += len(inputs)
        searches += len(inputs) - len(done)
        models += len(inputs) - len(done) + sum(not is_trained(run, one) for one in distinct.values())
        teachers += store.finished("teacher", teacher_inputs(run.context)) is None
    parts = [
        (f"{teachers} teachers", teachers * training["teacher"]),
        (f"{searches} of {total} searches, {options.steps} steps of {step:.2f} s", searches * options.steps * step),
        (f"{models} models, {training['training'] / 60:.1f} minutes each", models * training["training"]),
    ]
    lines = [f"{line}: {seconds / 60:.1f} minutes" for line, seconds in parts]
    return [*lines, f"about {sum(seconds for _, seconds in parts) / 60:.0f} minutes to do"]


def _pairs(options: Options) -> list[tuple[str, str]]:
    return [(strategy, loss) for strategy in options.strategies for loss in LOSSES]


def run_all(runs: Sequence[Run], options: Options) -> list[Row]:
    """Every row of every seed; progress goes to stderr."""
    rows: list[Row] = []
    for run in runs:
        for row in _rows(run, options):
            rows.append(row)
            done = f"{len(rows)}/{len(runs) * (len(_pairs(options)) + options.random + 1)}"
            typer.echo(f"{done} {row.system}, seed {row.seed}: {row.mean:.4f}, {', '.join(row.blocks)}", err=True)
    return rows


def _rows(run: Run, options: Options) -> Iterator[Row]:
    settings = run.context.settings
    for strategy, loss in _pairs(options):
        architecture, weights = read_search(searched(run.context, strategy, loss, options))
        yield _trained(run, system_name(strategy, loss), sized(architecture, settings), weights)
    for architecture in random_architectures(run, options.random):
        yield _trained(run, RANDOM, architecture)
    yield _trained(run, UNIFORM, uniform(settings))


def _trained(run: Run, system: str, architecture: Architecture, weights: Weights | None = None) -> Row:
    models = run.train(architecture, architecture_digest(architecture), None)
    scores = validation_scores(models)
    size = parameters_outside_embeddings(architecture, run.context.settings)
    return Row(run.config.seed, system, chosen_blocks(architecture), architecture, size, scores, weights)


def document(runs: Sequence[Run], rows: Sequence[Row], options: Options) -> tuple[list[str], str]:
    """Lines of Markdown, and the metric in words."""
    run, context, settings = runs[0], runs[0].context, runs[0].context.settings
    tasks = list(context.tasks.values())
    metric = metric_words(tasks)
    training, retrain = run.config.supernet.pretrain, run.config.retrain
    held = held_rows(context, options.steps // EPOCHS)
    pace = pace_entropy(options.steps, options.arch_lr, len(full_heads(settings)))
    lines = [
        *heading("differentiable.py", run),
        "",
        f"- Searches: NNI's {' and '.join(options.strategies)} (first order) over the blocks of {settings.num_layers} "
        f"layers, feed-forward width {settings.ffn_start}, {options.steps} steps in {EPOCHS} epochs, batches of "
        f"{training.batch_size} rows of {run.config.data.sequence_length} tokens, fp32, learning rate "
        f"{training.lr:g}, of the architecture weights {options.arch_lr:g}. The model is trained on text of the run, "
        f"the architecture weights on its last {held} rows, which the model does not see. The loss is that of the "
        "features alone: embeddings and layer outputs, not attention blocks, since a layer's blocks are mixed. Both "
        "losses of a seed begin with the same weights and see the same batches.",
        f"- Then every architecture is brought to the size of uniform bert, {rows[-1].size:,} parameters outside the "
        f"embeddings, by one factor on its widths, and trained alone with {run.config.distillation.features} features "
        f"({retrain.pretrain.steps} steps on text, {retrain.finetune.steps} on each task). Score: {metric}, on "
        f"validation rows ({', '.join(f'{task.name} {len(task.validation)}' for task in tasks)}).",
        "- Entropy of the weights: an architecture weight moves by about the learning rate a step, so after few steps "
        f"the entropy tells of their number too: about {pace:.2f} if all went one way.",
        f"- Seeds: {', '.join(str(one.config.seed) for one in runs)}. ± is the standard deviation over seeds (for "
        f"{RANDOM} of the mean of {options.random} architectures). Intervals: 95 % percentile bootstrap over seeds, "
        "too narrow for few of them.",
        "",
        *summary_table(rows),
        "",
        *difference_table(differences(rows), [one.config.seed for one in runs]),
        "",
        *architecture_table(rows),
    ]
    return lines, metric


def pace_entropy(steps: int, arch_lr: float, blocks: int) -> float:
    """Entropy in nats of weights of which one rose and all others fell by the learning rate at every step.

    Example:
        >>> round(pace_entropy(100, 0.01, 6), 2)
        1.32
    """
    raised = float(np.exp(2 * steps * arch_lr))
    return entropy([one / (raised + blocks - 1) for one in (raised, *[1.0] * (blocks - 1))])


def checked(names: str, steps: int, arch_lr: float, random: int) -> Options:
    """Options of the searches.

    Raises:
        UserError: one is not allowed.
    """
    chosen = checked_names("--strategies", names, list(STRATEGIES))
    if steps % EPOCHS:
        raise UserError(f"--steps is {steps}; it must be a multiple of {EPOCHS}, the number of epochs")
    if not 0 < arch_lr < float("inf"):
        raise UserError(f"--arch-lr is {arch_lr:g}; it must be above 0")
    return Options(steps, arch_lr, random, chosen)


def _quiet() -> None:
    """Leaves standard output to the results: NNI logs to it, Lightning and transformers tell of every search."""
    silence_stdout()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    disable_progress_bar()


def main(
    source: Annotated[str, typer.Argument(help="A preset, a YAML file or a run directory.")],
    out: Annotated[Path, typer.Option(help="Folder of results and figure.")],
    store: Annotated[Path | None, typer.Option(help="Where stages live. Default: as elm-nni.")] = None,
    seeds: Annotated[int, typer.Option(help="Of every search.")] = 3,
    steps: Annotated[int, typer.Option(help=f"Of a search, a multiple of {EPOCHS}.")] = 100,
    random: Annotated[int, typer.Option(help="Random architectures of each seed.")] = 3,
    strategies: Annotated[str, typer.Option(help="Names with commas.")] = ",".join(STRATEGIES),
    width: Annotated[int | None, typer.Option(help="Of feed-forward networks. Default: middle of the grid.")] = None,
    arch_lr: Annotated[float, typer.Option(help="Learning rate of the architecture weights.")] = 0.01,
    plan: Annotated[bool, typer.Option("--plan", help="Print the estimate and stop.")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any key of the configuration.")] = None,
) -> None:
    """Compares differentiable searches under two losses; what the store holds is not searched or trained again."""
    at_least(seeds=(seeds, 1), steps=(steps, EPOCHS), random=(random, 1))
    options = checked(strategies, steps, arch_lr, random)
    _quiet()
    runs = open_runs(source, store, out, set_ or [], seeds=seeds, width=width)
    for line in estimate(runs, options):
        typer.echo(line, err=not plan)
    if plan:
        return
    rows = run_all(runs, options)
    lines, metric = document(runs, rows, options)
    found = differences(rows)
    results = {
        "rows": [{**asdict(row), "mean": row.mean, "entropy": row.search and row.search.entropy} for row in rows],
        "differences": [asdict(one) for one in found],
    }
    write_json(out / "differentiable.json", results)
    write_text(out / "differentiable.md", "\n".join(lines) + "\n")
    write_bytes(out / "differentiable.png", to_png(plot(rows, found, metric)))
    typer.echo("\n".join(lines))


if __name__ == "__main__":
    run_command(main, "differentiable")
