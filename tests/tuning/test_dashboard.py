"""optuna-dashboard on our studies, in a browser: names, the front, and trials without values."""

import itertools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from optuna.trial import FrozenTrial

from elm_nni.strategies.architecture_study import ArchitectureStudy
from elm_nni.strategies.evolution import Limit
from elm_nni.strategies.study_settings import StudySettings

from ..compat.browser import Browser
from ..compat.conftest import free_port, wait_for

WORDS = "document.body.innerText"
# Plotly keeps the points of a chart with its element; points of the front are a series of their own
POINTS = """
(() => {
    const chart = [...document.querySelectorAll(".js-plotly-plot")].find(one => one.data[0].mode == "markers");
    return chart.data.flatMap(series => series.x.map((x, at) => [x, series.y[at]]));
})()
"""
SPACE = {"width": [2, 4, 8, 12, 16], "kind": ["plain", "wide"]}
FAILED, LARGEST = {"width": 8, "kind": "plain"}, {"width": 16, "kind": "wide"}
MOST_PARAMS = 30


def accuracy(sample: dict[str, Any]) -> float:
    return round(1 - 1 / sample["width"], 3) + (sample["kind"] == "wide") / 64


def num_params(sample: dict[str, Any]) -> float:
    return float(sample["width"] * (2 if sample["kind"] == "wide" else 1))


def value(sample: dict[str, Any]) -> str:
    """As the page writes the values of a trial."""
    return f"{accuracy(sample)}, {num_params(sample):g}" if num_params(sample) <= MOST_PARAMS else "-inf, inf"


def find(study: ArchitectureStudy, sample: dict[str, Any]) -> FrozenTrial:
    return next(trial for trial in study.study.get_trials() if trial.params == sample)


@pytest.fixture
def study(tmp_path: Path) -> Iterator[ArchitectureStudy]:
    """Ten architectures, all drawn: one is over the limit and one fails."""
    settings = StudySettings(
        sampler="bruteforce", directions={"accuracy": "maximize", "params": "minimize"}, study_name="widths-and-kinds",
        limits={"params": Limit(num_params, MOST_PARAMS)}, storage=f"sqlite:///{tmp_path / 'search.db'}",
    )  # fmt: skip
    found = ArchitectureStudy(SPACE, settings=settings)
    while (candidate := found.ask()) is not None:
        failed = candidate.sample == FAILED
        found.tell(candidate, None if failed else {"accuracy": accuracy(candidate.sample)})
    yield found
    found.close()


@pytest.fixture
def dashboard(study: ArchitectureStudy, tmp_path: Path) -> Iterator[str]:
    pytest.importorskip("optuna_dashboard")
    url, log = f"http://127.0.0.1:{free_port()}", tmp_path / "dashboard.log"
    program = Path(sys.executable).with_name("optuna-dashboard")
    command = [str(program), study.settings.storage or "", "--host", "127.0.0.1", "--port", url.rsplit(":", 1)[1]]
    with log.open("wb") as file:
        process = subprocess.Popen([*command, "--server", "wsgiref"], stdout=file, stderr=file)
    try:
        wait_for(lambda: answers(f"{url}/api/studies"))
        yield url
    finally:
        process.kill()
        process.wait()


def answers(url: str) -> bool:
    with suppress(URLError), urlopen(url, timeout=10) as reply:
        return bool(reply.status == 200)
    return False


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="the dashboard's page is tested in a browser")
def test_the_dashboard_shows_the_front_and_every_trial(
    study: ArchitectureStudy, dashboard: str, tmp_path: Path
) -> None:
    samples = [dict(zip(SPACE, values)) for values in itertools.product(*SPACE.values())]
    shown = [one for one in samples if num_params(one) <= MOST_PARAMS and one != FAILED]
    page = f"{dashboard}/dashboard/studies/{study.study._study_id}"
    with Browser(tmp_path / "browser") as browser:
        browser.open(f"{dashboard}/dashboard/")
        browser.wait(WORDS, lambda words: "widths-and-kinds" in words and "MAXIMIZE, MINIMIZE" in words)
        browser.open(page)
        points = browser.wait(POINTS)
        # infinite values, of a trial over a limit, come as words, which the chart leaves out
        drawn = [point for point in points if all(isinstance(value, (int, float)) for value in point)]
        assert sorted(drawn) == sorted([accuracy(sample), num_params(sample)] for sample in shown)
        words = browser.value(WORDS)
        assert "Pareto Front" in words
        assert "Hyperparameter Importance" in words
        for trial in find(study, shown[0]), find(study, LARGEST):
            browser.open(f"{page}/trials?numbers={trial.number}")
            words = browser.wait(WORDS, lambda words, trial=trial: f"Trial {trial.number} (" in words)
            assert "10 Trials" in words
            assert f"Trial {find(study, FAILED).number}\nFail\n" in words
            assert f"width {trial.params['width']}\n" in words
            assert f"Value\n\n{value(trial.params)}\n" in words
        assert browser.problems == []
        assert browser.reached == {"127.0.0.1"}
