"""Runs that differ in the distillation loss alone, one a seed and loss: what ranking.py and diversity.py share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from quality.estimate import stage_seconds
from searches import open_run

from elm_nni.errors import UserError
from elm_nni.pipeline import supernet_stage, teacher_stage
from elm_nni.pipeline.config import parse_assignment
from elm_nni.pipeline.runner import Run

LOSSES = ("relational", "mse")
STAGES = ("teacher", "supernet", "supernet_tasks")
_VARIED = ("seed", "distillation.features")

# Seed and loss to its run.
Runs = Mapping[tuple[int, str], Run]


def open_runs(source: str, store: Path | None, out: Path, changes: Sequence[str], *, seeds: int) -> Runs:
    """Runs of seeds from 0, each under both losses; those of a seed share teacher, text and tasks.

    Raises:
        UserError: a change is one of what differs between the runs, or a run is refused.
    """
    for change in changes:
        key, value = parse_assignment(change)
        if key in _VARIED:
            raise UserError(f"--set {key}={value} is not allowed: the runs differ in {' and '.join(_VARIED)}")
    runs: dict[tuple[int, str], Run] = {}
    for seed in range(seeds):
        for loss in LOSSES:
            run = open_run(source, store, out, [*changes, f"seed={seed}", f"distillation.features={loss}"])
            if loss != LOSSES[0]:
                _share(runs[seed, LOSSES[0]], run)
            runs[seed, loss] = run
    return runs


def _share(first: Run, other: Run) -> None:
    source, target = first.context, other.context
    target.teacher, target.corpus, target.tasks = source.teacher, source.corpus, source.tasks


def missing_stages(run: Run) -> list[str]:
    """Those of :data:`STAGES` that the store does not hold."""
    context, chosen = run.context, run.precision()
    inputs = {
        "teacher": teacher_stage.teacher_inputs(context), "supernet": supernet_stage.supernet_inputs(context, chosen)
    }  # fmt: skip
    digests = {name: context.store.folder(name, given).name for name, given in inputs.items()}
    inputs["supernet_tasks"] = supernet_stage.supernet_tasks_inputs(
        context, digests["supernet"], digests["teacher"], chosen
    )
    return [name for name in STAGES if context.store.finished(name, inputs[name]) is None]


def supernet_estimate(runs: Runs) -> Iterator[tuple[str, float]]:
    """A line and seconds for each run whose supernet is not trained; a few steps are timed where that is unknown."""
    teachers: set[int] = set()
    for (seed, loss), run in runs.items():
        missing = missing_stages(run)
        # both losses of a seed have one teacher
        counted = [name for name in missing if name != "teacher" or seed not in teachers]
        if "teacher" in missing:
            teachers.add(seed)
        if counted:
            seconds = sum(stage_seconds(run.context)[name] for name in counted)
            yield f"{loss}, seed {seed}: {', '.join(counted)}, {seconds / 60:.1f} minutes", seconds
