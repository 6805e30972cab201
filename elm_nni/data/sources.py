"""Rows of a local file or of a hub data set, through ``datasets``, with every user mistake as one clear line."""

import codecs
import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import pyarrow
from datasets.exceptions import DatasetNotFoundError, DatasetsError

from elm_nni.errors import UserError
from elm_nni.files import is_path, local_path

_logger = logging.getLogger(__name__)

Rows: TypeAlias = datasets.Dataset | datasets.IterableDataset

# suffix -> (builder of ``datasets``, its options). Only an empty field of a csv is missing: "None" and "NA" are
# fair labels and texts.
_BUILDERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".txt": ("text", {"encoding": "utf-8-sig"}),
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".csv": ("csv", {"keep_default_na": False, "na_values": [""]}),
    ".parquet": ("parquet", {}),
}
FILE_SUFFIXES = tuple(_BUILDERS)
_CHUNK_BYTES = 1 << 20


def is_local(source: str) -> bool:
    """Whether a source names a local file: any suffix without a folder, a known one, a path, or a file that is there.

    A folder is not a file: ``datasets`` reads it like a hub repository.
    """
    if local_path(source).is_dir():
        return False
    suffix = Path(source).suffix.lower()
    looks_like_path = is_path(source) or source.count("/") > 1 or (suffix != "" and "/" not in source)
    return looks_like_path or suffix in _BUILDERS or local_path(source).is_file()


def check_utf8(path: Path) -> None:
    """Reads a text file once and refuses it when it is empty or not UTF-8.

    Raises:
        UserError: the file has nothing but white space, or names the offset of the first wrong byte.

    Example:
        >>> check_utf8(Path("corpus.txt"))  # doctest: +SKIP
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, has_text = 0, False
    with path.open("rb") as file:
        while True:
            chunk = file.read(_CHUNK_BYTES)
            held_back = len(decoder.getstate()[0])
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                position = offset - held_back + error.start
                raise UserError(
                    f"{path} is not UTF-8: byte {error.object[error.start]:#04x} at offset {position}; "
                    f"convert it, for example with iconv -t UTF-8"
                ) from error
            has_text = has_text or bool(text.strip("\ufeff \t\r\n"))
            if not chunk:
                break
            offset += len(chunk)
    if not has_text:
        raise UserError(f"{path} is empty; give a file with text in it")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # what datasets logs as an error, it raises too
    level, has_bars = datasets.logging.get_verbosity(), not datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    if has_bars and not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if has_bars:
            datasets.enable_progress_bars()


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    lines = str(cause).strip().splitlines()
    return lines[0] if lines else type(cause).__name__


def _load(what: str, load: Callable[[], Rows]) -> Rows:
    try:
        with _quiet():
            return load()
    except DatasetNotFoundError as error:
        raise UserError(f"{what} does not exist on the hub, or needs a login: {_first_line(error)}") from error
    except ConnectionError as error:
        raise UserError(
            f"{what}: the hub cannot be reached ({_first_line(error)}); use a local file or packaged data"
        ) from error
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise UserError(
            f"{what} is loaded by a script of its own, which datasets does not run; name a copy that has data files"
        ) from error
    except (OSError, ValueError, DatasetsError, pyarrow.ArrowException) as error:
        if "corresponds to no data" in str(error):
            raise UserError(f"{what} has no rows") from error
        raise UserError(f"{what} cannot be loaded: {_first_line(error)}") from error


def load_file(path: Path, *, paragraphs: bool = False, streaming: bool = False, cache_dir: Path | None = None) -> Rows:
    """Rows of a local .txt, .jsonl, .json, .csv or .parquet file.

    Args:
        paragraphs: for .txt only: documents are separated by blank lines instead of one a line.
        streaming: read while iterating instead of keeping a memory-mapped copy.
        cache_dir: folder of those copies; by default the one of ``datasets``.

    Raises:
        UserError: no such file, unknown suffix, empty, not UTF-8, or malformed.

    Example:
        >>> load_file(Path("reviews.csv")).column_names  # doctest: +SKIP
        ['review', 'stars']
    """
    if not path.is_file():
        raise UserError(f"file {path} does not exist")
    suffix = path.suffix.lower()
    if suffix not in _BUILDERS:
        raise UserError(f"{path}: files of kind '{suffix}' are not known; known: {', '.join(FILE_SUFFIXES)}")
    builder, options = _BUILDERS[suffix]
    if builder == "text":
        options = options | {"sample_by": "paragraph" if paragraphs else "line"}
    try:
        if builder != "parquet":
            check_utf8(path)
        elif path.stat().st_size == 0:
            raise UserError(f"{path} is empty; give a file with text in it")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    rows = _load(
        str(path),
        lambda: datasets.load_dataset(
            builder,
            data_files=str(path.resolve()),
            split="train",
            streaming=streaming,
            cache_dir=str(cache_dir) if cache_dir else None,
            **options,
        ),
    )
    if isinstance(rows, datasets.Dataset) and len(rows) == 0:
        raise UserError(f"{path} has no rows")
    return rows


def load_hub(
    name: str,
    *,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    streaming: bool = False,
    cache_dir: Path | None = None,
) -> Rows:
    """One split of a hub data set (or of a local folder laid out like one).

    Offline behaviour is the hub client's: with ``HF_HUB_OFFLINE=1`` only what is in its cache is used.

    Raises:
        UserError: the hub cannot be reached, or the data set, configuration or split does not exist.

    Example:
        >>> load_hub("nyu-mll/glue", config="cola", split="validation")  # doctest: +SKIP
    """
    what = f"data set '{name}'" + (f", configuration '{config}'" if config else "") + f", split '{split}'"
    _logger.info("loading %s", what)
    return _load(
        what,
        lambda: datasets.load_dataset(
            name,
            config,
            split=split,
            revision=revision,
            streaming=streaming,
            cache_dir=str(cache_dir) if cache_dir else None,
        ),
    )


def column_names(rows: Rows) -> list[str]:
    """Columns of a data set; a stream without declared columns is asked for its first row."""
    if rows.column_names is not None:
        return list(rows.column_names)
    return list(next(iter(rows), {}))


def require_columns(rows: Rows, wanted: tuple[str, ...], where: str) -> None:
    """Refuses a data set that lacks a wanted column.

    Raises:
        UserError: names the missing column and lists those there are.
    """
    names = column_names(rows)
    for name in wanted:
        if name not in names:
            raise UserError(f"{where} has no column '{name}'; its columns: {', '.join(names)}")
