"""Words and numbers of a study: values by their name, parameters, ranges, coefficients, and what to say of a proxy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from elm_nni.analysis.ranking import Coefficient, RankCorrelation
from elm_nni.report.study.load import StudyData
from elm_nni.report.study.proxy import ProxyComparison, ProxyTimes
from elm_nni.report.study.sweeps import HEADS, Spread
from elm_nni.report.text import UNKNOWN, duration, exact_count, factor, milliseconds, quality

_NAMES = {
    "params": "parameters", "params_outside_embeddings": "parameters outside embeddings", "latency_ms": "latency (ms)",
    HEADS: "heads",
}  # fmt: skip
# Rank correlations of fewer pairs have intervals that are too narrow.
FEW_PAIRS = 10


def label(name: str) -> str:
    """What a reader calls a value."""
    return _NAMES.get(name, name)


def shown(name: str, value: float | None) -> str:
    """A value with the digits that its name asks for."""
    if value is None:
        return UNKNOWN
    if name.startswith("params") and "." not in name:
        return exact_count(value)
    if name == "latency_ms":
        return milliseconds(value)
    if name == HEADS:
        return f"{value:.4g}"
    return quality(value) if abs(value) < 1000 else f"{value:,.1f}"


def shown_spread(name: str, spread: Spread | None) -> str:
    """The mean, with the range where there is one."""
    if spread is None:
        return UNKNOWN
    mean, low, high = (shown(name, value) for value in (spread.mean, spread.low, spread.high))
    return mean if low == high else f"{mean} ({low} to {high})"


def shown_setting(value: Any) -> str:
    """A parameter's value; floats with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def shown_params(params: Mapping[str, Any]) -> str:
    """``prune.eta 0.9, prune.mode remove``."""
    return ", ".join(f"{name} {shown_setting(value)}" for name, value in params.items()) or "no parameters"


def shown_coefficient(coefficient: Coefficient | None) -> str:
    """``0.71 [0.32, 0.93]``."""
    if coefficient is None:
        return UNKNOWN
    return f"{coefficient.value:.2f} [{coefficient.low:.2f}, {coefficient.high:.2f}]"


def correlation_note(found: RankCorrelation) -> str:
    """What to hold of a rank correlation; empty if there is nothing to say."""
    if found.reason:
        return f"not defined: {found.reason}"
    return f"only {found.n} pairs: the interval is too narrow" if found.n < FEW_PAIRS else ""


def times_sentence(times: ProxyTimes | None) -> str:
    """The seconds of a cheap trial beside those of a full one, and which trials were compared."""
    if times is None:
        return ("Their times are not compared: no full and no proxy trial built the same stages. "
                "A trial that finds its stages in the store takes no time.")  # fmt: skip
    saved = f", {factor(times.full / times.proxy)} as long" if times.proxy > 0 else ""
    pruned = f" {times.full_pruned} of these full and {times.proxy_pruned} of these proxy trials built that step too."
    return (
        f"Median wall time: {duration(times.proxy)} for a proxy trial (of {times.num_proxy}), "
        f"{duration(times.full)} for a full one (of {times.num_full}){saved}. "
        f"Compared are trials that built exactly these stages, the head step aside: {', '.join(times.stages)}. "
        f"A trial that found them in the store took no time and does not count."
        f"{pruned if times.full_pruned or times.proxy_pruned else ''}"
    )


def proxy_sentence(study: StudyData, comparison: ProxyComparison) -> str:
    """How many cheap trials there are and how many of them can be compared."""
    num_trials, num_pairs = len(study.proxy_trials or ()), len(comparison.pairs)
    return (
        f"Study {study.proxy_name} has {plural(num_trials, 'cheap trial')}, {comparison.num_complete} complete. "
        f"{plural(num_pairs, 'setting')} of the parameters {'has' if num_pairs == 1 else 'have'} "
        "both a full and a cheap trial; repeats count with their mean."
    )


def plural(number: int, noun: str) -> str:
    """``1 trial``, ``2 trials``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
