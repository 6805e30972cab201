"""The run directory keeps what happened in the order in which it happened."""

import json
from pathlib import Path

import yaml

from elm_nni.pipeline.config import Config
from elm_nni.pipeline.run_dir import RunDirectory
from elm_nni.pipeline.store import StageResult

STAGES = ["teacher", "latency", "supernet", "search", "evaluate"]


def result(name: str, folder: Path) -> StageResult:
    return StageResult(name, "0" * 16, folder, 1.0, 2.0, cached=False)


def test_stages_stand_in_the_order_in_which_they_finished_after_a_resume_too(tmp_path: Path) -> None:
    first = RunDirectory(tmp_path / "run", Config())
    for name in STAGES[:3]:
        first.record(name, result(name, tmp_path))
    again = RunDirectory(tmp_path / "run", Config())
    for name in STAGES:
        again.record(name, result(name, tmp_path))
    assert list(json.loads((tmp_path / "run" / "state.json").read_text())["stages"]) == STAGES


def test_a_new_directory_holds_its_configuration_and_nothing_else(tmp_path: Path) -> None:
    config = Config()
    RunDirectory(tmp_path / "run", config)
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["config.yaml"]
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == config.to_dict()


def test_a_half_written_configuration_of_a_killed_run_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".config.yaml.0123456789ab.tmp").write_text("see")
    assert RunDirectory(tmp_path, Config()).path == tmp_path
