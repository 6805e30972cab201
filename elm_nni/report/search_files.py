"""Reads what the search left behind: every evaluated architecture, the Pareto front and the summary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from elm_nni.report.fields import Fields, parse_json, read_lines, read_object, read_text

HISTORY_FILE = "search/history.jsonl"
SUMMARY_FILE = "search/summary.json"
PARETO_FILE = "search/pareto.json"


@dataclass(frozen=True)
class Candidate:
    """One evaluated architecture; ``metric`` is the search fitness, higher is better; a latency may be unknown."""

    generation: int
    digest: str
    metric: float
    params: int
    latency_ms: float | None
    origin: str


@dataclass(frozen=True)
class SearchSummary:
    """Counts of a finished search, its limits, and the candidate that won."""

    evaluated: int
    duplicates: int
    rejected: Mapping[str, int]
    limits: Mapping[str, float]
    best: Candidate


def load_history(run_dir: Path) -> tuple[Candidate, ...]:
    """Every evaluated architecture in the order of evaluation; none where the file is missing.

    Raises:
        UserError: a line is broken.
    """
    return tuple(_candidate(line) for line in read_lines(run_dir, HISTORY_FILE))


def load_pareto(run_dir: Path) -> tuple[Candidate, ...]:
    """The Pareto front that the search kept; empty where its file is missing.

    Raises:
        UserError: the file is broken.
    """
    path = run_dir / PARETO_FILE
    text = read_text(path)
    if text is None:
        return ()
    wrapped = Fields({"front": parse_json(text, str(path))}, str(path))
    return tuple(_candidate(line) for line in wrapped.objects("front"))


def load_summary(run_dir: Path) -> SearchSummary | None:
    """Counts, limits and winner of the search, or ``None`` where the file is missing.

    Raises:
        UserError: the file is broken.
    """
    fields = read_object(run_dir, SUMMARY_FILE)
    if fields is None:
        return None
    return SearchSummary(
        evaluated=fields.integer("evaluated"),
        duplicates=fields.integer("duplicates"),
        rejected=fields.fields("rejected", optional=True).integers(),
        limits=fields.fields("limits", optional=True).numbers(),
        best=_candidate(fields.fields("best")),
    )


def _candidate(line: Fields) -> Candidate:
    latency = line.optional_number("latency_ms")
    return Candidate(
        generation=line.integer("generation"),
        digest=line.text("digest"),
        metric=line.number("metric"),
        params=line.integer("params"),
        latency_ms=latency,
        origin=line.text("origin", "unknown"),
    )
