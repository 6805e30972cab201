"""The pipeline as trials of a real experiment: what `nnictl create` with `elm-nni trial` shows and shares."""

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from elm_nni.pipeline.store import StageStore

from ..pipeline.conftest import own, settings  # noqa: F401 (a fixture)
from .browser import Browser
from .conftest import Home, ask, free_port, records, succeeded, wait_for
from .web_page import WebPage, drawn

pytestmark = pytest.mark.slow

PHASES = [("supernet", 4), ("supernet", 8), ("supernet_tasks", 4), ("supernet_tasks", 8)]
PHASES += [("search", generation) for generation in range(3)]


@pytest.fixture(scope="module")
def started(home: Home, own: Path) -> int:  # noqa: F811
    """Plain nnictl runs four trials: two values of eta on each of two supernets."""
    home.write("base.yaml", yaml.safe_dump(settings(own)))
    port = free_port()
    config = home.config(
        experimentName="ELM, eta and top-K",
        searchSpace={
            "prune.eta": {"_type": "choice", "_value": [0.3, 0.999]},
            "growth.top_k": {"_type": "choice", "_value": [1, 3]},
        },
        trialCommand=f"{sys.executable} -m elm_nni.cli trial base.yaml --store {home.path / 'store'}",
        trialConcurrency=1, maxTrialNumber=4, tuner={"name": "GridSearch"},
    )  # fmt: skip
    home.stock_nnictl("create", "--config", str(config), "--port", str(port))
    yield port
    home.stock_nnictl("stop", "--all")


@pytest.fixture(scope="module")
def port(started: int) -> int:
    wait_for(lambda: ask(started, "check-status")["status"] == "DONE", seconds=240)
    assert len(succeeded(started)) == 4
    return started


def test_the_page_shows_epochs_and_generations_while_the_trial_runs(started: int, browser: Browser) -> None:
    page = WebPage(browser, started)
    wait_for(lambda: records(started))
    page.open_detail("Intermediate result")
    shown: list[list[float]] = []
    while (trial := records(started)[0]).final is None:
        page.refresh()
        points = page.series(".intermediate-graph").get(trial.id, [])
        shown += [points] if points not in shown else []
        time.sleep(0.2)
    whole = [metric["default"] for metric in trial.intermediate]
    assert [points == whole[: len(points)] for points in shown] == [True] * len(shown)
    lengths = [len(points) for points in shown]
    assert lengths == sorted(lengths)
    # how many states are caught depends on the machine; one is needed to see that they come before the end
    assert any(0 < length < len(whole) for length in lengths)


def metrics(port: int, kind: str) -> dict[str, list[dict[str, Any]]]:
    """Trial id to its metrics in the order they came."""
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in sorted(ask(port, "metric-data"), key=lambda entry: entry["sequence"]):
        if entry["type"] == kind:
            found.setdefault(entry["trialJobId"], []).append(json.loads(json.loads(entry["data"])))
    return found


def test_every_epoch_and_generation_is_shown_with_one_metric(port: int) -> None:
    points = metrics(port, "PERIODICAL")
    assert len(points) == 4
    for trial in points.values():
        assert [(point["phase"], point["step"]) for point in trial] == PHASES
        assert all(0 <= point["default"] <= 1 for point in trial)
        assert [point.get("loss", 0) > 0 for point in trial] == [True] * 4 + [False] * 3


def test_the_final_result_is_that_of_the_trials_own_run(port: int, home: Home) -> None:
    jobs = {job["trialJobId"]: json.loads(job["hyperParameters"][0])["parameters"] for job in ask(port, "trial-jobs")}
    assert sorted((found["prune.eta"], found["growth.top_k"]) for found in jobs.values()) == [
        (0.3, 1), (0.3, 3), (0.999, 1), (0.999, 3)
    ]  # fmt: skip
    for trial, (final,) in metrics(port, "FINAL").items():
        (run,) = (home.path / "nni-experiments").glob(f"[!_]*/environments/*/trials/{trial}/run")
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["prune"]["eta"] == jobs[trial]["prune.eta"]
        assert config["growth"]["top_k"] == jobs[trial]["growth.top_k"]
        assert final["default"] == final["reviews"]
        stages = json.loads((run / "state.json").read_text())["stages"]
        folder = home.path / "store" / "finetune" / stages["retrain reviews"]["digest"]
        assert final["reviews"] == json.loads((folder / "scores.json").read_text())["validation"]
        assert final["params"] > final["params_outside_embeddings"] > 0
        assert final["latency_ms"] > 0
        assert not (run / "results.json").exists()


def test_trials_share_the_stages_that_they_have_in_common(port: int, home: Home) -> None:
    built = Counter(name for name, _, _, finished in StageStore(home.path / "store").entries() if finished)
    assert (built["teacher"], built["supernet"], built["search"], built["prune"]) == (1, 2, 2, 4)


def test_the_page_shows_the_metrics_of_the_finished_trials(port: int, browser: Browser) -> None:
    page, trials = WebPage(browser, port), records(port)
    page.open_overview()
    assert page.overview().status == "DONE"
    assert page.overview().best == f"{max(trial.final['default'] for trial in trials):.6f}"
    assert page.overview().counts["Succeeded"] == 4
    page.open_detail("Intermediate result")
    assert page.series(".intermediate-graph") == {
        trial.id: [metric["default"] for metric in trial.intermediate] for trial in trials
    }
    page.open_detail("Hyper-parameter")
    lines = sorted(page.parallel_coordinates(), key=lambda line: (line["prune.eta"], line["growth.top_k"]))
    trials.sort(key=lambda trial: (trial.parameters["prune.eta"], trial.parameters["growth.top_k"]))
    values = [trial.parameters | trial.final for trial in trials]
    # an axis on which all trials are equal cannot be read
    told_apart = {name for name in values[0] if len({one[name] for one in values}) > 1}
    assert {"prune.eta", "growth.top_k"} <= told_apart <= lines[0].keys()
    assert lines == [drawn(one, lines[0]) for one in values]
