"""Entities in sequences of tags, and their F1 as the shared tasks of CoNLL count it.

Shape suffixes: N rows, M tokens of all rows one after the other, C tags.
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

_PREFIXED = re.compile(r"(?P<prefix>[BIES])(?:-(?P<type>.*))?")
_OUTSIDE = ("O", "")


def has_entity_tags(label_names: Sequence[str]) -> bool:
    """Whether tags mark entities of several words, as ``B-PER`` and ``I-PER`` do.

    Example:
        >>> has_entity_tags(("O", "B-PER", "I-PER")), has_entity_tags(("NOUN", "VERB"))
        (True, False)
    """
    return any(_parts(label_names))


def _parts(label_names: Sequence[str]) -> list[re.Match[str] | None]:
    """Prefix and type of each tag; None of one that marks no entity."""
    parts = [_PREFIXED.fullmatch(name) for name in label_names]
    # among other tags, such as N and V, a letter alone is a tag as they are
    if any(part is None and name not in _OUTSIDE for part, name in zip(parts, label_names)):
        return [part if part and part["type"] is not None else None for part in parts]
    return parts


class _Tags:
    """What each tag says, by its id: its type (-1 outside), may it go on, and may the next go on from it, (C,)."""

    def __init__(self, label_names: Sequence[str]) -> None:
        parts = _parts(label_names)
        # a tag PER without a prefix is another thing than the entities of type PER
        keys = [(part["type"] or "",) if part else (name, "token") for part, name in zip(parts, label_names)]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        self.type_C = np.array([
            -1 if name in _OUTSIDE else numbers[key] for name, key in zip(label_names, keys)
        ])  # fmt: skip
        self.goes_on_C = np.array([part is not None and part["prefix"] in "IE" for part in parts])
        self.stays_open_C = np.array([part is not None and part["prefix"] in "BI" for part in parts])

    def spans(self, tags_M: NDArray, rows_M: NDArray) -> set[tuple[int, int, int]]:
        """First token, token after the last, and type of every entity."""
        type_M, before = self.type_C[tags_M], slice(None, -1)
        goes_on_M = np.zeros(len(tags_M), dtype=bool)
        goes_on_M[1:] = (
            self.goes_on_C[tags_M[1:]]
            & self.stays_open_C[tags_M[before]]
            & (type_M[1:] == type_M[before])
            & (rows_M[1:] == rows_M[before])
        )
        firsts = np.flatnonzero((type_M >= 0) & ~goes_on_M)
        breaks = np.append(np.flatnonzero(~goes_on_M), len(tags_M))
        ends = breaks[np.searchsorted(breaks, firsts, side="right")]
        return set(zip(firsts.tolist(), ends.tolist(), type_M[firsts].tolist()))


def entity_f1(predictions: ArrayLike, labels: ArrayLike, *, lengths: ArrayLike, label_names: Sequence[str]) -> float:
    """Micro-averaged F1 of entities: one is found when its first token, its last token and its type are all right.

    An entity begins at a tag ``B-X``, and at ``I-X`` where no open entity of type X stands before it in the row. Tags
    ``E-X`` (last token) and ``S-X`` (single token) are read too. A tag without such a prefix, ``O`` apart, is an entity
    of its one token, so that for tags such as parts of speech this is F1 over tokens, and accuracy where no tag is
    ``O``. Without any entity on either side it is 0.

    Source: Tjong Kim Sang and De Meulder, Introduction to the CoNLL-2003 shared task, section 2.4.

    Args:
        predictions: (M,) ids of tags, the tokens of all rows one after the other.
        labels: (M,) likewise.
        lengths: (N,) tokens of each row; their sum is M.
        label_names: (C,) the tags in order of their ids.

    Raises:
        ValueError: lengths do not add up, or an id is none of a tag.

    Example:
        >>> entity_f1([1, 2, 0], [1, 2, 1], lengths=[3], label_names=("O", "B-PER", "I-PER"))
        0.6666666666666666
    """
    predictions_M, labels_M = np.asarray(predictions), np.asarray(labels)
    lengths_N = np.asarray(lengths, dtype=np.int64)
    if not lengths_N.sum() == len(labels_M) == len(predictions_M):
        raise ValueError(
            f"lengths add up to {lengths_N.sum()} tokens, but there are {len(predictions_M)} predictions "
            f"and {len(labels_M)} labels"
        )
    for ids_M in (predictions_M, labels_M):
        if len(ids_M) and not (ids_M.min() >= 0 and ids_M.max() < len(label_names)):
            raise ValueError(f"tags must be ids within 0..{len(label_names) - 1}, got {ids_M.min()}..{ids_M.max()}")
    tags, rows_M = _Tags(label_names), np.repeat(np.arange(len(lengths_N)), lengths_N)
    found, wanted = tags.spans(predictions_M, rows_M), tags.spans(labels_M, rows_M)
    return 2 * len(found & wanted) / max(len(found) + len(wanted), 1)
