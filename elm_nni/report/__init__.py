"""The report of a run or of a study: one self-contained HTML file, and the figures in it as PNG files.

Example:
    >>> from elm_nni.report import write_report
    >>> write_report(Path("runs/nano"))  # doctest: +SKIP
"""

from __future__ import annotations

from pathlib import Path

from elm_nni.errors import UserError

__all__ = ["STUDY_FILE", "has_packages", "study_tables", "write_report", "write_study_report"]

# What tells the folder of a study from a run directory.
STUDY_FILE = "study.json"


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
    _need_packages()
    from elm_nni.report import page

    return page.write_report(Path(run_dir))


def write_study_report(folder: Path | str, storage: str | None = None) -> Path:
    """Writes ``report.html`` and ``plots/`` into the folder of a study, finished or not; returns the page.

    ``storage`` is the study's URL with its password, which ``study.json`` does not hold.

    Raises:
        UserError: the packages are missing (with the command that installs them), the folder holds no ``study.json``,
            its storage or study cannot be read, or the report cannot be written.
    """
    _need_packages()
    from elm_nni.report.study import page

    return page.write_study_report(Path(folder), storage)


def study_tables(folder: Path | str) -> str:
    """The sweeps of a study and the rank correlation of its proxy as Markdown; needs no plotting packages.

    Raises:
        UserError: the folder holds no ``study.json``, or its storage or study cannot be read.
    """
    from elm_nni.report.study import markdown

    return markdown.study_tables(Path(folder))


def _need_packages() -> None:
    if not has_packages():
        raise UserError('a report needs matplotlib and jinja2; install them with: pip install "elm-nni[viz]"')
