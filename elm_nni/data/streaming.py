"""Packed rows of a corpus that does not fit on the disk: read, tokenised and packed while training."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from elm_nni.data.corpora import corpus_texts
from elm_nni.data.rows import Layout, Position, Row, pack_rows, tokenize_documents
from elm_nni.data.sources import Rows
from elm_nni.errors import UserError

# Shape suffixes: B batch (rows), T tokens of a row.

_KEPT_POSITIONS = 64


class StreamingPacked(IterableDataset[dict[str, torch.Tensor]]):
    """Endless batches of packed rows, the same rows in the same order as ``pack_corpus`` would write.

    Item ``i`` is the whole batch of step ``start_step + i``: use it with ``DataLoader(..., batch_size=None)``. After
    its last document the corpus starts again. Each worker of a loader packs everything and hands out its share, so
    one worker (which overlaps with training) is enough and more do not change the batches.

    Args:
        corpus: rows with a column ``text``, as from ``load_corpus(..., streaming=True)``.
        tokenizer: a tokenizer of transformers.
        sequence_length: tokens of a row, special tokens counted.
        batch_size: rows of a batch.
        start_step: first step to yield.
        start: where that step begins, from ``position_after(start_step - 1)``: documents before it are skipped
            without tokenising. Without it everything before ``start_step`` is packed again; the batches are the same.

    Raises:
        ValueError: ``batch_size`` < 1, ``start_step`` < 0 or ``sequence_length`` too small.
        UserError: while iterating, when the corpus has no text.

    Example:
        >>> stream = StreamingPacked(load_corpus("big.jsonl", streaming=True), tokenizer, sequence_length=128,
        ...                          batch_size=64)  # doctest: +SKIP
        >>> batch = next(iter(stream))  # doctest: +SKIP
    """

    def __init__(
        self,
        corpus: Rows,
        tokenizer: PreTrainedTokenizerBase,
        *,
        sequence_length: int,
        batch_size: int,
        start_step: int = 0,
        start: Position | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if start_step < 0:
            raise ValueError(f"start_step must be at least 0, got {start_step}")
        self._corpus, self._tokenizer = corpus, tokenizer
        self._layout = Layout.of(tokenizer, sequence_length)
        self._batch_size, self._start_step, self._start = batch_size, start_step, start
        self._positions: dict[int, Position] = {}

    def position_after(self, step: int) -> Position:
        """Where the step after ``step`` begins; known for the latest 64 steps that this very object yielded.

        Raises:
            ValueError: a step that is not known, for example because workers did the reading.
        """
        if step not in self._positions:
            known = f"{min(self._positions)}..{max(self._positions)}" if self._positions else "none"
            raise ValueError(f"step {step} has no known position; known steps: {known}")
        return self._positions[step]

    def _epoch_rows(self, position: Position) -> Iterator[Row]:
        corpus = self._corpus.skip(position.document) if position.document else self._corpus
        return pack_rows(tokenize_documents(corpus_texts(corpus), self._tokenizer), self._layout, position)

    def _rows(self, position: Position) -> Iterator[Row]:
        while True:
            has_rows = False
            for row in self._epoch_rows(position):
                has_rows = True
                yield row
            if not has_rows and replace(position, epoch=0) == Position():
                raise UserError("the corpus has no text; give at least one document with a word in it")
            position = Position(epoch=position.epoch + 1)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        rows = self._rows(self._start or Position())
        first_step = self._start_step if self._start is not None else 0
        for step in count(first_step):
            batch = list(islice(rows, self._batch_size))
            self._remember(step, batch[-1].next)
            if step >= self._start_step and (step - self._start_step) % workers == number:
                yield _tensors(batch)

    def _remember(self, step: int, position: Position) -> None:
        self._positions[step] = position
        self._positions.pop(step - _KEPT_POSITIONS, None)


def _tensors(rows: list[Row]) -> dict[str, torch.Tensor]:
    document_ids_BT = torch.from_numpy(np.stack([row.document_ids_T for row in rows]))
    return {
        "input_ids": torch.from_numpy(np.stack([row.input_ids_T for row in rows])),
        "attention_mask": (document_ids_BT > 0).long(),
        "document_ids": document_ids_BT,
    }
