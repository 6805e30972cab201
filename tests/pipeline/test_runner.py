"""What a run asks of its parts."""

from pathlib import Path

import pytest

from elm_nni.errors import UserError
from elm_nni.pipeline import runner
from elm_nni.pipeline.config import load_config
from elm_nni.pipeline.runner import Run
from elm_nni.pipeline.store import StageStore


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """One entry for each time that the inputs were checked."""
    found: list[object] = []
    check_inputs = runner.check_inputs

    def counted(context: object) -> None:
        found.append(context)
        check_inputs(context)

    monkeypatch.setattr(runner, "check_inputs", counted)
    return found


def test_inputs_are_checked_once_however_many_stages_ask(config_file: Path, tmp_path: Path, checks: list) -> None:
    run = Run(load_config(str(config_file)), StageStore(tmp_path / "store"), tmp_path / "run")
    run.supernet_tasks()
    run.supernet()
    assert checks == [run.context]


def test_inputs_that_are_refused_are_refused_again(config_file: Path, tmp_path: Path, checks: list) -> None:
    config = load_config(str(config_file), {"limits.max_params": 10})
    run = Run(config, StageStore(tmp_path / "store"), tmp_path / "run")
    for _ in range(2):
        with pytest.raises(UserError, match="max_params|parameters"):
            run.check()
    assert len(checks) == 2
