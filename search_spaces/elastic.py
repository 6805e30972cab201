"""The elastic feed-forward network: a mutable in the space, a sliced super-kernel in every one-shot strategy of NNI."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from nni.mutable import MutableExpression
from nni.nas.nn.pytorch import ParametrizedModule
from nni.nas.oneshot.pytorch.supermodule._operation_utils import MaybeWeighted, Slicable
from nni.nas.oneshot.pytorch.supermodule.operation import MixedOperation
from nni.nas.oneshot.pytorch.supermodule.sampling import MixedOpPathSamplingPolicy
from torch import Tensor, nn

from elm_nni.modeling.blocks_elm import FeedForward


class ElasticFeedForward(ParametrizedModule, FeedForward, wraps=FeedForward):  # type: ignore[call-arg]
    """``FeedForward`` whose ``ffn_size`` may be a mutable; freezing gives the plain module back."""


class MixedFeedForward(MixedOperation, FeedForward):
    """All widths of a feed-forward network in one set of weights, of which the first ``ffn_size`` units are used.

    It is :class:`~elm_nni.strategies.growth.Growable`: ``active_width`` is kept in the state dict, and ``features``
    passes on the pre-activations (B, T, F) that a growth observes.
    """

    bound_type = ElasticFeedForward
    width: Tensor
    init_arguments: dict[str, Any]
    mutable_arguments: dict[str, MutableExpression]
    argument_list = ["ffn_size"]

    def __post_init__(self) -> None:
        ((self.label, choice),) = self.simplify().items()  # type: ignore[operator]
        self.widths: list[int] = sorted(choice.values)
        self.features = nn.Identity()
        self.register_buffer("width", torch.tensor(self.widths[0]))

    def super_init_argument(self, name: str, value_choice: MutableExpression) -> int:
        return max(value_choice.grid())

    @property
    def active_width(self) -> int:
        """The width that :class:`ElmOneShot` samples; moved by a growth."""
        return int(self.width)

    @active_width.setter
    def active_width(self, value: int) -> None:
        if value not in self.widths:
            raise ValueError(f"active_width of {self.label} must be one of {self.widths}, got {value!r}")
        self.width.fill_(value)

    def freeze(self, sample: dict[str, Any]) -> FeedForward:
        """The plain module of the sampled width, holding the first units' weights."""
        arguments = {**self.init_arguments, **{k: v.freeze(sample) for k, v in self.mutable_arguments.items()}}
        frozen = FeedForward(**arguments)
        frozen.load_state_dict(self.freeze_weight(**arguments))
        return frozen

    def freeze_weight(self, ffn_size: Any, **_: Any) -> dict[str, Tensor]:
        """Weights of the first ``ffn_size`` units (a width, or a distribution over widths in differentiable search)."""
        size = MaybeWeighted(ffn_size)
        return {
            "up.weight": Slicable(self.up.weight)[:size],
            "up.bias": Slicable(self.up.bias)[:size],
            "down.weight": Slicable(self.down.weight)[:, :size],
            "down.bias": self.down.bias,
        }

    def forward_with_args(self, ffn_size: Any, hidden_BTW: Tensor) -> Tensor:
        weights = self.freeze_weight(ffn_size)
        pre_BTF = self.features(F.linear(hidden_BTW, weights["up.weight"], weights["up.bias"]))
        return F.linear(self.activation(pre_BTF), weights["down.weight"], weights["down.bias"])


class ActiveWidthPolicy(MixedOpPathSamplingPolicy):
    """The width is not drawn: it is the active one, unless the sample that is being built names another.

    Operations other than :class:`MixedFeedForward` are sampled as NNI does.
    """

    def resample(self, operation: MixedOperation, memo: dict[str, Any]) -> dict[str, Any]:
        return super().resample(operation, {**_active(operation), **memo})

    def export(self, operation: MixedOperation, memo: dict[str, Any]) -> dict[str, Any]:
        active = {label: width for label, width in _active(operation).items() if label not in memo}
        return {**active, **super().export(operation, {**active, **memo})}


def _active(operation: MixedOperation) -> dict[str, int]:
    return {operation.label: operation.active_width} if isinstance(operation, MixedFeedForward) else {}
