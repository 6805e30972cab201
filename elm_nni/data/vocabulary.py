"""A smaller vocabulary for a student: only the tokens that its corpus uses, with the way back to the teacher's ids.

At 5 to 15 million parameters the token table is most of a model. On every text that was counted, a tokenizer that was
trimmed with ``min_count=1`` splits as before, token for token, so a teacher that is fed ``kept_ids_V[ids]`` sees what
it would have seen.

Shape suffixes: V tokens of a vocabulary, B rows, T tokens of a row.
"""

from __future__ import annotations

import json
import string
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from elm_nni.data.packing import PackedCorpus
from elm_nni.data.rows import tokenize_documents
from elm_nni.data.vocabulary_rules import PieceModel, named_ids, piece_model, splits_alike, trimmed_state
from elm_nni.digest import digest
from elm_nni.errors import UserError, first_line
from elm_nni.files import write_text

Alphabet = Literal["all", "used"]

_MAP_FILE = "kept_ids.json"
_COUNT_ROWS = 4096


def num_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the highest id: ``len(tokenizer)``, or more where ids are left out; a token table may have more.

    Example:
        >>> num_ids(tokenizer)  # doctest: +SKIP
        30522
    """
    return max(tokenizer.get_vocab().values()) + 1


def count_tokens(tokens: PackedCorpus | Iterable[ArrayLike], vocab_size: int) -> NDArray[np.int64]:
    """How often each id occurs.

    Args:
        tokens: a packed corpus, read some thousand rows at a time, its padding not counted; or arrays of ids.
        vocab_size: V, above all ids.

    Returns:
        (V,) int64; zeros where there is nothing to count.

    Raises:
        UserError: an id outside 0..V - 1.

    Example:
        >>> count_tokens([[0, 2, 2], [1]], 4).tolist()
        [1, 1, 2, 0]
    """
    counts_V = np.zeros(vocab_size, dtype=np.int64)
    for ids in _packed_ids(tokens) if isinstance(tokens, PackedCorpus) else tokens:
        flat = np.asarray(ids, dtype=np.int64).ravel()
        if len(flat) and not (flat.min() >= 0 and flat.max() < vocab_size):
            raise UserError(f"token ids range over {flat.min()}..{flat.max()}: must lie within 0..{vocab_size - 1}")
        counts_V += np.bincount(flat, minlength=vocab_size)
    return counts_V


def _packed_ids(corpus: PackedCorpus) -> Iterable[NDArray[np.int64]]:
    for start in range(0, len(corpus), _COUNT_ROWS):
        batch = corpus.batch(range(start, min(start + _COUNT_ROWS, len(corpus))))
        yield batch["input_ids"][batch["document_ids"] > 0].numpy()


def count_texts(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int64]:
    """How often each token occurs in texts, without special tokens; (V,) int64, V = ``num_ids(tokenizer)``.

    Example:
        >>> counts_V = count_tokens(packed, num_ids(tokenizer)) + count_texts(task_texts, tokenizer)  # doctest: +SKIP
    """
    return count_tokens(tokenize_documents(texts, tokenizer), num_ids(tokenizer))


@dataclass(frozen=True)
class VocabularySize:
    """A size of vocabulary and what it costs.

    Attributes:
        num_tokens: most frequent tokens kept.
        coverage: their share of the corpus' tokens, 0 to 1.
        num_parameters: of a token table with so many rows.
    """

    num_tokens: int
    coverage: float
    num_parameters: int

    def __str__(self) -> str:
        return f"{self.num_tokens:,} tokens: {self.coverage:.1%} of the corpus, {self.num_parameters:,} parameters"


def vocabulary_table(counts_V: ArrayLike, embedding_size: int, sizes: Sequence[int]) -> list[VocabularySize]:
    """Coverage and token table for the most frequent tokens, one line a size (see ``str``).

    The coverage is the highest at that size: of a trimmed vocabulary some rows are special tokens and the alphabet.
    Sizes above V count as V; without any counted token the coverage is 0.

    Raises:
        ValueError: ``embedding_size`` or a size below 1.

    Example:
        >>> print(vocabulary_table([5, 3, 2, 0], 8, [2])[0])
        2 tokens: 80.0% of the corpus, 16 parameters
    """
    if embedding_size < 1 or any(size < 1 for size in sizes):
        raise ValueError(f"embedding_size and sizes must be at least 1, got {embedding_size} and {list(sizes)}")
    falling_V = np.sort(np.asarray(counts_V, dtype=np.int64))[::-1]
    kept = [min(size, len(falling_V)) for size in sizes]
    return [VocabularySize(size, _share(falling_V[:size], falling_V), size * embedding_size) for size in kept]


def _share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> float:
    total = int(whole.sum())
    return int(part.sum()) / total if total else 0.0


@dataclass(frozen=True, eq=False)
class TrimmedVocabulary:
    """A tokenizer with fewer tokens, and the original's id of each.

    Attributes:
        tokenizer: ids 0..V - 1, in the order of the original.
        kept_ids_V: (V,) int64, original id of each new id: ``kept_ids_V[ids]`` is what the teacher takes.
        coverage: share of the counted tokens whose id is kept, 0 to 1.
        num_original: ids of the original.

    Example:
        >>> trimmed = trim_tokenizer(tokenizer, count_texts(texts, tokenizer))  # doctest: +SKIP
        >>> trimmed.kept_ids_V[trimmed.tokenizer(texts[0])["input_ids"]]  # doctest: +SKIP
        array([ 101, 1037, 2143,  102])
    """

    tokenizer: PreTrainedTokenizerBase
    kept_ids_V: NDArray[np.int64]
    coverage: float
    num_original: int

    def __len__(self) -> int:
        return len(self.kept_ids_V)

    @property
    def num_dropped(self) -> int:
        return self.num_original - len(self)

    @property
    def digest(self) -> str:
        """Name of the kept ids."""
        return digest(self.kept_ids_V.tolist())

    def remap(self, original_ids: ArrayLike) -> NDArray[np.int64]:
        """New ids of original ones, in the same shape.

        Raises:
            KeyError: the token of an id was dropped, or there is no such id. It has no other place: split its text
                again with ``tokenizer``.

        Example:
            >>> packed_ids = trimmed.remap(corpus.batch([0])["input_ids"])  # doctest: +SKIP
        """
        ids = np.asarray(original_ids, dtype=np.int64)
        places = np.minimum(np.searchsorted(self.kept_ids_V, ids), len(self) - 1)
        wrong = self.kept_ids_V[places] != ids
        if wrong.any():
            raise KeyError(f"token id {ids[wrong].flat[0]} is not in the trimmed vocabulary of {len(self)} tokens")
        return places

    def save(self, folder: Path) -> None:
        """Writes the tokenizer as transformers does, and ``kept_ids.json`` beside it.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            self.tokenizer.save_pretrained(folder)
        except OSError as error:
            raise UserError(f"tokenizer cannot be written to {folder}: {error.strerror or error}") from error
        facts = {"num_original": self.num_original, "coverage": self.coverage, "digest": self.digest}
        write_text(Path(folder) / _MAP_FILE, json.dumps(facts | {"kept_ids": self.kept_ids_V.tolist()}))

    @classmethod
    def load(cls, folder: Path) -> TrimmedVocabulary:
        """Reads what ``save`` wrote.

        Raises:
            UserError: files are missing, changed, or not of one vocabulary.

        Example:
            >>> TrimmedVocabulary.load(Path("runs/nano/vocabulary")).coverage  # doctest: +SKIP
            0.989
        """
        try:
            facts = json.loads((Path(folder) / _MAP_FILE).read_text(encoding="utf-8"))
            tokenizer = AutoTokenizer.from_pretrained(folder)
            kept_ids_V = np.asarray(facts["kept_ids"], dtype=np.int64)
            found = cls(tokenizer, kept_ids_V, facts["coverage"], facts["num_original"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder} holds no trimmed vocabulary: {first_line(error)}") from error
        if found.digest != facts.get("digest") or num_ids(tokenizer) != len(found):
            raise UserError(
                f"{folder}: {_MAP_FILE} names {len(found)} tokens, the tokenizer has {num_ids(tokenizer)}: "
                "must be files of one trimmed vocabulary; make it again"
            )
        return found


def trim_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    counts_V: ArrayLike,
    *,
    min_count: int = 1,
    max_size: int | None = None,
    alphabet: Alphabet = "all",
) -> TrimmedVocabulary:
    """A copy of a fast tokenizer with fewer tokens; the one given stays as it is.

    Kept besides the counted tokens: special and added tokens, ids that a template names, the unknown token, single
    bytes, in byte-pair encoding all parts of a kept token, and an alphabet of pieces of one character, so that a text
    without its long tokens falls back to shorter ones. BERT's vocabulary has 1,994 such pieces (997 characters, each at
    the beginning and inside of a word), of which "used" keeps under 200 for English text.

    With ``min_count=1`` and no ``max_size`` counted texts keep their tokens. One exception: a WordPiece vocabulary with
    pieces whose characters have no piece of their own (BERT's has none, nor have those the library ``tokenizers``
    trains) may split a word that was unknown.

    Args:
        tokenizer: WordPiece (BERT), byte-pair encoding (GPT-2, RoBERTa) or Unigram (T5, XLM-R).
        counts_V: (V,) how often each id occurs, from ``count_tokens``; V = ``num_ids(tokenizer)``.
        min_count: least count of a token that is kept for its count.
        max_size: most tokens in all; the most frequent ones are taken, of equal ones the lowest ids.
        alphabet: "all" keeps every single character, so that no text becomes unknown that was not; "used" those of
            counted tokens and of ASCII, so that no counted text does. Bytes are always all kept.

    Raises:
        UserError: a slow tokenizer, another kind of model, counts of another length, or a ``max_size`` too small for
            what must be kept.
        ValueError: ``min_count`` < 1, or an alphabet of another name.

    Example:
        >>> trimmed = trim_tokenizer(tokenizer, count_tokens(packed, len(tokenizer)), max_size=16384)  # doctest: +SKIP
        >>> config.vocab_size = len(trimmed)  # doctest: +SKIP
    """
    if min_count < 1:
        raise ValueError(f"min_count must be at least 1, got {min_count}")
    if alphabet not in ("all", "used"):
        raise ValueError(f"alphabet must be all or used, got {alphabet!r}")
    state = _state(tokenizer)
    model = piece_model(state["model"])
    counts = np.asarray(counts_V, dtype=np.int64)
    if counts.shape != (num_ids(tokenizer),):
        raise UserError(f"counts have shape {counts.shape}: must be ({num_ids(tokenizer)},), one for each token id")
    special = named_ids(state) | {id for id in tokenizer.all_special_ids if id is not None}
    characters = None if alphabet == "all" else _used_characters(model, counts, special)
    fixed = model.with_parts(special | model.fixed() | model.alphabet(characters))
    if max_size is not None and len(fixed) > max_size:
        hint = "" if alphabet == "used" else '; alphabet="used" needs fewer'
        raise UserError(
            f"vocabulary.max_size={max_size}: must be at least {len(fixed)}, the special tokens and the alphabet of "
            f"this tokenizer{hint}"
        )
    kept = np.asarray(sorted(_with_frequent(model, fixed, counts, min_count, max_size)), dtype=np.int64)
    new_ids = {int(old): new for new, old in enumerate(kept)}
    smaller = _rebuilt(tokenizer, trimmed_state(state, model, new_ids))
    return TrimmedVocabulary(smaller, kept, _share(counts[kept], counts), len(counts))


def _state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    if not tokenizer.is_fast:
        raise UserError(f"tokenizer {type(tokenizer).__name__} is a slow one: only fast tokenizers can be trimmed")
    state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return state


def _used_characters(model: PieceModel, counts: NDArray[np.int64], special: set[int]) -> set[str]:
    used = (piece for piece, id in model.ids.items() if counts[id] and id not in special)
    return set(string.printable).union(*map(model.characters, used))


def _with_frequent(
    model: PieceModel, fixed: set[int], counts: NDArray[np.int64], min_count: int, max_size: int | None
) -> set[int]:
    frequent = np.flatnonzero(counts >= min_count)
    kept = set(fixed)
    for id in frequent[np.argsort(-counts[frequent], kind="stable")].tolist():
        # what is there already has its parts there
        added = set() if id in kept else model.with_parts([id]) - kept
        if max_size is None or len(kept) + len(added) <= max_size:
            kept |= added
    return kept


def _rebuilt(tokenizer: PreTrainedTokenizerBase, state: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer with another backend, built by reading it from files: what is saved later is what was made here."""
    # set after loading, these would not be saved
    settings = {name: getattr(tokenizer, name) for name in ("model_max_length", "padding_side", "truncation_side")}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        (Path(folder) / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
        # Some classes build the backend anew from the vocabulary alone; the general class takes it as it is.
        for kind in (type(tokenizer), PreTrainedTokenizerFast):
            smaller = kind.from_pretrained(folder, model_input_names=tokenizer.model_input_names, **settings)
            if splits_alike(_state(smaller), state):
                smaller.name_or_path = tokenizer.name_or_path
                return smaller
    raise UserError(f"tokenizer {type(tokenizer).__name__} does not read back what it saves: it cannot be trimmed")
