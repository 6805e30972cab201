"""Writes ``report.html`` and ``plots/*.png`` into the folder of a study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from matplotlib.figure import Figure

from elm_nni.report.page import embed, page_environment, write_files
from elm_nni.report.study.headline import study_headline
from elm_nni.report.study.importance import FEW_TRIALS
from elm_nni.report.study.load import load_study
from elm_nni.report.study.plots import (
    MAX_SLICES,
    objective_pairs,
    plot_front,
    plot_history,
    plot_importances,
    plot_proxy,
    plot_reports,
    plot_slices,
)
from elm_nni.report.study.sections import (
    SWEEPS,
    StudyFindings,
    best_table,
    facts,
    failed_rows,
    proxy_section,
    section_links,
    sweep_section,
    trial_table,
)
from elm_nni.report.study.sweep_plots import plot_heads, plot_sweep
from elm_nni.report.study.sweeps import ETA, HEADS

FIGURE_NAMES = (
    "front", "history", "importances", "slices", "reports", "proxy",
    *(f"{name}_{kind}" for name, _ in SWEEPS.values() for kind in ("heads", "values")),
)  # fmt: skip


def write_study_report(folder: Path, storage: str | None = None) -> Path:
    """Writes the report of a study, finished or not, and returns its path.

    The same trials give the same report, byte for byte. The page loads nothing from elsewhere.

    Args:
        folder: with ``study.json``; ``report.html`` and ``plots/`` in it are replaced.
        storage: as of :func:`~elm_nni.report.study.load.load_study`.

    Raises:
        UserError: as :func:`~elm_nni.report.study.load.load_study`, or the folder cannot be written.

    Example:
        >>> write_study_report(Path("studies/eta"))  # doctest: +SKIP
        PosixPath('studies/eta/report.html')
    """
    found = StudyFindings.of(load_study(folder, storage))
    return write_files(folder, draw_study(found), FIGURE_NAMES, lambda images: render_study(found, images))


def render_study(found: StudyFindings, images: Mapping[str, bytes]) -> str:
    """The HTML page; a figure that is missing in ``images`` is left out."""
    study, failed = found.study, failed_rows(found.study)
    sweeps = [sweep_section(found, parameter) for parameter in SWEEPS if parameter in study.distributions]
    return page_environment().get_template("study.html.j2").render(
        study=study, headline=study_headline(study), facts=facts(study), best=best_table(study),
        importances=found.importances, few_trials=FEW_TRIALS, sweeps=sweeps, proxy=proxy_section(found), failed=failed,
        slices={"possible": found.has_others, "left_out": found.others[MAX_SLICES:]}, trials=trial_table(study),
        num_pruned=sum(trial.state == "pruned" for trial in study.trials),
        images={name: embed(png) for name, png in images.items()},
        sections=section_links(found, images, sweeps, bool(failed)),
    )  # fmt: skip


def draw_study(found: StudyFindings) -> Iterator[tuple[str, Figure]]:
    """Yields name and figure for everything that the study has data for, one at a time to keep memory low."""
    study = found.study
    if study.complete:
        yield "history", plot_history(study)
    if study.front and objective_pairs(study):
        yield "front", plot_front(study)
    if found.importances.shares:
        yield "importances", plot_importances(found.importances)
    for parameter, sweep in found.sweeps.items():
        name = SWEEPS[parameter][0]
        if HEADS in sweep.names and parameter == ETA:
            yield f"{name}_heads", plot_heads(sweep)
        yield f"{name}_values", plot_sweep(sweep)
    if found.others:
        yield "slices", plot_slices(study, found.others[:MAX_SLICES])
    if any(trial.reports for trial in study.trials if trial.state != "waiting"):
        yield "reports", plot_reports(study)
    if found.proxy and found.proxy.pairs:
        yield "proxy", plot_proxy(found.proxy)
