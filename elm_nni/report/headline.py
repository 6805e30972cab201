"""What a run amounts to, in sentences: what is kept of the teacher, what it costs, and what ours loses against."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from elm_nni.report.load import Comparison, Results, System
from elm_nni.report.text import factor, milliseconds, percent, quality, short_count, signed

OURS = "ELM (ours)"
TEACHER = "teacher + head"
# The same model in another file format: no rival of ours.
VARIANTS = frozenset({"ELM int8 ONNX"})

Tone = Literal["good", "bad", "plain"]


@dataclass(frozen=True)
class Statement:
    """One finding; the tone is also told by a word or sign in the page, never by colour alone."""

    tone: Tone
    text: str


@dataclass(frozen=True)
class Headline:
    """The first sentence of the report and the findings below it."""

    title: str
    statements: tuple[Statement, ...]


def build_headline(results: Results) -> Headline:
    """Builds the sentences from ``results.json`` alone. All metrics count as higher is better.

    Example:
        >>> build_headline(load_run(Path("runs/nano")).results).title  # doctest: +SKIP
        'ELM (ours) keeps 98.1 % of the quality of its teacher at 4.20× the speed.'
    """
    ours, teacher = find_system(results, OURS), find_system(results, TEACHER)
    rivals = _rivals(results)
    lost = [rival.name for rival in rivals if ours and _lost_tasks(ours, rival)]
    duels = () if ours is None else _against(results, ours, rivals)
    return Headline(
        title=_title(results, ours, teacher, lost),
        statements=(*_limits(results), *duels, *_interval(results.comparison)),
    )


def find_system(results: Results, name: str) -> System | None:
    """The row of that name, or ``None``."""
    return next((system for system in results.systems if system.name == name), None)


def kept_share(system: System, teacher: System | None) -> float | None:
    """Mean over common tasks of the system's metric over the teacher's; ``None`` without a positive teacher score."""
    if teacher is None:
        return None
    common = [task for task in system.tasks if task in teacher.tasks]
    if not common or any(teacher.tasks[task] <= 0 for task in common):
        return None
    return sum(system.tasks[task] / teacher.tasks[task] for task in common) / len(common)


def speed_up(system: System, teacher: System | None) -> float | None:
    """The teacher's latency over the system's; ``None`` if unknown or measured under different conditions."""
    if teacher is None or not system.latency_ms or not teacher.latency_ms or system.condition != teacher.condition:
        return None
    return teacher.latency_ms / system.latency_ms


def _title(results: Results, ours: System | None, teacher: System | None, lost: list[str]) -> str:
    if ours is None:
        return f"The model has {short_count(results.params)} parameters; it was not compared with other systems."
    share, speed = kept_share(ours, teacher), speed_up(ours, teacher)
    parts = []
    if share is not None:
        parts.append(f"keeps {percent(share)} of the quality of its teacher")
    if speed is not None:
        parts.append(f"at {factor(speed)} the speed" if parts else f"runs at {factor(speed)} the speed of its teacher")
    if not parts:
        parts.append(f"has {short_count(results.params)} parameters; no share of a teacher is known")
    loses = f", but loses to {_join(lost)}" if lost else ""
    return f"{ours.name} {' '.join(parts)}{loses}."


def _join(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _rivals(results: Results) -> list[System]:
    return [system for system in results.systems if system.name not in {OURS, TEACHER, *VARIANTS}]


def _lost_tasks(ours: System, rival: System) -> list[str]:
    return [task for task, value in rival.tasks.items() if task in ours.tasks and value > ours.tasks[task]]


def _limits(results: Results) -> Iterator[Statement]:
    if results.param_budget is not None:
        met = results.params <= results.param_budget
        yield _limit("Parameters", met, short_count(results.params), short_count(results.param_budget))
    latency = results.latency
    value, kind = (latency.measured, "Measured") if latency.measured is not None else (latency.predicted, "Predicted")
    if latency.limit is None:
        return
    if value is None:
        yield Statement("bad", f"No latency is known to hold against the limit of {milliseconds(latency.limit)} ms.")
        return
    what = f"{kind} latency ({latency.condition})" if latency.condition else f"{kind} latency"
    yield _limit(what, value <= latency.limit, f"{milliseconds(value)} ms", f"{milliseconds(latency.limit)} ms")


def _limit(what: str, met: bool, value: str, limit: str) -> Statement:
    if met:
        return Statement("good", f"{what}: {value}, within the limit of {limit}.")
    return Statement("bad", f"{what}: {value}, over the limit of {limit}.")


def _against(results: Results, ours: System, rivals: list[System]) -> Iterator[Statement]:
    for rival in rivals:
        for task in (task for task in rival.tasks if task in ours.tasks):
            mine, other = ours.tasks[task], rival.tasks[task]
            verb, tone = _verdict(mine, other)
            metric = results.tasks[task].metric if task in results.tasks else "score"
            yield Statement(tone, f"{verb} {rival.name} on {task}: {metric} {quality(mine)} against {quality(other)}.")


def _verdict(mine: float, other: float) -> tuple[str, Tone]:
    if mine > other:
        return "Beats", "good"
    return ("Loses to", "bad") if mine < other else ("Ties with", "plain")


def _interval(comparison: Comparison | None) -> Iterator[Statement]:
    if comparison is None:
        return
    what = f"against {comparison.against} on {comparison.task}: {signed(comparison.difference)}"
    interval = f"paired bootstrap interval {signed(comparison.low)} to {signed(comparison.high)}"
    if comparison.low > 0:
        yield Statement("good", f"The gain {what}, {interval}, excludes zero.")
    elif comparison.high < 0:
        yield Statement("bad", f"The loss {what}, {interval}, excludes zero.")
    else:
        yield Statement("plain", f"The difference {what}, {interval}, is not told apart from zero.")
