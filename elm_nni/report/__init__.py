"""The report of a run: one self-contained HTML file, and the figures in it as PNG files.

Example:
    >>> from elm_nni.report import write_report
    >>> write_report(Path("runs/nano"))  # doctest: +SKIP
"""

from elm_nni.report.page import write_report

__all__ = ["write_report"]
