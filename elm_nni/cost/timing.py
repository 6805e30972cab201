"""Timing of several functions side by side, so that drift of the machine touches all of them alike."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.benchmark import timer

# A call before each timed one brings caches to the state of a function that is called again and again.
NUM_WARM_UP_ROUNDS = 2


@contextmanager
def pinned_threads(threads: int) -> Iterator[None]:
    """Use so many threads for torch's own operators, and the former number again afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def time_interleaved(
    functions: Mapping[str, Callable[[], Any]], *, repeats: int, seed: int = 0
) -> dict[str, list[float]]:
    """Time each function ``repeats`` times in rounds; a round calls each once, in a new random order.

    Before each timed call the function is called once untimed. On CUDA devices a call ends when the device is done.

    Args:
        functions: Name to function.
        repeats: Rounds, at least one.
        seed: Of the orders.

    Returns:
        Name to its times in ms, in order of the rounds.

    Raises:
        ValueError: ``repeats`` below one.

    Example:
        >>> sorted(time_interleaved({"a": lambda: 1, "b": lambda: 2}, repeats=3))
        ['a', 'b']
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats!r}; it must be at least 1")
    rng = np.random.default_rng(seed)
    names = list(functions)
    times: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for round_index in range(-NUM_WARM_UP_ROUNDS, repeats):
            for name in rng.permutation(names):
                function = functions[name]
                function()
                start = timer()
                function()
                elapsed_ms = (timer() - start) * 1e3
                if round_index >= 0:
                    times[name].append(elapsed_ms)
    finally:
        if collecting:
            gc.enable()
    return times


def median_iqr(times: list[float]) -> tuple[float, float]:
    """Median and interquartile range, in the unit of ``times``.

    Example:
        >>> median_iqr([1.0, 2.0, 3.0, 4.0, 5.0])
        (3.0, 2.0)
    """
    low, high = np.quantile(times, [0.25, 0.75])
    return statistics.median(times), float(high - low)
