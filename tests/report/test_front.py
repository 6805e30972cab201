"""The front of evaluated architectures: quality counts upwards, sizes and latencies downwards."""

from __future__ import annotations

from elm_nni.report.front import pareto_front
from elm_nni.report.search_files import Candidate


def candidate(digest: str, metric: float, params: int, latency_ms: float | None) -> Candidate:
    return Candidate(0, digest, metric, params, latency_ms, "random")


def test_metric_counts_upwards_and_costs_downwards() -> None:
    candidates = [candidate("a", 0.7, 10, 3.0), candidate("b", 0.8, 10, 3.0), candidate("c", 0.6, 5, 9.0),
                  candidate("d", 0.5, 9, 1.0)]
    assert [c.digest for c in pareto_front(candidates)] == ["b", "c", "d"]


def test_without_any_latency_two_objectives_are_left() -> None:
    candidates = [candidate("a", 0.7, 10, None), candidate("b", 0.8, 10, None), candidate("c", 0.6, 5, None)]
    assert [c.digest for c in pareto_front(candidates)] == ["b", "c"]


def test_no_candidates_no_front() -> None:
    assert pareto_front([]) == ()
