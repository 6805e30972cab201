"""Attention heads of our own :class:`ElmModel`: read from its configuration, taken out of its blocks.

Shape suffixes: D hidden, H heads, K head_dim, C = H * K channels of all heads, W output width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from elm_nni.modeling import BLOCKS, Attention, Block, ElmModel
from elm_nni.modeling.blocks_elm import projection_names
from elm_nni.search_spaces.architecture import layer_specs
from elm_nni.strategies.head_plan import HeadPlan, LayerHeads


class ElmHeads:
    """The heads of one ``ElmModel``."""

    input_names = ("input_ids", "attention_mask", "token_type_ids", "document_ids")
    # what each forward gets beside the batch
    settings: Mapping[str, Any] = {}

    def __init__(self, encoder: ElmModel) -> None:
        self.encoder = encoder

    @property
    def architecture(self) -> dict[str, Any]:
        """The canonical architecture."""
        return dict(self.encoder.config.architecture)

    @property
    def outputs(self) -> list[str]:
        """Paths in ``encoder`` of the output projections, whose input is the heads' context."""
        return [f"layers.{index}.attention.output" for index in range(len(self.encoder.config.layers))]

    def prune(self, plan: HeadPlan) -> None:
        """Give the encoder the heads of ``plan.architecture``, in place."""
        # One configuration object serves the model, its encoder and every block.
        self.encoder.config.layers = layer_specs(plan.architecture)
        for block, layer in zip(cast(Iterable[Block], self.encoder.layers), plan.layers):
            if layer.after != layer.before:
                kept = layer.kept if plan.mode == "remove" else range(layer.before)
                block.attention = _pruned_attention(block.attention, self.encoder.config, layer, kept)


def slice_heads(
    projections: Mapping[str, Tensor], output_weight: Tensor, *, kept: Sequence[int], head_dim: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Copies of the input projections and of the output projection that hold only the kept heads, in the order given.

    Args:
        projections: name to a weight (H * K, D) or a bias (H * K,), heads one after another along the first
            dimension. A projection that two roles share is one entry.
        output_weight: (W, H * K).
        kept: heads to keep, each once; at least one.
        head_dim: channels K of a head.

    Returns:
        The sliced projections under their names, and the output weight (W, len(kept) * K).

    Raises:
        ValueError: sizes that are not as many heads of ``head_dim``, or ``kept`` empty, repeated or out of range.

    Example::

        sliced, output_WC = slice_heads({"query.weight": query_CD}, output_WC, kept=[0, 2], head_dim=44)
    """
    if head_dim < 1:
        raise ValueError(f"head_dim={head_dim}: must be at least 1")
    num_channels = output_weight.shape[-1]
    for name, tensor in projections.items():
        if tensor.shape[0] != num_channels:
            raise ValueError(f"{name} has {tensor.shape[0]} rows: must be {num_channels}, as output_weight has columns")
    num_heads, rest = divmod(num_channels, head_dim)
    if rest:
        raise ValueError(f"head_dim={head_dim}: must divide the {num_channels} columns of output_weight")
    if not kept or len(set(kept)) < len(kept) or not set(kept) <= set(range(num_heads)):
        raise ValueError(f"kept={list(kept)}: must be distinct heads from 0 to {num_heads - 1}, at least one")
    channels = torch.arange(num_channels).view(num_heads, head_dim)[list(kept)].flatten()
    sliced = {name: tensor.index_select(0, channels.to(tensor.device)) for name, tensor in projections.items()}
    return sliced, output_weight.index_select(1, channels.to(output_weight.device))


def _pruned_attention(attention: Attention, config: Any, layer: LayerHeads, kept: Sequence[int]) -> Attention:
    """The attention of a fresh block with the new sizes and the kept heads' weights."""
    spec = config.layers[layer.layer]
    # On the meta device nothing is drawn at random and nothing is allocated.
    with torch.device("meta"):
        block = BLOCKS[spec["block"]](
            config, ffn_size=spec["ffn_size"], num_heads=spec["num_heads"], head_dim=spec["head_dim"]
        )
    state = attention.state_dict()
    inputs = {
        name: tensor for name, tensor in state.items() if name.split(".")[0] in projection_names(attention.sharing)
    }
    sliced, output_weight = slice_heads(inputs, state["output.weight"], kept=kept, head_dim=layer.head_dim_before)
    pruned = block.attention
    pruned.load_state_dict({**state, **sliced, "output.weight": output_weight}, assign=True)
    for old, new in zip(attention.modules(), pruned.modules(), strict=True):
        new.training = old.training
    for name, parameter in attention.named_parameters():
        pruned.get_parameter(name).requires_grad_(parameter.requires_grad)
    return pruned
