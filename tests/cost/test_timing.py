"""Timing of functions whose duration is known."""

from __future__ import annotations

import gc
import time

import pytest
import torch

from elm_nni.cost.timing import median_iqr, pinned_threads, time_interleaved


def test_sleeping_functions() -> None:
    times = time_interleaved({"short": lambda: time.sleep(0.002), "long": lambda: time.sleep(0.008)}, repeats=5)
    assert {name: len(values) for name, values in times.items()} == {"short": 5, "long": 5}
    assert 2 <= median_iqr(times["short"])[0] < 8 <= median_iqr(times["long"])[0] < 30


def test_functions_take_turns() -> None:
    order: list[str] = []
    functions = {name: lambda name=name: order.append(name) for name in "abcd"}
    time_interleaved(functions, repeats=20)
    # Untimed and timed, a pair of calls each.
    assert order[::2] == order[1::2]
    rounds = [tuple(order[start : start + 8 : 2]) for start in range(0, len(order), 8)]
    assert all(sorted(names) == list("abcd") for names in rounds)
    assert len(set(rounds)) > 5


def test_everything_is_restored_after_an_error() -> None:
    before = torch.get_num_threads()
    seen: list[int] = []

    def fail() -> None:
        seen.append(torch.get_num_threads())
        raise RuntimeError("no")

    with pytest.raises(RuntimeError), pinned_threads(before + 1):
        time_interleaved({"fail": fail}, repeats=1)
    assert seen == [before + 1]
    assert torch.get_num_threads() == before
    assert gc.isenabled()


def test_repeats_out_of_range() -> None:
    with pytest.raises(ValueError, match="repeats is 0"):
        time_interleaved({}, repeats=0)
