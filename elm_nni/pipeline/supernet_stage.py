"""The supernet's two phases: distillation on text with growth, then one random path a step on the tasks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from elm_nni.cost.parameters import embedding_parameters, mean_parameters
from elm_nni.data.batches import BucketBatchSampler, StepBatchSampler
from elm_nni.data.language import LanguageRows, with_labels
from elm_nni.data.outputs import outputs_of_rows
from elm_nni.data.streaming import StreamingPacked
from elm_nni.digest import derive_seed
from elm_nni.distillation.table import svd_token_table
from elm_nni.errors import UserError
from elm_nni.kinds import language_kind
from elm_nni.modeling.blocks_elm import BLOCKS
from elm_nni.pipeline.config import DistillationConfig, GrowthConfig, TrainingConfig
from elm_nni.pipeline.context import TEXT, Context, Task
from elm_nni.pipeline.modules import TaskTraining, TextDistillation
from elm_nni.pipeline.probe import ProbeRecorder
from elm_nni.pipeline.store import CHECKPOINTS, write_json
from elm_nni.pipeline.teacher_stage import load_language_teacher, load_teacher_logits
from elm_nni.pipeline.training import fit
from elm_nni.search_spaces.architecture import SpaceSettings, cell_name
from elm_nni.search_spaces.space import ElmSpace
from elm_nni.seeding import seeded
from elm_nni.strategies.growth import GrowthRecord, PcaGrowth
from elm_nni.strategies.growth_callback import GrowthCallback
from elm_nni.strategies.one_shot import ElmOneShot
from elm_nni.strategies.supernet_files import HEADS, WEIGHTS

WIDTHS, GROWTH, LM_HEAD = "widths.json", "growth.jsonl", "lm_head.safetensors"


def supernet_inputs(context: Context, precision: dict[str, str]) -> dict[str, Any]:
    """What the distilled supernet depends on."""
    config = context.config
    return {
        **context.identity,
        "data": context.corpus[0].manifest["digest"],
        "holdout_rows": config.data.holdout_rows,
        "growth": asdict(config.growth) if config.growth.enabled else None,
        "training": asdict(config.supernet.pretrain),
        **text_objective(config.distillation),
        "precision": precision,
    }


def build_supernet(context: Context, folder: Path, precision: dict[str, str]) -> None:
    """Trains the supernet on text and grows it; writes its weights, widths and growth records."""
    config = context.config
    training = config.supernet.pretrain
    if config.growth.enabled:
        check_growth(config.growth, training, context.settings)
    space = make_space(context)
    strategy = ElmOneShot(seed=config.seed, stage="supernet")
    strategy.mutate_model(space)
    callbacks, chunks = [], 1
    if config.growth.enabled:
        growth, chunks = make_growth(context, space), config.growth.epoch_steps // training.checkpoint_every
        callbacks.append(
            GrowthCallback(
                growth, every_n_epochs=chunks,
                on_record=lambda record: context.log(
                    "growth", events=len(record.events), budget_left=record.budget - record.cost
                ),
            )
        )  # fmt: skip
    with seeded(config.seed, "supernet/projections"):
        module = TextDistillation(
            space, context.teacher_in(precision["teacher"]), distillation=config.distillation, training=training
        )
    losses = fit(
        strategy.configure_oneshot_module(module), text_batches(context, training, "supernet"), training,
        folder=folder / CHECKPOINTS, seed=config.seed, stage="supernet", precision=precision["student"],
        log=context.log, callbacks=callbacks,
        on_epoch=ProbeRecorder(context, space, folder, "supernet").every(chunks),
    )  # fmt: skip
    if config.growth.enabled:
        per_epoch = [losses[start : start + chunks] for start in range(0, len(losses), chunks)]
        signal = _signal(growth)
        lines = [
            json.dumps({**_growth_line(record, per_epoch[record.epoch]), **signal}, sort_keys=True)
            for record in growth.history
        ]
        (folder / GROWTH).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    _save(space, folder)
    save_lm_head(module, folder)


def supernet_tasks_inputs(context: Context, supernet: str, teacher: str, precision: dict[str, str]) -> dict[str, Any]:
    """What the fine-tuned supernet depends on."""
    config = context.config
    distillation = asdict(config.distillation)
    distillation.pop("token_table"), distillation.pop("objective")
    return {
        "supernet": supernet, "teacher": teacher, "seed": config.seed, "precision": precision,
        "training": asdict(config.supernet.tasks), "distillation": distillation,
    }  # fmt: skip


def build_supernet_tasks(
    context: Context, folder: Path, supernet: Path, teacher: Path, precision: dict[str, str]
) -> None:
    """Fine-tunes the supernet on all tasks, a random path a step, batches alternating between the tasks."""
    config = context.config
    training = config.supernet.tasks
    space = load_supernet(context, supernet)
    strategy = ElmOneShot(seed=config.seed, stage="supernet-tasks")
    with seeded(config.seed, "supernet-tasks/heads"):
        module = TaskTraining(
            space, context.teacher_in(precision["teacher"]), distillation=config.distillation, training=training,
            heads={name: (task.num_outputs, task.kind) for name, task in context.tasks.items()},
            language=load_language_teacher(context, teacher, precision["teacher"]),
        )  # fmt: skip
        load_lm_head(module, supernet)
    fit(
        strategy.configure_oneshot_module(module),
        task_batches(list(context.tasks.values()), teacher, training, config.seed, "supernet-tasks"), training,
        folder=folder / CHECKPOINTS, seed=config.seed, stage="supernet-tasks", precision=precision["student"],
        log=context.log, on_epoch=ProbeRecorder(context, space, folder, "supernet_tasks").every(1),
    )  # fmt: skip
    _save(space, folder)
    save_file({name: value.contiguous() for name, value in module.heads.state_dict().items()}, folder / HEADS)


def text_objective(distillation: DistillationConfig) -> dict[str, Any]:
    """What training on text depends on of the losses."""
    language = {"objective": distillation.objective, "lambda_label": distillation.lambda_label}
    return {
        "features": distillation.features, "token_table": distillation.token_table,
        **({} if distillation.objective == "distill" else language),
    }  # fmt: skip


def save_lm_head(module: TextDistillation, folder: Path) -> None:
    """Writes the language-model head of a training on text, if its objective has one."""
    if module.lm_head is not None:
        save_file(module.lm_head.state_dict(), folder / LM_HEAD)


def load_lm_head(module: TaskTraining, folder: Path) -> None:
    """Starts the head of the text task from the one that training on text left in its folder, if both are there."""
    if (folder / LM_HEAD).exists() and TEXT in module.kinds:
        module.head(TEXT).load_state_dict(load_file(folder / LM_HEAD))


def make_space(context: Context) -> ElmSpace:
    """The space with its initial weights, a function of the seed; the token table from the teacher's by option."""
    with seeded(context.config.seed, "supernet/weights"):
        space = ElmSpace(**asdict(context.settings))
    if context.config.distillation.token_table == "svd":
        start_token_table(space.embeddings.tokens.weight, context)
    return space


def start_token_table(weight: torch.Tensor, context: Context) -> None:
    """Copies the truncated SVD of the teacher's token table into the student's."""
    table_VE = svd_token_table(context.teacher.token_embeddings.cpu().float(), context.settings.embedding_size)
    with torch.no_grad():
        weight.copy_(table_VE)


def load_supernet(context: Context, folder: Path) -> ElmSpace:
    """A supernet with the weights and active widths that a stage wrote."""
    space = ElmSpace(**asdict(context.settings))
    ElmOneShot().mutate_model(space)
    space.load_state_dict(load_file(folder / WEIGHTS))
    return space


def load_widths(folder: Path) -> dict[str, int]:
    """Cell name to active width of a finished supernet."""
    return json.loads((folder / WIDTHS).read_text(encoding="utf-8"))


def make_growth(context: Context, space: ElmSpace) -> PcaGrowth:
    """The growth of the configuration on a supernet's cells; its cost is the exact mean parameter count."""
    growth = context.config.growth
    cost: Callable[[dict[str, int]], float] = lambda widths: mean_parameters(widths, context.settings)  # noqa: E731
    return PcaGrowth(
        space.cells(), top_k=growth.top_k, budget=growth.budget, cost=cost, threshold=growth.threshold,
        mode=growth.mode, score=growth.score, every=growth.every, seed=context.config.seed,
    )  # fmt: skip


def check_growth(growth: GrowthConfig, training: TrainingConfig, settings: SpaceSettings) -> None:
    """Whether the first widths are within the budget, and growth happens where a checkpoint is written.

    Raises:
        UserError: one of them does not hold.
    """
    if growth.epoch_steps % training.checkpoint_every:
        raise UserError(
            f"growth.epoch_steps: {growth.epoch_steps} is not allowed; it must be a multiple of "
            f"supernet.pretrain.checkpoint_every={training.checkpoint_every}"
        )
    names = (cell_name(layer, block) for layer in range(settings.num_layers) for block in BLOCKS)
    smallest = mean_parameters(dict.fromkeys(names, settings.widths[0]), settings)
    if growth.budget < smallest:
        raise UserError(
            f"growth.budget: {growth.budget:,.0f} is not allowed; it must be at least {smallest:,.0f}, the parameters "
            f"of the mean architecture before any growth ({embedding_parameters(settings):,} of them embeddings)"
        )


def text_batches(context: Context, training: TrainingConfig, stage: str) -> Callable[[int], dict[str, Any]]:
    """Step to batch of packed text, with the tokens to predict where the objective asks for them."""
    seed, kind = context.config.seed, language_kind(context.config.distillation.objective)
    batch_of = _packed_batches(context, training, stage)
    if kind is None:
        return batch_of
    masking = context.masking(kind.name)
    return lambda step: with_labels(
        batch_of(step), masking, lambda place: np.random.default_rng(derive_seed(seed, f"{stage}/mask/{step}", place))
    )


def _packed_batches(context: Context, training: TrainingConfig, stage: str) -> Callable[[int], dict[str, Any]]:
    if context.config.data.streaming:
        return StreamedBatches(context, training.batch_size)
    rows = context.corpus[0]
    sampler = StepBatchSampler(
        num_rows=len(rows), batch_size=training.batch_size, seed=context.config.seed, stage=stage,
        num_steps=training.steps,
    )  # fmt: skip
    return lambda step: rows.batch(sampler.batch(step))


class StreamedBatches:
    """Step to batch of a streamed corpus, past the held-out rows; steps in order are read on, any other starts anew."""

    def __init__(self, context: Context, batch_size: int) -> None:
        self.context, self.batch_size = context, batch_size
        self.skipped = -(-context.config.data.holdout_rows // batch_size)
        self._next = -1
        self._batches: Iterator[dict[str, Any]] = iter(())

    def __call__(self, step: int) -> dict[str, Any]:
        if step != self._next:
            stream = StreamingPacked(
                self.context.stream(), self.context.tokenizer, batch_size=self.batch_size,
                sequence_length=self.context.config.data.sequence_length, start_step=self.skipped + step,
            )  # fmt: skip
            self._batches = iter(stream)
        self._next = step + 1
        return next(self._batches)


def task_batches(
    tasks: list[Task], teacher: Path, training: TrainingConfig, seed: int, stage: str
) -> Callable[[int], dict[str, Any]]:
    """Step to batch of task rows with the teacher's logits; step s is of task s modulo their number."""
    logits = {
        task.name: load_teacher_logits(teacher, task.name)
        for task in tasks
        if not isinstance(task.train, LanguageRows)
    }
    samplers = {
        task.name: BucketBatchSampler(
            task.train.lengths, training.batch_size, derive_seed(seed, task.name), stage, num_steps=training.steps
        )
        for task in tasks
    }

    def batch_of(step: int) -> dict[str, Any]:
        task = tasks[step % len(tasks)]
        rows = samplers[task.name].batch(step // len(tasks))
        if isinstance(task.train, LanguageRows):
            return {**task.train.training_batch(rows, step), "task": task.name}
        targets = outputs_of_rows(logits[task.name], task.train, rows)
        return {**task.train.batch(rows), "teacher_logits": targets, "task": task.name}

    return batch_of


def _growth_line(record: GrowthRecord, losses: list[float]) -> dict[str, Any]:
    line = asdict(record)
    return {**line, "mean_params": line.pop("cost"), "loss": sum(losses) / len(losses)}


def _signal(growth: PcaGrowth) -> dict[str, str]:
    """Names the signal whose scores are no numbers of components, for the report."""
    return {} if growth.score in ("pca", "pca_normalized") else {"signal": growth.score}


def _save(space: ElmSpace, folder: Path) -> None:
    save_file({name: value.contiguous() for name, value in space.state_dict().items()}, folder / WEIGHTS)
    write_json(folder / WIDTHS, {name: cell.active_width for name, cell in space.cells().items()})
