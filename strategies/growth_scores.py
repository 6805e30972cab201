"""The signals that rank cells for a growth, one class each, without NNI or Lightning.

Shape suffixes: F features; ``..`` any leading dimensions (batch, tokens).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from elm_nni.analysis.covariance import StreamingCovariance
from elm_nni.analysis.pca import pca_rank
from elm_nni.digest import derive_seed

Mode = Literal["step", "epoch"]
ScoreName = Literal["pca", "pca_normalized", "activation_norm", "gradient_saliency", "learnable_gate", "random"]
SCORE_NAMES: tuple[str, ...] = get_args(ScoreName)


class GrowthScore(ABC):
    """A signal that ranks cells; the highest grow first. Derive from it to rank them by one of your own.

    Attributes:
        name: stands in messages.
        needs_gradient: observe only outputs that a backward will reach, so nothing under ``torch.no_grad``.
        by_normalized: cells are sorted by :meth:`normalized` in place of :meth:`scores`.

    Example::

        class Magnitude(MeanScore):
            name = "magnitude"

            def observe(self, cell, features, mask):
                self.add(cell, features.detach().abs(), mask)

        growth = PcaGrowth(cells, top_k=4, budget=5.6e6, cost=mean_parameters, score=Magnitude())
    """

    name: str
    needs_gradient = False
    by_normalized = False

    def transform(self, cell: str, features: Tensor) -> Tensor:
        """What the network goes on with in place of ``features`` (.., F): the same tensor, unless the signal gates."""
        return features

    @abstractmethod
    def observe(self, cell: str, features: Tensor, mask: Tensor | None) -> None:
        """Takes in the features (.., F) of one forward of a cell, as :meth:`transform` gave them, and the mask (..)."""

    @abstractmethod
    def scores(self) -> dict[str, float]:
        """The score of each cell that was observed since the last :meth:`forget`."""

    def normalized(self, scores: Mapping[str, float], widths: Mapping[str, int]) -> dict[str, float]:
        """The scores without the influence of the width; the scores themselves where they have none."""
        return dict(scores)

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What was observed, as tensors and plain values, under keys that no other signal uses."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores :meth:`state_dict`; keys of others may lie beside its own."""

    @abstractmethod
    def forget(self) -> None:
        """Starts the next growth epoch: nothing was observed."""


class PcaScore(GrowthScore):
    """The number of principal components that explain ``threshold`` of the variance (arXiv 2510.27037, III-B).

    Mode ``"step"`` scores single batches and averages, ``"epoch"`` pools one covariance. Features of fewer than two
    tokens have no score. Normalised, it is divided by the width.
    """

    name = "pca"
    _ranks: dict[str, list[int]]
    _pooled: dict[str, StreamingCovariance]

    def __init__(self, cells: Iterable[str], threshold: float = 0.99, mode: Mode = "step") -> None:
        self.cells, self.threshold, self.mode = list(cells), threshold, mode
        self.forget()

    def observe(self, cell: str, features: Tensor, mask: Tensor | None) -> None:
        if self.mode == "epoch":
            if cell not in self._pooled:
                self._pooled[cell] = StreamingCovariance(features.shape[-1])
            self._pooled[cell].update(features, mask)
            return
        batch = StreamingCovariance(features.shape[-1]).update(features, mask)
        if batch.count > 1:
            self._ranks[cell].append(pca_rank(batch.covariance(), self.threshold))

    def scores(self) -> dict[str, float]:
        if self.mode == "epoch":
            seen = {cell: pooled.covariance() for cell, pooled in self._pooled.items() if pooled.count > 1}
            return {cell: float(pca_rank(covariance, self.threshold)) for cell, covariance in seen.items()}
        return {cell: sum(ranks) / len(ranks) for cell, ranks in self._ranks.items() if ranks}

    def normalized(self, scores: Mapping[str, float], widths: Mapping[str, int]) -> dict[str, float]:
        return {cell: score / widths[cell] for cell, score in scores.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "ranks": {cell: list(ranks) for cell, ranks in self._ranks.items()},
            "pooled": {cell: covariance.state_dict() for cell, covariance in self._pooled.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._ranks = {cell: list(ranks) for cell, ranks in state["ranks"].items()}
        self._pooled = {}
        for cell, values in state["pooled"].items():
            self._pooled[cell] = StreamingCovariance(len(values["mean"]))
            self._pooled[cell].load_state_dict(values)

    def forget(self) -> None:
        self._ranks = {cell: [] for cell in self.cells}
        self._pooled = {}


class NormalizedPcaScore(PcaScore):
    """:class:`PcaScore`, sorted by the number of components divided by the width."""

    name = "pca_normalized"
    by_normalized = True


class MeanScore(GrowthScore):
    """A mean by cell over all valid tokens and units of a growth epoch, for signals that derive from it.

    Sums are float64 and wait for no GPU until they are read.
    """

    _sums: dict[str, tuple[Tensor, Tensor]]

    def __init__(self) -> None:
        self.forget()

    def add(self, cell: str, values: Tensor, mask: Tensor | None) -> None:
        """Adds values (.., F) to the mean of a cell; those that the mask (..) leaves out are not read, NaN included.

        Raises:
            ValueError: the mask's shape is not that of the tokens.
        """
        total, count = self._sums.get(cell, (torch.zeros((), dtype=torch.float64),) * 2)
        new = _valid_sum(values, mask)
        self._sums[cell] = (total.to(values.device) + new[0], count.to(values.device) + new[1])

    def scores(self) -> dict[str, float]:
        return {cell: float(total / count) for cell, (total, count) in self._sums.items() if count > 0}

    def state_dict(self) -> dict[str, Any]:
        sums = {cell: {"total": total, "count": count} for cell, (total, count) in self._sums.items()}
        return {self.name: sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sums = {cell: (sums["total"].clone(), sums["count"].clone()) for cell, sums in state[self.name].items()}

    def forget(self) -> None:
        self._sums = {}


class ActivationNorm(MeanScore):
    """The root mean square of the features over all valid tokens and units of the growth epoch."""

    name = "activation_norm"

    def observe(self, cell: str, features: Tensor, mask: Tensor | None) -> None:
        self.add(cell, features.detach().to(torch.float64).square(), mask)

    def scores(self) -> dict[str, float]:
        return {cell: mean**0.5 for cell, mean in super().scores().items()}


class GradientSaliency(MeanScore):
    """The mean of |feature times gradient of the loss| over all valid tokens and units of the growth epoch.

    It is the first-order estimate of how much the loss changes when a feature is set to zero (arXiv 1611.06440,
    section 2.2). There the products of a feature map are averaged before the absolute value is taken; here each token
    and unit counts for itself, since a token of text has no place in common with the tokens of another row.

    A forward counts when its backward runs, also after the watching has ended; that must be before the growth step. A
    second backward through one forward counts again. Gradients are taken as they flow: a loss that is scaled (float16
    with a scaler) scales the scores of all cells alike.
    """

    name = "gradient_saliency"
    needs_gradient = True

    def observe(self, cell: str, features: Tensor, mask: Tensor | None) -> None:
        _on_backward(cell, features, lambda product: self.add(cell, product.abs(), mask))


class LearnableGate(GrowthScore):
    """A learned scalar gate on the features of each cell; the gate is the score (in the spirit of arXiv 1708.06519).

    A watched forward of a cell goes on with ``gate * features``. Gates start at 1, where this changes nothing. The
    backward of an observed forward moves the gate at once by plain gradient descent,
    ``gate - lr * sum(features * d loss / d (gate * features))`` over valid tokens and all units, kept within
    ``1 - limit`` and ``1 + limit`` so that no loss, however scaled, can switch a cell off. So a cell whose features the
    loss wants larger comes first, and of such cells one that was seen more often. There is no penalty on the gates: it
    would shrink those of the cells seen most.

    Gates are no parameters: neither the model nor its optimizer holds them. They act in every forward inside
    ``watch()`` and nowhere else, and return to 1 at every growth step. A model outside of it, such as the exported one,
    is thus the model without gates; weights that were trained beside a gate lose its factor there, which ``limit``
    bounds. A loss that a gradient scaler multiplies (float16) would drive the gates to their limits.

    Args:
        lr: learning rate of the gates, above 0. At 1, with losses of the size of 1 that are means over tokens, gates
            move by a few per cent in a growth epoch.
        limit: farthest distance from 1, in (0, 1).

    Raises:
        ValueError: a setting outside its range.
    """

    name = "learnable_gate"
    needs_gradient = True
    _gates: dict[str, Tensor]

    def __init__(self, lr: float = 1.0, limit: float = 0.5) -> None:
        if not lr > 0:
            raise ValueError(f"lr must be > 0, got {lr!r}")
        if not 0 < limit < 1:
            raise ValueError(f"limit must be in (0, 1), got {limit!r}")
        self.lr, self.limit = lr, limit
        self.forget()

    def transform(self, cell: str, features: Tensor) -> Tensor:
        # a tensor without dimensions leaves the type of the features as it is
        return features * self._gate(cell, features.device)

    def observe(self, cell: str, features: Tensor, mask: Tensor | None) -> None:
        gate = self._gate(cell, features.device)
        _on_backward(cell, features, lambda product: self._descend(cell, _valid_sum(product / gate, mask)[0]))

    def scores(self) -> dict[str, float]:
        return {cell: float(gate) for cell, gate in self._gates.items()}

    def state_dict(self) -> dict[str, Any]:
        return {self.name: dict(self._gates)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._gates = {cell: gate.clone() for cell, gate in state[self.name].items()}

    def forget(self) -> None:
        self._gates = {}

    def _gate(self, cell: str, device: torch.device) -> Tensor:
        gate = self._gates.get(cell)
        return torch.ones((), dtype=torch.float64, device=device) if gate is None else gate.to(device)

    def _descend(self, cell: str, gradient: Tensor) -> None:
        gate = self._gate(cell, gradient.device) - self.lr * gradient
        self._gates[cell] = gate.clamp(1 - self.limit, 1 + self.limit)


class RandomScore(GrowthScore):
    """Uniform draws in [0, 1), a function of the seed, the number of the growth and the cell's name alone.

    Every cell has a score, seen or not. It is the baseline that any other signal has to beat.
    """

    name = "random"

    def __init__(self, cells: Iterable[str], seed: int = 0) -> None:
        self.cells, self.seed, self._growths = list(cells), seed, 0

    def observe(self, cell: str, features: Tensor, mask: Tensor | None) -> None:
        """Looks at nothing."""

    def scores(self) -> dict[str, float]:
        return {cell: derive_seed(self.seed, f"growth/{cell}", self._growths) / 2**63 for cell in self.cells}

    def state_dict(self) -> dict[str, Any]:
        return {self.name: {"growths": self._growths}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._growths = int(state[self.name]["growths"])

    def forget(self) -> None:
        self._growths += 1


def make_score(
    name: str, *, cells: Iterable[str], threshold: float = 0.99, mode: Mode = "step", seed: int = 0
) -> GrowthScore:
    """The signal of that name; ``threshold`` and ``mode`` are for PCA, ``seed`` for the random one.

    Raises:
        ValueError: no such signal.
    """
    makers: dict[str, Callable[[], GrowthScore]] = {
        "pca": lambda: PcaScore(cells, threshold, mode),
        "pca_normalized": lambda: NormalizedPcaScore(cells, threshold, mode),
        "activation_norm": ActivationNorm,
        "gradient_saliency": GradientSaliency,
        "learnable_gate": LearnableGate,
        "random": lambda: RandomScore(cells, seed),
    }
    if name not in makers:
        raise ValueError(f"score must be one of {', '.join(map(repr, makers))}, or a GrowthScore, got {name!r}")
    return makers[name]()


def _valid_sum(values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sum and number of the values (.., F) at valid tokens."""
    if mask is None:
        return values.sum(), torch.tensor(float(values.numel()), dtype=torch.float64, device=values.device)
    if mask.shape != values.shape[:-1]:
        raise ValueError(f"mask has shape {tuple(mask.shape)}: must be {tuple(values.shape[:-1])}")
    keep = mask.to(device=values.device, dtype=torch.bool)[..., None]
    return values.masked_fill(~keep, 0).sum(), keep.sum().to(torch.float64) * values.shape[-1]


def _on_backward(cell: str, features: Tensor, use: Callable[[Tensor], None]) -> None:
    """Calls ``use`` with features times gradient (.., F), float64, when a backward reaches the features."""
    values, version = features.detach(), features._version

    def hook(gradient: Tensor) -> None:
        if values._version != version:
            raise RuntimeError(f"features of {cell!r} were changed in place; use an activation that is not in place")
        use(values.to(torch.float64) * gradient.detach().to(torch.float64))

    features.register_hook(hook)
