"""Numbers as text."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from elm_nni.report import text


@pytest.mark.parametrize(
    ("write", "value", "expected"),
    [
        (text.exact_count, 5_412_345, "5,412,345"),
        (text.short_count, 5_412_345, "5.41M"),
        (text.short_count, 999_960, "1.00M"),
        (text.short_count, 139_524, "139.5k"),
        (text.short_count, 12, "12"),
        (text.quality, 0.78432, "0.7843"),
        (text.signed, -0.01, "-0.0100"),
        (text.signed, 0.01, "+0.0100"),
        (text.milliseconds, 3.214, "3.21"),
        (text.milliseconds, 0.01234, "0.0123"),
        (text.decimal, 86.64, "86.6"),
        (text.decimal, 0.03, "0.03"),
        (text.decimal, 0.0, "0.0"),
        (text.percent, 0.98124, "98.1 %"),
        (text.factor, 3.688, "3.69×"),
        (text.duration, 9.34, "9.3 s"),
        (text.duration, 59.96, "1 min 00 s"),
        (text.duration, 231.4, "3 min 51 s"),
        (text.duration, 7_520.0, "2 h 05 min"),
    ],
)
def test_format(write: Callable[[float], str], value: float, expected: str) -> None:
    assert write(value) == expected


@pytest.mark.parametrize(
    "write",
    [text.exact_count, text.short_count, text.quality, text.signed, text.milliseconds, text.decimal, text.percent,
     text.factor, text.duration],
)
def test_unknown_is_a_dash(write: Callable[[float | None], str]) -> None:
    assert write(None) == "–"
