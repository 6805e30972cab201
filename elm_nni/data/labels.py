"""Texts and labels of a task's rows, from what a source says to ids."""

import logging
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import datasets
import numpy as np

from elm_nni.data.entities import has_entity_tags
from elm_nni.data.metrics import METRICS
from elm_nni.data.specs import LABEL_SEPARATOR, TaskSpec
from elm_nni.data.splits import Table
from elm_nni.errors import UserError

_logger = logging.getLogger(__name__)

# more classes than this, and than a tenth of the rows, look like a column of something else
_MANY_CLASSES = 20


def complete_table(rows: datasets.Dataset, spec: TaskSpec) -> Table:
    """The rows that have text and label; labels are as the source has them, ids of a data set's features as names.

    Several labels or tags of a row are one tuple.

    Raises:
        UserError: a column does not hold what the kind of task needs, or words and tags of a row differ in number.
    """
    texts = list(zip(*(rows[column][:] for column in spec.text)))
    if spec.kind == "token_classification":
        _require_words(spec, texts)
    labels = _read_labels(rows, spec)
    complete = [
        row
        for row, (pieces, label) in enumerate(zip(texts, labels))
        if label is not None and all(_has_text(piece) for piece in pieces)
    ]
    if len(complete) < len(labels):
        _logger.warning("task '%s': %d rows without text or label left out", spec.name, len(labels) - len(complete))
    if spec.kind == "token_classification":
        for row in complete:
            if len(texts[row][0]) != len(labels[row]):
                raise UserError(
                    f"task '{spec.name}': row {row} has {len(texts[row][0])} words in column '{spec.text[0]}', but "
                    f"{len(labels[row])} tags in column '{spec.label}'"
                )
    return Table([tuple(map(_plain_text, texts[row])) for row in complete], [labels[row] for row in complete])


def _require_words(spec: TaskSpec, texts: Sequence[tuple[Any, ...]]) -> None:
    if any(piece is not None and not isinstance(piece, list) for (piece,) in texts):
        raise UserError(f"task '{spec.name}': column '{spec.text[0]}' must hold lists of words")


def _has_text(piece: Any) -> bool:
    words = piece if isinstance(piece, list) else [piece]
    return any(word is not None and str(word).strip() for word in words)


def _plain_text(piece: Any) -> str | list[str]:
    return ["" if word is None else str(word) for word in piece] if isinstance(piece, list) else str(piece)


def _read_labels(rows: datasets.Dataset, spec: TaskSpec) -> list[Any]:
    feature, column = _label_feature(rows.features[spec.label], spec), rows[spec.label][:]
    is_list = isinstance(feature, (datasets.List, datasets.LargeList))
    if spec.kind in ("classification", "regression"):
        if is_list:
            raise UserError(
                f"task '{spec.name}': column '{spec.label}' holds lists; set kind=multi_label or token_classification"
            )
        return [_named(feature, label) for label in column]
    if is_list:
        inner = _label_feature(feature.feature, spec)
        return [_all_named(inner, labels) for labels in column]
    if spec.kind == "token_classification":
        raise UserError(f"task '{spec.name}': column '{spec.label}' must hold lists of tags")
    return [_label_set(label) for label in column]


def _label_feature(feature: Any, spec: TaskSpec) -> Any:
    # whole numbers are ids of the names that the specification gives, where no name is a number itself
    is_number = isinstance(feature, datasets.Value) and feature.dtype.startswith(("int", "uint"))
    names = spec.label_names or ()
    if spec.kind == "regression" or not is_number or not names or any(name.lstrip("-").isdigit() for name in names):
        return feature
    return datasets.ClassLabel(names=list(names))


def _named(feature: Any, label: Any) -> Any:
    if not isinstance(feature, datasets.ClassLabel) or (label is not None and label >= len(feature.names)):
        return label
    # -1 is written where the label is withheld
    return feature.names[label] if label is not None and label >= 0 else None


def _all_named(feature: Any, labels: Sequence[Any] | None) -> tuple[Any, ...] | None:
    named = tuple(_named(feature, label) for label in labels or ())
    return None if labels is None or None in named else named


def _label_set(text: Any) -> tuple[Any, ...]:
    if isinstance(text, (list, tuple)):
        return tuple(text)
    if not isinstance(text, str):
        return () if text is None else (text,)
    return tuple(label for label in map(str.strip, text.split(LABEL_SEPARATOR)) if label)


def _label_name(label: Any) -> str:
    return str(int(label)) if isinstance(label, float) else str(label)


def class_names(spec: TaskSpec, rows: datasets.Dataset, labels: Sequence[Any]) -> tuple[str, ...]:
    """Names of the classes, labels or tags in order of their ids; none for a regression.

    They are the specification's, or those of the column, or what occurs in ``labels``, sorted.

    Raises:
        UserError: the column holds fractions, or no label at all.
    """
    if spec.kind == "regression":
        return ()
    if spec.label_names is not None:
        return spec.label_names
    feature = rows.features[spec.label]
    feature = getattr(feature, "feature", feature)
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    known = set(labels) if spec.kind == "classification" else set(chain.from_iterable(labels))
    if any(isinstance(label, float) and not label.is_integer() for label in known):
        raise UserError(
            f"task '{spec.name}': column '{spec.label}' holds fractions; set kind=regression or name another"
        )
    if spec.kind == "classification" and len(known) > max(_MANY_CLASSES, len(labels) // 10):
        _logger.warning(
            "task '%s': column '%s' holds %d different labels in %d rows; each is a class of its own", spec.name,
            spec.label, len(known), len(labels),
        )  # fmt: skip
    return tuple(map(_label_name, sorted(known)))


def warn_of_plain_tags(spec: TaskSpec, names: Sequence[str]) -> None:
    """Says so where a metric of entities will count tokens, because no tag marks the beginning of an entity."""
    if any(METRICS[name].of_entities for name in spec.reported) and not has_entity_tags(names):
        _logger.warning(
            "task '%s': its tags have no prefix B- or I-, so entity_f1 counts every token by itself (without a tag O "
            "that is token_accuracy)", spec.name,
        )  # fmt: skip


def encode_labels(spec: TaskSpec, names: Sequence[str], labels: Sequence[Any]) -> list[Any]:
    """Labels as ids in the order of ``names``, several of a row as a tuple; of a regression as floats.

    Raises:
        UserError: a label that is not among the names, or, for a regression, that is no finite number.
    """
    if spec.kind == "regression":
        return _regression_targets(spec, labels)
    ids = {name: number for number, name in enumerate(names)}
    try:
        if spec.kind == "classification":
            return [ids[_label_name(label)] for label in labels]
        rows = [tuple(ids[_label_name(label)] for label in row) for row in labels]
    except KeyError as error:
        raise UserError(f"task '{spec.name}': label {error} is not one of {', '.join(names)}") from error
    return [tuple(sorted(set(row))) for row in rows] if spec.kind == "multi_label" else rows


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


def require_variety(spec: TaskSpec, labels: Sequence[Any], where: str) -> None:
    """Refuses rows that all have the same label, the same set of labels, or one tag.

    Raises:
        UserError: names the task, the column and the one label.
    """
    what = {"multi_label": "set of labels", "token_classification": "tag"}.get(spec.kind, "class")
    distinct = set(_distinct(spec, labels))
    if len(distinct) < 2:
        shown = "|".join(sorted(map(str, only))) if isinstance(only := next(iter(distinct), ""), frozenset) else only
        only_one = f": '{shown}'" if distinct else ""
        raise UserError(
            f"task '{spec.name}' has one {what} only in column '{spec.label}' of {where}{only_one}; give at least two"
        )


def _distinct(spec: TaskSpec, labels: Sequence[Any]) -> Iterable[Any]:
    if spec.kind == "multi_label":
        return map(frozenset, labels)
    return chain.from_iterable(labels) if spec.kind == "token_classification" else labels


def as_dataset(table: Table, spec: TaskSpec, names: Sequence[str]) -> datasets.Dataset:
    """Encoded rows with columns ``text`` (lists of words for tags), for pairs ``text_pair``, and ``label``.

    Labels are int64 ids, float32 values, or lists of ids that know their names.
    """
    text: Any = datasets.Value("string")
    label: Any = datasets.Value("float32" if spec.kind == "regression" else "int64")
    if spec.kind in ("multi_label", "token_classification"):
        label = datasets.List(datasets.ClassLabel(names=list(names)))
    if spec.kind == "token_classification":
        text = datasets.List(text)
    columns = {name: list(texts) for name, texts in zip(("text", "text_pair"), zip(*table.texts))}
    features = datasets.Features(dict.fromkeys(columns, text) | {"label": label})
    return datasets.Dataset.from_dict(columns | {"label": table.labels}, features=features)
