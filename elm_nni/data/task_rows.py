"""The rows of a task as tensors."""

import logging
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from elm_nni.data.metrics import UNCOUNTED
from elm_nni.errors import UserError

# Shape suffixes: B batch, T tokens, N rows, C labels, M tokens of all rows one after the other.

_logger = logging.getLogger(__name__)


class TaskRows(Dataset[dict[str, torch.Tensor]]):
    """The rows of a task split, tokenised once and kept in memory without padding.

    Pairs are cut at the end of the longer text; ``token_type_ids`` are there for pairs where the tokenizer has them.
    Use ``DataLoader(rows, batch_sampler=..., collate_fn=rows.collate)``, or ``rows.batch(indices)`` at once.

    The columns tell the kind of task. ``labels`` are, of one class or value a row, (N,) int64 or float32; of a list of
    labels a row, (N, C) float32 of 0 and 1; of a list of words and a list of tags, (M,) int64, the tokens of all rows
    one after the other: the first token of a word has the word's tag, and every other token -100, which does not
    count. Words that ``max_length`` cuts off and words without a token do not count either.

    Args:
        rows: columns ``text``, for pairs ``text_pair``, and ``label``, as ``load_task`` makes them.
        tokenizer: a tokenizer of transformers.
        max_length: tokens a row is cut to, special tokens counted.
        multiple_of: a batch is padded to the next multiple of this many tokens (8 suits GPUs), at most ``max_length``.

    Attributes:
        lengths: (N,) int64, tokens of each row.
        ends: (N,) int64, their running sum: the tokens of row i are ``ends[i] - lengths[i]`` to ``ends[i] - 1``.
        labels: see above.
        label_names: (C,) what lists of labels or tags are ids of; empty for one label a row.

    Raises:
        ValueError: ``max_length`` < 8, ``multiple_of`` < 1, or lists of labels whose column does not know their names.
        UserError: words and tags with a tokenizer that does not tell which word a token is of.

    Example:
        >>> rows = TaskRows(load_task("polarity").test, tokenizer, max_length=64)  # doctest: +SKIP
        >>> rows.batch([0, 1])["input_ids"].shape  # doctest: +SKIP
        torch.Size([2, 31])
    """

    def __init__(
        self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, *, multiple_of: int = 1
    ) -> None:
        if max_length < 8:
            raise ValueError(f"max_length must be at least 8, got {max_length}")
        if multiple_of < 1:
            raise ValueError(f"multiple_of must be at least 1, got {multiple_of}")
        self.max_length, self.multiple_of = max_length, multiple_of
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        has_lists, self._has_words = _is_list(rows.features["label"]), _is_list(rows.features["text"])
        self.label_names = tuple(getattr(rows.features["label"].feature, "names", ())) if has_lists else ()
        is_pair = "text_pair" in rows.column_names
        texts = rows["text"][:]
        encoded = tokenizer(
            _with_blanks(texts, tokenizer) if self._has_words else texts,
            rows["text_pair"][:] if is_pair else None,
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            is_split_into_words=self._has_words,
        )
        self.lengths = np.asarray([len(ids) for ids in encoded["input_ids"]], dtype=np.int64)
        self.ends = np.cumsum(self.lengths)
        self._input_ids = _flat(encoded["input_ids"], np.int32)
        has_types = is_pair and "token_type_ids" in encoded
        self._token_types = _flat(encoded["token_type_ids"], np.uint8) if has_types else None
        labels = rows["label"][:]
        if self._has_words:
            words = [encoded.word_ids(row) for row in range(len(labels))]
            self.labels = torch.from_numpy(_token_labels(words, labels))
        elif has_lists:
            self.labels = _several(labels, len(self.label_names))
        else:
            self.labels = torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.lengths)

    def _place(self, index: int) -> slice:
        return slice(int(self.ends[index] - self.lengths[index]), int(self.ends[index]))

    def _slice(self, flat: NDArray, index: int) -> torch.Tensor:
        return torch.from_numpy(flat[self._place(index)].astype(np.int64))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """One row: ``input_ids`` (T,), for pairs ``token_type_ids`` (T,), and ``labels``, (), (C,) or for tags (T,)."""
        labels = self.labels[self._place(index)] if self._has_words else self.labels[index]
        row = {"input_ids": self._slice(self._input_ids, index), "labels": labels}
        if self._token_types is not None:
            row["token_type_ids"] = self._slice(self._token_types, index)
        return row

    def collate(self, rows: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Pads rows on the right to the longest.

        Returns:
            ``input_ids``, ``attention_mask`` and for pairs ``token_type_ids``, int64 (B, T); ``labels`` (B,), (B, C),
            or for tags (B, T) with -100 in the padding.
        """
        longest = max(len(row["input_ids"]) for row in rows)
        width = max(longest, min(-(-longest // self.multiple_of) * self.multiple_of, self.max_length))
        input_ids_BT = _padded([row["input_ids"] for row in rows], width, self.pad_id)
        lengths_B = torch.tensor([len(row["input_ids"]) for row in rows])
        mask_BT = (torch.arange(width) < lengths_B[:, None]).long()
        batch = {"input_ids": input_ids_BT, "attention_mask": mask_BT}
        if self._token_types is not None:
            batch["token_type_ids"] = _padded([row["token_type_ids"] for row in rows], width, 0)
        labels = [row["labels"] for row in rows]
        return batch | {"labels": _padded(labels, width, UNCOUNTED) if self._has_words else torch.stack(labels)}

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """The padded batch of some rows, as ``collate`` makes it."""
        return self.collate([self[index] for index in indices])


def _is_list(feature: Any) -> bool:
    return isinstance(feature, (datasets.List, datasets.LargeList))


def _flat(rows: Sequence[Sequence[int]], dtype: type[np.generic]) -> NDArray:
    return np.concatenate([np.asarray(row, dtype=dtype) for row in rows])


def _padded(rows: Sequence[torch.Tensor], width: int, value: int) -> torch.Tensor:
    padded_BT = torch.full((len(rows), width), value)
    for number, row in enumerate(rows):
        padded_BT[number, : len(row)] = row
    return padded_BT


def _several(labels: Sequence[Sequence[int]], num_labels: int) -> torch.Tensor:
    if num_labels == 0:
        raise ValueError("lists of labels need a column of ClassLabel, which knows how many there are")
    several_NC = torch.zeros(len(labels), num_labels)
    for number, row in enumerate(labels):
        several_NC[number, list(row)] = 1.0
    return several_NC


def _with_blanks(sentences: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase) -> list[list[str]]:
    """Words as the tokenizer is to see them: byte-pair encodings mark words by the blank before them."""
    if not tokenizer.is_fast:
        raise UserError(
            f"{type(tokenizer).__name__} does not tell which word a token is of; "
            f"token classification needs a fast tokenizer"
        )
    text, words, blanks = (
        tokenizer(text, is_split_into_words=isinstance(text, list))["input_ids"]
        for text in ("a b", ["a", "b"], ["a", " b"])
    )
    if words == text or blanks != text:
        return [list(sentence) for sentence in sentences]
    return [[word if place == 0 else f" {word}" for place, word in enumerate(sentence)] for sentence in sentences]


def _token_labels(words: Sequence[Sequence[int | None]], labels: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Labels (M,) of all tokens, from the number of the word that each is of (None for special tokens)."""
    rows = []
    for words_T, tags in zip(words, labels):
        words_of = np.asarray([-1 if word is None else word for word in words_T], dtype=np.int64)
        is_first = (words_of >= 0) & (words_of != np.concatenate([[-1], words_of[:-1]]))
        rows.append(np.where(is_first, np.asarray([*tags, UNCOUNTED], dtype=np.int64)[words_of], UNCOUNTED))
    found = np.concatenate(rows)
    total, counted = sum(map(len, labels)), int((found != UNCOUNTED).sum())
    if counted < total:
        _logger.warning("%d of %d words are cut off or have no token, and do not count", total - counted, total)
    return found
