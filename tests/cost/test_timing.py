"""Timing of functions whose duration is known."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field

import pytest
import torch

from elm_nni.cost.timing import Watch, median_iqr, pinned_threads, time_interleaved, time_rounds, watch

NEVER = Watch(lambda: 0)


def test_sleeping_functions() -> None:
    times = time_interleaved({"short": lambda: time.sleep(0.002), "long": lambda: time.sleep(0.008)}, repeats=5)
    assert {name: len(values) for name, values in times.items()} == {"short": 5, "long": 5}
    assert 2 <= median_iqr(times["short"])[0] < 8 <= median_iqr(times["long"])[0] < 30


def test_functions_take_turns() -> None:
    order: list[str] = []
    functions = {name: lambda name=name: order.append(name) for name in "abcd"}
    time_rounds(functions, repeats=20, watched=NEVER)
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


@dataclass
class Machine:
    """A machine whose calls last what ``script`` says: (seconds on the clock, seconds on a processor, switches)."""

    script: list[tuple[float, float, int]]
    clock: float = 0.0
    ran: float = 0.0
    switches: int = 0
    calls: int = field(default=0)

    def call(self) -> None:
        seconds, ran, switches = self.script[self.calls] if self.calls < len(self.script) else (0.0, 0.0, 0)
        self.calls += 1
        self.clock += seconds
        self.ran += ran
        self.switches += switches

    def rounds(self, *, alone: bool):
        watched = Watch(lambda: self.switches, (lambda: self.ran) if alone else None)
        return time_rounds({"a": self.call}, repeats=1, watched=watched, clock=lambda: self.clock)


# Untimed and timed calls of two warm-up rounds, and the untimed one of the round that counts.
BEFORE = [(1.0, 1.0, 0)] * 5


def test_a_preempted_call_is_repeated() -> None:
    machine = Machine([*BEFORE, (9.0, 2.0, 1), (3.0, 3.0, 0)])
    found = machine.rounds(alone=True)
    assert found.times_ms == {"a": [3000.0]}
    assert (found.repeated, found.preempted, found.preempted_share) == (1, {"a": 0}, 0.0)
    assert machine.calls == 7


@pytest.mark.parametrize(("alone", "expected_ms"), [(True, 2500.0), (False, 7000.0)])
def test_tries_are_bounded_and_what_ran_or_was_shortest_is_kept(alone: bool, expected_ms: float) -> None:
    """Two threads have no one time on a processor: then the shortest of the tries counts."""
    machine = Machine([*BEFORE, (9.0, 2.0, 1), (7.0, 2.25, 2), (8.0, 2.5, 1), (1.0, 1.0, 0)])
    found = machine.rounds(alone=alone)
    assert found.times_ms == {"a": [expected_ms]}
    assert (found.repeated, found.preempted, found.preempted_share) == (2, {"a": 1}, 1.0)
    assert machine.calls == 8


def test_preempted_warm_up_rounds_do_not_count() -> None:
    machine = Machine([(1.0, 1.0, 0), (9.0, 1.0, 1), (1.0, 1.0, 0), *BEFORE[2:], (4.0, 4.0, 0)])
    found = machine.rounds(alone=True)
    assert found.times_ms == {"a": [4000.0]}
    assert (found.repeated, found.preempted) == (0, {"a": 0})


def test_watches_of_threads_and_devices() -> None:
    one, several, device = watch(threads=1), watch(threads=2), watch(threads=1, on_cpu=False)
    assert one.ran_s is not None
    assert several.ran_s is None
    assert device.ran_s is None
    # Of the process, this thread is one among others.
    own = one.switches()
    assert several.switches() >= own


def test_a_busy_machine_hardly_changes_the_time_of_one_thread() -> None:
    """Four processes beside this one: on the clock the call takes several times as long."""
    matrix = torch.randn(500, 500)

    def work() -> None:
        for _ in range(4):
            matrix @ matrix

    def medians() -> tuple[float, float]:
        plain = time_rounds({"work": work}, repeats=15, watched=NEVER)
        watched = time_rounds({"work": work}, repeats=15, watched=watch(threads=1))
        return median_iqr(plain.times_ms["work"])[0], median_iqr(watched.times_ms["work"])[0]

    with pinned_threads(1):
        calm_ms = medians()[1]
        cores = len(os.sched_getaffinity(0))
        burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * cores)]
        try:
            time.sleep(0.5)
            plain_ms, watched_ms = medians()
        finally:
            for process in burners:
                process.kill()
                process.wait()
    assert watched_ms < 0.8 * plain_ms
    assert watched_ms < 3 * calm_ms
