"""The stage store: results on disk, named by the digest of everything they depend on."""

from __future__ import annotations

import json
import logging
import os
import platform
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from elm_nni.digest import digest
from elm_nni.errors import UserError
from elm_nni.files import write_text

logger = logging.getLogger(__name__)

_DONE, _ATTEMPT = "stage.json", "attempt.json"
# A folder of what an unfinished stage goes on from.
CHECKPOINTS = "checkpoints"
# To be raised when a change of the code makes earlier results wrong.
_FORMAT = 1
_VERSIONED = ("torch", "transformers", "nni", "pytorch-lightning", "datasets", "optuna", "numpy", "elm-nni")


@dataclass(frozen=True)
class StageResult:
    """A finished stage: where it is, what it cost (wall seconds, peak resident MB) and whether it was there already.

    Seconds count the attempts that were killed, up to what each left behind.
    """

    name: str
    digest: str
    folder: Path
    seconds: float
    peak_memory_mb: float
    cached: bool


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


class StageStore:
    """One folder a finished or unfinished stage, ``<root>/<stage>/<digest>``.

    One process builds a digest while others wait; the lock is the operating system's, so it ends with its process.
    An unfinished folder is handed to the builder again, which goes on from what it finds there.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, name: str, inputs: Mapping[str, Any]) -> Path:
        """Where the result for these inputs is or will be."""
        return self.root / name / digest({"stage": name, "format": _FORMAT, **inputs})

    def finished(self, name: str, inputs: Mapping[str, Any]) -> StageResult | None:
        """The finished stage, or None."""
        return self._read(self.folder(name, inputs), cached=True)

    def build(self, name: str, inputs: Mapping[str, Any], builder: Callable[[Path], None]) -> StageResult:
        """Runs ``builder(folder)`` unless the result is there, and then removes the checkpoints that it went on from.

        Raises:
            UserError: the store cannot be written, or is full.
        """
        folder = self.folder(name, inputs)
        with _writable(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_suffix(".lock")):
                finished = self._read(folder, cached=True)
                if finished is not None:
                    return finished
                earlier, start = _begin_attempt(folder), time.monotonic()
                _reset_peak_memory()
                builder(folder)
                facts = {
                    "name": name, "digest": folder.name, "seconds": round(earlier + time.monotonic() - start, 2),
                    "peak_memory_mb": round(peak_memory_mb(), 1), "inputs": dict(inputs), "versions": versions(),
                }  # fmt: skip
                write_json(folder / _DONE, facts)
                shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
                (folder / _ATTEMPT).unlink(missing_ok=True)
        result = self._read(folder, cached=False)
        assert result is not None
        return result

    def entries(self) -> list[tuple[str, Path, int, bool]]:
        """(stage, folder, bytes, finished) of every stage; packed corpora are inputs and are left out."""
        folders = sorted(path for path in self.root.glob("*/*") if path.is_dir() and path.parent.name != "corpora")
        return [(path.parent.name, path, _size(path), (path / _DONE).exists()) for path in folders]

    def collect(self, keep: set[Path]) -> int:
        """Removes every entry that is not in ``keep``; returns the bytes set free."""
        freed = 0
        for _, folder, size, _ in self.entries():
            if folder.resolve() in keep:
                continue
            try:
                with FileLock(folder.with_suffix(".lock"), timeout=0):
                    shutil.rmtree(folder)
                    freed += size
            except Timeout:
                logger.warning("%s is being built and stays", folder)
        return freed

    def _read(self, folder: Path, *, cached: bool) -> StageResult | None:
        try:
            facts = json.loads((folder / _DONE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(f"{folder / _DONE} is damaged; remove {folder} to build the stage again") from error
        return StageResult(
            facts["name"], facts["digest"], folder, facts["seconds"], facts["peak_memory_mb"], cached=cached
        )


def _begin_attempt(folder: Path) -> float:
    """Seconds that killed attempts spent, each up to the last file that it wrote here; notes the start of this one."""
    path, spent = folder / _ATTEMPT, 0.0
    if path.exists():
        last = json.loads(path.read_text(encoding="utf-8"))
        written = max(file.stat().st_mtime for file in folder.rglob("*") if file.is_file())
        spent = last["spent"] + max(0.0, written - last["start"])
    write_json(path, {"start": time.time(), "spent": round(spent, 2)})
    return spent


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, replacing the file as a whole. Keys keep their order, which for stages and tasks has a meaning.

    Raises:
        UserError: the folder cannot be written, or is full.
        TypeError: a value that JSON has no form for; the file stays as it was.
    """
    write_text(path, json.dumps(value, indent=1, default=_plain))


def append_json_line(path: Path, value: Mapping[str, Any]) -> None:
    """Appends one JSON line and flushes it to the disk."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dict(value), sort_keys=True, default=_plain) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All complete JSON lines; a torn last line, as a killed writer leaves it, is passed over and cut off."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    values = []
    for number, line in enumerate(lines):
        try:
            if not line.endswith("\n"):
                raise ValueError("torn line")
            values.append(json.loads(line))
        except ValueError as error:
            if number < len(lines) - 1:
                raise UserError(f"{path} line {number + 1} is damaged: {error}") from error
            # not a rewrite: a kill between emptying and writing would lose every line
            os.truncate(path, len("".join(lines[:-1]).encode()))
    return values


def peak_memory_mb() -> float:
    """Highest resident memory of this process since the last reset, in MB (2**20 bytes)."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _reset_peak_memory() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        logger.debug("peak memory cannot be reset here; it covers the stages before too")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "__dataclass_fields__"):
        return asdict(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        raise UserError(f"cannot write {error.filename or folder}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise UserError(f"cannot write {folder}: {error}") from error
