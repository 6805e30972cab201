"""PCA-driven growth of elastic feed-forward networks, without NNI or Lightning (arXiv 2510.27037, section III-B)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from elm_nni.strategies.growth_scores import GrowthScore, Mode, ScoreName, make_score

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
    """What one call of :meth:`PcaGrowth.step` saw and did.

    ``normalized`` holds the number of components divided by the width where the score is of PCA. The other scores do
    not count units, and ``normalized`` equals ``scores``.
    """

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
    the number of components that explain ``threshold`` of the variance, or by another ``score``, moves the best
    ``top_k`` that can still grow to their next width, skips a cell whose step would cross the budget for the next one
    in the order, and forgets what it saw.

    Args:
        cells: name to :class:`Growable`.
        top_k: how many cells grow at one :meth:`step`.
        budget: upper bound of ``cost``, in the unit of ``cost`` (parameters).
        cost: widths of all cells to the cost of the space; for ELM the mean parameter count of a uniformly sampled
            architecture.
        threshold: share of the variance that the components must explain, in (0, 1]; for the PCA scores.
        mode: ``"step"`` scores single batches and averages (the author's code); ``"epoch"`` pools one covariance. For
            the PCA scores; the others pool the tokens of all batches.
        score: ``"pca"`` is the number of components, ``"pca_normalized"`` divides it by the active width. The rest
            stand in for them in a comparison: ``"activation_norm"``, ``"gradient_saliency"``, ``"learnable_gate"``,
            ``"random"``, or a signal of your own; see :mod:`elm_nni.strategies.growth_scores`.
        every: observe one forward in ``every`` of a cell (``"step"`` mode computes eigenvalues each time).
        seed: of the random score.

    A cell that was not seen since the last step has no score and does not grow, except by the random score, which looks
    at nothing. ``"gradient_saliency"`` and ``"learnable_gate"`` see a forward when its backward runs; one without
    gradients (``torch.no_grad``, validation) leaves no trace. Padding is left out when a mask is given by
    :meth:`set_mask`. Watching changes nothing in the model or its gradients, except by ``"learnable_gate"``, which
    multiplies the features by its gates while it watches. PCA ignores features of fewer than two tokens.

    Raises:
        ValueError: a setting outside its range, or no cells.
        RuntimeError: from a backward with a score that needs it: features were changed in place.

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
        mode: Mode = "step",
        score: ScoreName | GrowthScore = "pca",
        every: int = 1,
        seed: int = 0,
    ) -> None:
        if not cells:
            raise ValueError("cells must name at least one growable module")
        if top_k < 1 or every < 1:
            raise ValueError(f"top_k and every must be >= 1, got {top_k!r} and {every!r}")
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must be in (0, 1], got {threshold!r}")
        if mode not in ("step", "epoch"):
            raise ValueError(f"mode must be 'step' or 'epoch', got {mode!r}")
        if not isinstance(score, GrowthScore):
            score = make_score(score, cells=cells, threshold=threshold, mode=mode, seed=seed)
        self.cells = dict(cells)
        self.top_k, self.budget, self.cost = top_k, budget, cost
        self.threshold, self.mode, self.score, self.every, self.seed = threshold, mode, score.name, every, seed
        self.history: list[GrowthRecord] = []
        self._signal = score
        self._mask: Tensor | None = None
        self._seen = dict.fromkeys(self.cells, 0)

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
        """The score of each observed cell; of the PCA scores the number of components (a mean in ``"step"`` mode)."""
        return self._signal.scores()

    def step(self) -> list[GrowthEvent]:
        """Grows up to ``top_k`` cells by one step each; a cell at its maximum or over the budget is passed over."""
        scores = self.scores()
        normalized = self._signal.normalized(scores, self.widths)
        order = normalized if self._signal.by_normalized else scores
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
        if not scores:
            needs = " with a backward" if self._signal.needs_gradient else ""
            logger.warning("growth %d: no cell has a score; %s needs forwards%s", record.epoch, self.score, needs)
        self._seen = dict.fromkeys(self.cells, 0)
        self._signal.forget()
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
            **self._signal.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores :meth:`state_dict`.

        Raises:
            ValueError: the state is of other cells, or of another score.
        """
        if set(state["widths"]) != set(self.cells):
            raise ValueError(f"state of {len(state['widths'])} cells does not fit these {len(self.cells)} cells")
        if not self._signal.state_dict().keys() <= state.keys():
            raise ValueError(f"state of another score does not fit score={self.score!r}")
        for name, width in state["widths"].items():
            self.cells[name].active_width = int(width)
        self.history = [
            GrowthRecord(**{**record, "events": [GrowthEvent(**event) for event in record["events"]]})
            for record in state["history"]
        ]
        self._seen = dict(state["seen"])
        self._signal.load_state_dict(state)

    def _observe(self, name: str, output: Tensor) -> Tensor:
        features = self._signal.transform(name, output)
        if features.requires_grad or not self._signal.needs_gradient:
            self._seen[name] += 1
            if (self._seen[name] - 1) % self.every == 0:
                self._signal.observe(name, features, self._mask)
        return features

    def _next_width(self, name: str) -> int | None:
        cell = self.cells[name]
        return min((width for width in cell.widths if width > cell.active_width), default=None)
