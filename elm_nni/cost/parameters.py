"""Exact parameter counts of architectures and of whole search spaces, without building a model.

All counts leave task heads out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from elm_nni.errors import UserError
from elm_nni.modeling.blocks_elm import BLOCKS, Block
from elm_nni.modeling.configuration_elm import ElmConfig
from elm_nni.modeling.encoder_elm import ElmEmbeddings
from elm_nni.search_spaces.architecture import (
    Architecture,
    SpaceSettings,
    canonical,
    cell_name,
    chosen_blocks,
    layer_label,
    layer_specs,
    shared_config,
)

Blocks = Mapping[str, type[Block]]

# How far an architecture may be from the size it should match.
SIZE_TOLERANCE = 0.02


@lru_cache(maxsize=64)
def space_config(settings: SpaceSettings) -> ElmConfig:
    """The sizes that all architectures of a space share, as the configuration that blocks read; do not change it.

    Its ``layers`` have no meaning.

    Example:
        >>> space_config(preset_settings("nano")).hidden_size
        192
    """
    return ElmConfig(num_hidden_layers=settings.num_layers, **shared_config(settings))


def full_heads(settings: SpaceSettings, blocks: Blocks | None = None) -> dict[str, tuple[int, int]]:
    """Name of each block to its ``(num_heads, head_dim)`` before any head is pruned.

    Example:
        >>> full_heads(preset_settings("nano"))["mobile"]
        (12, 4)
    """
    config = space_config(settings)
    return {
        name: (settings.num_heads, block.attention_width(config) // settings.num_heads)
        for name, block in (BLOCKS if blocks is None else blocks).items()
    }


def embedding_parameters(settings: SpaceSettings) -> int:
    """Parameters of the embeddings: token table, projection, positions, segments, norm."""
    return ElmEmbeddings.num_parameters(space_config(settings))


def parameters_outside_embeddings(
    architecture: Mapping[str, Any], settings: SpaceSettings, *, blocks: Blocks | None = None
) -> int:
    """Parameters of an architecture's layers.

    Args:
        architecture: Canonical architecture; of any depth, with any head counts.
        settings: The space that it belongs to.
        blocks: Name to block class; None takes the six of the paper.

    Raises:
        UserError: The architecture names an unknown block or has no layers.
        KeyError: A label of a chosen block is missing.

    Example:
        >>> sample = {"layer0": "bert", "layer0_bert_ffn": 48, "layer0_bert_heads": 12, "layer0_bert_head_dim": 16}
        >>> parameters_outside_embeddings(sample, preset_settings("nano"))
        167664
    """
    layers = layer_specs(architecture)
    if not layers:
        raise UserError("the architecture has no 'layer0'; its keys are layer0, layer0_<block>_ffn, ...")
    return sum(_layer_parameters(layer, settings, blocks) for layer in layers)


def count_parameters(architecture: Mapping[str, Any], settings: SpaceSettings, *, blocks: Blocks | None = None) -> int:
    """Parameters of an architecture, embeddings and layers; equal to counting the built ``ElmModel``.

    Arguments and errors are those of :func:`parameters_outside_embeddings`.

    Example:
        >>> settings = preset_settings("nano")
        >>> count_parameters(extreme_architecture(settings), settings)
        4349376
    """
    return embedding_parameters(settings) + parameters_outside_embeddings(architecture, settings, blocks=blocks)


def mean_parameters(widths: Mapping[str, int], settings: SpaceSettings, *, blocks: Blocks | None = None) -> float:
    """Exact mean of the parameter count over architectures whose blocks are drawn uniformly.

    Args:
        widths: Name of each (layer, block) cell, such as ``"layer0_bert"``, to its feed-forward width.
        settings: The space.
        blocks: Name to block class; None takes the six of the paper.

    Raises:
        UserError: A cell has no width.

    Example:
        >>> settings = preset_settings("elm-small")
        >>> round(mean_parameters({f"layer{i}_{b}": 132 for i in range(12) for b in BLOCKS}, settings) / 1e6, 2)
        12.97
    """
    names = list(BLOCKS if blocks is None else blocks)
    heads = full_heads(settings, blocks)
    total = 0
    for cell, name in ((cell_name(index, name), name) for index in range(settings.num_layers) for name in names):
        width = _cell_width(cell, settings, widths, largest=False)
        total += _layer_parameters(_layer(name, width, heads[name]), settings, blocks)
    return embedding_parameters(settings) + total / len(names)


def extreme_architecture(
    settings: SpaceSettings,
    widths: Mapping[str, int] | None = None,
    *,
    cost: Callable[[Architecture], float] | None = None,
    largest: bool = False,
    blocks: Blocks | None = None,
) -> Architecture:
    """The architecture of lowest (or highest) cost, all heads kept.

    Layers are chosen one by one, so it is exact for a cost that is a sum over layers and does not fall with the width.

    Args:
        settings: The space.
        widths: Name of each cell to its width. None: the first width of the space, or the last if ``largest``.
        cost: Canonical architecture to its cost. None: the number of parameters.
        largest: The highest cost instead of the lowest.
        blocks: Name to block class; None takes the six of the paper.

    Raises:
        UserError: A cell has no width.

    Example:
        >>> extreme_architecture(preset_settings("nano"))["layer0"]
        'mobile_qv'
    """
    if cost is None:

        def cost(architecture: Architecture) -> float:
            return parameters_outside_embeddings(architecture, settings, blocks=blocks)

    names = list(BLOCKS if blocks is None else blocks)
    heads = full_heads(settings, blocks)
    better = max if largest else min
    sample: dict[str, Any] = {}
    for index in range(settings.num_layers):
        options = {name: _cell_width(cell_name(index, name), settings, widths, largest) for name in names}
        # The other layers cancel out of the comparison, so each is priced as an architecture of its own.
        prices = {name: cost(_one_layer(name, width, heads)) for name, width in options.items()}
        name = better(prices, key=prices.__getitem__)
        sample |= {layer_label(index): name, f"{cell_name(index, name)}_ffn": options[name]}
    return canonical(sample, heads)


def uniform_width(
    block: str, target_params_outside_embeddings: int, settings: SpaceSettings, *, blocks: Blocks | None = None
) -> Architecture:
    """An architecture of equal layers whose parameters outside the embeddings match a target within 2 %.

    The feed-forward width is solved for and need not be a width of the space. Where the target is too small for all
    layers, the architecture has as many as fit.

    Args:
        block: Name of the block of every layer.
        target_params_outside_embeddings: The number to match.
        settings: The space; its head count is kept.
        blocks: Name to block class; None takes the six of the paper.

    Raises:
        UserError: An unknown block, or a target below one layer of width 1.

    Example:
        >>> uniform_width("bert", 1_300_000, preset_settings("nano"))["layer0_bert_ffn"]
        175
    """
    heads = full_heads(settings, blocks)
    if block not in heads:
        raise UserError(f"unknown block {block!r}; known: {', '.join(heads)}")
    smallest = _layer_parameters(_layer(block, 1, heads[block]), settings, blocks)
    slope = _layer_parameters(_layer(block, 2, heads[block]), settings, blocks) - smallest
    for num_layers in range(settings.num_layers, 0, -1):
        width = 1 + round((target_params_outside_embeddings / num_layers - smallest) / slope)
        size = num_layers * (smallest + (width - 1) * slope)
        miss = abs(size - target_params_outside_embeddings)
        if width >= 1 and miss <= SIZE_TOLERANCE * target_params_outside_embeddings:
            sample: dict[str, Any] = {layer_label(index): block for index in range(num_layers)}
            sample |= {f"{cell_name(index, block)}_ffn": width for index in range(num_layers)}
            return canonical(sample, heads)
    raise UserError(
        f"no uniform {block} architecture has {target_params_outside_embeddings} parameters outside the embeddings "
        f"within {SIZE_TOLERANCE:.0%}; one layer of width 1 has {smallest}"
    )


def match_size(
    architecture: Mapping[str, Any], target: int, settings: SpaceSettings, *, blocks: Blocks | None = None
) -> Architecture:
    """The same blocks and heads with feed-forward widths that meet a number of parameters outside the embeddings.

    All widths are multiplied by one factor and rounded, none to less than 1; then single widths move by 1 as long as
    that comes nearer. They need not be widths of the space and may exceed its largest. An architecture that has the
    size already stays as it is.

    Args:
        architecture: Canonical architecture; of any depth, with any head counts.
        target: The number to match, within 2 %.
        settings: The space that the architecture belongs to.
        blocks: Name to block class; None takes the six of the paper.

    Raises:
        UserError: The target is out of reach, or the architecture names an unknown block or has no layers.

    Example:
        >>> settings = preset_settings("nano")
        >>> match_size(extreme_architecture(settings), 300_000, settings)["layer0_mobile_qv_ffn"]
        102
    """

    def size(widths: Mapping[str, int]) -> int:
        return parameters_outside_embeddings({**architecture, **widths}, settings, blocks=blocks)

    labels = [f"{cell_name(index, block)}_ffn" for index, block in enumerate(chosen_blocks(architecture))]
    given = {label: int(architecture[label]) for label in labels}
    # a size is linear in each width, so the sizes at factors 1 and 2 give the factor
    once, twice = size(given), size({label: 2 * width for label, width in given.items()})
    factor = 1 + (target - once) / (twice - once)
    widths = _nearest({label: max(1, round(factor * width)) for label, width in given.items()}, target, size)
    if abs(size(widths) - target) > SIZE_TOLERANCE * target:
        raise UserError(
            f"no widths give this architecture {target:,} parameters outside the embeddings within "
            f"{SIZE_TOLERANCE:.0%}; with every width at 1 it has {size(dict.fromkeys(labels, 1)):,}"
        )
    return dict(sorted({**architecture, **widths}.items()))


def _nearest(widths: dict[str, int], target: int, size: Callable[[Mapping[str, int]], int]) -> dict[str, int]:
    """Moves one width by 1 at a time for as long as the size comes nearer to the target; ends, as the miss shrinks."""
    while True:
        moved = [{**widths, label: width + by} for label, width in widths.items() for by in (1, -1) if width + by >= 1]
        best = min(moved, key=lambda one: abs(size(one) - target))
        if abs(size(best) - target) >= abs(size(widths) - target):
            return widths
        widths = best


def _layer(block: str, width: int, heads: tuple[int, int]) -> dict[str, Any]:
    return {"block": block, "ffn_size": width, "num_heads": heads[0], "head_dim": heads[1]}


def _layer_parameters(layer: Mapping[str, Any], settings: SpaceSettings, blocks: Blocks | None) -> int:
    known = BLOCKS if blocks is None else blocks
    if layer["block"] not in known:
        raise UserError(f"unknown block {layer['block']!r}; known: {', '.join(known)}")
    return known[layer["block"]].num_parameters(
        space_config(settings), ffn_size=layer["ffn_size"], num_heads=layer["num_heads"], head_dim=layer["head_dim"]
    )


def _cell_width(cell: str, settings: SpaceSettings, widths: Mapping[str, int] | None, largest: bool) -> int:
    if widths is None:
        return settings.ffn_max if largest else settings.ffn_start
    if cell not in widths:
        raise UserError(f"widths has no {cell!r}; it needs one for every layer and block")
    return widths[cell]


def _one_layer(block: str, width: int, heads: Mapping[str, tuple[int, int]]) -> Architecture:
    return canonical({layer_label(0): block, f"{cell_name(0, block)}_ffn": width}, heads)
