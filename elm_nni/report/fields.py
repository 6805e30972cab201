"""Typed access to JSON files: a wrong value is reported in one line with file, line, key and what is allowed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elm_nni.errors import UserError


@dataclass(frozen=True)
class Fields:
    """One JSON object together with where it stands, so that every complaint can name the place."""

    values: Mapping[str, Any]
    place: str

    def fail(self, key: str, allowed: str) -> UserError:
        if key not in self.values:
            return UserError(f"{self.place}: {key!r} is missing; it must be {allowed}")
        return UserError(f"{self.place}: {key!r} is {self.values[key]!r:.80}; it must be {allowed}")

    def optional_number(self, key: str) -> float | None:
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(key, "a number or null")
        return float(value) if math.isfinite(value) else None

    def number(self, key: str) -> float:
        value = self.optional_number(key)
        if value is None:
            raise self.fail(key, "a finite number")
        return value

    def optional_integer(self, key: str) -> int | None:
        value = self.optional_number(key)
        if value is None:
            return None
        if value != int(value) or value < 0:
            raise self.fail(key, "an integer of at least 0")
        return int(value)

    def integer(self, key: str) -> int:
        value = self.optional_integer(key)
        if value is None:
            raise self.fail(key, "an integer of at least 0")
        return value

    def flag(self, key: str) -> bool:
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            raise self.fail(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.fail(key, "a string")
        return value

    def fields(self, key: str, *, optional: bool = False) -> Fields:
        value = self.values.get(key)
        if value is None and optional:
            value = {}
        if not isinstance(value, dict):
            raise self.fail(key, "an object")
        return Fields(value, f"{self.place}: {key}")

    def items(self, key: str, *, optional: bool = False) -> Sequence[Any]:
        value = self.values.get(key)
        if value is None and optional:
            return ()
        if not isinstance(value, list):
            raise self.fail(key, "a list")
        return value

    def objects(self, key: str, *, optional: bool = False) -> list[Fields]:
        items = self.items(key, optional=optional)
        return [as_fields(item, f"{self.place}: {key}[{i}]") for i, item in enumerate(items)]

    def indices(self, key: str) -> tuple[int, ...]:
        items = self.items(key)
        return tuple(Fields({key: item}, self.place).integer(key) for item in items)

    def numbers(self) -> dict[str, float]:
        """All values that are finite numbers; ``null`` and NaN (not observed) are left out."""
        values = {key: self.optional_number(key) for key in self.values}
        return {key: value for key, value in values.items() if value is not None}

    def integers(self) -> dict[str, int]:
        return {key: self.integer(key) for key in self.values}


def as_fields(value: Any, place: str) -> Fields:
    if not isinstance(value, dict):
        raise UserError(f"{place}: found {value!r:.80}; it must be an object")
    return Fields(value, place)


def read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}; it must be a readable UTF-8 file") from error


def parse_json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{place}: not valid JSON ({error}); delete the file and run its stage again") from error


def read_object(run_dir: Path, name: str) -> Fields | None:
    path = run_dir / name
    text = read_text(path)
    return None if text is None else as_fields(parse_json(text, str(path)), str(path))


def read_lines(run_dir: Path, name: str) -> list[Fields]:
    path = run_dir / name
    text = read_text(path)
    # JSON strings may hold U+2028 and its like, at which str.splitlines would cut a record in two.
    lines = [] if text is None else text.split("\n")
    places = [(line, f"{path} line {number}") for number, line in enumerate(lines, start=1) if line.strip()]
    return [as_fields(parse_json(line, place), place) for line, place in places]
