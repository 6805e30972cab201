"""Timing of several functions side by side, so that drift of the machine touches all of them alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.benchmark import timer

try:
    import resource
except ImportError:  # Windows counts no context switches
    resource = None  # type: ignore[assignment]

# How calls are timed. A stored table that was made in another way is measured again.
METHOD = "rounds in random order; preempted calls repeated"
# A call before each timed one brings caches to the state of a function that is called again and again.
NUM_WARM_UP_ROUNDS = 2
# How often a call is tried before a preempted one is kept.
NUM_ATTEMPTS = 3


@dataclass(frozen=True)
class Watch:
    """What tells that a call was preempted: that another process took the processor from it.

    Args:
        switches: Involuntary context switches so far.
        ran_s: Seconds that the calling thread was on a processor so far. None where that is not a call's duration,
            because other threads or a device work on it too.
    """

    switches: Callable[[], int]
    ran_s: Callable[[], float] | None = None


def watch(*, threads: int, on_cpu: bool = True) -> Watch:
    """The watch for calls that so many threads work on.

    One thread is watched alone. Of several, a single preempted one holds up the call: all of the process are watched.

    Example:
        >>> watch(threads=1).switches() >= 0
        True
    """
    if resource is None:
        return Watch(lambda: 0)
    # Linux alone counts by thread.
    one = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)
    who = one if threads == 1 else resource.RUSAGE_SELF
    alone = threads == 1 and on_cpu
    return Watch(lambda: resource.getrusage(who).ru_nivcsw, time.thread_time if alone else None)


@dataclass(frozen=True)
class Rounds:
    """What :func:`time_rounds` found.

    Args:
        times_ms: Name to its times, one a round.
        repeated: Timed calls that were preempted and thrown away for another try.
        preempted: Name to the rounds in which every try was preempted.
    """

    times_ms: dict[str, list[float]]
    repeated: int
    preempted: dict[str, int]

    @property
    def preempted_share(self) -> float:
        """Share of all kept times that come from preempted calls."""
        return sum(self.preempted.values()) / max(sum(map(len, self.times_ms.values())), 1)


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
    """Name to the times in ms of :func:`time_rounds`, for as many threads as torch uses now.

    Example:
        >>> sorted(time_interleaved({"a": lambda: 1, "b": lambda: 2}, repeats=3))
        ['a', 'b']
    """
    return time_rounds(functions, repeats=repeats, seed=seed).times_ms


def time_rounds(
    functions: Mapping[str, Callable[[], Any]],
    *,
    repeats: int,
    seed: int = 0,
    watched: Watch | None = None,
    clock: Callable[[], float] = timer,
) -> Rounds:
    """Time each function ``repeats`` times in rounds; a round calls each once, in a new random order.

    Before each timed call the function is called once untimed. On CUDA devices a call ends when the device is done.
    A timed call during which another process took the processor is tried again, ``NUM_ATTEMPTS`` times in all: the
    other's turn is no latency of the function. If all were preempted, the time is what the thread ran of the last one
    (``Watch.ran_s``), or the shortest where that is unknown.

    Args:
        functions: Name to function.
        repeats: Rounds, at least one.
        seed: Of the orders.
        watched: Tells preempted calls. None: :func:`watch` for as many threads as torch uses now.
        clock: Seconds.

    Raises:
        ValueError: ``repeats`` below one.

    Example:
        >>> len(time_rounds({"a": lambda: 1}, repeats=3).times_ms["a"])
        3
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats!r}; it must be at least 1")
    if watched is None:
        watched = watch(threads=torch.get_num_threads(), on_cpu=not torch.cuda.is_available())
    rng = np.random.default_rng(seed)
    names = list(functions)
    times: dict[str, list[float]] = {name: [] for name in names}
    preempted = dict.fromkeys(names, 0)
    repeated = 0
    with _no_collection():
        for round_index in range(-NUM_WARM_UP_ROUNDS, repeats):
            for name in map(str, rng.permutation(names)):
                functions[name]()
                seconds, attempts, clean = _timed(functions[name], watched, clock)
                if round_index >= 0:
                    times[name].append(seconds * 1e3)
                    repeated += attempts - 1
                    preempted[name] += not clean
    return Rounds(times, repeated, preempted)


def _timed(function: Callable[[], Any], watched: Watch, clock: Callable[[], float]) -> tuple[float, int, bool]:
    """Seconds of a call, the attempts made, and whether the last one ran undisturbed."""
    tried: list[float] = []
    for _ in range(NUM_ATTEMPTS):
        switches = watched.switches()
        ran = watched.ran_s() if watched.ran_s is not None else 0.0
        start = clock()
        function()
        seconds = clock() - start
        if watched.ran_s is not None:
            ran = watched.ran_s() - ran
        if watched.switches() == switches:
            return seconds, len(tried) + 1, True
        tried.append(seconds)
    return (min(tried) if watched.ran_s is None else ran), len(tried), False


@contextmanager
def _no_collection() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def median_iqr(times: list[float]) -> tuple[float, float]:
    """Median and interquartile range, in the unit of ``times``.

    Example:
        >>> median_iqr([1.0, 2.0, 3.0, 4.0, 5.0])
        (3.0, 2.0)
    """
    low, high = np.quantile(times, [0.25, 0.75])
    return statistics.median(times), float(high - low)
