"""Outputs of a model on the rows of a split, in the order of the rows.

Shape suffixes: N rows, B batch, T tokens, C outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from elm_nni.data.batches import EVALUATION_BATCH, sorted_batches

Batch = dict[str, Any]


class TokenizedRows(Protocol):
    """A tokenised split; ``TaskRows``, ``AnswerWindows`` and ``LanguageRows`` are."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, (N,)."""
        ...

    @property
    def labels(self) -> Tensor:
        """One entry a row, or, for labels of tokens, those of all rows one after the other."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The padded batch of some rows: ``input_ids``, ``attention_mask`` (B, T), ``labels`` and what else counts."""
        ...


class SomeRows:
    """Some rows of a split, in the order given; itself a tokenised split.

    Example::

        SomeRows(rows, [4, 2]).batch([0])   # row 4
    """

    def __init__(self, rows: TokenizedRows, indices: Sequence[int]) -> None:
        self._rows, self._indices = rows, np.asarray(indices, dtype=np.int64)
        self.lengths = rows.lengths[self._indices]
        self.labels = _of_rows(rows.labels, rows, self._indices.tolist())

    def __len__(self) -> int:
        return len(self._indices)

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The padded batch of some of these rows."""
        return self._rows.batch(self._indices[list(indices)].tolist())


class RowBatches:
    """Rows in batches of like length for evaluation, and outputs of them back in the order of the rows.

    Args:
        rows: a tokenised split.
        name: of the task; batches carry it.
        keep: hold the batches in memory, for rows that are evaluated again and again.

    Example::

        logits_NC = RowBatches(rows, "polarity").outputs(lambda batch: head(pooled_output(model, batch)))
    """

    def __init__(self, rows: TokenizedRows, name: str, *, keep: bool = False) -> None:
        self.rows, self.name = rows, name
        self._places = sorted_batches(rows.lengths, EVALUATION_BATCH)
        self._kept: list[Batch] | None = list(self._made()) if keep else None

    @property
    def order(self) -> Tensor:
        """The rows in the order that the batches have them, (N,)."""
        return torch.tensor([place for places in self._places for place in places])

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._kept) if self._kept is not None else self._made()

    def outputs(self, run: Callable[[Batch], Tensor]) -> Tensor:
        """What ``run`` gives for the batches, on the CPU in float32 or wider.

        Outputs (B, C) become (N, C). Outputs of tokens (B, T, C) lose their padding and become (sum of lengths, C),
        the tokens of a row together.
        """
        found: list[Tensor] = [torch.empty(0)] * len(self.rows)
        per_token = False
        for batch, places in zip(self, self._places):
            values = run(batch).detach().cpu()
            values = values.to(torch.promote_types(values.dtype, torch.float32))
            per_token = values.ndim == 3
            lengths = batch["attention_mask"].sum(1).tolist()
            for place, value, length in zip(places, values, lengths):
                found[place] = value[:length] if per_token else value
        return torch.cat(found) if per_token else torch.stack(found)

    def _made(self) -> Iterator[Batch]:
        for places in self._places:
            yield {**self.rows.batch(places), "task": self.name}


def outputs_of_rows(values: Tensor, rows: TokenizedRows, indices: Sequence[int]) -> Tensor:
    """Of the outputs of all rows those of some: (B, C), or for outputs of tokens (B, T, C), zero at padding.

    Args:
        values: what :meth:`RowBatches.outputs` gave for all rows.
        rows: the split.
        indices: B rows.

    Raises:
        ValueError: the values are of another split.
    """
    if len(values) == len(rows):
        return values[list(indices)]
    return pad_sequence(_tokens_of_rows(values, rows, indices), batch_first=True)


def of_documents(run: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
    """Outputs of tokens (B, T, C) of packed rows by a model that takes one document a row; zero at padding.

    Args:
        run: takes ``input_ids`` and ``attention_mask``, int64 (D, L), and gives (D, L, C).
        batch: has ``input_ids`` and ``document_ids`` (B, T): each token's document from 1, 0 in padding.

    Example::

        of_documents(run, rows.batch([0, 1]))   # (2, T, C)
    """
    rows = []
    for ids_T, documents_T in zip(batch["input_ids"], batch["document_ids"]):
        places = [(documents_T == number).nonzero().squeeze(1) for number in documents_T[documents_T > 0].unique()]
        ids_DL = pad_sequence([ids_T[place] for place in places], batch_first=True)
        mask_DL = pad_sequence([torch.ones_like(place) for place in places], batch_first=True)
        values_DLC = run({"input_ids": ids_DL, "attention_mask": mask_DL})
        row_TC = values_DLC.new_zeros(len(ids_T), values_DLC.shape[-1])
        row_TC[torch.cat(places)] = values_DLC[mask_DL.bool()]
        rows.append(row_TC)
    return torch.stack(rows)


def _of_rows(values: Tensor, rows: TokenizedRows, indices: Sequence[int]) -> Tensor:
    if len(values) == len(rows):
        return values[list(indices)]
    return torch.cat(_tokens_of_rows(values, rows, indices))


def _tokens_of_rows(values: Tensor, rows: TokenizedRows, indices: Sequence[int]) -> list[Tensor]:
    ends = np.cumsum(rows.lengths)
    if len(values) != ends[-1]:
        raise ValueError(f"{len(values)} values: must be one for each of {len(rows)} rows or {ends[-1]} tokens")
    return [values[ends[index] - rows.lengths[index] : ends[index]] for index in indices]
