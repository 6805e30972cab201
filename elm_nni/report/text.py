"""Numbers as a reader wants them. ``None`` (unknown) is an en dash everywhere."""

from __future__ import annotations

UNKNOWN = "–"


def exact_count(value: float | None) -> str:
    """``5400000`` as ``5,400,000``."""
    return UNKNOWN if value is None else f"{round(value):,}"


def short_count(value: float | None) -> str:
    """``5400000`` as ``5.40M``; below a million ``132.0k``, below a thousand as it is."""
    if value is None:
        return UNKNOWN
    # Rounding first: 999,960 would otherwise become "1000.0k".
    if round(value / 1e3, 1) >= 1000:
        return f"{value / 1e6:,.2f}M"
    return f"{value / 1e3:.1f}k" if value >= 1000 else f"{value:.0f}"


def quality(value: float | None) -> str:
    """A metric with four decimals."""
    return UNKNOWN if value is None else f"{value:.4f}"


def signed(value: float | None) -> str:
    """A difference of metrics, with its sign and four decimals."""
    return UNKNOWN if value is None else f"{value:+.4f}"


def milliseconds(value: float | None) -> str:
    """Milliseconds without the unit; three significant digits below 0.1, two decimals above."""
    if value is None:
        return UNKNOWN
    return f"{value:.3g}" if 0 < value < 0.1 else f"{value:,.2f}"


def decimal(value: float | None) -> str:
    """One decimal; two significant digits below 0.1."""
    if value is None:
        return UNKNOWN
    return f"{value:.2g}" if 0 < value < 0.1 else f"{value:,.1f}"


def percent(value: float | None) -> str:
    """A share of 1 as per cent with one decimal."""
    return UNKNOWN if value is None else f"{100 * value:.1f} %"


def factor(value: float | None) -> str:
    """A ratio such as a speed-up."""
    return UNKNOWN if value is None else f"{value:.2f}×"


def duration(seconds: float | None) -> str:
    """Seconds as ``45.2 s``, ``3 min 50 s`` or ``2 h 05 min``."""
    if seconds is None:
        return UNKNOWN
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
