"""Splits of rows that depend on (the rows, a seed) alone, with no text in two of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from elm_nni.digest import derive_seed

# Data sets that bring a test split of their own give up this much of train, at most, for validation.
MAX_CARVED_VALIDATION = 2000

Key = tuple[str, ...]


def _text_keys(texts: Iterable[Sequence[Any]]) -> list[Key]:
    """What makes two rows the same: their texts (a list of words is one text), case and white space apart."""
    return [
        tuple(" ".join((piece if isinstance(piece, str) else " ".join(piece)).split()).casefold() for piece in pieces)
        for pieces in texts
    ]


@dataclass
class Table:
    """Rows as plain lists: of each its texts (or one list of words) and its label."""

    texts: list[tuple[Any, ...]]
    labels: list[Any]

    def take(self, rows: Sequence[int]) -> "Table":
        """Some rows, in the order given."""
        return Table([self.texts[row] for row in rows], [self.labels[row] for row in rows])

    def without(self, *others: "Table") -> "Table":
        """The rows whose texts are in none of the others."""
        known = {key for other in others for key in _text_keys(other.texts)}
        return self.take([row for row, key in enumerate(_text_keys(self.texts)) if key not in known])


def split_table(table: Table, tests: Sequence[Table], seed: int) -> tuple[Table, Table, Table]:
    """Train, validation and test rows.

    Without tests the rows are shuffled and cut 80/10/10. With them the first is the test, and a tenth of the rows (at
    most 2,000) becomes validation. Texts of any test are then dropped from validation and train, those of validation
    from train; each may end up empty.
    """
    order = np.random.default_rng(derive_seed(seed, "task-split")).permutation(len(table.labels)).tolist()
    if tests:
        carved = min(len(order) // 10, MAX_CARVED_VALIDATION)
        train, validation, test = table.take(order[carved:]), table.take(order[:carved]), tests[0]
    else:
        part = len(order) // 10
        held_out = len(order) - 2 * part
        train, test = table.take(order[:held_out]), table.take(order[held_out + part :])
        validation = table.take(order[held_out : held_out + part])
    validation = validation.without(test, *tests[1:])
    return train.without(validation, test, *tests[1:]), validation, test


def split_search_validation(
    train: datasets.Dataset, size: int = 512, seed: int = 0
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Cuts a fixed part from train on which a search compares candidates, so that validation stays unseen.

    Rows whose text occurs in the part are dropped from the rest. At most a fifth of train is taken.

    Returns:
        The rest of train and the part of ``min(size, rows // 5)`` rows.

    Raises:
        ValueError: ``size`` is not positive.

    Example:
        >>> rest, part = split_search_validation(load_task("polarity").train)
        >>> part.num_rows
        512
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 row, got {size}")
    order = np.random.default_rng(derive_seed(seed, "search-validation")).permutation(len(train)).tolist()
    taken = min(size, len(train) // 5)
    names = [name for name in ("text", "text_pair") if name in train.column_names]
    keys = _text_keys(zip(*(train[name][:] for name in names)))
    known = {keys[row] for row in order[:taken]}
    rest = sorted(row for row in order[taken:] if keys[row] not in known)
    return train.select(rest), train.select(sorted(order[:taken]))


def limit_rows(train: datasets.Dataset, most: int, seed: int = 0) -> datasets.Dataset:
    """At most so many rows, drawn by the seed; more rows hold those of fewer, and the order stays.

    Raises:
        ValueError: ``most`` is not positive.

    Example:
        >>> limit_rows(load_task("polarity").train, 1000).num_rows
        1000
    """
    return train.select(drawn_rows(len(train), most, seed))


def drawn_rows(num_rows: int, most: int, seed: int) -> list[int]:
    """Numbers of at most so many rows, in ascending order; more rows hold those of fewer.

    Raises:
        ValueError: ``most`` is not positive.

    Example:
        >>> drawn_rows(3, 5, seed=0)
        [0, 1, 2]
    """
    if most < 1:
        raise ValueError(f"most must be at least 1 row, got {most}")
    order = np.random.default_rng(derive_seed(seed, "limit-rows")).permutation(num_rows).tolist()
    return sorted(order[:most])
