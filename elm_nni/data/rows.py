"""Documents as rows of a fixed number of tokens: the packing itself, and the tokenizing before it.

Source of the idea: Krell et al., "Efficient sequence packing without cross-contamination", arXiv 2107.02027. The model
keeps documents of a row apart by ``document_ids``.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from elm_nni.digest import digest

# Shape suffixes: T tokens of a row.

_TOKENISE_DOCUMENTS = 256
_TOKENISE_CHARACTERS = 1 << 18


@dataclass(frozen=True)
class Layout:
    """How documents become rows: the row's length and the tokens that frame each piece.

    Attributes:
        sequence_length: T.
        prefix: ids before each piece (CLS for BERT).
        suffix: ids after each piece (SEP for BERT).
        ending: ids after the last token of a document (end of text, for tokenizers without a suffix).
        pad_id: id in the padding.
    """

    sequence_length: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    ending: tuple[int, ...]
    pad_id: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, sequence_length: int) -> "Layout":
        """Reads the frame off the tokenizer itself.

        Raises:
            ValueError: ``sequence_length`` leaves no room for four tokens of text in a row.

        Example:
            >>> Layout.of(tokenizer, 128).prefix  # doctest: +SKIP
            (101,)
        """
        plain = tokenizer("a", add_special_tokens=False)["input_ids"]
        framed = tokenizer("a")["input_ids"]
        start = next(
            (place for place in range(len(framed)) if framed[place : place + len(plain)] == plain), len(framed)
        )
        prefix, suffix = tuple(framed[:start]), tuple(framed[start + len(plain) :])
        if sequence_length < len(prefix) + len(suffix) + 4:
            raise ValueError(
                f"sequence_length must be at least {len(prefix) + len(suffix) + 4} for this tokenizer, "
                f"got {sequence_length}"
            )
        eos = tokenizer.eos_token_id
        ending = () if suffix or not isinstance(eos, int) else (eos,)
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        return cls(sequence_length, prefix, suffix, ending, pad_id)

    @property
    def room(self) -> int:
        """Text tokens of one piece that fills a row."""
        return self.sequence_length - len(self.prefix) - len(self.suffix)


@dataclass(frozen=True)
class Position:
    """Where the next row begins: passes over the corpus done, documents done, tokens of the next document done."""

    epoch: int = 0
    document: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Row:
    """One packed row: ``input_ids_T``, ``document_ids_T`` (0 padding, 1.. documents) and where the next row begins."""

    input_ids_T: NDArray[np.int64]
    document_ids_T: NDArray[np.int64]
    next: Position


class _OpenRow:
    """The row that is being filled."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._ids: list[int] = []
        self._documents: list[int] = []
        self._count = 0

    @property
    def room(self) -> int:
        """Text tokens that a further piece may have."""
        return self._layout.room - len(self._ids)

    @property
    def is_empty(self) -> bool:
        return not self._ids

    def add(self, tokens: Sequence[int]) -> None:
        piece = [*self._layout.prefix, *tokens, *self._layout.suffix]
        self._count += 1
        self._ids.extend(piece)
        self._documents.extend([self._count] * len(piece))

    def close(self, position: Position) -> Row:
        length = self._layout.sequence_length
        ids_T = np.full(length, self._layout.pad_id, dtype=np.int64)
        documents_T = np.zeros(length, dtype=np.int64)
        ids_T[: len(self._ids)] = self._ids
        documents_T[: len(self._documents)] = self._documents
        self._ids, self._documents, self._count = [], [], 0
        return Row(ids_T, documents_T, position)


def pack_rows(documents: Iterable[Sequence[int]], layout: Layout, start: Position | None = None) -> Iterator[Row]:
    """Packs tokenised documents into rows, in order and greedily, so that the result depends on nothing else.

    A document that fits into a row is never cut: it joins the open row where it fits, or opens the next. A longer one
    first fills the open row (if an eighth of a row is left), then whole rows, and its tail shares a row with what
    follows. Documents without tokens are left out.

    Args:
        documents: token ids without special tokens, beginning with document ``start.document``.
        layout: row length and frame.
        start: position of a row from an earlier pass over the same documents; by default their beginning.

    Example:
        >>> rows = list(pack_rows([[5, 6], [7]], layout))  # doctest: +SKIP
    """
    start = start or Position()
    row, offset = _OpenRow(layout), start.offset
    # at least one token, or a full row would never be closed
    least_piece = max(1, layout.sequence_length // 8)
    number = start.document
    for number, document in enumerate(documents, start.document):
        tokens = [*document, *layout.ending] if len(document) else []
        may_cut = len(tokens) > layout.room
        while offset < len(tokens):
            left = len(tokens) - offset
            if left > row.room and not row.is_empty and not (may_cut and row.room >= least_piece):
                yield row.close(Position(start.epoch, number, offset))
                continue
            taken = min(left, row.room)
            row.add(tokens[offset : offset + taken])
            offset += taken
        offset = 0
    if not row.is_empty:
        yield row.close(Position(start.epoch, number + 1, 0))


def _text_batches(texts: Iterable[str], batch_size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    num_characters = 0
    for text in texts:
        batch.append(text)
        num_characters += len(text)
        # long documents go in small batches, so that a reader who stops early has not paid for many more
        if len(batch) == batch_size or num_characters >= _TOKENISE_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


def tokenize_documents(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, batch_size: int = _TOKENISE_DOCUMENTS
) -> Iterator[list[int]]:
    """Token ids of each text, without special tokens and uncut, computed in batches.

    Example:
        >>> next(tokenize_documents(["a film"], tokenizer))  # doctest: +SKIP
        [1037, 2143]
    """
    for batch in _text_batches(texts, batch_size):
        encoded = tokenizer(
            batch,
            add_special_tokens=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        yield from encoded["input_ids"]


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Name of what a tokenizer does to text; how it was used before (padding, truncation) does not count.

    Example:
        >>> tokenizer_digest(tokenizer) == tokenizer_digest(copy_of_it)  # doctest: +SKIP
        True
    """
    parts: dict[str, Any] = {"class": type(tokenizer).__name__}
    if tokenizer.is_fast:
        settings = json.loads(tokenizer.backend_tokenizer.to_str())
        parts["backend"] = {key: value for key, value in settings.items() if key not in ("padding", "truncation")}
    else:
        parts["vocabulary"] = tokenizer.get_vocab()
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return digest(parts | {"special": special})
