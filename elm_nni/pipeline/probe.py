"""One validation metric for every epoch and every generation of a run, so that runs can be compared while they last.

Shape suffixes: N samples, D hidden, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elm_nni.data.outputs import RowBatches, SomeRows, TokenizedRows
from elm_nni.digest import derive_seed, digest
from elm_nni.distillation.heads import LinearHead
from elm_nni.distillation.student import last_hidden
from elm_nni.modeling.heads_elm import IGNORED_LABEL
from elm_nni.pipeline.context import Context, Task, task_identity
from elm_nni.pipeline.modules import on_device
from elm_nni.pipeline.store import append_json_line, read_json_lines
from elm_nni.search_spaces.space import ElmSpace
from elm_nni.strategies.one_shot import set_path

# Architectures, always the same, that stand for the supernet as long as the search has no best one.
NUM_PATHS = 2


@dataclass(frozen=True)
class Point:
    """The validation metric after an epoch of a supernet phase or a generation of the search.

    Attributes:
        phase: ``supernet``, ``supernet_tasks`` or ``search``.
        step: optimizer steps so far, or the generation.
        metric: of :class:`Probe`.
        loss: mean training loss of the epoch, None in the search.
    """

    phase: str
    step: int
    metric: float
    loss: float | None = None


class Probe:
    """How well the features of a supernet's paths serve the tasks, whatever phase it is in.

    For every search task a linear head is fitted on the pooled features of some training rows and scored on some
    validation rows with the task's main metric; the mean over tasks and paths counts. The weights are not changed and
    torch's generator is not used. Test rows are not read. Tasks that no linear head learns (answers, embeddings,
    language modelling) are left out.

    Example::

        probe = Probe(context)
        probe(supernet)                 # mean of a few fixed paths
        probe(supernet, [architecture])
    """

    def __init__(self, context: Context) -> None:
        self.context = context

    @property
    def tasks(self) -> list[Task]:
        """The search's tasks that a linear head can learn."""
        names = self.context.config.search.tasks or tuple(self.context.tasks)
        tasks = [self.context.tasks[name] for name in names]
        return [task for task in tasks if task.kind.linear_head not in (None, "identity")]

    @cached_property
    def _parts(self) -> list[tuple[Task, _Part, _Part]]:
        size, seed = self.context.config.supernet.probe_rows, self.context.config.seed
        return [
            (one, _Part(one, one.train, size, seed), _Part(one, one.validation, size, seed)) for one in self.tasks
        ]

    def __call__(self, space: ElmSpace, samples: Sequence[dict[str, Any]] | None = None) -> float:
        """The mean metric of the paths of ``samples``, or of fixed ones, at the active widths."""
        samples = self._fixed(space) if samples is None else samples
        training = space.training
        space.eval()
        try:
            return round(float(np.mean([self._score(space, sample) for sample in samples])), 6)
        finally:
            space.train(training)

    @torch.inference_mode()
    def _score(self, space: ElmSpace, sample: dict[str, Any]) -> float:
        set_path(space, sample)
        scores = []
        for task, train, validation in self._parts:
            head = self._head(task, train.features(space), train.rows.labels)
            scores.append(task.score(head(validation.features(space)), validation.rows))
        return float(np.mean(scores))

    def _head(self, task: Task, features_ND: Tensor, labels: Tensor) -> LinearHead:
        counted = labels[labels != IGNORED_LABEL]
        if task.kind.linear_head == "multi_label" or len(counted.unique()) >= 2:
            seed = self.context.config.seed
            return task.kind.fit_head(features_ND, labels, num_outputs=task.num_outputs, seed=seed)
        # a few rows may be all alike: their class, or value, is what they teach
        bias_C = counted[:1].float()
        if task.num_outputs > 1:
            bias_C = torch.nn.functional.one_hot(counted[0].long(), task.num_outputs).float()
        return LinearHead(torch.zeros(task.num_outputs, features_ND.shape[1]), bias_C)

    def _fixed(self, space: ElmSpace) -> list[dict[str, Any]]:
        rng = np.random.default_rng(derive_seed(self.context.config.seed, "probe"))
        layers = range(self.context.settings.num_layers)
        return [{f"layer{index}": str(rng.choice(list(space.blocks))) for index in layers} for _ in range(NUM_PATHS)]


class _Part:
    """Some rows of a split, the same in every call."""

    def __init__(self, task: Task, rows: TokenizedRows, size: int, seed: int) -> None:
        chosen = np.random.default_rng(derive_seed(seed, "probe/rows")).permutation(len(rows))[:size].tolist()
        self.rows = SomeRows(rows, chosen)
        self._kind, self._batches = task.kind, RowBatches(self.rows, task.name, keep=True)

    def features(self, space: ElmSpace) -> Tensor:
        """What a head reads of the rows, (N, D), or of their tokens, (sum of lengths, D)."""
        device, pooling = next(space.parameters()).device, space.settings.pooling

        def features_of(batch: dict[str, Any]) -> Tensor:
            batch = on_device(batch, device)
            return self._kind.features(last_hidden(space, batch), batch, pooling)

        return self._batches.outputs(features_of)


class ProbeRecorder:
    """Measures points of one stage, writes them into its folder and tells them to whoever watches the run.

    A point that the folder holds already, because a killed run went back to its last checkpoint, is not measured again.

    Args:
        context: its ``observe`` is told.
        space: the supernet.
        folder: of the stage.
        phase: of the points.
    """

    def __init__(self, context: Context, space: ElmSpace, folder: Path, phase: str) -> None:
        self.context, self.space, self.phase = context, space, phase
        self.file = folder / probe_file(context)
        points = read_points(context, folder)
        self._known = {point.step for point in points}
        for point in points:
            context.observe(point)
        probe = Probe(context)
        self._probe = probe if context.config.supernet.probe_rows and probe.tasks else None

    def record(
        self, step: int, *, loss: float | None = None, samples: Sequence[dict[str, Any]] | None = None
    ) -> None:
        """Measures and tells one point."""
        if self._probe is None or step in self._known:
            return
        point = Point(self.phase, step, self._probe(self.space, samples), loss)
        append_json_line(self.file, asdict(point))
        self.context.log("probe", **asdict(point))
        self.context.observe(point)

    def every(self, num_epochs: int) -> Callable[[int, int, float], None]:
        """A function for :func:`fit` that records after every so many epochs."""

        def epoch_end(epoch: int, step: int, loss: float) -> None:
            if epoch % num_epochs == 0:
                self.record(step, loss=loss)

        return epoch_end


def probe_file(context: Context) -> str:
    """Name of the file of points: a supernet may serve several sets of tasks, each with points of its own."""
    config = context.config
    tasks = [task_identity(task) for task in config.tasks]
    return f"probe-{digest([tasks, list(config.search.tasks), config.supernet.probe_rows])}.jsonl"


def read_points(context: Context, folder: Path) -> list[Point]:
    """The points that were recorded in a stage's folder for the tasks of this run."""
    return [Point(**line) for line in read_json_lines(folder / probe_file(context))]
