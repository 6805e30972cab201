"""The commands ``elm-nni nnictl`` and ``elm-nni doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# nnictl's options are nnictl's, --help too
PASS_THROUGH = {
    "allow_extra_args": True, "allow_interspersed_args": False, "ignore_unknown_options": True,
    "help_option_names": [],
}  # fmt: skip


def nnictl(context: typer.Context) -> None:
    """NNI's nnictl with the repaired manager; its arguments are nnictl's.

    Beside them, create, resume and view take --listen 0.0.0.0, which opens the web UI to the network.

    Example: elm-nni nnictl create --config config.yml --port 8080
    """
    from elm_nni.compat.nnictl import run_nnictl

    run_nnictl(context.args)


def doctor(
    port: Annotated[int, typer.Option(help="The port that the web UI would use.")] = 8080,
    store: Annotated[Path | None, typer.Option("--store", help="The stage store to look at.")] = None,
) -> None:
    """Look for what would fail on this machine, without a network; exit status 1 when something would.

    Example: elm-nni doctor
    """
    from elm_nni.compat.doctor import examine

    problems = 0
    for finding in examine(port=port, store=store):
        for line in finding.lines():
            typer.echo(line)
        problems += finding.problem is not None
    typer.echo(f"{problems} problems" if problems != 1 else "1 problem")
    if problems:
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Adds both commands to the command line."""
    app.command("nnictl", context_settings=PASS_THROUGH, add_help_option=False)(nnictl)
    app.command("doctor")(doctor)
