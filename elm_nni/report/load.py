"""Reads the files of a run directory into frozen dataclasses, or says in one line which value of which file is broken.

A file that is not there gives ``None`` or an empty tuple: the report leaves that part out and says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from elm_nni.errors import UserError
from elm_nni.report.fields import read_object
from elm_nni.report.growth_files import GROWTH_FILE, GrowthEpoch, load_growth
from elm_nni.report.head_files import HEADS_FILE, HeadPruning, load_pruning
from elm_nni.report.result_files import RESULTS_FILE, Results, load_results
from elm_nni.report.search_files import (
    HISTORY_FILE,
    Candidate,
    SearchSummary,
    load_history,
    load_pareto,
    load_summary,
)

MODEL_CONFIG_FILE = "model/config.json"


@dataclass(frozen=True)
class RunData:
    """All a run directory holds for the report."""

    run_dir: Path
    growth: tuple[GrowthEpoch, ...]
    history: tuple[Candidate, ...]
    pareto: tuple[Candidate, ...]
    summary: SearchSummary | None
    pruning: HeadPruning | None
    results: Results | None
    model_class: str | None

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The evaluated architectures; a search that keeps no history still shows its Pareto front."""
        return self.history or self.pareto


def load_run(run_dir: Path) -> RunData:
    """Reads a run directory.

    Example:
        >>> run = load_run(Path("runs/nano"))  # doctest: +SKIP
        >>> run.results.params                 # doctest: +SKIP

    Raises:
        UserError: the directory is missing, holds none of the files of a report, or one of them is broken.
    """
    if not run_dir.is_dir():
        raise UserError(f"run directory {str(run_dir)!r} does not exist or is not a directory")
    run = RunData(
        run_dir=run_dir,
        growth=load_growth(run_dir),
        history=load_history(run_dir),
        pareto=load_pareto(run_dir),
        summary=load_summary(run_dir),
        pruning=load_pruning(run_dir),
        results=load_results(run_dir),
        model_class=_load_model_class(run_dir),
    )
    if not (run.growth or run.candidates or run.summary or run.pruning or run.results):
        wanted = ", ".join((RESULTS_FILE, GROWTH_FILE, HISTORY_FILE, HEADS_FILE))
        raise UserError(f"run directory {str(run_dir)!r} holds nothing to report; at least one is needed of: {wanted}")
    return run


def _load_model_class(run_dir: Path) -> str | None:
    """The class name that the exported configuration gives, which decides the Auto class to load it with."""
    fields = read_object(run_dir, MODEL_CONFIG_FILE)
    names = [] if fields is None else fields.items("architectures", optional=True)
    return str(names[0]) if names else None
