"""The architecture as one flat dict: its settings, canonical form and digest. Imports neither torch nor NNI."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from elm_nni.digest import digest
from elm_nni.errors import UserError

BLOCK_NAMES = ("bert", "bert_qv", "bert_kv", "mobile", "mobile_qv", "mobile_kv")

Architecture = dict[str, Any]


@dataclass(frozen=True)
class SpaceSettings:
    """The numbers of an ELM search space (arXiv 2510.27037, table 1).

    Args:
        num_layers: number of choice layers.
        hidden_size: width between the layers.
        num_heads: attention heads of every candidate; divides ``hidden_size`` and ``bottleneck_size``.
        bottleneck_size: inner width of the mobile candidates.
        ffn_start, ffn_step, ffn_max: first, increment and last width of every feed-forward network.
        embedding_size: width of the token table.
        is_causal: candidates attend to the past only.
        pooling: how a classification head pools: ``"cls"``, ``"mean"`` or ``"last"``.

    Raises:
        ValueError: naming the setting, its value and what is allowed.
    """

    num_layers: int = 12
    hidden_size: int = 528
    num_heads: int = 12
    bottleneck_size: int = 132
    ffn_start: int = 132
    ffn_step: int = 132
    ffn_max: int = 792
    embedding_size: int = 128
    vocab_size: int = 30522
    max_position_embeddings: int = 512
    is_causal: bool = False
    pooling: str = "cls"
    dropout: float = 0.1
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            lowest = 0 if field.name == "pad_token_id" else 1
            if field.type == "int" and (not isinstance(value, int) or value < lowest):
                raise ValueError(f"{field.name} must be a positive integer, got {value!r}")
        for name in ("hidden_size", "bottleneck_size"):
            if getattr(self, name) % self.num_heads:
                raise ValueError(f"{name} must be a multiple of num_heads={self.num_heads}, got {getattr(self, name)}")
        if self.ffn_max < self.ffn_start or (self.ffn_max - self.ffn_start) % self.ffn_step:
            raise ValueError(
                f"ffn_max must be ffn_start={self.ffn_start} plus a multiple of ffn_step={self.ffn_step}, "
                f"got {self.ffn_max}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout!r}")

    @property
    def widths(self) -> list[int]:
        """Every width a feed-forward network can have, ascending."""
        return list(range(self.ffn_start, self.ffn_max + 1, self.ffn_step))


PRESETS: dict[str, SpaceSettings] = {
    "elm-small": SpaceSettings(),
    "elm-causal-small": SpaceSettings(is_causal=True, pooling="last"),
    "elm-causal-nano": SpaceSettings(
        num_layers=6, hidden_size=192, bottleneck_size=48, ffn_start=48, ffn_step=48, ffn_max=384, is_causal=True,
        pooling="last",
    ),
    "elm-tiny": SpaceSettings(num_layers=6),
    "elm-micro": SpaceSettings(
        num_layers=6, hidden_size=192, bottleneck_size=48, ffn_start=48, ffn_step=48, ffn_max=384
    ),
    "nano": SpaceSettings(
        num_layers=6, hidden_size=192, bottleneck_size=48, ffn_start=48, ffn_step=48, ffn_max=384, pooling="mean"
    ),
}


def preset_settings(name: str, **overrides: Any) -> SpaceSettings:
    """The settings of a preset with some of them replaced.

    Raises:
        UserError: unknown preset.
    """
    if name not in PRESETS:
        raise UserError(f"unknown search space {name!r}; known: {', '.join(PRESETS)}")
    return replace(PRESETS[name], **overrides)


def layer_label(index: int) -> str:
    """The label of a layer's choice of block."""
    return f"layer{index}"


def cell_name(index: int, block: str) -> str:
    """The name of a (layer, block) cell; its labels start with it."""
    return f"layer{index}_{block}"


def chosen_blocks(sample: Mapping[str, Any]) -> list[str]:
    """The block of each layer, in order."""
    blocks: list[str] = []
    while (label := layer_label(len(blocks))) in sample:
        blocks.append(str(sample[label]))
    return blocks


def canonical(sample: Mapping[str, Any], heads: Mapping[str, tuple[int, int]]) -> Architecture:
    """Only the labels of chosen candidates, sorted, head counts filled in.

    Args:
        sample: any sample of the space, or a canonical architecture.
        heads: block name to its (number of heads, head dimension), used where the sample has none.

    Raises:
        KeyError: the sample lacks a width of a chosen candidate.
    """
    result: Architecture = {}
    for index, block in enumerate(chosen_blocks(sample)):
        cell = cell_name(index, block)
        num_heads, head_dim = heads[block]
        result[layer_label(index)] = block
        result[f"{cell}_ffn"] = int(sample[f"{cell}_ffn"])
        result[f"{cell}_heads"] = int(sample.get(f"{cell}_heads", num_heads))
        result[f"{cell}_head_dim"] = int(sample.get(f"{cell}_head_dim", head_dim))
    return dict(sorted(result.items()))


def architecture_digest(architecture: Mapping[str, Any]) -> str:
    """The name of a canonical architecture in caches, studies, logs and model cards."""
    return digest(dict(architecture))


def layer_specs(architecture: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per layer: block, ffn_size, num_heads, head_dim."""
    return [
        {
            "block": block,
            "ffn_size": architecture[f"{(cell := cell_name(index, block))}_ffn"],
            "num_heads": architecture[f"{cell}_heads"],
            "head_dim": architecture[f"{cell}_head_dim"],
        }
        for index, block in enumerate(chosen_blocks(architecture))
    ]


def settings_dict(settings: SpaceSettings) -> dict[str, Any]:
    """Plain values, for YAML, digests and NNI's trace."""
    return asdict(settings)


def shared_config(settings: SpaceSettings) -> dict[str, Any]:
    """The arguments of :class:`ElmConfig` that do not depend on the architecture."""
    return {
        "vocab_size": settings.vocab_size,
        "hidden_size": settings.hidden_size,
        "embedding_size": settings.embedding_size,
        "bottleneck_size": settings.bottleneck_size,
        "max_position_embeddings": settings.max_position_embeddings,
        "is_causal": settings.is_causal,
        "hidden_dropout_prob": settings.dropout,
        "attention_probs_dropout_prob": settings.dropout,
        "classifier_pooling": settings.pooling,
        "pad_token_id": settings.pad_token_id,
    }
