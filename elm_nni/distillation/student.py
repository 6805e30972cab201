"""Feature distillation into an ELM model or supernet: its taps, its projections and the loss of one forward.

Shape suffixes: B batch, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, TypeVar, cast

from torch import Tensor, nn

from elm_nni.distillation.features import Features
from elm_nni.distillation.relational import FeatureDistiller
from elm_nni.distillation.taps import Taps
from elm_nni.distillation.teacher import Teacher
from elm_nni.modeling.heads_elm import pool

Batch = Mapping[str, Any]
Result = TypeVar("Result")

# What a model reads out of a batch.
_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "document_ids")


class StudentConfig(Protocol):
    """What distillation and task training read of a student's configuration; ``ElmConfig`` has it.

    Attributes:
        hidden_size: width of embedding output and layers.
        bottleneck_size: another width that attention blocks may have; ``hidden_size`` where there is none.
        classifier_pooling: ``cls``, ``mean`` or ``last``.
        hidden_dropout_prob: before a task's head.
        initializer_range: standard deviation of a head's first weights.
    """

    hidden_size: int
    bottleneck_size: int
    classifier_pooling: str
    hidden_dropout_prob: float
    initializer_range: float


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """The part of a batch that a model takes."""
    return {name: batch[name] for name in _INPUTS if name in batch}


def last_hidden(model: nn.Module, batch: Batch) -> Tensor:
    """The last hidden states of an ELM model or supernet, (B, T, D)."""
    output = model(**inputs_of(batch))
    return output if isinstance(output, Tensor) else output.last_hidden_state


def pooled_output(model: nn.Module, batch: Batch) -> Tensor:
    """The last hidden states of an ELM model or supernet, pooled as its configuration says, (B, D)."""
    config = cast(StudentConfig, model.config)
    return pool(last_hidden(model, batch), batch["attention_mask"], config.classifier_pooling)


def teacher_features(teacher: Teacher, batch: Batch) -> Features:
    """The teacher's features of a batch, on the batch's device."""
    inputs = inputs_of(batch)
    teacher.to(inputs["input_ids"].device)
    return teacher.features(inputs.pop("input_ids"), inputs.pop("attention_mask"), **inputs)


class StudentDistiller(FeatureDistiller):
    """A :class:`FeatureDistiller` with the widths of one student and one teacher, which reads the student itself.

    Args:
        model: an ``ElmModel``, or a space or supernet of the same layout: ``embeddings``, ``layers``, ``config``.
            It is not registered here, nor is the teacher: the parameters are the projections alone.
        teacher: moves to the device of the batch.
        loss: ``relational`` or ``mse``.
        attention: compare attention-block outputs too, if the teacher shows them. False where the candidates of a layer
            are mixed: several blocks then run, and none is the layer's.

    Source: arXiv 2510.27037, section III-C.

    Example::

        distiller = StudentDistiller(model, teacher)
        _, student = distiller.record(lambda: model(**inputs_of(batch)))
        distiller.feature_loss(student, batch).backward()
    """

    def __init__(
        self, model: nn.Module, teacher: Teacher, *, loss: Literal["relational", "mse"] = "relational",
        attention: bool = True,
    ) -> None:  # fmt: skip
        config = cast(StudentConfig, model.config)
        widths: dict[str, int | tuple[int, ...]] = {"embedding": config.hidden_size, "hidden": config.hidden_size}
        if attention and teacher.attention_width is not None:
            widths["attention"] = (config.hidden_size, config.bottleneck_size)
        super().__init__(student_widths=widths, teacher_width=teacher.widths, loss=loss)
        self._teacher, self._features = teacher, _StudentFeatures(model)

    def record(self, run: Callable[[], Result]) -> tuple[Result, Features]:
        """What ``run`` returns, and the student's features in its last forward."""
        with self._features.taps as taps:
            taps.clear()
            result = run()
            features = self._features.read()
            taps.clear()
        return result, features

    def feature_loss(self, student: Features, batch: Batch) -> Tensor:
        """The summed feature losses of a batch with ``input_ids`` and ``attention_mask`` (B, T), a scalar."""
        total: Tensor = self(student, teacher_features(self._teacher, batch), batch["attention_mask"])["total"]
        return total


class _StudentFeatures:
    """Reads embedding, layers and attention blocks at every forward; of a layer's candidates the one that ran."""

    def __init__(self, model: nn.Module) -> None:
        layers = model.get_submodule("layers")
        assert isinstance(layers, nn.ModuleList)
        self.num_layers = len(layers)
        paths = {"embedding": "embeddings", **{f"hidden{index}": f"layers.{index}" for index in range(len(layers))}}
        self._attention: list[list[str]] = []
        for index, layer in enumerate(layers):
            found = [name for name, _ in layer.named_modules() if name.split(".")[-1] == "attention"]
            self._attention.append([f"attention{index}/{name}" for name in found])
            paths.update({f"attention{index}/{name}": f"layers.{index}.{name}" for name in found})
        self.taps = Taps(model, paths)

    def read(self) -> Features:
        hidden = [self.taps[f"hidden{index}"] for index in range(self.num_layers)]
        attention = [next(self.taps[name] for name in names if name in self.taps) for names in self._attention]
        return Features(self.taps["embedding"], hidden, attention)
