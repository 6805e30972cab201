"""Which rows form the batch of a step, as a function of (seed, stage, step), and the rows of a task as tensors."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedTokenizerBase

from elm_nni.digest import derive_seed

# Shape suffixes: B batch, T tokens, N samples.

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


class TaskRows(Dataset[dict[str, torch.Tensor]]):
    """The rows of a task split, tokenised once and kept in memory without padding.

    Pairs are cut at the end of the longer text; ``token_type_ids`` are there for pairs where the tokenizer has them.
    Use ``DataLoader(rows, batch_sampler=..., collate_fn=rows.collate)``, or ``rows.batch(indices)`` at once.

    Args:
        rows: columns ``text``, for pairs ``text_pair``, and ``label`` (int for classes, float for regression).
        tokenizer: a tokenizer of transformers.
        max_length: tokens a row is cut to, special tokens counted.
        multiple_of: a batch is padded to the next multiple of this many tokens (8 suits GPUs), at most ``max_length``.

    Raises:
        ValueError: ``max_length`` < 8 or ``multiple_of`` < 1.

    Example:
        >>> rows = TaskRows(load_task("polarity").test, tokenizer, max_length=64)  # doctest: +SKIP
        >>> rows.batch([0, 1])["input_ids"].shape  # doctest: +SKIP
        torch.Size([2, 31])
    """

    def __init__(
        self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, *, multiple_of: int = 1
    ) -> None:
        _require("max_length", max_length, 8)
        _require("multiple_of", multiple_of, 1)
        self.max_length, self.multiple_of = max_length, multiple_of
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        is_pair = "text_pair" in rows.column_names
        encoded = tokenizer(
            rows["text"][:],
            rows["text_pair"][:] if is_pair else None,
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
        )
        self.lengths = np.asarray([len(ids) for ids in encoded["input_ids"]], dtype=np.int64)
        self._ends = np.cumsum(self.lengths)
        self._input_ids = _flat(encoded["input_ids"], np.int32)
        has_types = is_pair and "token_type_ids" in encoded
        self._token_types = _flat(encoded["token_type_ids"], np.uint8) if has_types else None
        self.labels = torch.tensor(rows["label"][:])

    def __len__(self) -> int:
        return len(self.lengths)

    def _slice(self, flat: NDArray, index: int) -> torch.Tensor:
        end = self._ends[index]
        return torch.from_numpy(flat[end - self.lengths[index] : end].astype(np.int64))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """One row: ``input_ids`` (T,), for pairs ``token_type_ids`` (T,), and ``labels`` ()."""
        row = {"input_ids": self._slice(self._input_ids, index), "labels": self.labels[index]}
        if self._token_types is not None:
            row["token_type_ids"] = self._slice(self._token_types, index)
        return row

    def collate(self, rows: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Pads rows on the right to the longest.

        Returns:
            ``input_ids``, ``attention_mask`` and for pairs ``token_type_ids``, int64 (B, T); ``labels`` (B,).
        """
        longest = max(len(row["input_ids"]) for row in rows)
        width = max(longest, min(-(-longest // self.multiple_of) * self.multiple_of, self.max_length))
        input_ids_BT = torch.full((len(rows), width), self.pad_id)
        mask_BT = torch.zeros_like(input_ids_BT)
        types_BT = torch.zeros_like(input_ids_BT)
        for number, row in enumerate(rows):
            length = len(row["input_ids"])
            input_ids_BT[number, :length] = row["input_ids"]
            mask_BT[number, :length] = 1
            if self._token_types is not None:
                types_BT[number, :length] = row["token_type_ids"]
        batch = {"input_ids": input_ids_BT, "attention_mask": mask_BT}
        if self._token_types is not None:
            batch["token_type_ids"] = types_BT
        return batch | {"labels": torch.stack([row["labels"] for row in rows])}

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """The padded batch of some rows, as ``collate`` makes it."""
        return self.collate([self[index] for index in indices])


def evaluation_batches(
    rows: TaskRows, name: str, indices: Sequence[int] | None = None
) -> tuple[list[dict[str, Any]], torch.Tensor]:
    """Length-sorted batches of all rows, or of those of ``indices``, each with its task's name.

    Returns:
        The batches, and the place of each of their rows among the rows asked for, (N,).
    """
    chosen = np.arange(len(rows)) if indices is None else np.asarray(indices, dtype=np.int64)
    order = sorted_batches(rows.lengths[chosen], EVALUATION_BATCH)
    batches = [{**rows.batch(chosen[places].tolist()), "task": name} for places in order]
    return batches, torch.tensor([place for places in order for place in places])


def in_row_order(values: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Undoes the sorting by length of :func:`evaluation_batches`."""
    result = torch.empty_like(values)
    result[order] = values
    return result


def _flat(rows: Sequence[Sequence[int]], dtype: type[np.generic]) -> NDArray:
    return np.concatenate([np.asarray(row, dtype=dtype) for row in rows])
