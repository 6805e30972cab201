"""Real experiments through ``elm-nni nnictl``: parameters, network, stop, resume, export and view."""

import csv
from dataclasses import dataclass

import pytest

from .conftest import Home, Trial, answers, ask, free_port, listening, succeeded, trials, wait_for

pytestmark = pytest.mark.slow

LOOPBACK = "0100007F"


@dataclass(frozen=True)
class Story:
    """What was seen of one experiment: 12 trials, stopped, resumed for 4 more, stopped."""

    id: str
    addresses: set[str]
    other_loopback_answers: bool
    left_after_stop: list[int]
    trials: list[Trial]
    exported: list[dict[str, str]]
    out: str


@pytest.fixture(scope="module")
def story(home: Home) -> Story:
    port = free_port()
    out = home.nnictl("create", "--config", str(home.config()), "--port", str(port))
    (experiment,) = home.experiments()
    addresses, answered = listening(port), answers("127.0.0.2", port)
    wait_for(lambda: ask(port, "check-status")["status"] == "DONE")
    home.nnictl("stop", experiment)
    left = [process.pid for process in home.processes()]
    home.nnictl("resume", experiment, "--port", str(port))
    home.nnictl("update", "trialnum", experiment, "--value", "16")
    wait_for(lambda: len(succeeded(port)) == 16)
    found = trials(port)
    home.nnictl("experiment", "export", experiment, "-t", "csv", "-f", str(home.path / "export.csv"))
    home.nnictl("stop", experiment)
    with (home.path / "export.csv").open() as file:
        exported = list(csv.DictReader(file))
    return Story(experiment, addresses, answered, left, found, exported, out)


def test_each_trial_is_listed_with_the_parameters_that_it_ran(story):
    assert len(story.trials) == 16
    assert all(trial.reproduces for trial in story.trials)


def test_the_export_lists_them_too(story):
    assert len(story.exported) == 16
    for row in story.exported:
        assert float(row["reward"]) == int(row["x"]) * 1000 + int(row["y"])


def test_the_stock_manager_lists_other_parameters(home):
    port = free_port()
    home.stock_nnictl("create", "--config", str(home.config(maxTrialNumber=4)), "--port", str(port))
    try:
        wait_for(lambda: len(succeeded(port)) == 4)
        assert not all(trial.reproduces for trial in succeeded(port))
        assert listening(port) != {LOOPBACK}
    finally:
        home.stock_nnictl("stop", "--port", str(port))


def test_only_loopback_listens(story):
    assert story.addresses == {LOOPBACK}
    assert not story.other_loopback_answers
    assert "http://127.0.0.1:" in story.out


def test_stop_leaves_no_process(story):
    assert story.left_after_stop == []


def test_a_resumed_experiment_numbers_no_trial_twice(story):
    assert sorted(trial.number for trial in story.trials) == list(range(16))


def test_view_shows_a_stopped_experiment_read_only(home, story):
    port = free_port()
    home.nnictl("view", story.id, "--port", str(port))
    try:
        assert ask(port, "check-status")["status"] == "VIEWED"
        assert trials(port) == story.trials
        assert listening(port) == {LOOPBACK}
    finally:
        home.nnictl("stop", story.id)
    assert home.experiments()[story.id]["status"] == "STOPPED"
