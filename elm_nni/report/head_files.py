"""Reads the CKA step: the head plan and the similarities of the heads."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from elm_nni.errors import UserError
from elm_nni.report.fields import Fields, read_object

CKA_FILE = "prune/cka.npz"
HEADS_FILE = "prune/heads.json"

MODES = ("remove", "fuse")

_Matrices = dict[int, NDArray[np.float64]]


@dataclass(frozen=True)
class HeadLayer:
    """The head plan of one layer; ``kept`` and ``redundant`` number the heads before pruning."""

    layer: int
    before: int
    after: int
    kept: tuple[int, ...]
    redundant: tuple[int, ...]
    head_dim_before: int
    head_dim_after: int


@dataclass(frozen=True)
class HeadPruning:
    """The CKA step: plan, sweep over eta, and the matrices (H, H) before and after, by layer."""

    eta: float
    mode: str
    min_heads: int
    layers: tuple[HeadLayer, ...]
    eta_sweep: Mapping[float, tuple[int, ...]]
    cka_before: Mapping[int, NDArray[np.float64]]
    cka_after: Mapping[int, NDArray[np.float64]]

    @property
    def num_changed_layers(self) -> int:
        """Layers that end with another number of heads than they began with."""
        return sum(layer.after != layer.before for layer in self.layers)


def load_pruning(run_dir: Path) -> HeadPruning | None:
    """The head plan with its matrices, or ``None`` where ``heads.json`` is missing.

    Raises:
        UserError: a file is broken, or the two do not fit each other.
    """
    fields = read_object(run_dir, HEADS_FILE)
    if fields is None:
        return None
    mode = fields.text("mode")
    if mode not in MODES:
        raise fields.fail("mode", " or ".join(MODES))
    layers = tuple(_head_layer(layer) for layer in fields.objects("layers"))
    before, after = _load_cka(run_dir / CKA_FILE, layers)
    return HeadPruning(
        eta=fields.number("eta"),
        mode=mode,
        min_heads=fields.integer("min_heads"),
        layers=layers,
        eta_sweep=_eta_sweep(fields.fields("eta_sweep", optional=True), len(layers)),
        cka_before=before,
        cka_after=after,
    )


def _head_layer(fields: Fields) -> HeadLayer:
    layer = HeadLayer(
        layer=fields.integer("layer"),
        before=fields.integer("before"),
        after=fields.integer("after"),
        kept=fields.indices("kept"),
        redundant=fields.indices("redundant"),
        head_dim_before=fields.integer("head_dim_before"),
        head_dim_after=fields.integer("head_dim_after"),
    )
    if layer.before < 1:
        raise fields.fail("before", "at least 1")
    if not 1 <= layer.after <= layer.before:
        raise fields.fail("after", f"from 1 to {layer.before}")
    for key, heads in (("kept", layer.kept), ("redundant", layer.redundant)):
        if any(head >= layer.before for head in heads) or len(set(heads)) < len(heads):
            raise fields.fail(key, f"distinct head numbers below {layer.before}")
    return layer


def _eta_sweep(fields: Fields, num_layers: int) -> dict[float, tuple[int, ...]]:
    sweep: dict[float, tuple[int, ...]] = {}
    for key in fields.values:
        try:
            eta = float(key)
        except ValueError as error:
            raise UserError(f"{fields.place}: key {key!r:.80}; it must be a number such as '0.9'") from error
        heads = fields.indices(key)
        if len(heads) != num_layers:
            raise fields.fail(key, f"a list of {num_layers} head counts")
        sweep[eta] = heads
    return dict(sorted(sweep.items()))


def _load_cka(path: Path, layers: tuple[HeadLayer, ...]) -> tuple[_Matrices, _Matrices]:
    """The matrices that are stored; a layer without one is left out."""
    if not path.exists():
        return {}, {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: np.asarray(archive[name], dtype=np.float64) for name in archive.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read {path}: {error}; it must be a numpy .npz file of float arrays") from error
    for layer in layers:
        expected = {f"layer{layer.layer}_before": layer.before, f"layer{layer.layer}_after": layer.after}
        for name, num_heads in expected.items():
            shape = arrays[name].shape if name in arrays else (num_heads, num_heads)
            if shape != (num_heads, num_heads):
                raise UserError(f"{path}: {name!r} has shape {shape}; it must be {(num_heads, num_heads)}")
    before = {x.layer: arrays[f"layer{x.layer}_before"] for x in layers if f"layer{x.layer}_before" in arrays}
    after = {x.layer: arrays[f"layer{x.layer}_after"] for x in layers if f"layer{x.layer}_after" in arrays}
    return before, after
