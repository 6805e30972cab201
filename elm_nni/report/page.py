"""Writes ``report.html`` and ``plots/*.png`` into a run directory."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from matplotlib.figure import Figure

from elm_nni.errors import UserError
from elm_nni.files import write_bytes, write_text
from elm_nni.report import text
from elm_nni.report.front import pareto_front
from elm_nni.report.head_files import HeadPruning
from elm_nni.report.head_plots import marked_heads
from elm_nni.report.headline import TEACHER, build_headline, find_system, kept_share, speed_up
from elm_nni.report.load import RunData, load_run
from elm_nni.report.plots import FIGURE_NAMES, draw_figures
from elm_nni.report.result_files import Results, System
from elm_nni.report.style import DPI, to_png

_logger = logging.getLogger(__name__)

REPORT_FILE = "report.html"
PLOTS_FOLDER = "plots"
# A front of hundreds would bury the page; the file holds them all.
MAX_FRONT_ROWS = 12
# 9 to 10 point labels come out at the size of the text around them.
PIXELS_PER_INCH = 108

_AUTO_CLASSES = {
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForCausalLM": "AutoModelForCausalLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
}


def write_report(run_dir: Path) -> Path:
    """Writes the report of a run, finished or not, and returns its path.

    Parts whose files the run directory lacks are left out, with a sentence that says so. The same files give the same
    report, byte for byte. The page loads nothing from elsewhere.

    Args:
        run_dir: the run directory; ``report.html`` and ``plots/`` in it are replaced.

    Raises:
        UserError: the directory is missing, holds nothing to report, cannot be written, or has a broken file.

    Example:
        >>> write_report(Path("runs/nano"))  # doctest: +SKIP
        PosixPath('runs/nano/report.html')
    """
    run_dir = Path(run_dir)
    run = load_run(run_dir)
    return write_files(run_dir, draw_figures(run), FIGURE_NAMES, lambda images: render_page(run, images))


def write_files(
    folder: Path,
    figures: Iterable[tuple[str, Figure]],
    names: Iterable[str],
    render: Callable[[Mapping[str, bytes]], str],
) -> Path:
    """Writes the figures and the page of a folder, and returns the page's path.

    Args:
        figures: name and figure of those that there are data for.
        names: of all figures that a page can have; files of the others are removed.
        render: the page from the figures' PNG files.

    Raises:
        UserError: the folder cannot be written.
    """
    target, plots = folder / REPORT_FILE, folder / PLOTS_FOLDER
    images: dict[str, bytes] = {}
    try:
        plots.mkdir(exist_ok=True)
        for name, figure in figures:
            images[name] = to_png(figure)
            write_bytes(plots / f"{name}.png", images[name])
        for name in set(names) - set(images):
            # An earlier report may have drawn what this one has no data for.
            (plots / f"{name}.png").unlink(missing_ok=True)
        write_text(target, render(images))
    except OSError as error:
        raise UserError(f"cannot write the report to {str(folder)!r}: {error}") from error
    _logger.info("report written to %s with %d figures", target, len(images))
    return target


def render_page(run: RunData, images: Mapping[str, bytes]) -> str:
    """The HTML page of a run.

    Args:
        run: what the run directory holds.
        images: PNG files by figure name; a figure that is missing is left out of the page.
    """
    environment = page_environment()
    environment.filters.update(
        count=text.exact_count,
        short=text.short_count,
        quality=text.quality,
        signed=text.signed,
        ms=text.milliseconds,
        decimal=text.decimal,
        percent=text.percent,
        factor=text.factor,
        duration=text.duration,
    )
    front = pareto_front(run.candidates)
    return environment.get_template("report.html.j2").render(
        run=run,
        name=run.run_dir.resolve().name,
        headline=build_headline(run.results) if run.results else None,
        systems=_system_rows(run.results) if run.results else [],
        conditions=_conditions(run.results.systems) if run.results else [],
        front=front[:MAX_FRONT_ROWS],
        num_front=len(front),
        removed=_removed_heads(run.pruning),
        auto_class=auto_class(run.model_class),
        model_dir=repr((run.run_dir / "model").as_posix()),
        images={name: embed(png) for name, png in images.items()},
    )


def page_environment() -> jinja2.Environment:
    """The templates of this package: all text is escaped, a name that is not given is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("elm_nni.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@dataclass(frozen=True)
class Image:
    """A figure as the page holds it; ``width`` is its natural width in CSS pixels."""

    base64: str
    width: int


def embed(png: bytes) -> Image:
    """The figure for the macro ``figure`` of the templates."""
    # The header of a PNG file holds its width in pixels as a big-endian integer at byte 16.
    inches = int.from_bytes(png[16:20], "big") / DPI
    return Image(base64.b64encode(png).decode("ascii"), round(inches * PIXELS_PER_INCH))


def auto_class(model_class: str | None) -> str:
    """The Auto class of transformers that loads a model class by name; ``AutoModel`` for one without a head.

    Example:
        >>> auto_class("ElmForCausalLM")
        'AutoModelForCausalLM'
    """
    found = (auto for suffix, auto in _AUTO_CLASSES.items() if model_class and model_class.endswith(suffix))
    return next(found, "AutoModel")


def _system_rows(results: Results) -> list[tuple[System, float | None, float | None, int | None]]:
    """Each system with its kept share, its speed-up and the number of its measuring condition, counted from 1."""
    teacher = find_system(results, TEACHER)
    numbers = {condition: number for number, condition in enumerate(_conditions(results.systems), start=1)}
    return [(s, kept_share(s, teacher), speed_up(s, teacher), numbers.get(s.condition)) for s in results.systems]


def _conditions(systems: Sequence[System]) -> list[str]:
    return list(dict.fromkeys(s.condition for s in systems if s.condition and s.latency_ms is not None))


def _removed_heads(pruning: HeadPruning | None) -> dict[int, tuple[int, ...]]:
    return {} if pruning is None else {layer.layer: marked_heads(layer, pruning.mode) for layer in pruning.layers}
