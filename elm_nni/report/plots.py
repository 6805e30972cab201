"""All figures of a report, by name; a figure without data is left out."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.figure import Figure

from elm_nni.report.architecture_plot import plot_architecture
from elm_nni.report.growth_plots import plot_budget, plot_scores, plot_widths
from elm_nni.report.head_plots import plot_cka, plot_eta_sweep
from elm_nni.report.load import RunData
from elm_nni.report.result_plots import plot_comparisons, plot_stages
from elm_nni.report.search_plots import plot_evolution, plot_plane

FIGURE_NAMES = (
    "architecture",
    "comparison",
    "scores",
    "widths",
    "budget",
    "evolution",
    "plane",
    "cka",
    "eta_sweep",
    "stages",
)


def draw_figures(run: RunData) -> Iterator[tuple[str, Figure]]:
    """Yields name and figure for everything that the run has data for, one at a time to keep memory low."""
    yield from _result_figures(run)
    if any(epoch.widths for epoch in run.growth):
        yield "scores", plot_scores(run.growth)
        yield "widths", plot_widths(run.growth)
    if run.growth:
        yield "budget", plot_budget(run.growth)
    if run.history:
        yield "evolution", plot_evolution(run.history)
    if run.candidates:
        best = run.summary.best.digest if run.summary else max(run.candidates, key=lambda c: c.metric).digest
        yield "plane", plot_plane(run.candidates, best, run.summary.limits if run.summary else {})
    if run.pruning and (run.pruning.cka_before or run.pruning.cka_after):
        yield "cka", plot_cka(run.pruning)
    if run.pruning and run.pruning.eta_sweep and run.pruning.layers:
        yield "eta_sweep", plot_eta_sweep(run.pruning)


def _result_figures(run: RunData) -> Iterator[tuple[str, Figure]]:
    if run.results is None:
        return
    yield "architecture", plot_architecture(run.results, run.pruning)
    if run.results.comparisons:
        yield "comparison", plot_comparisons(run.results.comparisons)
    if run.results.stages:
        yield "stages", plot_stages(run.results.stages)
