"""Paths as users write them, files of settings, and files that are replaced as a whole: nobody sees half of one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

from elm_nni.errors import UserError


def local_path(source: str) -> Path:
    """The path a user wrote, with ``~`` for the home folder."""
    return Path(source).expanduser()


def is_path(source: str) -> bool:
    """Whether a source is written as a path, as no name of the hub is.

    Example:
        >>> is_path("./teacher"), is_path("bert-base-uncased")
        (True, False)
    """
    return source.startswith(("/", "./", "../", "~"))


def read_settings(path: Path) -> dict[str, Any]:
    """Keys and values of a YAML file; none of an empty one.

    Raises:
        UserError: the file cannot be read, is no YAML, or holds something else.

    Example:
        >>> read_settings(Path("mine.yaml"))["preset"]  # doctest: +SKIP
        'nano'
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"file {path} does not exist") from error
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UserError(f"{path} is not UTF-8: byte {byte:#04x} at offset {error.start}") from error
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    if content is not None and not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values at the top level, got {type(content).__name__}")
    return content or {}


def write_bytes(path: Path, content: bytes) -> None:
    """Writes ``content`` to a hidden file beside ``path``, flushes it to the disk, and renames it to ``path``.

    The new file has the permissions of any new file. When something goes wrong, ``path`` stays as it was and the hidden
    file is removed.

    Raises:
        UserError: the folder is missing or read-only, the disk is full, or ``path`` is a folder.

    Example:
        >>> write_bytes(Path("plots/budget.png"), png)  # doctest: +SKIP
    """
    # Names differ between processes, machines and threads that share a folder.
    partial = path.with_name(f".{path.name}.{uuid4().hex[:12]}.tmp")
    try:
        try:
            with partial.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` as UTF-8, its line ends unchanged; otherwise as :func:`write_bytes`.

    Example:
        >>> write_text(Path("runs/nano/report.html"), page)  # doctest: +SKIP
    """
    write_bytes(path, text.encode("utf-8"))
