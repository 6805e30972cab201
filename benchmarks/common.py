"""What every benchmark with results says and checks: its heading, the least values of options, its entry point."""

from __future__ import annotations

import datetime
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence

import typer

from elm_nni.errors import UserError
from elm_nni.pipeline.context import Task
from elm_nni.pipeline.runner import Run, device_name
from elm_nni.pipeline.store import versions
from elm_nni.strategies.evolution import Limit


def heading(script: str, run: Run) -> list[str]:
    """Date, machine, versions and the command, in Markdown."""
    found = ", ".join(f"{name} {version}" for name, version in versions().items())
    return [
        f"{datetime.date.today()}, {device_name(run.context.device)}, {found}",
        "",
        f"`{shlex.join(['python', f'benchmarks/{script}', *sys.argv[1:]])}`",
    ]


def metric_words(tasks: Sequence[Task]) -> str:
    """The metric of several tasks, for a sentence.

    Example:
        >>> metric_words(list(run.context.tasks.values()))
        'mean of accuracy (polarity), accuracy (tweets)'
    """
    return "mean of " * (len(tasks) > 1) + ", ".join(f"{task.data.metric} ({task.name})" for task in tasks)


def limit_words(limits: Mapping[str, Limit]) -> str:
    """The limits of a search, for a sentence."""
    return ", ".join(f"{name} <= {limit.maximum:g}" for name, limit in limits.items()) or "none"


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(cells)} |" for cells in body)]


def at_least(**options: tuple[int, int]) -> None:
    """Checks options, each given with its least value.

    Raises:
        UserError: one is lower.
    """
    for name, (value, least) in options.items():
        if value < least:
            raise UserError(f"--{name} is {value}; it must be at least {least}")


def checked_names(option: str, text: str, known: Sequence[str]) -> list[str]:
    """The names of a list with commas, each once.

    Raises:
        UserError: one is unknown, or there is none.

    Example:
        >>> checked_names("--strategies", "tpe, random,tpe", ["random", "tpe"])
        ['tpe', 'random']
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in known:
            raise UserError(f"{option}: {name!r} is unknown; allowed: {', '.join(known)}")
    if not names:
        raise UserError(f"{option} is empty; allowed: {', '.join(known)}")
    return names


def run_command(main: Callable[..., None], name: str) -> None:
    """Entry point: a user's mistake is one line and exit status 2."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(main)
    try:
        app()
    except UserError as error:
        typer.echo(f"{name}: {error}", err=True)
        sys.exit(2)
