"""The decision which attention heads to give up, kept with the similarities behind it (arXiv 2510.27037, heads by CKA).

Shape suffixes: H heads.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from elm_nni.analysis.cka import redundant_heads
from elm_nni.errors import UserError
from elm_nni.files import write_bytes, write_text
from elm_nni.search_spaces.architecture import architecture_digest, cell_name, chosen_blocks

PruneMode = Literal["remove", "fuse"]
Samples = Literal["tokens", "sequences"]
Matrix = tuple[tuple[float, ...], ...]

HEADS_FILE = "heads.json"
CKA_FILE = "cka.npz"
SWEEP = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class LayerHeads:
    """What becomes of the heads of one layer.

    Args:
        layer: index of the layer.
        before: number of heads H.
        after: number of heads H' in the pruned model.
        kept: heads that no earlier kept head resembles, ascending.
        redundant: the other heads, ascending.
        head_dim_before: channels of a head.
        head_dim_after: channels of a head in the pruned model; larger than before only when heads were fused.
        cka_before: (H, H) CKA of all pairs.
        cka_after: (H', H') of the pruned model, or None while it was not measured.

    Raises:
        ValueError: numbers that contradict each other.
    """

    layer: int
    before: int
    after: int
    kept: tuple[int, ...]
    redundant: tuple[int, ...]
    head_dim_before: int
    head_dim_after: int
    cka_before: Matrix
    cka_after: Matrix | None = None

    def __post_init__(self) -> None:
        where = f"layer {self.layer}"
        if self.before < 1 or not 1 <= self.after <= self.before:
            raise ValueError(f"{where}: after={self.after} of before={self.before} heads; must be from 1 to before")
        for name, heads in (("kept", self.kept), ("redundant", self.redundant)):
            if list(heads) != sorted(heads):
                raise ValueError(f"{where}: {name}={list(heads)} must be ascending")
        if sorted(self.kept + self.redundant) != list(range(self.before)):
            raise ValueError(
                f"{where}: kept={list(self.kept)} and redundant={list(self.redundant)} must hold each of the "
                f"{self.before} heads once"
            )
        for name, head_dim in (("head_dim_before", self.head_dim_before), ("head_dim_after", self.head_dim_after)):
            if head_dim < 1:
                raise ValueError(f"{where}: {name}={head_dim} must be at least 1")
        _check_matrix(f"{where}: cka_before", self.cka_before, self.before)
        if self.cka_after is not None:
            _check_matrix(f"{where}: cka_after", self.cka_after, self.after)


@dataclass(frozen=True)
class HeadPlan:
    """Which heads of a model to give up, with the similarities that say so.

    Args:
        eta: CKA above which two heads are the same.
        mode: ``"remove"`` or ``"fuse"``.
        min_heads: heads that every layer keeps at least.
        samples: what CKA took as a sample, ``"tokens"`` or ``"sequences"``.
        num_sequences: rows with a valid token that were seen.
        source: the architecture that was measured, canonical; of a stock model the class, heads and head_dim of each
            layer's attention.
        layers: one entry a layer, in order.

    Raises:
        ValueError: settings out of range, or layers that do not fit ``source`` or ``mode``.

    Example::

        plan = CkaHeadPruner().plan(model, batches)
        plan.architecture["layer0_bert_heads"]   # 9
    """

    eta: float
    mode: PruneMode
    min_heads: int
    samples: Samples
    num_sequences: int
    source: Mapping[str, str | int] = field(hash=False)
    layers: tuple[LayerHeads, ...]

    def __post_init__(self) -> None:
        check_settings(self.eta, self.mode, self.min_heads, self.samples)
        sizes = head_sizes(self.source)
        if [layer.layer for layer in self.layers] != list(range(len(sizes))):
            indices = [layer.layer for layer in self.layers]
            raise ValueError(f"layers={indices}: must be the {len(sizes)} layers of the architecture, in order")
        for layer, (num_heads, head_dim) in zip(self.layers, sizes):
            if (layer.before, layer.head_dim_before) != (num_heads, head_dim):
                raise ValueError(
                    f"layer {layer.layer}: before={layer.before} heads of {layer.head_dim_before}; "
                    f"the architecture has {num_heads} of {head_dim}"
                )
            if (layer.after, layer.head_dim_after) != _sizes_after(layer, self.mode, self.min_heads):
                raise ValueError(
                    f"layer {layer.layer}: after={layer.after} heads of {layer.head_dim_after} do not follow from "
                    f"{len(layer.kept)} kept heads with mode={self.mode!r} and min_heads={self.min_heads}"
                )

    @property
    def digest(self) -> str:
        """Name of the architecture that was measured."""
        return architecture_digest(self.source)

    @property
    def architecture(self) -> dict[str, str | int]:
        """The canonical architecture after pruning."""
        pruned = dict(self.source)
        for layer, block in zip(self.layers, chosen_blocks(self.source)):
            cell = cell_name(layer.layer, block)
            pruned |= {f"{cell}_heads": layer.after, f"{cell}_head_dim": layer.head_dim_after}
        return dict(sorted(pruned.items()))

    def plan_at(self, eta: float) -> HeadPlan:
        """The plan that another ``eta`` gives, from the stored matrices; the model is not run again.

        Raises:
            ValueError: ``eta`` outside [0, 1].
        """
        check_settings(eta, self.mode, self.min_heads, self.samples)
        layers = tuple(
            judge(layer.layer, layer.head_dim_before, layer.cka_before, eta, self.mode, self.min_heads)
            for layer in self.layers
        )
        return replace(self, eta=eta, layers=layers)

    def to_dict(self) -> dict[str, Any]:
        """Everything, in values that JSON has; ``architecture`` and ``digest`` are added for readers."""
        settings = asdict(self)
        return {**settings, "source": dict(self.source), "architecture": self.architecture, "digest": self.digest}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HeadPlan:
        """The plan that :meth:`to_dict` described, through JSON or not.

        Raises:
            UserError: a missing key, or values that contradict each other.
        """
        try:
            layers = tuple(
                LayerHeads(
                    **{key: layer[key] for key in ("layer", "before", "after", "head_dim_before", "head_dim_after")},
                    kept=tuple(layer["kept"]),
                    redundant=tuple(layer["redundant"]),
                    cka_before=as_matrix(layer["cka_before"]),
                    cka_after=None if layer.get("cka_after") is None else as_matrix(layer["cka_after"]),
                )
                for layer in values["layers"]
            )
            settings = {key: values[key] for key in ("eta", "mode", "min_heads", "samples", "num_sequences")}
            return cls(**settings, source=dict(values["source"]), layers=layers)
        except KeyError as error:
            raise UserError(f"head plan: the key {error} is missing; it must be what HeadPlan.to_dict gives") from error
        except (TypeError, ValueError) as error:
            raise UserError(f"head plan: {error}") from error

    def save(self, folder: str | os.PathLike[str], *, etas: Iterable[float] = SWEEP) -> None:
        """Write ``heads.json`` (with the sweep over ``etas`` and the plan's own eta) and ``cka.npz``.

        The npz holds ``layer{i}_before`` (H, H) and, once measured, ``layer{i}_after`` (H', H'), float64.
        The folder is made if missing; each file is replaced as a whole.

        Raises:
            UserError: a file cannot be written.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        matrices: dict[str, np.ndarray] = {}
        values = self.to_dict()
        for layer in values["layers"]:
            for when in ("before", "after"):
                matrix = layer.pop(f"cka_{when}")
                if matrix is not None:
                    matrices[f"layer{layer['layer']}_{when}"] = np.array(matrix, dtype=np.float64)
        sweep = eta_sweep(self, sorted({*etas, self.eta}))
        values["eta_sweep"] = {repr(float(eta)): heads for eta, heads in sweep.items()}
        archive = io.BytesIO()
        np.savez(archive, allow_pickle=False, **matrices)
        write_bytes(target / CKA_FILE, archive.getvalue())
        write_text(target / HEADS_FILE, json.dumps(values, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> HeadPlan:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: a file is missing or is not what ``save`` writes.
        """
        heads_path, cka_path = Path(folder) / HEADS_FILE, Path(folder) / CKA_FILE
        try:
            values = json.loads(heads_path.read_text(encoding="utf-8"))
            with np.load(cka_path, allow_pickle=False) as archive:
                matrices = {name: archive[name].tolist() for name in archive.files}
            for layer in values["layers"]:
                for when in ("before", "after"):
                    layer[f"cka_{when}"] = matrices.get(f"layer{layer['layer']}_{when}")
        except OSError as error:
            raise UserError(f"cannot read the head plan in {folder}: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the head plan in {folder} is damaged: {error!r}; plan the heads again") from error
        return cls.from_dict(values)


def head_sizes(architecture: Mapping[str, str | int]) -> list[tuple[int, int]]:
    """Number of heads and head_dim of each layer of a canonical architecture, or of a stock model's.

    Example::

        head_sizes(plan.architecture)   # [(9, 44), (12, 44)]
    """
    cells = [cell_name(index, block) for index, block in enumerate(chosen_blocks(architecture))]
    return [(int(architecture[f"{cell}_heads"]), int(architecture[f"{cell}_head_dim"])) for cell in cells]


def eta_sweep(plan: HeadPlan, etas: Iterable[float]) -> dict[float, list[int]]:
    """Heads per layer that each eta would leave, from the stored matrices.

    Raises:
        ValueError: an eta outside [0, 1].

    Example::

        eta_sweep(plan, [0.8, 0.9])   # {0.8: [9, 12], 0.9: [11, 12]}
    """
    return {eta: [layer.after for layer in plan.plan_at(eta).layers] for eta in etas}


def fused_num_heads(width: int, kept: int, min_heads: int = 1) -> int:
    """Number of heads after fusing: the largest divisor of ``width`` from ``min_heads`` to ``kept``.

    Where no divisor lies between them, the smallest one from ``min_heads`` up.

    Raises:
        ValueError: ``kept`` or ``min_heads`` outside 1 to ``width``.

    Example:
        >>> [fused_num_heads(528, kept) for kept in (12, 10, 7)]
        [12, 8, 6]
    """
    for name, value in (("kept", kept), ("min_heads", min_heads)):
        if not 1 <= value <= width:
            raise ValueError(f"{name}={value}: must be from 1 to width={width}")
    allowed = [number for number in range(min_heads, width + 1) if width % number == 0]
    return max((number for number in allowed if number <= kept), default=allowed[0])


def judge(index: int, head_dim: int, cka: Matrix, eta: float, mode: PruneMode, min_heads: int) -> LayerHeads:
    """What becomes of a layer's heads, given the similarities of all pairs."""
    before = len(cka)
    redundant = tuple(redundant_heads(torch.tensor(cka, dtype=torch.float64), eta, min_heads))
    kept = tuple(head for head in range(before) if head not in redundant)
    unpruned = LayerHeads(index, before, before, kept, redundant, head_dim, head_dim, cka)
    after, head_dim_after = _sizes_after(unpruned, mode, min_heads)
    return replace(unpruned, after=after, head_dim_after=head_dim_after)


def _sizes_after(layer: LayerHeads, mode: PruneMode, min_heads: int) -> tuple[int, int]:
    """Number of heads and head_dim that follow from the kept heads."""
    if mode == "remove":
        return len(layer.kept), layer.head_dim_before
    width = layer.before * layer.head_dim_before
    num_heads = fused_num_heads(width, len(layer.kept), min(min_heads, layer.before))
    return num_heads, width // num_heads


def check_settings(eta: float, mode: str, min_heads: int, samples: str) -> None:
    """Refuse settings out of range with a ``ValueError``."""
    if isinstance(eta, bool) or not isinstance(eta, (int, float)) or not 0 <= eta <= 1:
        raise ValueError(f"eta={eta!r}: must be a number in [0, 1]")
    if mode not in get_args(PruneMode):
        raise ValueError(f"mode={mode!r}: must be one of {', '.join(get_args(PruneMode))}")
    if isinstance(min_heads, bool) or not isinstance(min_heads, int) or min_heads < 1:
        raise ValueError(f"min_heads={min_heads!r}: must be an integer, at least 1")
    if samples not in get_args(Samples):
        raise ValueError(f"samples={samples!r}: must be one of {', '.join(get_args(Samples))}")


def _check_matrix(name: str, matrix: Matrix, size: int) -> None:
    if len(matrix) != size or any(len(row) != size for row in matrix):
        raise ValueError(f"{name} has {len(matrix)} rows: must be {size} x {size}")


def as_matrix(rows: Sequence[Sequence[float]]) -> Matrix:
    """Rows as nested tuples, which compare, hash and go through JSON exactly."""
    return tuple(tuple(float(value) for value in row) for row in rows)
