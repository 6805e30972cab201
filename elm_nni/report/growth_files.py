"""Reads what the growth of the supernet left behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from elm_nni.errors import UserError
from elm_nni.report.fields import Fields, read_lines

GROWTH_FILE = "growth.jsonl"


@dataclass(frozen=True)
class GrowthEvent:
    """One cell (a block in a layer) that grew from ``old`` to ``new`` FFN features because of its ``score``."""

    cell: str
    old: int
    new: int
    score: float


@dataclass(frozen=True)
class GrowthEpoch:
    """What growth saw and did at the end of one supernet epoch; ``widths`` are those after the events.

    ``signal`` names what the scores are: ``pca`` for a number of components, or another signal of a growth.
    """

    epoch: int
    scores: Mapping[str, float]
    normalized: Mapping[str, float]
    widths: Mapping[str, int]
    events: tuple[GrowthEvent, ...]
    mean_params: float
    budget: float | None
    loss: float | None
    signal: str = "pca"

    @property
    def num_events(self) -> int:
        """Cells that grew in this epoch."""
        return len(self.events)

    @property
    def budget_left(self) -> float | None:
        """Parameters that the mean architecture may still gain; negative where the budget is crossed."""
        return None if self.budget is None else self.budget - self.mean_params


def load_growth(run_dir: Path) -> tuple[GrowthEpoch, ...]:
    """The epochs of ``growth.jsonl``; none where it is missing.

    Raises:
        UserError: a line is broken.
    """
    return tuple(_growth_epoch(line) for line in read_lines(run_dir, GROWTH_FILE))


def parse_cell(cell: str) -> tuple[int, str] | None:
    """Layer number and block name of a cell such as ``layer3_bert_kv``, or ``None`` if it is no cell.

    Example:
        >>> parse_cell("layer3_bert_kv")
        (3, 'bert_kv')
    """
    prefix, _, block = cell.partition("_")
    number = prefix.removeprefix("layer")
    if not block or not prefix.startswith("layer") or not (number.isascii() and number.isdigit()):
        return None
    return int(number), block


def _growth_epoch(line: Fields) -> GrowthEpoch:
    for cell in line.fields("widths").values:
        if parse_cell(cell) is None:
            raise UserError(f"{line.place}: cell {cell!r:.80} is not of the form layer<number>_<block>")
    return GrowthEpoch(
        epoch=line.integer("epoch"),
        scores=line.fields("scores").numbers(),
        normalized=line.fields("normalized", optional=True).numbers(),
        widths=line.fields("widths").integers(),
        events=tuple(_growth_event(event) for event in line.objects("events")),
        mean_params=line.number("mean_params"),
        budget=line.optional_number("budget"),
        loss=line.optional_number("loss"),
        signal=line.text("signal", "pca"),
    )


def _growth_event(event: Fields) -> GrowthEvent:
    cell = event.text("cell")
    if parse_cell(cell) is None:
        raise event.fail("cell", "of the form layer<number>_<block>")
    return GrowthEvent(cell, event.integer("old"), event.integer("new"), event.number("score"))
