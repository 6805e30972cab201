"""An evaluator that scores architectures with a trained supernet's weights.

Shape suffixes: N samples, C classes.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import nni
import torch
from nni.mutable import Mutable
from nni.nas.evaluator import MutableEvaluator
from torch import nn

from elm_nni.data.batches import TaskRows
from elm_nni.data.outputs import RowBatches
from elm_nni.data.tasks import TaskData, load_task, split_search_validation
from elm_nni.distillation.student import StudentConfig, last_hidden
from elm_nni.distillation.teacher import Teacher
from elm_nni.kinds import KINDS
from elm_nni.strategies.supernet_files import inherit_weights, load_head


@nni.trace
class SupernetFitness(MutableEvaluator):
    """Scores an architecture with a trained supernet's weights: the task's main metric, nothing is trained.

    The frozen model gets the first units of each weight out of the checkpoint, so it works with every model format
    and execution engine; no supernet is built, and only what the architecture uses is read.

    Args:
        checkpoint: folder of a supernet fine-tuned on tasks, as the pipeline writes it (weights and task heads).
        task: as of :func:`elm_nni.data.tasks.load_task`; the checkpoint has a head of that name.
        tokenizer: the teacher that the supernet was trained with, whose tokenizer is used.
        rows: size of the search part, carved from the training rows; test rows are never read.
        max_length: tokens of a row; None takes the task's.
        seed: of the task's splits.

    Raises:
        ValueError: a number outside its range.
        UserError: from the run, a checkpoint without these files or this head.

    Example::

        fitness = SupernetFitness("runs/nano/supernet_tasks", "polarity", tokenizer="offline")
        NasExperiment(ElmSpace.preset("nano"), fitness, ConstrainedEvolution(limits=limits), config).run()
    """

    def __init__(
        self,
        checkpoint: str,
        task: str,
        *,
        tokenizer: str,
        rows: int = 512,
        max_length: int | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(rows, Mutable) and rows < 1:
            raise ValueError(f"rows must be >= 1, got {rows!r}")
        self.checkpoint, self.task, self.tokenizer = checkpoint, task, tokenizer
        self.rows, self.max_length, self.seed = rows, max_length, seed

    @torch.inference_mode()
    def evaluate(self, model: nn.Module) -> float:
        """Reports the metric of a frozen model of the space and returns it."""
        folder = Path(self.checkpoint)
        inherit_weights(model, nni.get_current_parameter().sample, folder)
        data, rows = _search_rows(self.task, self.tokenizer, self.rows, self.max_length, self.seed)
        head = load_head(data.name, folder).eval()
        model.eval()
        kind, pooling = KINDS[data.kind], cast(StudentConfig, model.config).classifier_pooling

        def logits_of(batch: dict[str, Any]) -> torch.Tensor:
            return head(kind.features(last_hidden(model, batch), batch, pooling))

        outputs = RowBatches(rows, data.name).outputs(logits_of)
        metric = kind.scores((data.metric,), outputs, rows, data.label_names)[data.metric]
        nni.report_final_result(metric)
        return metric


@lru_cache(maxsize=2)
def _search_rows(
    task: str, tokenizer: str, num_rows: int, max_length: int | None, seed: int
) -> tuple[TaskData, TaskRows]:
    # a search evaluates hundreds of models on the same rows
    data = load_task(task, seed)
    _, search = split_search_validation(data.train, num_rows, seed)
    return data, TaskRows(search, Teacher.load(tokenizer).tokenizer, max_length or data.max_length)
