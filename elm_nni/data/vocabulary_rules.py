"""A serialised tokenizer of the library ``tokenizers`` with fewer pieces, and what it must hold to go on working."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from elm_nni.errors import UserError

_BYTE_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))


class PieceModel:
    """Pieces of a vocabulary with their ids, and which of them depend on which.

    Args:
        settings: the ``model`` part of the serialised tokenizer.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.ids = self._read_ids()
        self._prefix: str = settings.get("continuing_subword_prefix") or ""
        self._suffix: str = settings.get("end_of_word_suffix") or ""

    def _read_ids(self) -> dict[str, int]:
        return dict(self.settings["vocab"])

    def characters(self, piece: str) -> str:
        """The text of a piece, without the marks of a continued or ended word."""
        return piece.removeprefix(self._prefix).removesuffix(self._suffix)

    def spelled(self, piece: str) -> list[str]:
        """The pieces of one character that stand for ``piece`` when it is gone."""
        text = self.characters(piece)
        starts_word = not self._prefix or not piece.startswith(self._prefix)
        letters = [letter if starts_word and place == 0 else self._prefix + letter for place, letter in enumerate(text)]
        if letters and self._suffix and piece.endswith(self._suffix):
            letters[-1] += self._suffix
        return letters

    def alphabet(self, characters: set[str] | None) -> set[int]:
        """Ids of the pieces of one character, and of the pieces that cannot be spelled with such.

        Args:
            characters: only pieces all of whose characters are among these; None for no limit.
        """
        return {
            id
            for piece, id in self.ids.items()
            if (characters is None or characters.issuperset(self.characters(piece)))
            and (len(self.characters(piece)) == 1 or not all(letter in self.ids for letter in self.spelled(piece)))
        }

    def fixed(self) -> set[int]:
        """Ids that every smaller vocabulary keeps, whatever the text: the unknown token and the bytes."""
        unknown = self.settings.get("unk_token")
        found = set() if unknown is None else self._known([unknown])
        return found | (self._known(_BYTE_PIECES) if self.settings.get("byte_fallback") else set())

    def _known(self, pieces: Iterable[str]) -> set[int]:
        return {self.ids[piece] for piece in pieces if piece in self.ids}

    def with_parts(self, ids: Iterable[int]) -> set[int]:
        """The ids, and those of the pieces that they are made of."""
        return set(ids)

    def trimmed(self, new_ids: Mapping[int, int]) -> dict[str, Any]:
        """The settings with the pieces of ``new_ids`` (old id -> new id) alone."""
        vocabulary = {piece: new_ids[id] for piece, id in self.ids.items() if id in new_ids}
        return {**self.settings, "vocab": vocabulary}


class WordPieceModel(PieceModel):
    """Longest match first (BERT)."""


class BpeModel(PieceModel):
    """Pairs merged in the order of their rank (GPT-2, RoBERTa); a piece is made of the parts of all its merges."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self._merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in settings["merges"]]
        self._parts: dict[int, set[int]] = {}
        for left, right in self._merges:
            self._parts.setdefault(self.ids[self._joined(left, right)], set()).update(self._known((left, right)))

    def _joined(self, left: str, right: str) -> str:
        return left + right.removeprefix(self._prefix)

    def alphabet(self, characters: set[str] | None) -> set[int]:
        # with all bytes there is no text that cannot be written, and they are few
        is_byte_level = all(letter in self.ids for letter in ByteLevel.alphabet())
        return super().alphabet(None if is_byte_level else characters)

    def with_parts(self, ids: Iterable[int]) -> set[int]:
        found: set[int] = set()
        waiting = list(ids)
        while waiting:
            id = waiting.pop()
            if id not in found:
                found.add(id)
                waiting.extend(self._parts.get(id, ()))
        return found

    def trimmed(self, new_ids: Mapping[int, int]) -> dict[str, Any]:
        settings = super().trimmed(new_ids)
        kept = settings["vocab"]
        settings["merges"] = [
            [left, right]
            for left, right in self._merges
            if left in kept and right in kept and self._joined(left, right) in kept
        ]
        return settings


class UnigramModel(PieceModel):
    """Most likely split by the scores of the pieces (T5, XLM-R)."""

    def _read_ids(self) -> dict[str, int]:
        return {piece: id for id, (piece, _) in enumerate(self.settings["vocab"])}

    def fixed(self) -> set[int]:
        scores = [score for _, score in self.settings["vocab"]]
        # the cost of an unknown character is counted from the lowest score of all pieces
        found = super().fixed() | {scores.index(min(scores))}
        unknown = self.settings.get("unk_id")
        return found if unknown is None else found | {unknown}

    def trimmed(self, new_ids: Mapping[int, int]) -> dict[str, Any]:
        unknown = self.settings.get("unk_id")
        pieces = [entry for id, entry in enumerate(self.settings["vocab"]) if id in new_ids]
        return {**self.settings, "vocab": pieces, "unk_id": None if unknown is None else new_ids[unknown]}


_MODELS: dict[str, type[PieceModel]] = {"WordPiece": WordPieceModel, "BPE": BpeModel, "Unigram": UnigramModel}


def piece_model(settings: Mapping[str, Any]) -> PieceModel:
    """The rules of a serialised ``model``.

    Raises:
        UserError: a kind of model that is not known.

    Example:
        >>> piece_model({"type": "WordPiece", "vocab": {"a": 0}}).ids
        {'a': 0}
    """
    kind = settings.get("type")
    if kind not in _MODELS:
        raise UserError(f"a tokenizer model of type {kind} cannot be trimmed; allowed: {', '.join(_MODELS)}")
    return _MODELS[kind](settings)


def named_ids(state: dict[str, Any]) -> set[int]:
    """Ids that a serialised tokenizer names outside of its model."""
    found: set[int] = set()

    def note(id: int) -> int:
        found.add(id)
        return id

    _renumber(copy.deepcopy({key: value for key, value in state.items() if key != "model"}), note)
    return found


def trimmed_state(state: dict[str, Any], model: PieceModel, new_ids: dict[int, int]) -> dict[str, Any]:
    smaller = copy.deepcopy({key: value for key, value in state.items() if key != "model"})
    _renumber(smaller, new_ids.__getitem__)
    return smaller | {"model": model.trimmed(new_ids)}


def _renumber(state: dict[str, Any], new_id: Callable[[int], int]) -> None:
    for token in state["added_tokens"]:
        token["id"] = new_id(token["id"])
    if state["padding"]:
        state["padding"]["pad_id"] = new_id(state["padding"]["pad_id"])
    if state["post_processor"]:
        _renumber_template(state["post_processor"], new_id)


def _renumber_template(processor: dict[str, Any], new_id: Callable[[int], int]) -> None:
    if processor["type"] == "Sequence":
        for part in processor["processors"]:
            _renumber_template(part, new_id)
    elif processor["type"] == "TemplateProcessing":
        for token in processor["special_tokens"].values():
            token["ids"] = [new_id(id) for id in token["ids"]]
    elif processor["type"] in ("BertProcessing", "RobertaProcessing"):
        for name in ("sep", "cls"):
            processor[name][1] = new_id(processor[name][1])


def splits_alike(state: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two serialised tokenizers give the same ids; scores may differ by the rounding of their last digit."""
    parts = ("normalizer", "pre_tokenizer", "post_processor")
    tokens, other_tokens = ({token["content"]: token["id"] for token in one["added_tokens"]} for one in (state, other))
    same = all(state[part] == other[part] for part in parts) and tokens == other_tokens
    return same and _same_model(state["model"], other["model"])


def _same_model(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if any(one.get(name) != other.get(name) for name in {*one, *other} - {"vocab"}):
        return False
    if one["type"] != "Unigram":
        return bool(one["vocab"] == other["vocab"])
    return len(one["vocab"]) == len(other["vocab"]) and all(
        piece == same_piece and math.isclose(score, same_score, rel_tol=1e-12)
        for (piece, score), (same_piece, same_score) in zip(one["vocab"], other["vocab"], strict=True)
    )
