"""Prediction files of a finished run, as the benchmarks want them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from elm_nni.data.answers import decode, write_predictions
from elm_nni.data.batches import TaskRows
from elm_nni.data.glue import GLUE_TASKS, load_submission_rows, write_submission
from elm_nni.data.metrics import predictions_of
from elm_nni.data.question_task import QuestionTask
from elm_nni.data.tasks import TASKS, TaskData
from elm_nni.errors import UserError
from elm_nni.pipeline.context import Context, Task
from elm_nni.pipeline.evaluate_stage import elm_system

if TYPE_CHECKING:
    from elm_nni.pipeline.runner import Run

LogitsOf = Callable[[dict[str, Any]], Tensor]


def write_run_predictions(run: Run, out: Path) -> list[Path]:
    """Writes what the run's models predict: of GLUE tasks the submission files, of questions those of SQuAD's scorers.

    GLUE's files are of its unlabelled test rows. Of questions the test rows are answered; where some have no answer,
    the threshold of the null answer is the one that is best on the validation rows.

    Args:
        run: its models are trained if they are not yet.
        out: folder of GLUE's files, and of a folder for each task of questions; made when missing.

    Raises:
        UserError: no task of the run has prediction files, the hub is out of reach, or ``out`` cannot be written.
    """
    context, written = run.context, list[Path]()
    tasks = {name: task for name, task in context.tasks.items() if _has_files(context, task)}
    if not tasks:
        raise UserError(
            f"tasks: {', '.join(context.tasks)} have no prediction files; those of GLUE ({', '.join(GLUE_TASKS)}) and "
            "questions have"
        )
    models = {name: result.folder / "model" for name, result in run.retrain().items() if name in tasks}
    system = elm_system("ours", models, context.device)
    for name, task in tasks.items():
        write = _write_answers if isinstance(task.data, QuestionTask) else _write_glue
        written += write(context, task, system.logits[name], out)
    return written


def _has_files(context: Context, task: Task) -> bool:
    known = {one.name for one in context.config.tasks if one.source is None}
    return isinstance(task.data, QuestionTask) or (task.name in GLUE_TASKS and task.name in known)


def _write_glue(context: Context, task: Task, logits_of: LogitsOf, out: Path) -> list[Path]:
    found = {}
    assert isinstance(task.data, TaskData)
    for file, rows in load_submission_rows(task.name, source=TASKS[task.name].source).items():
        # there are no labels; nothing reads these
        filled = rows.add_column("label", [0.0 if task.data.kind == "regression" else 0] * len(rows))
        outputs = task.outputs(logits_of, TaskRows(filled, context.tokenizer, task.data.max_length))
        found[file] = predictions_of(outputs.numpy(), task.data.kind)
    return write_submission(out, task.name, found)


def _write_answers(context: Context, task: Task, logits_of: LogitsOf, out: Path) -> list[Path]:
    assert isinstance(task.data, QuestionTask)
    threshold = task.threshold(logits_of)
    assert threshold is not None
    rows = task.data.windows(task.data.questions.test, context.tokenizer)
    outputs = task.outputs(logits_of, rows).numpy()
    folder = out / task.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make folder {folder}: {error.strerror}") from error
    return list(write_predictions(folder, decode(rows, outputs), threshold))
