"""Writes ``report.html`` and ``plots/*.png`` into the folder of a study."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from matplotlib.figure import Figure

from elm_nni.errors import UserError
from elm_nni.files import write_bytes, write_text
from elm_nni.report.page import PLOTS_FOLDER, REPORT_FILE, embed, page_environment
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
from elm_nni.report.style import to_png

_logger = logging.getLogger(__name__)

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
    target = folder / REPORT_FILE
    try:
        images = _write_plots(found, folder / PLOTS_FOLDER)
        write_text(target, render_study(found, images))
    except OSError as error:
        raise UserError(f"cannot write the report to {str(folder)!r}: {error}") from error
    _logger.info("report written to %s with %d figures", target, len(images))
    return target


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


def _write_plots(found: StudyFindings, folder: Path) -> dict[str, bytes]:
    folder.mkdir(exist_ok=True)
    images: dict[str, bytes] = {}
    for name, figure in draw_study(found):
        images[name] = to_png(figure)
        write_bytes(folder / f"{name}.png", images[name])
    for name in set(FIGURE_NAMES) - set(images):
        # An earlier report may have drawn what this one has no data for.
        (folder / f"{name}.png").unlink(missing_ok=True)
    return images
