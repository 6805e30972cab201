"""The sweeps and the rank correlation of a study as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from elm_nni.report.study.load import StudyData, load_study
from elm_nni.report.study.proxy import compare_proxy
from elm_nni.report.study.sweeps import HEADS, SWEPT, Sweep, SweepRow, is_numeric, make_sweep
from elm_nni.report.study.text import (
    correlation_note,
    label,
    proxy_sentence,
    shown,
    shown_coefficient,
    shown_setting,
    shown_spread,
    times_sentence,
)


def study_tables(folder: Path) -> str:
    """Markdown of the sweeps over ``prune.eta`` and ``growth.top_k`` and of the proxy's rank correlation.

    A study of neither has sweeps over its numeric parameters.

    Raises:
        UserError: as :func:`~elm_nni.report.study.load.load_study`.
    """
    study = load_study(folder)
    numeric = [parameter for parameter in study.distributions if is_numeric(study, parameter)]
    chosen = [parameter for parameter in SWEPT if parameter in numeric] or numeric
    sweeps = [make_sweep(study, parameter) for parameter in chosen]
    parts = [*(_sweep_table(sweep) for sweep in sweeps), *_proxy_parts(study)]
    return "\n\n".join(parts or [f"Study {study.name} has no complete trial of a swept parameter and no proxy."]) + "\n"


def sweep_cells(sweep: Sweep, row: SweepRow) -> list[str]:
    """A row of the table of a sweep, below :func:`sweep_columns`."""
    split = [row.series] if sweep.split else []
    repeats = [str(row.num_trials)] if sweep.is_repeated else []
    cells = [row.label, *split, *repeats, *(shown_spread(name, row.values.get(name)) for name in sweep.names)]
    layers = [" ".join(f"{heads:.3g}" for heads in row.layer_heads)] if HEADS in sweep.names else []
    return [*cells, *layers]


def sweep_columns(sweep: Sweep) -> list[str]:
    """The head of the table of a sweep."""
    split = [sweep.split] if sweep.split else []
    repeats = ["trials"] if sweep.is_repeated else []
    layers = ["heads of each layer"] if HEADS in sweep.names else []
    return [sweep.parameter, *split, *repeats, *map(label, sweep.names), *layers]


def _sweep_table(sweep: Sweep) -> str:
    return markdown_table(sweep_columns(sweep), [sweep_cells(sweep, row) for row in sweep.rows])


def _proxy_parts(study: StudyData) -> Iterator[str]:
    comparison = compare_proxy(study)
    if comparison is None:
        return
    yield proxy_sentence(study, comparison)
    columns = ["objective", "pairs", "Kendall's tau [95 %]", "Spearman's rho [95 %]", "note"]
    yield markdown_table(columns, [
        [label(name), str(found.n), shown_coefficient(found.kendall), shown_coefficient(found.spearman),
         correlation_note(found)]
        for name, found in comparison.correlations.items()
    ])  # fmt: skip
    if comparison.pairs:
        names = list(study.objectives)
        keys = list(dict.fromkeys(key for pair in comparison.pairs for key in pair.params))
        columns = [*keys, *(f"{label(name)}, {kind}" for name in names for kind in ("full", "proxy"))]
        yield markdown_table(columns, [
            [*(shown_setting(pair.params.get(key)) for key in keys),
             *(shown(name, side[name]) for name in names for side in (pair.full, pair.proxy))]
            for pair in comparison.pairs
        ])  # fmt: skip
    yield times_sentence(comparison.times)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; a bar or a line end in a cell does not end the cell.

    Example:
        >>> markdown_table(["eta"], [["0.9"]])
        '| eta |\\n|---|\\n| 0.9 |'
    """
    lines = [columns, *rows]
    text = ["| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in line) + " |" for line in lines]
    return "\n".join([text[0], "|" + "---|" * len(columns), *text[1:]])
