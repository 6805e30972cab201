"""What a run amounts to, in sentences: what is kept of the teacher, what it costs, what the intervals support."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from elm_nni.report.result_files import Comparison, Results, System, Verdict
from elm_nni.report.text import factor, milliseconds, percent, quality, short_count, signed

OURS = "ELM (ours)"
TEACHER = "teacher + head"
# Test rows, or pairs, questions or tokens, whose scores say little.
FEW_ROWS = 100
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

    A system counts as ahead or behind only where a paired bootstrap interval of the difference excludes zero; without
    an interval the two numbers stand without a verdict.

    Example:
        >>> build_headline(load_run(Path("runs/nano")).results).title  # doctest: +SKIP
        'ELM (ours) keeps 98.1 % of the quality of its teacher at 4.20× the speed.'
    """
    ours, teacher = find_system(results, OURS), find_system(results, TEACHER)
    rivals = _rivals(results)
    behind = [rival.name for rival in rivals if any(one.verdict == "behind" for one in _intervals(results, rival.name))]
    open_pairs = () if ours is None else _without_interval(results, ours, rivals)
    return Headline(
        title=_title(results, ours, teacher, behind),
        statements=(*_limits(results), *_few_rows(results), *_compared(results, ours), *open_pairs),
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


def _title(results: Results, ours: System | None, teacher: System | None, behind: list[str]) -> str:
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
    rest = f", but is behind {_join(behind)}" if behind else ""
    return f"{ours.name} {' '.join(parts)}{rest}."


def _join(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _rivals(results: Results) -> list[System]:
    return [system for system in results.systems if system.name not in {OURS, TEACHER, *VARIANTS}]


def _intervals(results: Results, name: str) -> list[Comparison]:
    return [one for one in results.comparisons if one.against == name]


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


def _few_rows(results: Results) -> Iterator[Statement]:
    for task, result in results.tasks.items():
        if 0 < result.num_examples < FEW_ROWS:
            share = percent(1 / result.num_examples)
            yield Statement(
                "bad", f"{task} has {result.num_examples} rows to score: scores of so few (one row is {share}) "
                "can be luck.",
            )  # fmt: skip


_VERDICTS: dict[Verdict, tuple[str, Tone, str]] = {
    "ahead": ("Ahead of", "good", "excludes zero"),
    "behind": ("Behind", "bad", "excludes zero"),
    "open": ("Not told apart from", "plain", "includes zero"),
}


def _compared(results: Results, ours: System | None) -> Iterator[Statement]:
    for one in results.comparisons:
        words, tone, zero = _VERDICTS[one.verdict]
        other = find_system(results, one.against)
        scores = ""
        if ours and other and one.task in ours.tasks and one.task in other.tasks:
            scores = f" {_metric(results, one.task)} {quality(ours.tasks[one.task])} against "
            scores += f"{quality(other.tasks[one.task])};"
        interval = f"95 % paired bootstrap interval [{signed(one.low)}, {signed(one.high)}] {zero}"
        difference = f"difference in {one.metric} {signed(one.difference)}, {interval}"
        yield Statement(tone, f"{words} {one.against} on {one.task}:{scores} {difference}.")


def _without_interval(results: Results, ours: System, rivals: list[System]) -> Iterator[Statement]:
    for rival in rivals:
        known = {one.task for one in _intervals(results, rival.name)}
        for task in (task for task in rival.tasks if task in ours.tasks and task not in known):
            mine, other = quality(ours.tasks[task]), quality(rival.tasks[task])
            scores = f"{_metric(results, task)} {mine} against {other}"
            yield Statement("plain", f"Beside {rival.name} on {task}: {scores}; the difference has no interval.")


def _metric(results: Results, task: str) -> str:
    return results.tasks[task].metric if task in results.tasks else "score"
