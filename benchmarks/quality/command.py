"""The command: estimate, training, timing, by option the test rows, then tables and figure."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import optuna
import typer

from elm_nni.cache import default_store
from elm_nni.files import write_bytes, write_text
from elm_nni.pipeline.store import StageStore, write_json
from elm_nni.report.style import to_png
from quality.comparison import load_comparison
from quality.document import document, make_results, plot
from quality.estimate import estimate
from quality.records import Records, check_sizes
from quality.rows import make_rows
from quality.systems import SYSTEMS


def main(
    file: Annotated[Path, typer.Argument(help="What is compared, for example benchmarks/quality/nano.yaml.")],
    out: Annotated[Path, typer.Option(help="Folder of records, results and figure.")],
    store: Annotated[Path | None, typer.Option(help="Where stages live. Default: as elm-nni.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print the estimate and stop.")] = False,
    test: Annotated[bool, typer.Option("--test", help="Score the test rows, after everything is trained.")] = False,
) -> None:
    """Compares systems of one size over seeds; run it again to go on."""
    comparison = load_comparison(file, SYSTEMS)
    # every draw would be a line
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    records = Records(comparison, StageStore(store or default_store()), out, lambda line: typer.echo(line, err=True))
    for line in estimate(records):
        typer.echo(line, err=not plan)
    if plan:
        return
    trained = records.train()
    measured = records.measure(trained)
    check_sizes(trained, measured)
    tested = records.test(trained) if test else None
    rows = make_rows(trained, measured, tested)
    command = shlex.join(["python", "benchmarks/quality", *sys.argv[1:]])
    results = make_results(command, trained, rows, measured, tested)
    lines = document(results)
    write_json(out / "results.json", results.to_dict())
    write_text(out / "results.md", "\n".join(lines) + "\n")
    write_bytes(out / "quality.png", to_png(plot(results)))
    typer.echo("\n".join(lines))
