"""A driver that is killed takes its manager and its trials along; what it leaves can be viewed."""

import argparse
import json
import signal
import subprocess
import sys

import psutil
import pytest

from elm_nni.compat.settings import ManagerSettings
from elm_nni.compat.stored_experiments import resume_experiment, run_again, stored_config
from elm_nni.errors import UserError

from .conftest import Home, ask, free_port, wait_for

pytestmark = pytest.mark.slow

# The trial is a child of the shell, not the shell: a signal to the shell alone would miss it.
DRIVER = """
import sys
from nni.experiment import Experiment
from elm_nni.compat import ManagerSettings, repaired_nni

with repaired_nni(ManagerSettings(watch_seconds=0)):
    experiment = Experiment("local")
    experiment.config.trial_command = "sleep 301; echo done"
    experiment.config.search_space = {"x": {"_type": "choice", "_value": [1, 2]}}
    experiment.config.tuner.name = "Random"
    experiment.config.trial_concurrency = 1
    experiment.run(int(sys.argv[1]))
"""

SPACE = """
import time
import nni, torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace

class Tiny(ModelSpace):
    def __init__(self):
        super().__init__()
        self.layer = LayerChoice({"relu": torch.nn.ReLU(), "tanh": torch.nn.Tanh()}, label="layer")

def evaluate(model):
    nni.report_intermediate_result(0.25)
    open("reported", "w").close()
    time.sleep(302)
"""

NAS_DRIVER = """
import sys
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.experiment import NasExperiment, NasExperimentConfig
from nni.nas.strategy import GridSearch
from elm_nni.compat import install
from tiny_space import Tiny, evaluate

install()
config = NasExperimentConfig("ts", "simplified", "local")
config.trial_concurrency = 1
config.max_trial_number = 1
config.training_service.use_active_gpu = False
NasExperiment(Tiny(), FunctionalEvaluator(evaluate), GridSearch(), config).run(int(sys.argv[1]))
"""


def start(home: Home, name: str, text: str, port: int) -> subprocess.Popen:
    home.write(name, text)
    with (home.path / "driver.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, name, str(port)], cwd=home.path, env=home.environment, stdout=log, stderr=log
        )


def sleeps(home: Home) -> bool:
    return any(process.name() == "sleep" for process in home.processes())


def test_a_killed_driver_leaves_no_process(home):
    driver = start(home, "driver.py", DRIVER, free_port())
    wait_for(lambda: sleeps(home))
    assert len(home.processes()) >= 4
    driver.kill()
    driver.wait()
    wait_for(lambda: home.processes() == [], 20)


def test_a_nas_experiment_ends_with_its_driver_and_can_be_viewed(home):
    home.write("tiny_space.py", SPACE)
    port = free_port()
    driver = start(home, "nas_driver.py", NAS_DRIVER, port)
    wait_for(lambda: (home.path / "reported").exists() or driver.poll() is not None)
    wait_for(lambda: ask(port, "metric-data"))
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(30) == 128 + signal.SIGTERM
    wait_for(lambda: home.processes() == [], 20)
    experiment = next(name for name, entry in home.experiments().items() if entry["tag"] == ["retiarii"])

    args = argparse.Namespace(id=experiment, port=8080, experiment_dir=str(home.path / "nni-experiments"))
    with pytest.raises(UserError) as caught:
        resume_experiment(ManagerSettings(), None, args)
    assert f"experiment {experiment} cannot be resumed: NasExperiment keeps no evaluations" in str(caught.value)

    home.nnictl("view", experiment, "--port", str(port))
    try:
        assert ask(port, "check-status")["status"] == "VIEWED"
        (job,) = ask(port, "trial-jobs")
        assert json.loads(job["hyperParameters"][0])["parameters"]["sample"]["layer"] in ("relu", "tanh")
        (metric,) = ask(port, "metric-data")
        assert json.loads(metric["data"]) == "0.25"
    finally:
        home.nnictl("stop", experiment)
    assert home.processes() == []


def test_experiments_that_cannot_be_viewed(home):
    done = home.elm_nni("nnictl", "view", "missing")
    assert done.returncode == 2
    assert "elm-nni: there is no experiment missing; stopped ones: " in done.stderr
    folder = home.path / "own" / "oneshot" / "checkpoint"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="without a manager \\(one-shot or sequential\\): nothing to view"):
        stored_config("oneshot", str(home.path / "own"))
    with pytest.raises(UserError, match="holds no experiment other"):
        stored_config("other", str(home.path / "own"))


def test_the_command_of_a_search_is_run_again_where_it_was_started(tmp_path):
    assert run_again(tmp_path) is None
    about = {"command": [sys.executable, "-c", "print(1)"], "working_directory": str(tmp_path)}
    (tmp_path / "experiment.json").write_text(json.dumps(about))
    assert run_again(tmp_path) is None
    (tmp_path / "search.py").write_text("import os, sys; print(os.getcwd(), sys.argv[1:])")
    about["command"] = [sys.executable, "search.py", "--models", "3"]
    (tmp_path / "experiment.json").write_text(json.dumps(about))
    assert psutil.Process(run_again(tmp_path)).wait(30) == 0
    assert (tmp_path / "resume.log").read_text() == f"{tmp_path} ['--models', '3']\n"
    about["command"][0] = str(tmp_path / "gone")
    (tmp_path / "experiment.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="cannot start .*gone search.py"):
        run_again(tmp_path)
