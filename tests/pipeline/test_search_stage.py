"""The search tells how far it is."""

import io
import sys

import pytest

from elm_nni.pipeline.config import SearchConfig
from elm_nni.pipeline.search_stage import SearchProgress, max_evaluations
from elm_nni.strategies.evolution import Evolution


class Clock:
    """Two seconds later at every evaluation."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def progress_of(steps: list[tuple[int, float, bool]], total: int) -> list[dict]:
    lines: list[dict] = []
    clock = Clock()
    with SearchProgress(total, lambda event, **values: lines.append({"event": event, **values}), clock) as progress:
        for generation, metric, known in steps:
            clock.now += 0 if known else 2.0
            progress.step(generation, metric, known=known)
    return lines


def test_every_generation_is_told_at_its_end_with_rate_and_seconds_left() -> None:
    lines = progress_of([(0, 0.5, False), (0, 0.7, False), (1, 0.6, False), (2, 0.8, False)], total=10)
    assert lines == [
        {"event": "generation", "generation": generation, "evaluated": evaluated, "of": 10, "best": best,
         "evaluations_per_second": 0.5, "seconds_left": left}
        for generation, evaluated, best, left in ((0, 2, 0.7, 16), (1, 3, 0.7, 14), (2, 4, 0.8, 12))
    ]  # fmt: skip


def test_what_the_history_knows_is_counted_but_neither_timed_nor_told_again() -> None:
    lines = progress_of([(0, 0.9, True), (0, 0.2, True), (1, 0.3, True), (1, 0.4, False)], total=8)
    assert lines == [
        {"event": "generation", "generation": 1, "evaluated": 4, "of": 8, "best": 0.9,
         "evaluations_per_second": 0.5, "seconds_left": 8}
    ]  # fmt: skip
    assert progress_of([(0, 0.9, True)], total=8) == []


def test_a_bar_is_drawn_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        progress_of([(0, 0.5, False)] * 3, total=3)
        assert ("3/3" in stream.getvalue()) == shown
        assert bool(stream.getvalue()) == shown


def test_the_bound_is_what_an_unlimited_space_takes() -> None:
    search = SearchConfig(population=7, generations=4, mutations=3, crossovers=2)
    evolution = Evolution(
        space={str(label): range(50) for label in range(8)}, population=search.population,
        generations=search.generations, mutations=search.mutations, crossovers=search.crossovers,
    )  # fmt: skip
    evaluated = 0
    while (individual := evolution.ask()) is not None:
        evolution.tell(individual, float(evaluated))
        evaluated += 1
    assert max_evaluations(search) == evaluated == 22
