"""NNI's web page in a browser: what it shows is what the experiment's records say, while trials run and after."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .browser import Browser
from .conftest import PROTOCOL, Home, Record, ask, free_port, records, succeeded, wait_for
from .web_page import Overview, WebPage, drawn

pytestmark = pytest.mark.slow

NUM_TRIALS, NUM_FIRST, STEPS = 7, 3, 4
# The first trials end, the others stop half-way until the file "go" is there: all that the page may show of the running
# experiment stands still.
TRIAL = PROTOCOL + f"""
import time

received = receive()
rate, width, block = (received["parameters"][name] for name in ("rate", "train.width", "block"))
for step in range({STEPS}):
    if step == {STEPS // 2}:
        while int(os.environ["NNI_TRIAL_SEQ_ID"]) >= {NUM_FIRST} and not os.path.exists(os.environ["HOME"] + "/go"):
            time.sleep(0.1)
    phase = "supernet" if step < 2 else "search"
    metric = {{"default": rate * step / 4, "phase": phase, "step": step, "loss": 1 / (width + step)}}
    report(received, "PERIODICAL", step, metric)
report(received, "FINAL", 0, {{"default": rate + len(block), "params": width * 1000}})
"""
CONFIG: dict[str, Any] = {
    "experimentName": "web page",
    "searchSpace": {
        "rate": {"_type": "uniform", "_value": [0.1, 0.9]},
        "train.width": {"_type": "randint", "_value": [8, 64]},
        "block": {"_type": "choice", "_value": ["bert", "mobile"]},
    },
    "trialConcurrency": 2,
    "maxTrialNumber": NUM_TRIALS,
    "tuner": {"name": "Random", "classArgs": {"seed": 0}},
}
STATES = pytest.mark.parametrize("state", ["running", "done"])


@dataclass(frozen=True)
class Seen:
    """The records of an experiment and what the page showed of them."""

    status: str
    records: list[Record]
    overview: Overview
    lines: list[dict[str, Any]]
    intermediate: dict[str, list[float]]


def seen(page: WebPage, port: int, folder: Path) -> Seen:
    """Leaves two screenshots in the folder."""
    page.open_overview()
    overview = page.overview()
    page.browser.screenshot(folder / f"{overview.status}-overview.png")
    page.open_detail("Hyper-parameter")
    lines = page.parallel_coordinates()
    page.browser.screenshot(folder / f"{overview.status}-hyper-parameters.png")
    page.open_detail("Intermediate result")
    intermediate = page.series(".intermediate-graph")
    return Seen(ask(port, "check-status")["status"], records(port), overview, lines, intermediate)


@pytest.fixture(scope="module")
def port(browser: Browser, home: Home) -> Any:
    home.write("trial.py", TRIAL)
    port = free_port()
    home.nnictl("create", "--config", str(home.config(**CONFIG)), "--port", str(port))
    wait_for(lambda: [len(record.intermediate) for record in records(port)] == [STEPS] * NUM_FIRST + [STEPS // 2] * 2)
    wait_for(lambda: len(succeeded(port)) == NUM_FIRST)
    yield port
    home.nnictl("stop", "--all")


@pytest.fixture(scope="module")
def page(browser: Browser, port: int) -> WebPage:
    return WebPage(browser, port)


@pytest.fixture(scope="module")
def running(page: WebPage, port: int, home: Home) -> Seen:
    return seen(page, port, home.path)


@pytest.fixture(scope="module")
def followed(page: WebPage, running: Seen, home: Home) -> Overview:
    """An overview that was opened while trials ran, after they ended."""
    page.open_overview()
    home.write("go", "")
    wait_for(lambda: page.overview().status == "DONE")
    return page.overview()


@pytest.fixture(scope="module")
def done(page: WebPage, followed: Overview, port: int, home: Home) -> Seen:
    return seen(page, port, home.path)


def shown(metric: float) -> str:
    return f"{metric:.6f}".rstrip("0").rstrip(".")


@STATES
def test_the_overview_counts_the_trials_and_names_the_best(state, request):
    seen = request.getfixturevalue(state)
    ended = {record.id: record.final["default"] for record in seen.records if record.final is not None}
    assert len(ended) == {"running": NUM_FIRST, "done": NUM_TRIALS}[state]
    assert seen.overview.status == seen.status == state.upper()
    assert seen.overview.best == f"{max(ended.values()):.6f}"
    counts = Counter(record.status.capitalize() for record in seen.records)
    assert seen.overview.counts == {"Running": 0, "Stopped": 0, "Waiting": 0, "Failed": 0, **counts}
    assert seen.overview.progress == f"{len(seen.records)}/{NUM_TRIALS}"


@STATES
def test_the_top_trials_are_listed_from_the_best_on(state, request):
    seen = request.getfixturevalue(state)
    ended = [record for record in seen.records if record.final is not None]
    assert seen.overview.top == [
        [str(record.number), record.id, "SUCCEEDED", shown(record.final["default"])]
        for record in sorted(ended, key=lambda record: -record.final["default"])
    ]


@STATES
def test_each_line_of_the_hyper_parameter_view_is_a_trial(state, request):
    seen = request.getfixturevalue(state)
    trials = [record.parameters | record.final for record in seen.records if record.final is not None]
    assert len(seen.lines) == len(trials) > 0
    for line, trial in zip(sorted_by_rate(seen.lines), sorted_by_rate(trials), strict=True):
        assert line == drawn(trial, trial)


def sorted_by_rate(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(trials, key=lambda trial: trial["rate"])


@STATES
def test_intermediate_results_of_all_trials_are_drawn(state, request):
    seen = request.getfixturevalue(state)
    assert seen.intermediate == {
        record.id: [metric["default"] for metric in record.intermediate] for record in seen.records
    }


def test_an_open_page_learns_that_the_experiment_ended(followed):
    assert followed.status == "DONE"


def test_the_numbers_of_a_metric_can_be_chosen_and_words_are_left_out(done, page):
    trial = next(record for record in done.records if record.number == 2)
    page.open_intermediate(trial.number)
    assert page.series(".compare-modal") == {trial.id: [metric["default"] for metric in trial.intermediate]}
    assert page.metric_keys() == ["default", "step", "loss"]
    page.choose_metric("loss")
    losses = [metric["loss"] for metric in trial.intermediate]
    assert page.series(".compare-modal", lambda series: series[trial.id] == losses)


def test_the_page_needs_this_machine_alone(done, browser):
    assert browser.reached == {"127.0.0.1"}
    # fonts of the icons, which are then missing
    assert {host.partition(".")[2] for host in browser.asked - browser.reached} == {"cdn.office.net"}
    assert browser.problems == []
