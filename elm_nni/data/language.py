"""Packed text as a language-modelling task: the token that each position has to predict.

Shape suffixes: B batch (rows), T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from elm_nni.data.metrics import UNCOUNTED
from elm_nni.data.packing import PackedCorpus
from elm_nni.digest import derive_seed
from elm_nni.errors import UserError

_ROWS_AT_ONCE = 64


def next_tokens(input_ids_BT: Tensor, document_ids_BT: Tensor) -> Tensor:
    """The token after each, (B, T); ``UNCOUNTED`` at the last token of a document and in padding.

    Example:
        >>> next_tokens(torch.tensor([[5, 6, 7]]), torch.tensor([[1, 1, 2]])).tolist()
        [[6, -100, -100]]
    """
    labels_BT = torch.full_like(input_ids_BT, UNCOUNTED)
    same_BT = (document_ids_BT[:, 1:] == document_ids_BT[:, :-1]) & (document_ids_BT[:, 1:] > 0)
    labels_BT[:, :-1] = torch.where(same_BT, input_ids_BT[:, 1:], labels_BT[:, :-1])
    return labels_BT


@dataclass(frozen=True)
class Masking:
    """Hides tokens for a masked language model (BERT, arXiv 1810.04805, section 3.1).

    Of the tokens that are not special a share is chosen; eight in ten of them become the mask token, one a random
    token, one stays.

    Attributes:
        mask_id: the token that hides.
        special_ids: never chosen and never drawn.
        vocab_size: random tokens are drawn below it.
        share: in (0, 1).
    """

    mask_id: int
    special_ids: tuple[int, ...]
    vocab_size: int
    share: float = 0.15

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Masking:
        """Reads the mask token and the special tokens off a tokenizer.

        Raises:
            UserError: the tokenizer has no mask token.
        """
        if tokenizer.mask_token_id is None:
            raise UserError("the teacher's tokenizer has no mask token: masked language modelling needs one")
        return cls(tokenizer.mask_token_id, tuple(sorted(set(tokenizer.all_special_ids))), len(tokenizer))

    @cached_property
    def _ordinary_ids(self) -> NDArray[np.int64]:
        return np.setdiff1d(np.arange(self.vocab_size), self.special_ids)

    def __call__(
        self, input_ids_T: NDArray[np.int64], valid_T: NDArray[np.bool_], rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The ids of one row with tokens hidden, and the labels, (T,) each; at least one is chosen where any can be."""
        free = np.flatnonzero(valid_T & ~np.isin(input_ids_T, self.special_ids))
        labels_T = np.full_like(input_ids_T, UNCOUNTED)
        if not len(free):
            return input_ids_T, labels_T
        chosen = rng.permutation(free)[: max(1, round(self.share * len(free)))]
        labels_T[chosen] = input_ids_T[chosen]
        fate = rng.random(len(chosen))
        drawn = rng.choice(self._ordinary_ids, len(chosen))
        hidden_T = input_ids_T.copy()
        hidden_T[chosen] = np.where(fate < 0.8, self.mask_id, np.where(fate < 0.9, drawn, input_ids_T[chosen]))
        return hidden_T, labels_T


@dataclass(frozen=True)
class LanguageData:
    """What a language-modelling task says of itself, as ``TaskData`` does of others."""

    name: str
    kind: Literal["causal_lm", "masked_lm"]
    max_length: int
    metric: str = "log_likelihood"
    label_names: tuple[str, ...] = ()
    num_labels: int = 1
    is_pair: bool = False

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric to report, the main one first; hidden tokens alone are no text whose bytes could be counted."""
        return ("log_likelihood", "perplexity", *(["bits_per_byte"] if self.kind == "causal_lm" else []))


class LanguageRows:
    """Packed rows with labels for a language model; itself a tokenised split.

    Args:
        packed: the rows.
        tokenizer: that they were made with.
        masking: None for a causal model, which predicts the next token; else tokens are hidden.
        seed: of the masks, which are a function of (seed, row, ``step``): those of an evaluation never change.

    Example::

        LanguageRows(held_out, tokenizer, Masking.of(tokenizer)).batch([0, 1])["labels"]   # (2, T)
    """

    def __init__(
        self, packed: PackedCorpus, tokenizer: PreTrainedTokenizerBase, masking: Masking | None, *, seed: int = 0
    ) -> None:
        self.packed, self.tokenizer, self.masking, self.seed = packed, tokenizer, masking, seed
        self.lengths = np.full(len(packed), packed.sequence_length, dtype=np.int64)

    @cached_property
    def labels(self) -> Tensor:
        """The labels of all rows' tokens one after the other, (sum of lengths,)."""
        return self.batch(range(len(self)))["labels"].flatten()

    @cached_property
    def num_bytes(self) -> int:
        """UTF-8 bytes of the text that a causal model predicts here: that of each document but for its first token."""
        total = 0
        for start in range(0, len(self), _ROWS_AT_ONCE):
            batch = self.batch(range(start, min(start + _ROWS_AT_ONCE, len(self))))
            pieces = [
                labels_T[places].tolist()
                for labels_T, documents_T in zip(batch["labels"].numpy(), batch["document_ids"].numpy())
                for places in _documents(documents_T, labels_T != UNCOUNTED)
            ]
            texts = self.tokenizer.batch_decode(pieces, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            total += sum(len(text.encode()) for text in texts)
        return total

    def __len__(self) -> int:
        return len(self.packed)

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask``, ``document_ids`` and ``labels`` of some rows, int64 (B, T)."""
        return self.training_batch(indices, step=-1)

    def training_batch(self, indices: Sequence[int], step: int) -> dict[str, Tensor]:
        """The same with masks of a training step: a row is masked anew each time that it comes."""
        return with_labels(self.packed.batch(list(indices)), self.masking, self._rngs(indices, step))

    def _rngs(self, indices: Sequence[int], step: int) -> Callable[[int], np.random.Generator]:
        return lambda place: np.random.default_rng(derive_seed(self.seed, f"mask/{step}", int(indices[place])))


def with_labels(
    batch: dict[str, Tensor], masking: Masking | None, rng_of: Callable[[int], np.random.Generator]
) -> dict[str, Tensor]:
    """A batch of packed rows with ``labels`` (B, T), and with hidden tokens where ``masking`` is given.

    Args:
        batch: as of ``PackedCorpus.batch``.
        masking: None for the next token.
        rng_of: place in the batch to the generator of that row's mask.
    """
    if masking is None:
        return {**batch, "labels": next_tokens(batch["input_ids"], batch["document_ids"])}
    valid_BT = batch["document_ids"].numpy() > 0
    pairs = [
        masking(ids_T, valid_T, rng_of(place))
        for place, (ids_T, valid_T) in enumerate(zip(batch["input_ids"].numpy(), valid_BT))
    ]
    hidden, labels = (torch.from_numpy(np.stack(part)) for part in zip(*pairs))
    return {**batch, "input_ids": hidden, "labels": labels}


def _documents(documents_T: NDArray[np.int64], counted_T: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """The places of counted labels of each document."""
    return [np.flatnonzero(counted_T & (documents_T == number)) for number in np.unique(documents_T[counted_T])]
