"""Frozen dataclasses from what YAML and the command line hold, and back."""

from __future__ import annotations

import contextlib
import difflib
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal

from elm_nni.errors import UserError

_NAMES = {float: "a number, such as 0.5 or 6M", int: "a whole number", str: "text", bool: "true or false"}


def parse_count(value: Any) -> Any:
    """``"10M"`` to 10,000,000, ``"30k"`` to 30,000; anything else unchanged."""
    if isinstance(value, str) and (found := re.fullmatch(r"([+-]?\d*\.?\d+|[+-]?\d+\.)([kKmM])", value)):
        return float(found[1]) * (1e6 if found[2] in "mM" else 1e3)
    return value


def build(kind: type, values: Any, path: str = "") -> Any:
    """Builds a dataclass from nested plain values.

    A dataclass that has ``from_text`` may be given as one string.

    Raises:
        UserError: an unknown key (the nearest known one is named) or a value of another type.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{path.removesuffix('.') or 'configuration'}: expected keys and values, got {values!r}")
    hints = typing.get_type_hints(kind)
    known = [item.name for item in fields(kind)]
    for key in values:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {path}{nearest[0]}?" if nearest else f"; known: {', '.join(known)}"
            raise UserError(f"unknown key {path}{key}{hint}")
    converted = {key: _convert(hints[key], value, f"{path}{key}") for key, value in values.items()}
    return kind(**converted)


def plain(value: Any) -> Any:
    """Nested dictionaries and lists in place of tuples and the like, as YAML and JSON hold them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _convert(next(argument for argument in arguments if argument is not type(None)), value, path)
    if is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, str) and hasattr(hint, "from_text"):
            return hint.from_text(value)
        return build(hint, value, f"{path}.")
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_convert(arguments[0], item, path) for item in items)
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{path}: {value!r} is not allowed; it must be keys and values")
        return value
    if origin is Literal:
        # YAML reads a bare off as false
        value = "off" if value is False and "off" in arguments else value
        if value not in arguments:
            raise UserError(f"{path}: {value!r} is not allowed; it must be one of {', '.join(map(str, arguments))}")
        return value
    return _scalar(hint, value, path)


def _scalar(kind: type, value: Any, path: str) -> Any:
    value = parse_count(value)
    if kind is float and isinstance(value, str):
        # YAML 1.1 reads 1e-4 as text
        with contextlib.suppress(ValueError):
            value = float(value)
    if kind in (int, float) and isinstance(value, (int, float)) and not isinstance(value, bool):
        if kind is float or float(value).is_integer():
            return kind(value)
    elif isinstance(value, kind):
        return value
    raise UserError(f"{path}: {value!r} is not allowed; it must be {_NAMES[kind]}")
