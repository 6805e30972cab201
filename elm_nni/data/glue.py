"""The nine tasks of GLUE, its unlabelled test rows, and the files that its server takes.

Source: Wang et al., "GLUE", arXiv 1804.07461; rows and names of columns are those of the hub's ``nyu-mll/glue``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from numpy.typing import ArrayLike, NDArray

from elm_nni.data.sources import load_hub, require_columns
from elm_nni.data.specs import TaskSpec
from elm_nni.errors import UserError
from elm_nni.files import write_text

# Shape suffixes: N rows.

GLUE_REPOSITORY = "nyu-mll/glue"


def _task(
    name: str,
    text: tuple[str, ...],
    metrics: tuple[str, ...] = ("accuracy",),
    test: str = "validation",
    extra_tests: tuple[tuple[str, str], ...] = (),
) -> TaskSpec:
    # The hub has no labels for the test rows of GLUE: as in the literature, its validation rows are the test.
    return TaskSpec(
        name=name,
        source=GLUE_REPOSITORY,
        config=name,
        text=text,
        metric=metrics[0],
        metrics=metrics[1:],
        kind="regression" if name == "stsb" else "classification",
        test_split=test,
        extra_tests=extra_tests,
    )


# Where the benchmark names two metrics, their mean is its score of the task, and ours.
_F1, _CORRELATION = ("f1_accuracy", "f1", "accuracy"), ("pearson_spearman", "pearson", "spearman")

GLUE_TASKS: dict[str, TaskSpec] = {
    task.name: task
    for task in (
        _task("cola", ("sentence",), ("matthews",)),
        _task("sst2", ("sentence",)),
        _task("mrpc", ("sentence1", "sentence2"), _F1),
        _task("qqp", ("question1", "question2"), _F1),
        _task("stsb", ("sentence1", "sentence2"), _CORRELATION),
        _task(
            "mnli",
            ("premise", "hypothesis"),
            test="validation_matched",
            extra_tests=(("mismatched", "validation_mismatched"),),
        ),
        _task("qnli", ("question", "sentence")),
        _task("rte", ("sentence1", "sentence2")),
        _task("wnli", ("sentence1", "sentence2")),
    )
}


@dataclass(frozen=True)
class _Submission:
    """One file of a submission: hub configuration and split of its rows, and how a class is written (None: a value)."""

    file: str
    config: str
    classes: tuple[str, ...] | None = ("0", "1")
    split: str = "test"


_INFERENCE, _PAIR = ("entailment", "neutral", "contradiction"), ("entailment", "not_entailment")

_SUBMISSIONS: dict[str, tuple[_Submission, ...]] = {
    "cola": (_Submission("CoLA.tsv", "cola"),),
    "sst2": (_Submission("SST-2.tsv", "sst2"),),
    "mrpc": (_Submission("MRPC.tsv", "mrpc"),),
    "qqp": (_Submission("QQP.tsv", "qqp"),),
    "stsb": (_Submission("STS-B.tsv", "stsb", None),),
    "mnli": (
        _Submission("MNLI-m.tsv", "mnli", _INFERENCE, "test_matched"),
        _Submission("MNLI-mm.tsv", "mnli", _INFERENCE, "test_mismatched"),
        _Submission("AX.tsv", "ax", _INFERENCE),
    ),
    "qnli": (_Submission("QNLI.tsv", "qnli", _PAIR),),
    "rte": (_Submission("RTE.tsv", "rte", _PAIR),),
    "wnli": (_Submission("WNLI.tsv", "wnli"),),
}


def _submissions(name: str) -> tuple[_Submission, ...]:
    if name not in _SUBMISSIONS:
        raise UserError(f"task '{name}' is not one of GLUE; known: {', '.join(_SUBMISSIONS)}")
    return _SUBMISSIONS[name]


def load_submission_rows(
    name: str, *, source: str = GLUE_REPOSITORY, cache_dir: Path | None = None
) -> dict[str, datasets.Dataset]:
    """The unlabelled rows that a GLUE task is submitted with: file to rows, all of them, in the benchmark's order.

    Row i is the one with index i. MNLI has the matched and the mismatched rows and those of the diagnostic set.

    Args:
        name: a GLUE task.
        source: the hub data set, or a local folder laid out like it.
        cache_dir: folder for what ``datasets`` keeps; by default its own.

    Returns:
        File name (as :func:`write_submission` takes it) to rows with ``text`` and, for pairs, ``text_pair``.

    Raises:
        UserError: no task of GLUE, hub out of reach, a missing column, or indices other than 0, 1, 2 and so on.

    Example:
        >>> {file: len(rows) for file, rows in load_submission_rows("rte").items()}  # doctest: +SKIP
        {'RTE.tsv': 3000}
    """
    files = _submissions(name)
    return {one.file: _submission_rows(one, GLUE_TASKS[name].text, source, cache_dir) for one in files}


def _submission_rows(one: _Submission, texts: tuple[str, ...], source: str, cache_dir: Path | None) -> datasets.Dataset:
    rows = load_hub(source, config=one.config, split=one.split, cache_dir=cache_dir)
    where = f"data set '{source}', configuration '{one.config}', split '{one.split}'"
    require_columns(rows, (*texts, "idx"), where)
    index_N = np.asarray(rows["idx"][:])
    order_N = np.argsort(index_N)
    if not np.array_equal(index_N[order_N], np.arange(len(order_N))):
        raise UserError(f"{where}: column 'idx' does not number the rows from 0 to {len(order_N) - 1}")
    columns = {}
    for column, text in zip(("text", "text_pair"), texts):
        found = rows[text][:]
        columns[column] = ["" if found[row] is None else found[row] for row in order_N.tolist()]
    features = datasets.Features(dict.fromkeys(columns, datasets.Value("string")))
    return datasets.Dataset.from_dict(columns, features=features)


def write_submission(folder: Path, name: str, predictions: Mapping[str, ArrayLike]) -> list[Path]:
    """Writes the files of one task as GLUE's server takes them; a zip of those of all tasks is a submission.

    A file has a line ``index<TAB>prediction`` and one line a row, numbered from 0. Classes are written as words for
    MNLI, QNLI and RTE and as 0 or 1 elsewhere; values of STS-B are cut to 0..5 and have three decimals.

    Args:
        folder: made when missing; files of the same names are replaced.
        name: a GLUE task.
        predictions: file name to (N,) class ids in the order of the task's label names, or values for STS-B, in the
            order of :func:`load_submission_rows`.

    Returns:
        The paths of the files.

    Raises:
        UserError: no task of GLUE, or the folder cannot be written.
        ValueError: other files than the task's, no rows, another shape, or what is no class or no number.

    Example:
        >>> write_submission(Path("glue"), "rte", {"RTE.tsv": [0, 1, 1]})  # doctest: +SKIP
        [PosixPath('glue/RTE.tsv')]
    """
    files = _submissions(name)
    if set(predictions) != {one.file for one in files}:
        raise ValueError(f"predictions must be of {', '.join(one.file for one in files)}, got {', '.join(predictions)}")
    contents = {one.file: _lines(one, np.asarray(predictions[one.file])) for one in files}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make folder {folder}: {error.strerror}") from error
    for file, content in contents.items():
        write_text(folder / file, content)
    return [folder / file for file in contents]


def _lines(one: _Submission, predictions_N: NDArray) -> str:
    if predictions_N.ndim != 1 or len(predictions_N) == 0:
        raise ValueError(f"predictions of {one.file} must have a shape (N,), got {predictions_N.shape}")
    if one.classes is None:
        if not np.isfinite(predictions_N).all():
            raise ValueError(f"predictions of {one.file} are NaN or infinite")
        # adding zero takes the sign off -0.0
        written = [f"{value:.3f}" for value in np.clip(predictions_N.astype(float), 0.0, 5.0) + 0.0]
    else:
        is_class_N = np.isin(predictions_N, range(len(one.classes)))
        if not (np.issubdtype(predictions_N.dtype, np.integer) and is_class_N.all()):
            raise ValueError(f"predictions of {one.file} must be class ids within 0..{len(one.classes) - 1}")
        written = [one.classes[number] for number in predictions_N.tolist()]
    return "index\tprediction\n" + "".join(f"{index}\t{text}\n" for index, text in enumerate(written))
