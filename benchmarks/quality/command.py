"""The command: estimate, training, timing, by option the test rows, then tables and figure."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from common import at_least
from transformers.utils.logging import disable_progress_bar

from elm_nni.cache import default_store
from elm_nni.files import write_bytes, write_text
from elm_nni.pipeline.store import StageStore, write_json
from elm_nni.report.style import to_png
from quality.comparison import load_comparison
from quality.document import document, make_results, plot
from quality.estimate import estimate
from quality.records import Records, check_sizes, threads_of
from quality.reference import references
from quality.rows import make_rows
from quality.systems import SYSTEMS


def main(
    file: Annotated[Path, typer.Argument(help="What is compared, for example benchmarks/quality/nano.yaml.")],
    out: Annotated[Path, typer.Option(help="Folder of records, results and figure.")],
    store: Annotated[Path | None, typer.Option(help="Where stages live. Default: as elm-nni.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print the estimate and stop.")] = False,
    workers: Annotated[int, typer.Option(help="Processes that share the cores, a seed each.")] = 1,
    test: Annotated[bool, typer.Option("--test", help="Score the test rows, after everything is trained.")] = False,
) -> None:
    """Compares systems of one size over seeds; run it again to go on."""
    at_least(workers=(workers, 1))
    comparison = load_comparison(file, SYSTEMS)
    # one for every model that is loaded
    disable_progress_bar()
    if workers > 1:
        # what is timed and estimated here must hold for them
        torch.set_num_threads(threads_of(workers))
    records = Records(comparison, StageStore(store or default_store()), out, tell)
    for line in estimate(records, workers):
        typer.echo(line, err=not plan)
    if plan:
        return
    trained = records.train(workers)
    measured = records.measure(trained)
    check_sizes(trained, measured)
    tested = records.test(trained) if test else None
    rows = make_rows(trained, measured, tested)
    command = shlex.join(["python", "benchmarks/quality", *sys.argv[1:]])
    seeds = sorted({line["seed"] for line in trained if line["students"]})
    results = make_results(command, trained, rows, measured, tested, references(records, seeds, test=test))
    lines = document(results)
    write_json(out / "results.json", results.to_dict())
    write_text(out / "results.md", "\n".join(lines) + "\n")
    write_bytes(out / "quality.png", to_png(plot(results)))
    typer.echo("\n".join(lines))


def tell(line: str) -> None:
    """A line of progress."""
    typer.echo(line, err=True)
