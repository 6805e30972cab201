"""A table of measured latencies, and what it predicts for an architecture. Needs no NNI."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.isotonic import isotonic_regression

from elm_nni.cost.condition import LatencyCondition
from elm_nni.cost.parameters import extreme_architecture
from elm_nni.digest import digest
from elm_nni.errors import UserError
from elm_nni.search_spaces.architecture import Architecture, SpaceSettings, layer_specs

FORMAT = "elm-nni latency table 1"
# The settings of a space that a latency depends on; depth does not matter, since a table counts by layer.
SPACE_FIELDS = ("hidden_size", "num_heads", "bottleneck_size", "embedding_size", "is_causal", "pooling")
EMBEDDING, HEAD = "embedding", "head"


def entry_key(block: str, ffn_size: int, num_heads: int, head_dim: int) -> str:
    """The key of a measured layer.

    Example:
        >>> entry_key("bert", 48, 12, 16)
        'bert|48|12|16'
    """
    return f"{block}|{ffn_size}|{num_heads}|{head_dim}"


def space_fields(settings: SpaceSettings) -> dict[str, Any]:
    """The settings that a table must share with the space it is used for."""
    return {name: getattr(settings, name) for name in SPACE_FIELDS}


@dataclass(frozen=True)
class Curve:
    """A latency that never falls along an axis, linear between the measured points.

    ``raw_ms`` are the measured medians; ``values_ms`` their isotonic (least-squares) fit.
    """

    name: str
    points: tuple[float, ...]
    raw_ms: tuple[float, ...]

    @cached_property
    def values_ms(self) -> tuple[float, ...]:
        return tuple(float(value) for value in isotonic_regression(np.array(self.raw_ms)))

    def __call__(self, point: float) -> float:
        """Latency in ms at ``point``.

        Raises:
            UserError: Outside the measured range.
        """
        low, high = self.points[0], self.points[-1]
        if not low <= point <= high:
            raise UserError(f"the latency table has no {self.name} of {point:g}; it has {low:g} to {high:g}")
        return float(np.interp(point, self.points, self.values_ms))


@dataclass(frozen=True)
class LatencyTable:
    """Latencies of layers, embedding and head under one condition; sums of them predict a model's.

    For each block, ``entries`` holds several widths with all heads, and several head counts at one width. Attention and
    feed-forward run one after the other, so a layer takes what its width takes with all heads, less what its missing
    heads save. Both are made monotone by isotonic regression (the raw values stay in ``entries``) and are linear
    between measured points. Heads of another size than the measured ones (fused heads) count by their channels.

    Args:
        condition: What the latencies hold under.
        space: The settings that they hold for; see ``SPACE_FIELDS``.
        entries: ``"block|ffn|heads|head_dim"`` to ``(median, interquartile range)`` in ms, and so for ``"embedding"``
            (masks and trigram embedding) and ``"head"`` (a classifier).
        overhead_ms: What a layer takes inside a model beyond its entry (caches, wrappers), measured on whole models;
            may be negative.
        notes: How it was measured: repeats, machine, versions, whole models.

    Raises:
        UserError: Missing entries or values that are not times.

    Example:
        >>> table = LatencyTable.load("table.json")
        >>> table.predict(architecture)
        3.1
    """

    condition: LatencyCondition
    space: Mapping[str, Any]
    entries: Mapping[str, tuple[float, float]]
    overhead_ms: float = 0.0
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if missing := [name for name in SPACE_FIELDS if name not in self.space]:
            raise UserError(f"the latency table does not name its space's {missing[0]}")
        for key, (median_ms, iqr_ms) in self.entries.items():
            if not (0 < median_ms < math.inf and 0 <= iqr_ms < math.inf):
                raise UserError(
                    f"the latency table's entry {key!r} is ({median_ms}, {iqr_ms}); it must be a median above 0 and a "
                    "range from 0, in ms"
                )
        for key in (EMBEDDING, HEAD):
            if key not in self.entries:
                raise UserError(f"the latency table has no entry {key!r}")
        if not math.isfinite(self.overhead_ms):
            raise UserError(f"the latency table's overhead_ms is {self.overhead_ms}; it must be a number")
        if not self.curves:
            raise UserError("the latency table has no layers; their keys are block|ffn|heads|head_dim")

    @cached_property
    def digest(self) -> str:
        """The table's name: of everything in it."""
        return digest(self._content())

    @cached_property
    def curves(self) -> dict[str, tuple[Curve, Curve, int]]:
        """Name of each block to its curve over widths (all heads), its curve over heads, and the measured head_dim."""
        measured: dict[str, dict[tuple[int, int], float]] = {}
        head_dims: dict[str, int] = {}
        for key, (median_ms, _) in self.entries.items():
            if key in (EMBEDDING, HEAD):
                continue
            block, ffn_size, num_heads, head_dim = _parse_key(key)
            measured.setdefault(block, {})[ffn_size, num_heads] = median_ms
            if head_dims.setdefault(block, head_dim) != head_dim:
                raise UserError(
                    f"the latency table has {block} with head_dim {head_dims[block]} and {head_dim}; one is allowed"
                )
        return {block: (*_block_curves(block, cells), head_dims[block]) for block, cells in measured.items()}

    def predict_layer(self, layer: Mapping[str, Any]) -> float:
        """Latency in ms of one layer ``{"block", "ffn_size", "num_heads", "head_dim"}`` inside a model.

        Raises:
            UserError: A block that was not measured, or a width or head count outside the measured range.
        """
        if layer["block"] not in self.curves:
            raise UserError(f"the latency table has no block {layer['block']!r}; it has {', '.join(self.curves)}")
        over_widths, over_heads, head_dim = self.curves[layer["block"]]
        num_heads = layer["num_heads"] * layer["head_dim"] / head_dim
        saved_ms = over_heads.values_ms[-1] - over_heads(num_heads)
        return over_widths(layer["ffn_size"]) - saved_ms + self.overhead_ms

    def predict(self, architecture: Mapping[str, Any], *, head: bool = True) -> float:
        """Latency in ms of a model of this architecture.

        Args:
            architecture: Canonical architecture of any depth.
            head: Count a classifier too.

        Raises:
            UserError: As :meth:`predict_layer`.
        """
        layers_ms = sum(self.predict_layer(layer) for layer in layer_specs(architecture))
        return self.entries[EMBEDDING][0] + layers_ms + (self.entries[HEAD][0] if head else 0.0)

    def require(self, condition: LatencyCondition, settings: SpaceSettings | None = None) -> None:
        """Check that a limit under ``condition`` may be held against this table.

        Raises:
            UserError: The table is of another condition, or of a space with other sizes; both are named.
        """
        if condition != self.condition:
            raise UserError(
                f"the latency limit is for ({condition.describe()}), but the table was measured for "
                f"({self.condition.describe()}); measure a table for the limit's condition"
            )
        if settings is None:
            return
        for name, value in space_fields(settings).items():
            if self.space[name] != value:
                raise UserError(f"the latency table is for {name} = {self.space[name]!r}, but the space has {value!r}")

    def save(self, path: str | Path) -> None:
        """Write the table as JSON.

        Raises:
            UserError: The file cannot be written.
        """
        content = {**self._content(), "digest": self.digest}
        try:
            Path(path).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write the latency table {path}: {error.strerror}") from error

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read a table that :meth:`save` wrote, here or on another machine.

        Raises:
            UserError: No such file, another kind of file, or one that was changed.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot read the latency table {path}: {error.strerror}") from error
        except ValueError as error:
            raise UserError(f"{path} is no latency table: it is not JSON") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UserError(f"{path} is no latency table: its format is not {FORMAT!r}")
        try:
            table = cls(
                condition=LatencyCondition(**content["condition"]),
                space=content["space"],
                entries={key: (float(median), float(iqr)) for key, (median, iqr) in content["entries"].items()},
                overhead_ms=float(content["overhead_ms"]),
                notes=content["notes"],
            )
            stored = content["digest"]
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path} is a broken latency table: {error!r}") from error
        if stored != table.digest:
            raise UserError(f"{path} was changed after it was measured: its digest is {table.digest}, it says {stored}")
        return table

    def _content(self) -> dict[str, Any]:
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "condition"}
        return {"format": FORMAT, "condition": asdict(self.condition), **values}


def cheapest(
    table: LatencyTable, settings: SpaceSettings, widths: Mapping[str, int] | None = None
) -> tuple[Architecture, float]:
    """The fastest architecture of a space with all its heads, and its latency in ms: the best that a limit can ask for.

    Args:
        table: Measured latencies.
        settings: The space.
        widths: Name of each cell to its width, after growth. None: the first width everywhere.

    Raises:
        UserError: A cell has no width, or the table does not cover it.

    Example:
        >>> architecture, milliseconds = cheapest(table, preset_settings("nano"))
    """
    architecture = extreme_architecture(settings, widths, cost=table.predict)
    return architecture, table.predict(architecture)


def _parse_key(key: str) -> tuple[str, int, int, int]:
    block, *sizes = key.split("|")
    if len(sizes) != 3 or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise UserError(f"the latency table's entry {key!r} has no meaning; keys are block|ffn|heads|head_dim")
    ffn_size, num_heads, head_dim = map(int, sizes)
    return block, ffn_size, num_heads, head_dim


def _block_curves(block: str, cells: Mapping[tuple[int, int], float]) -> tuple[Curve, Curve]:
    all_heads = max(num_heads for _, num_heads in cells)
    by_width = sorted((ffn_size, ms) for (ffn_size, num_heads), ms in cells.items() if num_heads == all_heads)
    pruned = {ffn_size for ffn_size, num_heads in cells if num_heads < all_heads}
    reference = min(pruned, default=by_width[0][0])
    if pruned - {reference} or (reference, all_heads) not in cells:
        raise UserError(f"the latency table must have the head counts of {block} at one width, with all heads too")
    by_heads = sorted((num_heads, ms) for (ffn_size, num_heads), ms in cells.items() if ffn_size == reference)
    return _curve(f"{block} width", by_width), _curve(f"{block} head count", by_heads)


def _curve(name: str, pairs: list[tuple[int, float]]) -> Curve:
    points, raw_ms = zip(*pairs, strict=True)
    return Curve(name, tuple(float(point) for point in points), raw_ms)
