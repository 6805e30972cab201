"""Relational distillation added to any Lightning evaluator of NNI, under any of its one-shot strategies.

Shape suffixes: B batch, T tokens, D width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import nni
import torch
from nni.nas.evaluator.pytorch import LightningModule
from nni.nas.oneshot.pytorch.supermodule.differentiable import DifferentiableMixedLayer
from torch import Tensor, nn

from elm_nni.distillation.relational import FEATURE_LOSSES
from elm_nni.distillation.taps import Taps
from elm_nni.distillation.teacher import Teacher
from elm_nni.seeding import seeded

Widths = int | Mapping[str, int | Sequence[int]]

# Lightning calls these on the wrapper; the task must hear them.
_FORWARDED = (
    "on_fit_start", "on_fit_end", "on_train_start", "on_train_end", "on_train_epoch_start", "on_train_epoch_end",
    "on_train_batch_start", "on_train_batch_end", "on_validation_start", "on_validation_end",
    "on_validation_epoch_start", "on_validation_epoch_end", "on_validation_batch_start", "on_validation_batch_end",
    "on_test_start", "on_test_end", "on_test_epoch_start", "on_test_epoch_end", "on_predict_start", "on_predict_end",
    "on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_before_zero_grad",
    "on_save_checkpoint", "on_load_checkpoint", "prepare_data", "teardown",
    "validation_step", "test_step", "predict_step", "optimizer_step", "optimizer_zero_grad",
    "configure_gradient_clipping", "lr_scheduler_step", "transfer_batch_to_device",
)  # fmt: skip


class _Wrapper(LightningModule):
    """Passes on to ``task`` what Lightning and NNI ask of an evaluator module."""

    task: LightningModule

    @property
    def model(self) -> nn.Module:
        """The student."""
        return self.task.model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.task(*args, **kwargs)

    def setup(self, stage: str) -> None:
        # a one-shot module replaces log and trainer of the module it wraps, which is this one
        self.task.trainer = self.trainer
        self.task.log = self.log
        self.task.setup(stage)


def _pass_on(name: str) -> Callable[..., Any]:
    def hook(self: _Wrapper, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.task, name)(*args, **kwargs)

    hook.__name__ = name
    return hook


for _name in _FORWARDED:
    setattr(_Wrapper, _name, _pass_on(_name))


@nni.trace
class RelationalKD(_Wrapper):
    """Adds relational losses between chosen modules of the student and of a teacher to a task's own loss.

    It stands where the task stood: in an evaluator of a multi-trial strategy, or under RandomOneShot, DARTS,
    GumbelDARTS, Proxyless or ``ElmOneShot``. The modules are found by path when a model is set, so after a space
    became a supernet. In each training step every forward of the student is compared with the teacher's answer to
    the same inputs. A module that did not run (another candidate was sampled) adds no term. Each pair has learned
    projections to the teacher's width; they join the first parameter group of the task's first optimizer and are
    thrown away with this wrapper.

    Features may be (B, T, D), (B, D), whose samples then count as the tokens of one sequence, or (B, D, height, width),
    whose places count as tokens.

    Args:
        task: the evaluator module to wrap; its ``training_step`` returns a loss or a dict with ``loss``.
        teacher: a module, or what :meth:`Teacher.load` takes. It stays out of parameters, optimizer and checkpoint.
        pairs: path in the student to path in the teacher, such as ``{"layers.0": "encoder.layer.0"}``.
        student_width: the width D of the student's modules: one, or one or several for each path. Several where the
            search changes it.
        teacher_width: likewise, one for each path of the teacher.
        weight: of the sum of all pairs' losses.
        loss: ``relational`` or the baseline ``mse``.
        mask: name of the keyword argument of the student's forward that marks valid tokens (B, T); without such an
            argument all are valid.
        teacher_inputs: makes the teacher's keyword arguments out of the student's positional and keyword arguments.
            None: they are passed on, without keywords that the teacher does not name.
        seed: decides the projections.

    Raises:
        ValueError: no pair, an unknown loss, a width below 1; from ``set_model``, a path that the model does not have,
            or one inside a layer whose candidates are mixed: there only the layer's own output can be compared.

    Source: arXiv 2510.27037, section III-C; PKD, arXiv 2207.02039.

    Example::

        module = RelationalKD(ClassificationModule(), teacher, pairs={"stem": "embed"}, student_width=32,
                              teacher_width=64)
        NasExperiment(space, Lightning(module, Trainer(max_epochs=1), loader, loader), DARTS()).run()
    """

    def __init__(
        self,
        task: LightningModule,
        teacher: nn.Module | str,
        *,
        pairs: Mapping[str, str],
        student_width: Widths,
        teacher_width: int | Mapping[str, int],
        weight: float = 1.0,
        loss: Literal["relational", "mse"] = "relational",
        mask: str = "attention_mask",
        teacher_inputs: Callable[..., dict[str, Any]] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not pairs:
            raise ValueError("pairs is empty: must have at least one path of the student and one of the teacher")
        if loss not in FEATURE_LOSSES:
            raise ValueError(f"loss={loss!r}: must be one of {sorted(FEATURE_LOSSES)}")
        if not weight > 0:
            raise ValueError(f"weight={weight}: must be above 0")
        self.task, self.pairs, self.weight, self.loss = task, dict(pairs), weight, loss
        self.mask, self.teacher_inputs = mask, teacher_inputs
        with seeded(seed, "relational_kd/projections"):
            self.projections = nn.ModuleDict(
                {
                    _key(source, width): nn.Linear(width, _width(teacher_width, target, "teacher_width")[0])
                    for source, target in self.pairs.items()
                    for width in _width(student_width, source, "student_width")
                }
            )
        module = Teacher.load(teacher).model if isinstance(teacher, str) else teacher.eval().requires_grad_(False)
        # in a tuple a module is not registered
        self._teacher = (module,)
        self._teacher_taps = Taps(module, self.pairs)

    def set_model(self, model: nn.Module) -> None:
        mixed = [name for name, module in model.named_modules() if isinstance(module, DifferentiableMixedLayer)]
        for source in self.pairs:
            for layer in mixed:
                if source.startswith(f"{layer}."):
                    raise ValueError(
                        f"pairs has {source!r}, inside {layer!r}: its candidates are mixed under this strategy, "
                        f"only {layer!r} itself can be compared"
                    )
        self.task.set_model(model)
        self._taps = Taps(model, {source: source for source in self.pairs})

    def training_step(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        terms: list[Tensor] = []
        with self._compared(terms):
            output = self.task.training_step(batch, *args, **kwargs)
        if output is None or not terms:
            return output
        distillation = torch.stack(terms).sum()
        self.log("relational_loss", distillation.detach(), batch_size=1)
        if isinstance(output, dict):
            return {**output, "loss": output["loss"] + self.weight * distillation}
        return output + self.weight * distillation

    def configure_optimizers(self) -> Any:
        """The task's optimizers; the projections are trained by the first, under its settings and schedule."""
        configured = self.task.configure_optimizers()
        _first_optimizer(configured).param_groups[0]["params"].extend(self.projections.parameters())
        return configured

    @contextmanager
    def _compared(self, terms: list[Tensor]) -> Iterator[None]:
        """Adds the losses of every forward of the student inside the block to ``terms``."""

        def compare(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            terms.extend(self._losses(args, kwargs))
            self._taps.clear()

        # the loss of a forward is computed as it ends, so that a step of several forwards keeps them apart
        handle = self.model.register_forward_hook(compare, with_kwargs=True)
        self._taps.clear()
        try:
            with self._taps:
                yield
        finally:
            handle.remove()

    def _losses(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
        targets = self._answers(args, kwargs)
        mask_BT = kwargs.get(self.mask)
        for source in self.pairs:
            if source not in self._taps:
                continue
            student_BTD, target_BTD = _sequence(self._taps[source]), _sequence(targets[source])
            key = _key(source, student_BTD.shape[-1])
            if key not in self.projections:
                raise ValueError(
                    f"{source!r} has width {student_BTD.shape[-1]}: student_width gave it "
                    f"{[name.rpartition('|')[2] for name in self.projections if name.startswith(_key(source, ''))]}"
                )
            keep_BT = mask_BT if mask_BT is not None and mask_BT.shape == student_BTD.shape[:2] else None
            yield FEATURE_LOSSES[self.loss](self.projections[key](student_BTD), target_BTD, keep_BT)

    @torch.no_grad()
    def _answers(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        (teacher,) = self._teacher
        teacher.to(next(self.projections.parameters()).device)
        if self.teacher_inputs is not None:
            args, kwargs = (), self.teacher_inputs(*args, **kwargs)
        else:
            known = inspect.signature(teacher.forward).parameters
            kwargs = {name: value for name, value in kwargs.items() if name in known}
        with self._teacher_taps as taps:
            taps.clear()
            teacher(*args, **kwargs)
            answers = {source: taps[source] for source in self.pairs}
            taps.clear()
        return answers


def _key(path: str, width: int | str) -> str:
    # the keys of a ModuleDict have no dots
    return f"{path.replace('.', '/')}|{width}"


def _width(widths: Widths, path: str, name: str) -> tuple[int, ...]:
    if not isinstance(widths, int) and path not in widths:
        raise ValueError(f"{name} has no width for {path!r}: give one for each path of pairs, or one for all")
    given = widths if isinstance(widths, int) else widths[path]
    found = (given,) if isinstance(given, int) else tuple(sorted(set(given)))
    if not found or min(found) < 1:
        raise ValueError(f"{name} has {given!r} for {path!r}: must be at least 1")
    return found


def _sequence(feature: Tensor) -> Tensor:
    """(B, T, D) as it is, (B, D) as (1, B, D), (B, D, height, width) as (B, height x width, D)."""
    if feature.ndim == 2:
        return feature.unsqueeze(0)
    if feature.ndim == 4:
        return feature.flatten(2).transpose(1, 2)
    return feature


def _first_optimizer(configured: Any) -> torch.optim.Optimizer:
    """Out of any form that Lightning takes."""
    if isinstance(configured, torch.optim.Optimizer):
        return configured
    if isinstance(configured, Mapping):
        return _first_optimizer(configured["optimizer"])
    if isinstance(configured, Sequence) and configured:
        return _first_optimizer(configured[0])
    raise ValueError(f"the task's configure_optimizers returned {configured!r}: must be at least one optimizer")
