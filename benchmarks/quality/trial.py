"""One seed of a comparison: its runs, all on the same rows and teacher, and the training of any student in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from elm_nni.cost.parameters import match_size, parameters_outside_embeddings
from elm_nni.errors import UserError
from elm_nni.pipeline.config import Config
from elm_nni.pipeline.evaluate_stage import System as Loaded
from elm_nni.pipeline.run_dir import config_digest
from elm_nni.pipeline.runner import Architecture, Run
from elm_nni.pipeline.store import StageResult, StageStore
from quality.comparison import Comparison

# What the compute of a student counts: of every student, and of one that a search found.
SHARED = ("precision", "teacher")
SEARCHED = ("precision", "latency", "teacher", "supernet", "supernet_tasks", "search", "prune")


class LeftOut(Exception):
    """A system has no student of the right size for a seed; the message says why."""


class TracedRun(Run):
    """A run that keeps the result of every stage by its label."""

    def __init__(self, config: Config, store: StageStore, directory: Path) -> None:
        self.stages: dict[str, StageResult] = {}
        super().__init__(config, store, directory, announce=self.stages.__setitem__)

    def stage(self, name: str, inputs: dict[str, Any], builder: Callable[[Path], None], label: str) -> StageResult:
        """A stage of a system's own, built or found."""
        return self._stage(name, inputs, builder, label=label)


@dataclass(frozen=True)
class Student:
    """A model trained for each task.

    Attributes:
        models: task to the stage that trained it.
        stages: all stages that it took, found ones too; those of its own training are ``pretrain`` and
            ``finetune TASK``.
        architecture: None for a model that is no ELM.
        facts: what else there is to know of it, plain values.
    """

    models: Mapping[str, StageResult]
    stages: Mapping[str, StageResult]
    architecture: Architecture | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Of all stages, each as it was when it was built."""
        return sum(result.seconds for result in self.stages.values())

    @property
    def training_seconds(self) -> float:
        """Of its own training alone."""
        own = [result for label, result in self.stages.items() if label.split(" ")[0] in ("pretrain", "finetune")]
        return sum(result.seconds for result in own)


class Trial:
    """The runs of one seed.

    Args:
        comparison: what is compared.
        seed: of everything, the splits of the data too.
        store: where stages live.
        folder: the runs' own files go below it.
    """

    def __init__(self, comparison: Comparison, seed: int, store: StageStore, folder: Path) -> None:
        self.comparison, self.seed = comparison, seed
        self._store, self._folder = store, folder
        self._runs: dict[str, TracedRun] = {}

    def run(self, changes: Mapping[str, Any] | None = None) -> TracedRun:
        """The run with these changes; teacher, text and tasks are loaded once for all runs of the seed."""
        config = self.comparison.config(self.seed, changes)
        name = config_digest(config)
        if name not in self._runs:
            run = TracedRun(config, self._store, self._folder / name)
            if self._runs:
                _share(next(iter(self._runs.values())), run)
            self._runs[name] = run
        return self._runs[name]

    @cached_property
    def target(self) -> int:
        """Parameters outside the embeddings of the winner of full ELM: the size of every system."""
        return parameters_outside_embeddings(self.run().architecture(), self.run().context.settings)

    def sized(self, architecture: Architecture) -> Architecture:
        """The architecture with feed-forward widths that give it the size.

        Raises:
            LeftOut: no widths do.
        """
        try:
            return match_size(architecture, self.target, self.run().context.settings)
        except UserError as error:
            raise LeftOut(str(error)) from error

    def train(
        self,
        name: str,
        architecture: Architecture,
        *,
        found_by: TracedRun | None = None,
        trained_by: TracedRun | None = None,
        inherited: StageResult | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Student:
        """Trains an architecture with the recipe of all systems.

        Args:
            name: no other architecture of the seed has it.
            architecture: canonical.
            found_by: the run whose search found it, if any did.
            trained_by: another run than the one without changes.
            inherited: the head step whose weights the architecture starts from.
            facts: kept with the student.
        """
        run = trained_by or self.run()
        models = run.train(architecture, name, inherited)
        before = found_by or run
        stages = {label: before.stages[label] for label in (SEARCHED if found_by else SHARED) if label in before.stages}
        stages["pretrain"] = run.stages[f"{name} pretrain"]
        stages |= {f"finetune {task}": result for task, result in models.items()}
        return Student(models, stages, architecture, facts or {})


# How the students of a seed come about; and name, folders by task and device to what can be scored and timed.
Students = Callable[[Trial], list[Student]]
Loader = Callable[[str, dict[str, Path], str], Loaded]


def _share(first: Run, other: Run) -> None:
    for part in ("seed", "teacher", "data", "tasks", "vocabulary"):
        assert getattr(first.config, part) == getattr(other.config, part), f"systems must not differ in {part}"
    assert first.config.search.validation_size == other.config.search.validation_size
    source, target = first.context, other.context
    target.full_teacher, target.teacher = source.full_teacher, source.teacher
    target.corpus, target.tasks = source.corpus, source.tasks
