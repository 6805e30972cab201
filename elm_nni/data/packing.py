"""Packed corpora on disk: tokenised and packed once, named by digest, mapped into memory."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from elm_nni.data import corpora
from elm_nni.data.rows import Layout, Row, pack_rows, tokenize_documents, tokenizer_digest
from elm_nni.digest import digest
from elm_nni.errors import UserError

_logger = logging.getLogger(__name__)

# Shape suffixes: B batch (rows), T tokens of a row.

# part of the digest: raise it when the same input is packed differently
_FORMAT = 1
_MANIFEST = "manifest.json"
_WRITE_ROWS = 4096


def packed_digest(
    corpus_digest: str, tokenizer: PreTrainedTokenizerBase, *, sequence_length: int, limit_tokens: int | None = None
) -> str:
    """Name of a packed corpus, known before it is built.

    Example:
        >>> packed_digest("ab12", tokenizer, sequence_length=128)  # doctest: +SKIP
    """
    return digest([_FORMAT, corpus_digest, tokenizer_digest(tokenizer), sequence_length, limit_tokens])


class PackedCorpus:
    """Rows of a packed corpus on disk, or a range of them; indexing reads only what it is asked for.

    Copies in other processes open the files anew, so workers share the memory of the operating system's cache.

    Args:
        folder: what ``pack_corpus`` wrote.
        start: first row of the range.
        stop: row after the last; by default all.

    Raises:
        UserError: the folder is not a packed corpus, or its files have other sizes than its manifest says.

    Example:
        >>> train, held_out = PackedCorpus(folder).split(64)  # doctest: +SKIP
        >>> batch = train.batch([0, 5, 7])  # doctest: +SKIP
    """

    def __init__(self, folder: Path, start: int = 0, stop: int | None = None) -> None:
        self.folder = Path(folder)
        try:
            self.manifest: dict[str, Any] = json.loads((self.folder / _MANIFEST).read_text(encoding="utf-8"))
            num_rows, self.sequence_length = self.manifest["rows"], self.manifest["sequence_length"]
            self._ids = self._map("input_ids", num_rows)
            self._documents = self._map("document_ids", num_rows)
        except (OSError, KeyError, ValueError) as error:
            raise UserError(f"{folder} is not a complete packed corpus ({error}); delete it and run again") from error
        self._start, self._stop = start, num_rows if stop is None else stop
        if not 0 <= self._start <= self._stop <= num_rows:
            raise ValueError(f"start and stop must lie in order within 0..{num_rows}, got {start} and {stop}")

    def _map(self, name: str, num_rows: int) -> NDArray[Any]:
        path, dtype = self.folder / f"{name}.bin", np.dtype(self.manifest["dtypes"][name])
        expected = num_rows * self.sequence_length * dtype.itemsize
        if path.stat().st_size != expected:
            raise ValueError(f"{path.name} has {path.stat().st_size} bytes, expected {expected}")
        return np.memmap(path, dtype=dtype, mode="r", shape=(num_rows, self.sequence_length))

    def __reduce__(self) -> tuple[Callable[..., "PackedCorpus"], tuple[Path, int, int]]:
        return PackedCorpus, (self.folder, self._start, self._stop)

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """One row: ``input_ids``, ``attention_mask`` and ``document_ids``, each (T,)."""
        return {name: tensor[0] for name, tensor in self.batch([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        """Rows for a ``DataLoader`` with a batch sampler, read together."""
        batch = self.batch(indices)
        return [{name: tensor[row] for name, tensor in batch.items()} for row in range(len(indices))]

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole corpus on disk, special tokens counted, padding not."""
        return int(self.manifest["tokens"])

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Rows as int64 tensors (B, T).

        Returns:
            ``input_ids``; ``attention_mask`` (1 where there is a token); ``document_ids`` (0 for padding, 1.. for the
            documents of a row).

        Raises:
            IndexError: an index outside the range.
        """
        rows = np.asarray(indices, dtype=np.int64)
        if len(rows) and not (-len(self) <= rows.min() and rows.max() < len(self)):
            raise IndexError(f"rows must lie within 0..{len(self) - 1}, got {rows.min()}..{rows.max()}")
        rows = np.where(rows < 0, rows + len(self), rows) + self._start
        input_ids_BT = torch.from_numpy(self._ids[rows].astype(np.int64))
        document_ids_BT = torch.from_numpy(self._documents[rows].astype(np.int64))
        return {
            "input_ids": input_ids_BT,
            "attention_mask": (document_ids_BT > 0).long(),
            "document_ids": document_ids_BT,
        }

    def split(self, holdout_rows: int) -> tuple["PackedCorpus", "PackedCorpus"]:
        """All rows but the last ``holdout_rows``, and those: text to train on and text for the validation loss.

        Raises:
            UserError: fewer rows than that, or none left to train on.
        """
        if not 0 <= holdout_rows < len(self):
            raise UserError(
                f"the corpus packs into {len(self)} rows; {holdout_rows} held-out rows (data.holdout_rows) must leave "
                "one to train on"
            )
        middle = self._stop - holdout_rows
        return PackedCorpus(self.folder, self._start, middle), PackedCorpus(self.folder, middle, self._stop)


class _RowWriter:
    """Appends rows to the files of a folder, some thousands at a time, and counts what it writes."""

    def __init__(self, folder: Path, vocabulary: int, layout: Layout) -> None:
        most_documents = layout.sequence_length // (layout.sequence_length - layout.room + 1)
        self.dtypes = {
            "input_ids": "uint16" if vocabulary <= 1 << 16 else "int32",
            "document_ids": "uint8" if most_documents < 1 << 8 else "uint16",
        }
        self._files: dict[str, IO[bytes]] = {}
        self._hashes = {name: hashlib.sha256() for name in self.dtypes}
        self._waiting: dict[str, list[NDArray[np.int64]]] = {name: [] for name in self.dtypes}
        self._folder = folder
        self.rows = self.tokens = 0

    def __enter__(self) -> "_RowWriter":
        self._files = {name: (self._folder / f"{name}.bin").open("wb") for name in self.dtypes}
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._files.values():
            file.close()

    def add(self, row: Row) -> None:
        self._waiting["input_ids"].append(row.input_ids_T)
        self._waiting["document_ids"].append(row.document_ids_T)
        self.rows += 1
        self.tokens += int(np.count_nonzero(row.document_ids_T))
        if len(self._waiting["input_ids"]) >= _WRITE_ROWS:
            self._write()

    def _write(self) -> None:
        for name, dtype in self.dtypes.items():
            if self._waiting[name]:
                data = np.stack(self._waiting[name]).astype(dtype).tobytes()
                self._files[name].write(data)
                self._hashes[name].update(data)
            self._waiting[name] = []

    def finish(self) -> dict[str, str]:
        """Writes what waits, forces it to the disk and returns the SHA-256 of each file."""
        self._write()
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        return {name: sha.hexdigest() for name, sha in self._hashes.items()}


def _build(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    layout: Layout,
    limit_tokens: int | None,
    settings: dict[str, Any],
) -> None:
    folder.mkdir()
    with _RowWriter(folder, len(tokenizer), layout) as writer:
        for row in pack_rows(tokenize_documents(texts, tokenizer), layout):
            writer.add(row)
            if limit_tokens is not None and writer.tokens >= limit_tokens:
                break
        sums = writer.finish()
    if writer.rows == 0:
        raise UserError("the corpus has no text; give at least one document with a word in it")
    manifest = settings | {"rows": writer.rows, "tokens": writer.tokens, "dtypes": writer.dtypes, "sha256": sums}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")


def _is_complete(folder: Path) -> bool:
    if not folder.exists():
        return False
    try:
        PackedCorpus(folder)
    except UserError as error:
        _logger.warning("%s; packing again", error)
        return False
    return True


def pack_corpus(
    texts: Iterable[str] | Callable[[], Iterable[str]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    sequence_length: int,
    folder: Path,
    corpus_digest: str,
    limit_tokens: int | None = None,
) -> PackedCorpus:
    """Tokenises and packs a corpus into ``folder / "packed-<digest>"``, or opens it when it is there already.

    Written under another name and renamed when complete; of several processes one builds and the others wait.

    Args:
        texts: documents, or a function that returns them, called only when there is something to build.
        tokenizer: a tokenizer of transformers, fast ones in its batched path.
        sequence_length: tokens of a row, special tokens counted.
        folder: where packed corpora are kept.
        corpus_digest: name of the content of ``texts``, in their order.
        limit_tokens: stop reading after about so many tokens (at most one row more), padding not counted.

    Raises:
        UserError: no text at all, or the folder cannot be written (rights, disk full).
        ValueError: ``sequence_length`` too small for the tokenizer, or ``limit_tokens`` < 1.

    Example:
        >>> packed = pack_corpus(["a film", "another"], tokenizer, sequence_length=64, folder=Path("cache"),
        ...                      corpus_digest="my-two-films")  # doctest: +SKIP
    """
    if limit_tokens is not None and limit_tokens < 1:
        raise ValueError(f"limit_tokens must be at least 1, got {limit_tokens}")
    layout = Layout.of(tokenizer, sequence_length)
    name = packed_digest(corpus_digest, tokenizer, sequence_length=sequence_length, limit_tokens=limit_tokens)
    settings = {
        "digest": name,
        "corpus": corpus_digest,
        "tokenizer": tokenizer_digest(tokenizer),
        "sequence_length": sequence_length,
        "limit_tokens": limit_tokens,
        "format": _FORMAT,
    }
    target, scratch = folder / f"packed-{name}", folder / f".packed-{name}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".packed-{name}.lock"):
            if not _is_complete(target):
                shutil.rmtree(scratch, ignore_errors=True)
                shutil.rmtree(target, ignore_errors=True)
                try:
                    _build(texts() if callable(texts) else texts, tokenizer, scratch, layout, limit_tokens, settings)
                    scratch.rename(target)
                finally:
                    shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise UserError(f"packed corpus cannot be written to {folder}: {error.strerror or error}") from error
    return PackedCorpus(target)


def pack_source(
    spec: str | corpora.CorpusSpec | Sequence[str | corpora.CorpusSpec],
    tokenizer: PreTrainedTokenizerBase,
    *,
    sequence_length: int,
    folder: Path,
    limit_tokens: int | None = None,
    seed: int = 0,
) -> PackedCorpus:
    """Loads and packs one or several corpora by name, or opens what was packed before without reading them.

    With ``limit_tokens`` each source is taken in proportion to its size (see ``load_corpus``).

    Raises:
        UserError: as ``load_corpus`` and ``pack_corpus``.

    Example:
        >>> train, held_out = pack_source("offline:demo", tokenizer, sequence_length=128, folder=Path("cache"),
        ...                               limit_tokens=2_000_000).split(64)  # doctest: +SKIP
    """
    return pack_corpus(
        lambda: corpora.corpus_texts(corpora.load_corpus(spec, seed=seed)),
        tokenizer,
        sequence_length=sequence_length,
        folder=folder,
        # the order of the documents is part of the content
        corpus_digest=digest([corpora.corpus_digest(spec), seed]),
        limit_tokens=limit_tokens,
    )
