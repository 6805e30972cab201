"""Which rows form the batch of a step, as a function of (seed, stage, step)."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Sampler

from elm_nni.data.task_rows import TaskRows
from elm_nni.digest import derive_seed

__all__ = [
    "EVALUATION_BATCH",
    "BucketBatchSampler",
    "StepBatchSampler",
    "TaskRows",
    "sorted_batches",
]

# Shape suffixes: N samples.

EVALUATION_BATCH = 64


def _require(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


@lru_cache(maxsize=4)
def _permutation(num_rows: int, seed: int, stage: str, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng(derive_seed(seed, stage, epoch)).permutation(num_rows)


class StepBatchSampler(Sampler[list[int]]):
    """Shuffled batches of equal size, without end but for ``num_steps``: the order of step s needs no step before it.

    Each pass over the rows has its own permutation; a batch may end one pass and begin the next.

    Args:
        num_rows: rows of the data set.
        batch_size: rows of a batch.
        seed: seed of the run.
        stage: name of the stage, so that stages do not repeat each other's order.
        num_steps: total steps of the stage.
        start_step: first step to yield, for a resumed run.

    Raises:
        ValueError: a number below its least value, or ``start_step`` beyond ``num_steps``.

    Example:
        >>> sampler = StepBatchSampler(num_rows=10, batch_size=4, seed=0, stage="supernet", num_steps=100)
        >>> sampler.batch(7) == list(sampler)[7]
        True
    """

    def __init__(
        self, *, num_rows: int, batch_size: int, seed: int, stage: str, num_steps: int, start_step: int = 0
    ) -> None:
        _require("num_rows", num_rows, 1)
        _require("batch_size", batch_size, 1)
        _require("num_steps", num_steps, 0)
        if not 0 <= start_step <= num_steps:
            raise ValueError(f"start_step must lie within 0..{num_steps}, got {start_step}")
        self.num_rows, self.batch_size = num_rows, batch_size
        self.seed, self.stage = seed, stage
        self.num_steps, self.start_step = num_steps, start_step

    def batch(self, step: int) -> list[int]:
        """Row numbers of one step."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return [
            int(_permutation(self.num_rows, self.seed, self.stage, int(place // self.num_rows))[place % self.num_rows])
            for place in places
        ]

    def __iter__(self) -> Iterator[list[int]]:
        return (self.batch(step) for step in range(self.start_step, self.num_steps))

    def __len__(self) -> int:
        return self.num_steps - self.start_step


class BucketBatchSampler(Sampler[list[int]]):
    """Shuffled batches of rows of like length, so that little is padded; a function of (seed, stage, step) as well.

    Each pass shuffles the rows, sorts pools of ``pool_batches`` batches by length, cuts them into batches and shuffles
    those. Every row occurs once a pass; the last batch of a pass's rows may be smaller.

    Args:
        lengths: (N,) tokens of each row.
        batch_size: rows of a batch.
        seed: seed of the run.
        stage: name of the stage.
        num_steps: total steps; by default one pass.
        start_step: first step to yield, for a resumed run.
        pool_batches: batches that are sorted together; more is less padding and less chance.

    Raises:
        ValueError: no rows, a number below its least value, or ``start_step`` beyond ``num_steps``.

    Example:
        >>> sampler = BucketBatchSampler([3, 9, 4, 8], batch_size=2, seed=0, stage="task")
        >>> sorted(map(sorted, sampler))
        [[0, 2], [1, 3]]
    """

    def __init__(
        self,
        lengths: ArrayLike,
        batch_size: int,
        seed: int,
        stage: str,
        *,
        num_steps: int | None = None,
        start_step: int = 0,
        pool_batches: int = 32,
    ) -> None:
        self._lengths_N = np.asarray(lengths, dtype=np.int64)
        _require("number of rows", len(self._lengths_N), 1)
        _require("batch_size", batch_size, 1)
        _require("pool_batches", pool_batches, 1)
        self.batch_size, self.seed, self.stage, self.pool_batches = batch_size, seed, stage, pool_batches
        self.steps_per_epoch = -(-len(self._lengths_N) // batch_size)
        self.num_steps = self.steps_per_epoch if num_steps is None else num_steps
        self.start_step = start_step
        _require("num_steps", self.num_steps, 0)
        if not 0 <= start_step <= self.num_steps:
            raise ValueError(f"start_step must lie within 0..{self.num_steps}, got {start_step}")
        self._epoch: tuple[int, list[list[int]]] | None = None

    def _epoch_batches(self, epoch: int) -> list[list[int]]:
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._make_epoch(epoch))
        return self._epoch[1]

    def _make_epoch(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng(derive_seed(self.seed, self.stage, epoch))
        order = rng.permutation(len(self._lengths_N))
        pool = self.batch_size * self.pool_batches
        batches: list[list[int]] = []
        for start in range(0, len(order), pool):
            rows = order[start : start + pool]
            rows = rows[np.argsort(self._lengths_N[rows], kind="stable")]
            batches += [rows[at : at + self.batch_size].tolist() for at in range(0, len(rows), self.batch_size)]
        return [batches[number] for number in rng.permutation(len(batches))]

    def batch(self, step: int) -> list[int]:
        """Row numbers of one step."""
        return self._epoch_batches(step // self.steps_per_epoch)[step % self.steps_per_epoch]

    def __iter__(self) -> Iterator[list[int]]:
        return (self.batch(step) for step in range(self.start_step, self.num_steps))

    def __len__(self) -> int:
        return self.num_steps - self.start_step


def sorted_batches(lengths: ArrayLike, batch_size: int) -> list[list[int]]:
    """Batches of like length for evaluation, each row once, longest first, in a fixed order.

    Write predictions back with ``predictions[batch] = ...`` to have them in the order of the rows.

    Raises:
        ValueError: ``batch_size`` < 1.

    Example:
        >>> sorted_batches([3, 9, 4], batch_size=2)
        [[1, 2], [0]]
    """
    _require("batch_size", batch_size, 1)
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist()
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
