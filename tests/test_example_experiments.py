"""The examples' NNI experiments: what NNI and the pipeline read of them, and a search of a supernet by trials."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml
from nni.experiment.config import ExperimentConfig
from nni.tools.nnictl.algo_management import read_reg_meta_list, verify_algo_import
from nni.tools.package_utils import register_algo_meta

from elm_nni.compat.nnictl import check_config
from elm_nni.pipeline.config import load_config
from elm_nni.pipeline.runner import Run
from elm_nni.pipeline.search_stage import SupernetScorer
from elm_nni.pipeline.store import StageStore
from elm_nni.search_spaces import architecture_digest
from elm_nni.tuning.optuna_tuner import OptunaTuner

from .compat.conftest import Home, free_port, wait_for
from .pipeline.conftest import own, settings  # noqa: F401 (a fixture)

EXAMPLES = Path(__file__).parent.parent / "examples"
META = EXAMPLES / "nnictl" / "optuna_meta.yml"
EXPERIMENTS = sorted(set(EXAMPLES.glob("nnictl*/*.yml")) - {META})
NUM_MODELS = 3


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user with the ssh key of the example and the registered tuner."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NNI_CONFIG_DIR", str(tmp_path / "nni-config"))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_ed25519").touch()
    (meta,) = read_reg_meta_list(META)
    verify_algo_import(meta)
    register_algo_meta(meta)
    return tmp_path


def values(spec: dict[str, Any]) -> list[Any]:
    """All values of a choice, the ends of a range."""
    return spec["_value"] if spec["_type"] == "choice" else spec["_value"][:2]


def test_there_are_experiments_to_look_at() -> None:
    assert [str(path.relative_to(EXAMPLES)) for path in EXPERIMENTS] == [
        "nnictl/config.yml", "nnictl/optuna.yml", "nnictl_remote/config.yml"
    ]  # fmt: skip


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_configuration_is_read_by_nni_and_its_names_are_keys_of_the_pipeline(path: Path, user: Path) -> None:
    check_config(path)
    config = ExperimentConfig.load(path).canonical_copy()
    base = Path(config.trial_code_directory, config.trial_command.split()[-1])
    assert base == EXAMPLES / "nnictl" / "base.yaml"
    for key, spec in config.search_space.items():
        for value in values(spec):
            assert attrgetter(key)(load_config(str(base), {key: value})) == value


def test_what_the_trials_have_in_common_is_a_configuration() -> None:
    config = load_config(str(EXAMPLES / "nnictl" / "base.yaml"))
    assert config.space == load_config("nano").space
    assert not config.baselines.uniform


def test_the_tuner_of_the_example_takes_its_arguments_and_space(tmp_path: Path) -> None:
    config = yaml.safe_load((EXAMPLES / "nnictl" / "optuna.yml").read_text(encoding="utf-8"))
    tuner = OptunaTuner(**config["tuner"]["classArgs"], storage=f"sqlite:///{tmp_path / 'study.db'}")
    tuner.update_search_space(config["searchSpace"])
    assert tuner.generate_parameters(0).keys() == config["searchSpace"].keys()


@dataclass(frozen=True)
class Search:
    """A search of a tiny supernet by examples/nas_local, killed after its first result and started again."""

    run_dir: Path
    recorded_at_kill: list[dict[str, Any]]
    record: list[dict[str, Any]]
    printed: str

    @property
    def nas(self) -> Path:
        return self.run_dir / "nas"


def read_record(run_dir: Path) -> list[dict[str, Any]]:
    """Finished evaluations, oldest first; the last line of a number holds."""
    path = run_dir / "nas" / "evaluations.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return list({line["number"]: line for line in found}.values())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    home = Home(tmp_path_factory.mktemp("home"))
    home.environment |= {"ELM_NNI_STORE": str(home.path / "store"), "HF_HUB_OFFLINE": "1"}
    yield home
    for process in home.processes():
        process.send_signal(signal.SIGKILL)


@pytest.fixture(scope="module")
def run(home: Home, own: Path) -> Run:  # noqa: F811
    """A run with a supernet that has learnt something of its task, a file as the example needs it.

    The words that decide a row come after those that are read, so that another length would score far higher.
    """
    table = (own / "reviews.csv").read_text(encoding="utf-8").replace("review,stars", "text,label", 1)
    task = {"name": "reviews", "source": str(home.write("reviews.csv", table)), "max_length": 10}
    config = settings(own) | {"tasks": [task]}
    config["supernet"]["tasks"] = {"steps": 45, "batch_size": 32, "lr": 3e-3, "checkpoint_every": 45}
    path = home.write("own.yaml", yaml.safe_dump(config))
    run = Run(load_config(str(path)), StageStore(home.path / "store"), home.path / "runs" / "own")
    run.supernet_tasks()
    return run


@pytest.fixture(scope="module")
def search(home: Home, run: Run) -> Search:
    run_dir = run.directory.path
    command = [
        sys.executable, str(EXAMPLES / "nas_local" / "search.py"), str(run_dir), "--engine", "ts",
        "--models", str(NUM_MODELS), "--port", str(free_port()),
    ]  # fmt: skip
    with (home.path / "first.log").open("w") as log:
        first = subprocess.Popen(command, env=home.environment, cwd=home.path, stdout=log, stderr=log)
    try:
        wait_for(lambda: read_record(run_dir) or first.poll() is not None, seconds=180)
        assert first.poll() is None, (home.path / "first.log").read_text()
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    recorded = read_record(run_dir)
    done = home.run(*command, seconds=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return Search(run_dir, recorded, read_record(run_dir), done.stdout)


@pytest.fixture(scope="module")
def scorer(search: Search, run: Run) -> SupernetScorer:
    return SupernetScorer(run.context, search.run_dir / "supernet_tasks")


@pytest.mark.slow
def test_the_search_ends_with_the_best_of_its_record(search: Search, run: Run, scorer: SupernetScorer) -> None:
    best = max(search.record, key=lambda line: line["metrics"][0])["metrics"][0]
    name, metric, parameters = re.search(r"best: (\w+), metric (\S+), ([\d,]+) parameters", search.printed).groups()
    assert float(metric) == pytest.approx(best, abs=5e-5)
    assert 0 < int(parameters.replace(",", "")) <= run.config.limits.max_params
    samples = [line["sample"] for line in search.record if line["metrics"] == [best]]
    assert name in [architecture_digest(scorer.space.canonical(sample)) for sample in samples]
    assert f"{NUM_MODELS} architectures in " in search.printed


@pytest.mark.slow
def test_a_trial_scores_as_the_pipeline_does(search: Search, scorer: SupernetScorer) -> None:
    for line in search.record:
        assert line["metrics"] == [pytest.approx(scorer(scorer.space.canonical(line["sample"])))]


@pytest.mark.slow
def test_a_killed_search_repeats_nothing(search: Search) -> None:
    assert 0 < len(search.recorded_at_kill) < NUM_MODELS
    assert [line["sample"] for line in search.record][: len(search.recorded_at_kill)] == [
        line["sample"] for line in search.recorded_at_kill
    ]
    assert len({line["digest"] for line in search.record}) == len(search.record) == NUM_MODELS
    experiment = json.loads((search.nas / "experiment.json").read_text())["id"]
    with closing(sqlite3.connect(search.nas / experiment / "db" / "nni.sqlite")) as database:
        ended = database.execute("SELECT trialJobId FROM MetricData WHERE type = 'FINAL'").fetchall()
    assert len(ended) == len(set(ended)) == NUM_MODELS


@pytest.mark.slow
def test_the_search_leaves_no_process(search: Search, home: Home) -> None:
    wait_for(lambda: not home.processes(), seconds=30)


@pytest.mark.slow
def test_a_folder_without_a_supernet_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "nas_local" / "search.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(f"{tmp_path} has no supernet: elm-nni supernet {tmp_path}")
