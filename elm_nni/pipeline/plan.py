"""What a run would do: stages and what is cached, hours, disk, and the sizes a search could reach. Trains nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from elm_nni.cost.latency_table import LatencyTable, cheapest
from elm_nni.cost.parameters import (
    count_parameters,
    embedding_parameters,
    extreme_architecture,
    full_heads,
    space_config,
)
from elm_nni.modeling.blocks_elm import BLOCKS
from elm_nni.pipeline import latency_stage, precision, supernet_stage, teacher_stage
from elm_nni.pipeline.checks import check_inputs
from elm_nni.pipeline.config import Config, TrainingConfig
from elm_nni.pipeline.context import TEXT, Context
from elm_nni.pipeline.search_stage import check_reachable, max_evaluations
from elm_nni.pipeline.store import StageResult, StageStore
from elm_nni.search_spaces.architecture import SpaceSettings

# a checkpoint holds the weights and two moments of each; the earlier one goes when the next is written
_BYTES, _CHECKPOINT_COPIES = 4, 3


def make_plan(config: Config, store: StageStore) -> list[str]:
    """The lines of ``--plan``. Loads text and teacher and times a few steps; the measurements are kept for the run.

    Raises:
        UserError: whatever the run itself would refuse before training.
    """
    context = Context(config, store, lambda event, **values: None)
    check_inputs(context)
    table = latency_stage.given_table(context)
    if table is None:
        inputs = latency_stage.latency_inputs(context)
        built = store.build("latency", inputs, lambda folder: latency_stage.build_latency(context, folder))
        table = latency_stage.load_latency(built.folder)
    check_reachable(context, table, config.limits)
    timing = store.build(
        "precision", precision.precision_inputs(context), lambda folder: precision.build_precision(context, folder)
    )
    chosen = precision.load_precision(timing.folder)
    supernet = store.finished(
        "supernet",
        supernet_stage.supernet_inputs(context, {"student": chosen["student"], "teacher": chosen["teacher"]}),
    )
    teacher = _finished_teacher(context, store)
    seconds = estimated_seconds(context, chosen)
    lines = [f"{'stage':<26}{'steps':>9}{'hours':>9}  state"]
    for name, steps, spent in seconds:
        found = {"supernet": supernet, "teacher": teacher}.get(name)
        lines.append(f"{name:<26}{steps:>9}{spent / 3600:>9.2f}  {'cached' if found else 'to do'}")
    todo = sum(spent for name, _, spent in seconds if not {"supernet": supernet, "teacher": teacher}.get(name))
    weights = _supernet_parameters(context.settings) * _BYTES
    lines += [
        f"{'to do':<26}{'':>9}{todo / 3600:>9.2f}  (estimated from {chosen['tokens']} tokens timed here)",
        f"precision: student {chosen['student']}, teacher {chosen['teacher']}",
        f"disk: about {2 * weights / 2**30:.2f} GiB of supernets, and "
        f"{2 * _CHECKPOINT_COPIES * weights / 2**30:.2f} GiB more while one trains, in {store.root}",
        *_reach(context.settings, table),
    ]
    return lines


def estimated_seconds(context: Context, chosen: dict[str, Any]) -> list[tuple[str, int, float]]:
    """Name, steps and seconds of the stages that take time, from the seconds that the precision stage measured."""
    config = context.config
    student, teacher = (chosen[f"{name}_seconds"][chosen[name]] / chosen["tokens"] for name in ("student", "teacher"))
    # on tasks the teacher's features are asked for only where they count
    on_tasks = student + (teacher if config.distillation.lambda_feature > 0 else 0.0)
    lengths = {name: float(task.train.lengths.mean()) for name, task in context.tasks.items()}

    def text(training: TrainingConfig) -> float:
        return training.steps * training.batch_size * config.data.sequence_length * (student + teacher)

    def rows(training: TrainingConfig, length: float) -> float:
        return training.steps * training.batch_size * length * on_tasks

    search = config.search
    evaluations = max_evaluations(search)
    scored = evaluations * search.validation_size * sum(lengths[name] for name in search.tasks or lengths)
    trained = 1 + config.baselines.uniform
    retrain, tasks = config.retrain, len(config.tasks)
    return [
        ("supernet", config.supernet.pretrain.steps, text(config.supernet.pretrain)),
        ("teacher", 0, _teacher_seconds(context, chosen["teacher_seconds"]["fp32"] / chosen["tokens"])),
        ("supernet_tasks", config.supernet.tasks.steps, rows(config.supernet.tasks, sum(lengths.values()) / tasks)),
        # a forward is a third of a training step
        ("search (evaluations)", evaluations, scored * student / 3),
        ("retrain and baseline", trained * retrain.pretrain.steps, trained * text(retrain.pretrain)),
        (
            "fine-tune and baseline", trained * tasks * retrain.finetune.steps,
            trained * rows(retrain.finetune, sum(lengths.values())),
        ),
    ]  # fmt: skip


def _finished_teacher(context: Context, store: StageStore) -> StageResult | None:
    if not teacher_stage.needs_lm_head(context):
        return store.finished("teacher", teacher_stage.teacher_inputs(context))
    fitted = store.finished("lm_head", teacher_stage.lm_head_inputs(context))
    return fitted and store.finished("teacher", teacher_stage.teacher_inputs(context, fitted.digest))


def _teacher_seconds(context: Context, per_token: float) -> float:
    """Of the heads: a forward of all training rows, and three an epoch to fine-tune; a forward a step to fit one."""
    config, rows = context.config, [task.train for task in context.tasks.values() if task.name != TEXT]
    how, tokens = config.teacher, sum(int(part.lengths.sum()) for part in rows)
    forwards = tokens * (1 + (3 * how.finetune_epochs if how.head == "finetune" else 0))
    if teacher_stage.needs_lm_head(context):
        forwards += how.lm_head_steps * config.supernet.pretrain.batch_size * config.data.sequence_length
    return forwards * per_token


def _reach(settings: SpaceSettings, table: LatencyTable) -> list[str]:
    smallest, largest = extreme_architecture(settings), extreme_architecture(settings, largest=True)
    _, fastest = cheapest(table, settings)
    count: Callable[[dict[str, Any]], int] = lambda sample: count_parameters(sample, settings)  # noqa: E731
    return [
        f"parameters: {count(smallest):,} to {count(largest):,}, embeddings counted",
        f"latency: {fastest:.2f} ms to {table.predict(largest):.2f} ms ({table.condition.describe()})",
    ]


def _supernet_parameters(settings: SpaceSettings) -> int:
    config = space_config(settings)
    heads = full_heads(settings)
    blocks = sum(
        block.num_parameters(config, ffn_size=settings.ffn_max, num_heads=heads[name][0], head_dim=heads[name][1])
        for name, block in BLOCKS.items()
    )
    return embedding_parameters(settings) + settings.num_layers * blocks
