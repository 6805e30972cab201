"""Keys of a task that types cannot check: their ranges, and whether they have an effect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from elm_nni.errors import UserError

if TYPE_CHECKING:
    from elm_nni.pipeline.config import TaskConfig

# what a linear head of the teacher is fitted on
_LEAST_ROWS = 10
# tokens of a row: special tokens and a few words; of a window: a question and some context
_LEAST_LENGTH, _LEAST_WINDOW = 8, 16
_NAMED_KINDS = ("classification", "multi_label", "token_classification")


def check_task(task: TaskConfig) -> None:
    """Checks one task by itself.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """
    if task.test_source is not None and task.kind != "question_answering":
        raise _refusal(task, "test_source", "it belongs to question_answering")
    _check_length(task)
    if task.limit_rows is not None and task.limit_rows < _LEAST_ROWS:
        raise _refusal(task, "limit_rows", f"it must be >= {_LEAST_ROWS} or null")
    for key in ("config", "train_split", "test_split", "label_names"):
        # language modelling reads the corpus, whatever else is given
        if task.name == "text" and getattr(task, key) is not None:
            raise _refusal(task, key, "the task text has none")
    if task.label_names is not None and (task.source is None or task.kind not in _NAMED_KINDS):
        kinds = ", ".join(_NAMED_KINDS)
        raise _refusal(task, "label_names", f"it must be null unless there is a source and kind is one of {kinds}")
    _check_kind(task)
    _check_hub_keys(task)


def _refusal(task: TaskConfig, key: str, allowed: str) -> UserError:
    value = getattr(task, key)
    shown = list(value) if isinstance(value, tuple) else value
    return UserError(f"tasks.{task.name}.{key}: {shown!r} is not allowed; {allowed}")


def _check_length(task: TaskConfig) -> None:
    if task.max_length is None or task.max_length >= max(_LEAST_LENGTH, _LEAST_WINDOW):
        return
    # loaded for short texts alone
    from elm_nni.data.squad import SQUAD

    is_of_windows = task.kind == "question_answering" or (task.source is None and task.name in SQUAD)
    least = _LEAST_WINDOW if is_of_windows else _LEAST_LENGTH
    if task.max_length < least:
        raise _refusal(task, "max_length", f"it must be >= {least} or null")


def _check_kind(task: TaskConfig) -> None:
    # classification is what is taken where nothing is said
    if task.source is None or task.kind in ("classification", "token_classification"):
        return
    from elm_nni.data.conll import is_conll

    if is_conll(task.source):
        raise _refusal(task, "kind", f"{task.source} has words and tags, which are token_classification")


def _check_hub_keys(task: TaskConfig) -> None:
    tested = "source" if task.test_source is None else "test_source"
    read_from = {"config": ("source", tested), "train_split": ("source",), "test_split": (tested,)}
    given = [key for key in read_from if getattr(task, key) is not None]
    for key in given:
        if not any(_is_of_hub(task, source) for source in read_from[key]):
            raise _refusal(task, key, _needs_hub(task, "source" if task.source is None else read_from[key][-1]))
    test_split = task.test_split or ("validation" if task.kind == "question_answering" else None)
    if given and tested == "source" and test_split == (task.train_split or "train"):
        key = "test_split" if task.test_split is not None else "train_split"
        raise _refusal(task, key, "train and test must be different splits")


def _needs_hub(task: TaskConfig, key: str) -> str:
    source = getattr(task, key)
    found = "null" if source is None else repr(source)
    return f"it must be null unless {key} is a hub data set or a folder laid out like one, and {key} is {found}"


def _is_of_hub(task: TaskConfig, key: str) -> bool:
    # loaded for tasks with keys of the hub alone
    from elm_nni.data.conll import is_conll
    from elm_nni.data.pairs import HEADLINES
    from elm_nni.data.sources import is_local

    source = getattr(task, key)
    if source is None or task.source is None:
        return False
    is_packaged = source.startswith("offline:") or (source == HEADLINES and task.kind == "sentence_embedding")
    return not (is_packaged or is_local(source) or is_conll(source))
