"""Stable names and stable seeds: the same value gives the same digest on every machine and in every run."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"digest cannot name a {type(value).__name__}; give numbers, strings, lists, dicts or dataclasses")


def digest(value: Any, *, length: int = 16) -> str:
    """First ``length`` hexadecimal digits of the SHA-256 of the value's canonical JSON.

    The order of keys does not matter; tuples count as lists, dataclasses as dicts of their fields.

    Raises:
        TypeError: the value holds something that has no canonical JSON.
        ValueError: ``length`` is not in 12..64, or a number is NaN or infinite.

    Example:
        >>> digest({"a": 1, "b": (2, 3)}) == digest({"b": [2, 3], "a": 1})
        True
    """
    if not 12 <= length <= 64:
        raise ValueError(f"length must be from 12 to 64, got {length}")
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits.

    Example:
        >>> file_digest(Path("corpus.txt"))  # doctest: +SKIP
        '9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08'
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def derive_seed(seed: int, stage: str, number: int = 0) -> int:
    """A 63-bit seed that depends on (seed, stage, number) alone, so that any step can be replayed by itself.

    Example:
        >>> generator = numpy.random.default_rng(derive_seed(0, "supernet", 17))  # doctest: +SKIP
    """
    return int(digest([seed, stage, number]), 16) >> 1
