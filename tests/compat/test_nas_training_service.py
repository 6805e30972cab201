"""A NAS experiment with trials in processes of their own: killed, resumed, and as the web UI sees it."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.experiment import NasExperimentConfig
from nni.tools.nnictl.config_utils import Experiments

from elm_nni.compat.nas_experiment import ResumableNasExperiment
from elm_nni.compat.nas_record import EvaluationRecord
from elm_nni.strategies import OptunaSearch

from . import nas_helpers
from .browser import Browser
from .conftest import ask, free_port, records, wait_for
from .nas_helpers import called, finish, fork, killed_when, quality
from .web_page import WebPage, drawn

NUM_TRIALS, NUM_OPTUNA_TRIALS = 4, 6
ALL_THREE = {"default": "maximize", "width": "minimize", "depth": "maximize"}
KILLS = int(os.environ.get("ELM_NNI_KILLS", "3")) // 3


def enter(home: Path) -> Any:
    """Makes this process that of a user's script; returns the module of its space, which trials can import."""
    os.chdir(home)
    sys.path.insert(0, str(home))
    os.environ |= {"HOME": str(home), "ELM_NNI_CACHE": str(home / "cache"), "PYTHONWARNINGS": "ignore"}
    os.environ |= {"ELM_NNI_TEST_HOME": str(home), "OMP_NUM_THREADS": "1"}
    Experiments.__init__.__defaults__ = (str(home / "nni-experiments"),)
    return __import__("own_space")


def drive(home: Path, port: int, watch: Callable[[ResumableNasExperiment], None] = lambda experiment: None) -> None:
    """The search of a user's script."""
    module = enter(home)
    config = NasExperimentConfig("ts", "simplified", "local")
    config.max_trial_number, config.trial_concurrency = NUM_TRIALS, 1
    evaluator = FunctionalEvaluator(module.evaluate, calls=str(home / "calls"))
    strategy = module.stock_strategy("RegularizedEvolution")
    experiment = ResumableNasExperiment(module.Toy(), evaluator, strategy, config, folder=home / "search")
    experiment.run(port)
    watch(experiment)
    experiment.stop()


def seen(home: Path, port: int) -> Callable[[ResumableNasExperiment], None]:
    """Writes what the web UI asks for, and what the search found."""

    def write(experiment: ResumableNasExperiment) -> None:
        best = experiment.export_top_models()[0]
        (home / "trials.json").write_text(json.dumps(ask(port, "trial-jobs")))
        (home / "best.json").write_text(json.dumps([best.sample, best.metric]))
        models = [model.sample for model in experiment.strategy.list_models(sort=False)]
        (home / "models.json").write_text(json.dumps(models))

    return write


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def manager(home: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("ELM_NNI_TEST_HOME") == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@pytest.fixture
def home(tmp_path: Path) -> Any:
    shutil.copy(nas_helpers.__file__, tmp_path / "own_space.py")
    yield tmp_path
    for process in manager(tmp_path):
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("with_manager", [False, True], ids=["driver", "driver and manager"])
def test_a_killed_search_goes_on_and_its_trials_show_their_architecture(home: Path, with_manager: bool) -> None:
    if with_manager and KILLS < 2:
        pytest.skip("the long form, with ELM_NNI_KILLS=10, kills the manager too")
    log, draw = home / "driver.log", random.Random(0)
    record = home / "search" / "evaluations.jsonl"
    for target in sorted(draw.choices(range(1, NUM_TRIALS - 1), k=KILLS)):
        port = free_port()
        child = fork(lambda port=port: drive(home, port), log)

        def ready(target: int = target) -> bool:
            return record.exists() and len(set(numbers(record))) >= target

        assert killed_when(child, ready, draw.uniform(0, 6)), log.read_text()
        if with_manager:
            for process in manager(home):
                process.kill()
        finished = [evaluation.sample for evaluation in EvaluationRecord(record).finished]
        assert len(finished) >= target
    port = free_port()
    finish(fork(lambda: drive(home, port, seen(home, port)), log))
    # a trial whose metric was received just before the kill does not come to count itself
    samples = called(home / "calls")
    assert len(samples) == len({json.dumps(sample, sort_keys=True) for sample in samples}) >= NUM_TRIALS - KILLS
    assert [evaluation.sample for evaluation in EvaluationRecord(record).finished] == read(home / "models.json")
    check_undisturbed(home)
    check_web_ui(home)
    wait_for(lambda: not manager(home))
    check_view(home)


def numbers(record: Path) -> list[int]:
    """Of the finished evaluations, without the reader, which would cut off a line that is being written."""
    lines = record.read_bytes().splitlines(keepends=True)
    return [json.loads(line)["number"] for line in lines if line.endswith(b"\n")]


def check_undisturbed(home: Path) -> None:
    """The same strategy in this process finds the same architectures in the same order."""
    config = nas_helpers.sequential("simplified", budget=NUM_TRIALS)
    evaluator = FunctionalEvaluator(nas_helpers.evaluate, calls=str(home / "whole.calls"))
    strategy = nas_helpers.stock_strategy("RegularizedEvolution")
    whole = ResumableNasExperiment(nas_helpers.Toy(), evaluator, strategy, config, folder=home / "whole")
    whole.run()
    whole.stop()
    best = whole.export_top_models()[0]
    assert read(home / "best.json") == [best.sample, best.metric]
    assert read(home / "models.json") == called(home / "whole.calls")


def check_web_ui(home: Path) -> None:
    shown = []
    for trial in (trial for trial in read(home / "trials.json") if trial.get("finalMetricData")):
        parameters = json.loads(trial["hyperParameters"][0])["parameters"]
        shown.append(parameters["mutation_summary"])
        metric = json.loads(json.loads(trial["finalMetricData"][0]["data"]))
        assert metric["default"] == quality(parameters["mutation_summary"])
        assert parameters["mutation_summary"] == parameters["sample"]
    assert sorted(map(str, shown)) == sorted(map(str, read(home / "models.json")))


def check_view(home: Path) -> None:
    """nnictl opens the stopped experiment read-only, with all its trials."""
    port, experiment = free_port(), read(home / "search" / "experiment.json")["id"]
    nnictl(home, "view", experiment, "--port", str(port))
    assert ask(port, "check-status")["status"] == "VIEWED"
    assert {trial["trialJobId"] for trial in ask(port, "trial-jobs")} == {
        trial["trialJobId"] for trial in read(home / "trials.json")
    }
    if shutil.which("chromium"):
        check_hyper_parameters(home, port)
    nnictl(home, "stop", experiment)
    wait_for(lambda: not manager(home))


def check_hyper_parameters(home: Path, port: int) -> None:
    """The lines of the page are the architectures with their metrics."""
    with Browser(home / "browser") as browser:
        page = WebPage(browser, port)
        page.open_detail("Hyper-parameter")
        lines = sorted(page.parallel_coordinates(), key=lambda line: line["default"])
    trials = [trial.parameters["mutation_summary"] | trial.final for trial in records(port) if trial.final]
    trials.sort(key=lambda trial: trial["default"])
    assert len(lines) >= 2
    assert lines == [drawn(trial, lines[0]) for trial in trials]


def drive_optuna(home: Path, port: int) -> None:
    """A search for a front with two trials side by side; writes what it found and what the manager knows."""
    module = enter(home)
    config = NasExperimentConfig("ts", "simplified", "local")
    config.trial_concurrency = 2
    evaluator = FunctionalEvaluator(module.evaluate, calls=str(home / "calls"))
    strategy = OptunaSearch(
        "nsgaii", {"population_size": 3}, directions=ALL_THREE, objectives={"depth": lambda sample: sample["depth"]},
        evaluations=NUM_OPTUNA_TRIALS, seed=0,
    )  # fmt: skip
    experiment = ResumableNasExperiment(module.Toy(), evaluator, strategy, config, folder=home / "search")
    experiment.run(port)
    (home / "front.json").write_text(json.dumps(strategy.front))
    (home / "trials.json").write_text(json.dumps(ask(port, "trial-jobs")))
    experiment.stop()


@pytest.mark.slow
def test_optuna_finds_the_front_of_trials_that_run_side_by_side(home: Path) -> None:
    finish(fork(lambda: drive_optuna(home, free_port()), home / "driver.log"))
    samples = called(home / "calls")
    assert len(samples) == len({json.dumps(sample, sort_keys=True) for sample in samples}) == NUM_OPTUNA_TRIALS
    trials = read(home / "trials.json")
    assert [trial["status"] for trial in trials] == ["SUCCEEDED"] * NUM_OPTUNA_TRIALS
    spans = sorted((trial["startTime"], trial["endTime"]) for trial in trials)
    assert any(start < end for (_, end), (start, _) in zip(spans, spans[1:])), "no two trials ran at one time"
    found = {}
    for trial in trials:
        sample = json.loads(trial["hyperParameters"][0])["parameters"]["mutation_summary"]
        reported = json.loads(json.loads(trial["finalMetricData"][0]["data"]))
        assert reported == {"default": quality(sample), "width": sample["width"]}
        found[json.dumps(sample, sort_keys=True)] = reported | {"depth": sample["depth"]}
    front = {
        sample: one
        for sample, one in found.items()
        if not any(other != one and is_as_good(other, one) for other in found.values())
    }
    assert {json.dumps(sample, sort_keys=True): metrics for metrics, sample in read(home / "front.json")} == front
    evaluations = EvaluationRecord(home / "search" / "evaluations.jsonl").finished
    assert {json.dumps(one.sample, sort_keys=True) for one in evaluations} == set(found)


def is_as_good(one: dict[str, float], other: dict[str, float]) -> bool:
    """In every direction of the search."""
    signs = {name: 1 if direction == "maximize" else -1 for name, direction in ALL_THREE.items()}
    return all(sign * one[name] >= sign * other[name] for name, sign in signs.items())


def nnictl(home: Path, *arguments: str) -> None:
    environment = {
        **os.environ, "HOME": str(home), "ELM_NNI_CACHE": str(home / "cache"), "ELM_NNI_TEST_HOME": str(home),
        "PYTHONWARNINGS": "ignore", "NNI_CONFIG_DIR": str(home / "nni-config"),
    }  # fmt: skip
    script = "import sys; from elm_nni.compat.nnictl import run_nnictl; run_nnictl(sys.argv[1:])"
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stdout + done.stderr
