"""Feature distillation of a whole model: learned projections, layer map and one loss.

Shape suffixes: B batch, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from elm_nni.distillation.features import Features
from elm_nni.distillation.layer_map import layer_map
from elm_nni.distillation.losses import mse_feature_loss, relational_feature_loss

FEATURE_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "relational": relational_feature_loss,
    "mse": mse_feature_loss,
}
_KINDS = ("embedding", "hidden", "attention")


class FeatureDistiller(nn.Module):
    """Sum over layers of attention and hidden losses, plus the embedding loss (arXiv 2510.27037).

    Every student feature goes through a learned linear projection to the teacher's width: one for the embedding,
    one for all hidden outputs, one for each width that attention blocks have (in a supernet the chosen block of a layer
    decides it). The projections belong to the optimizer during training and are thrown away after it.

    Args:
        student_widths: which kinds to distil and how wide the student's are: keys out of ``embedding``, ``hidden``,
            ``attention``, each with a width or several. A kind that is left out is not compared.
        teacher_width: the teacher's width, or one for each kind.
        loss: ``relational`` or the baseline ``mse``.

    Raises:
        ValueError: an unknown kind or loss, no kind at all, or a width below 1.

    Example::

        distiller = FeatureDistiller(student_widths={"hidden": 192, "attention": (192, 48)}, teacher_width=384)
        distiller(student_features, teacher.features(ids_BT, mask_BT), mask_BT)["total"].backward()
    """

    def __init__(
        self,
        *,
        student_widths: Mapping[str, int | Sequence[int]],
        teacher_width: int | Mapping[str, int],
        loss: Literal["relational", "mse"] = "relational",
    ) -> None:
        super().__init__()
        if loss not in FEATURE_LOSSES:
            raise ValueError(f"loss={loss!r}: must be one of {sorted(FEATURE_LOSSES)}")
        if not student_widths:
            raise ValueError(f"student_widths is empty: must have at least one of {_KINDS}")
        self.loss = loss
        self.kinds = tuple(kind for kind in _KINDS if kind in student_widths)
        self.projections = nn.ModuleDict()
        for kind, given in student_widths.items():
            if kind not in _KINDS:
                raise ValueError(f"student_widths has {kind!r}: must be out of {_KINDS}")
            target = teacher_width if isinstance(teacher_width, int) else teacher_width[kind]
            _check_width("teacher_width", target)
            for width in sorted({given} if isinstance(given, int) else set(given)):
                _check_width("student_widths", width)
                self.projections[_key(kind, width)] = nn.Linear(width, target)

    def forward(self, student: Features, teacher: Features, mask_BT: Tensor | None = None) -> dict[str, Tensor]:
        """The loss of each kind that is distilled, and their sum as ``total``; scalars.

        A teacher without attention-block outputs leaves that kind out (its loss is then absent).

        Raises:
            ValueError: the student lacks a kind that is to be distilled or shows a width without projection, or the
                teacher has none of the kinds.
        """
        losses: dict[str, Tensor] = {}
        for kind in self.kinds:
            targets = _of_kind(teacher, kind)
            if targets is None:
                continue
            sources = _of_kind(student, kind)
            if sources is None:
                raise ValueError(f"student features hold no {kind}: leave {kind!r} out of student_widths")
            losses[kind] = self._sum(kind, sources, targets, mask_BT)
        if not losses:
            raise ValueError(f"teacher features hold none of {self.kinds}: there is nothing to learn from")
        losses["total"] = torch.stack(list(losses.values())).sum()
        return losses

    def _sum(self, kind: str, sources: list[Tensor], targets: list[Tensor], mask_BT: Tensor | None) -> Tensor:
        loss = FEATURE_LOSSES[self.loss]
        teacher_layers = layer_map(len(sources), len(targets))
        terms = [
            loss(self._project(kind, source_BTD), targets[layer], mask_BT)
            for source_BTD, layer in zip(sources, teacher_layers)
        ]
        return torch.stack(terms).sum()

    def _project(self, kind: str, source_BTD: Tensor) -> Tensor:
        key = _key(kind, source_BTD.shape[-1])
        if key not in self.projections:
            raise ValueError(f"{kind} of width {source_BTD.shape[-1]}: projections are {sorted(self.projections)}")
        projected_BTD: Tensor = self.projections[key](source_BTD)
        return projected_BTD


def _key(kind: str, width: int) -> str:
    return f"{kind}_{width}"


def _check_width(name: str, width: int) -> None:
    if width < 1:
        raise ValueError(f"{name} has {width}: must be at least 1")


def _of_kind(features: Features, kind: str) -> list[Tensor] | None:
    if kind == "embedding":
        return None if features.embedding_BTD is None else [features.embedding_BTD]
    return features.hidden if kind == "hidden" else features.attention
