"""The report of a run: one self-contained HTML file, and the figures in it as PNG files.

Example:
    >>> from elm_nni.report import write_report
    >>> write_report(Path("runs/nano"))  # doctest: +SKIP
"""

from __future__ import annotations

from pathlib import Path

from elm_nni.errors import UserError

__all__ = ["has_packages", "write_report"]


def has_packages() -> bool:
    """Whether the packages that draw a report are installed (the extra ``viz``)."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def write_report(run_dir: Path | str) -> Path:
    """Writes ``report.html`` and ``plots/`` into a run directory, finished or not; returns the page.

    Raises:
        UserError: the packages are missing (with the command that installs them), it is no run directory, a file in it
            is damaged, or it cannot be written.
    """
    if not has_packages():
        raise UserError('a report needs matplotlib and jinja2; install them with: pip install "elm-nni[viz]"')
    from elm_nni.report import page

    return page.write_report(Path(run_dir))
