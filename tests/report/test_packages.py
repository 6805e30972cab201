"""Without the packages that draw, a report is refused in one line and everything else goes on."""

import sys
from pathlib import Path

import pytest

from elm_nni.errors import UserError
from elm_nni.report import has_packages, write_report


def test_missing_packages_are_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_packages()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not has_packages()
    with pytest.raises(UserError, match=r"pip install \"elm-nni\[viz\]\""):
        write_report(tmp_path)
