"""PCA-driven growth of elastic feed-forward networks, without NNI or Lightning (arXiv 2510.27037, section III-B)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from elm_nni.analysis.covariance import StreamingCovariance
from elm_nni.analysis.pca import pca_rank

logger = logging.getLogger(__name__)


@runtime_checkable
class Growable(Protocol):
    """What a module needs so that it can grow.

    Attributes:
        widths: the allowed widths, ascending.
        active_width: the width in use; settable to any of ``widths``.
        features: the module whose output (..., active_width) is observed.
    """

    widths: Sequence[int]
    active_width: int
    features: nn.Module


@dataclass(frozen=True)
class GrowthEvent:
    """One cell grew by one step."""

    cell: str
    old: int
    new: int
    score: float


@dataclass(frozen=True)
class GrowthRecord:
    """What one call of :meth:`PcaGrowth.step` saw and did."""

    epoch: int
    scores: dict[str, float]
    normalized: dict[str, float]
    widths: dict[str, int]
    events: list[GrowthEvent]
    cost: float
    budget: float


class PcaGrowth:
    """Grows the cells whose hidden features need the most principal components, under a budget.

    While :meth:`watch` is active, the pre-activations of each cell are observed. :meth:`step` ranks the cells by
    the number of components that explain ``threshold`` of the variance, moves the best ``top_k`` that can still grow
    to their next width, skips a cell whose step would cross the budget for the next one in the order, and forgets
    what it saw.

    Args:
        cells: name to :class:`Growable`.
        top_k: how many cells grow at one :meth:`step`.
        budget: upper bound of ``cost``, in the unit of ``cost`` (parameters).
        cost: widths of all cells to the cost of the space; for ELM the mean parameter count of a uniformly sampled
            architecture.
        threshold: share of the variance that the components must explain, in (0, 1].
        mode: ``"step"`` scores single batches and averages (the author's code); ``"epoch"`` pools one covariance.
        score: ``"pca"`` is the number of components, ``"pca_normalized"`` divides it by the active width.
        every: observe one forward in ``every`` of a cell (``"step"`` mode computes eigenvalues each time).

    A cell that was not seen since the last step has no score and does not grow. Padding is left out when a mask is
    given by :meth:`set_mask`. Features of fewer than two tokens are ignored.

    Raises:
        ValueError: a setting outside its range, or no cells.

    Example::

        growth = PcaGrowth(cells, top_k=21, budget=15.7e6, cost=mean_parameters)
        with growth.watch():
            train_one_epoch()
        events = growth.step()
    """

    def __init__(
        self,
        cells: Mapping[str, Growable],
        *,
        top_k: int,
        budget: float,
        cost: Callable[[dict[str, int]], float],
        threshold: float = 0.99,
        mode: Literal["step", "epoch"] = "step",
        score: Literal["pca", "pca_normalized"] = "pca",
        every: int = 1,
    ) -> None:
        if not cells:
            raise ValueError("cells must name at least one growable module")
        if top_k < 1 or every < 1:
            raise ValueError(f"top_k and every must be >= 1, got {top_k!r} and {every!r}")
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must be in (0, 1], got {threshold!r}")
        if mode not in ("step", "epoch"):
            raise ValueError(f"mode must be 'step' or 'epoch', got {mode!r}")
        if score not in ("pca", "pca_normalized"):
            raise ValueError(f"score must be 'pca' or 'pca_normalized', got {score!r}")
        self.cells = dict(cells)
        self.top_k, self.budget, self.cost = top_k, budget, cost
        self.threshold, self.mode, self.score, self.every = threshold, mode, score, every
        self.history: list[GrowthRecord] = []
        self._mask: Tensor | None = None
        self._seen = dict.fromkeys(self.cells, 0)
        self._ranks: dict[str, list[int]] = {name: [] for name in self.cells}
        self._pooled: dict[str, StreamingCovariance] = {}

    @property
    def widths(self) -> dict[str, int]:
        """The active width of each cell."""
        return {name: int(cell.active_width) for name, cell in self.cells.items()}

    def set_mask(self, mask: Tensor | None) -> None:
        """The mask (B, T) of the coming forwards: true or 1 where a token is not padding."""
        self._mask = mask

    @contextmanager
    def watch(self) -> Iterator[PcaGrowth]:
        """Observes the cells' features inside the block; hooks are removed at its end."""
        handles = [
            cell.features.register_forward_hook(lambda _m, _i, output, name=name: self._observe(name, output))
            for name, cell in self.cells.items()
        ]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def scores(self) -> dict[str, float]:
        """The number of components of each observed cell (a mean in ``"step"`` mode)."""
        if self.mode == "epoch":
            seen = {name: pooled.covariance() for name, pooled in self._pooled.items() if pooled.count > 1}
            return {name: float(pca_rank(covariance, self.threshold)) for name, covariance in seen.items()}
        return {name: sum(ranks) / len(ranks) for name, ranks in self._ranks.items() if ranks}

    def step(self) -> list[GrowthEvent]:
        """Grows up to ``top_k`` cells by one step each; a cell at its maximum or over the budget is passed over."""
        scores = self.scores()
        normalized = {name: value / self.widths[name] for name, value in scores.items()}
        order = normalized if self.score == "pca_normalized" else scores
        events: list[GrowthEvent] = []
        for name in sorted(order, key=lambda key: (-order[key], key)):
            if len(events) == self.top_k:
                break
            new = self._next_width(name)
            if new is not None and self.cost({**self.widths, name: new}) <= self.budget:
                events.append(GrowthEvent(name, int(self.cells[name].active_width), new, order[name]))
                self.cells[name].active_width = new
        cost = self.cost(self.widths)
        record = GrowthRecord(len(self.history), scores, normalized, self.widths, events, cost, self.budget)
        self.history.append(record)
        logger.info("growth %d: %d cells grew, %.0f of the budget left", record.epoch, len(events), self.budget - cost)
        self._forget()
        return events

    def export(self, sample: Mapping[str, Any], label: Callable[[str], str] = "{}_ffn".format) -> dict[str, Any]:
        """Writes the grown widths into a sample, since NNI's ``freeze`` would reset them.

        ``label`` maps a cell's name to the label of its width.
        """
        return {**sample, **{label(name): width for name, width in self.widths.items()}}

    def state_dict(self) -> dict[str, Any]:
        """Widths, history and everything observed since the last step, as tensors and plain values."""
        return {
            "widths": self.widths,
            "history": [asdict(record) for record in self.history],
            "seen": dict(self._seen),
            "ranks": {name: list(ranks) for name, ranks in self._ranks.items()},
            "pooled": {name: covariance.state_dict() for name, covariance in self._pooled.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores :meth:`state_dict`.

        Raises:
            ValueError: the state is of other cells.
        """
        if set(state["widths"]) != set(self.cells):
            raise ValueError(f"state of {len(state['widths'])} cells does not fit these {len(self.cells)} cells")
        for name, width in state["widths"].items():
            self.cells[name].active_width = int(width)
        self.history = [
            GrowthRecord(**{**record, "events": [GrowthEvent(**event) for event in record["events"]]})
            for record in state["history"]
        ]
        self._seen = dict(state["seen"])
        self._ranks = {name: list(ranks) for name, ranks in state["ranks"].items()}
        self._pooled = {}
        for name, values in state["pooled"].items():
            self._pooled[name] = StreamingCovariance(int(self.cells[name].active_width))
            self._pooled[name].load_state_dict(values)

    def _observe(self, name: str, output: Tensor) -> None:
        self._seen[name] += 1
        if (self._seen[name] - 1) % self.every:
            return
        features = output.detach()
        if self.mode == "epoch":
            if name not in self._pooled:
                self._pooled[name] = StreamingCovariance(features.shape[-1])
            self._pooled[name].update(features, self._mask)
            return
        batch = StreamingCovariance(features.shape[-1])
        batch.update(features, self._mask)
        if batch.count > 1:
            self._ranks[name].append(pca_rank(batch.covariance(), self.threshold))

    def _next_width(self, name: str) -> int | None:
        cell = self.cells[name]
        return min((width for width in cell.widths if width > cell.active_width), default=None)

    def _forget(self) -> None:
        self._seen = dict.fromkeys(self.cells, 0)
        self._ranks = {name: [] for name in self.cells}
        self._pooled = {}
