"""The whole run on a user's own teacher, text and task: results, resume, what a change re-runs."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from elm_nni.data.metrics import compute_metric
from elm_nni.pipeline.config import load_config
from elm_nni.pipeline.context import Context, latency_condition
from elm_nni.pipeline.runner import Run
from elm_nni.pipeline.store import StageStore
from elm_nni.report import write_report

from .conftest import settings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def table(own, tmp_path_factory):
    """A latency table, so that every run of this module has the same one."""
    from elm_nni.cost.latency import measure_table

    folder = tmp_path_factory.mktemp("table")
    config_file = folder / "own.yaml"
    config_file.write_text(yaml.safe_dump(settings(own)), encoding="utf-8")
    config = load_config(str(config_file))
    context = Context(config, StageStore(folder), lambda event, **values: None)
    measure_table(context.settings, latency_condition(config), repeats=3).save(folder / "table.json")
    return folder / "table.json"


@pytest.fixture(scope="module")
def config(own, table, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "own.yaml"
    path.write_text(yaml.safe_dump(settings(own) | {"export": {"onnx": True, "int8": True}}), encoding="utf-8")
    return load_config(str(path), {"latency.table": str(table)})


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("run")
    run = Run(config, StageStore(folder / "store"), folder / "run")
    run.all()
    return run


def built(run):
    return {name for name, result in run._finished.items() if not result.cached}


def test_results_hold_every_system_and_the_limits_are_kept(finished, config):
    results = finished.results()
    names = [row["name"] for row in results["systems"]]
    assert names == [
        "ELM (ours)", "ELM int8 ONNX", "uniform bert", "teacher + head", "teacher half depth",
        "TF-IDF + logistic regression",
    ]  # fmt: skip
    assert results["params"] <= config.limits.max_params
    assert results["latency_ms"]["predicted"] <= config.limits.max_latency_ms
    assert results["latency_ms"]["measured"] > 0
    assert all(0 <= row["tasks"]["reviews"] <= 1 for row in results["systems"])
    assert results["tasks"]["reviews"]["n"] == 40
    assert results["comparison"]["low"] <= results["comparison"]["difference"] <= results["comparison"]["high"]
    assert [one["against"] for one in results["comparisons"]] == names[2:]
    scores = {row["name"]: row["tasks"]["reviews"] for row in results["systems"]}
    for one in results["comparisons"]:
        assert one["difference"] == pytest.approx(scores["ELM (ours)"] - scores[one["against"]])
    assert list(results["stages"])[-1] == "evaluate"
    assert all(stage["seconds"] > 0 and stage["peak_memory_mb"] > 0 for stage in results["stages"].values())


def test_growth_stays_under_its_budget_and_happens_in_every_epoch(finished, config):
    lines = [json.loads(line) for line in (finished.directory.path / "growth.jsonl").read_text().splitlines()]
    assert len(lines) == config.supernet.pretrain.steps // config.growth.epoch_steps
    assert all(line["mean_params"] <= config.growth.budget for line in lines)
    assert all(1 <= len(line["events"]) <= config.growth.top_k for line in lines)


def test_the_exported_folder_scores_what_the_table_says(finished):
    folder = finished.directory.path / "model"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = finished.context.tasks["reviews"].data
    inputs = tokenizer(list(data.test["text"]), padding=True, truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    value = compute_metric("accuracy", logits.argmax(-1).numpy(), np.asarray(data.test["label"]))
    assert value == finished.results()["tasks"]["reviews"]["value"]
    assert model.config.id2label == {0: "down", 1: "up"}
    assert model.config.architecture == finished.results()["architecture"]


def test_exported_parameters_are_those_of_the_architecture(finished):
    model = AutoModelForSequenceClassification.from_pretrained(finished.directory.path / "model")
    results = finished.results()
    assert sum(parameter.numel() for parameter in model.elm.parameters()) == results["params"]
    assert model.num_parameters_outside_embeddings() >= results["params_outside_embeddings"]


def test_the_uniform_baseline_matches_in_size(finished):
    ours, uniform = (finished.results()["systems"][index]["params_outside_embeddings"] for index in (0, 2))
    assert abs(uniform - ours) <= 0.02 * ours


def test_the_report_is_written_from_the_run(finished):
    page = write_report(finished.directory.path).read_text(encoding="utf-8")
    assert finished.results()["digest"] in page


def test_running_again_builds_nothing(finished, config):
    again = Run(config, finished.context.store, finished.directory.path)
    before = {path: path.stat().st_mtime_ns for path in (finished.directory.path / "model").rglob("*")}
    assert again.all() == finished.results()
    assert not again.trained
    assert before == {path: path.stat().st_mtime_ns for path in (finished.directory.path / "model").rglob("*")}


def test_a_change_of_eta_builds_from_the_head_step_on(finished, config, tmp_path):
    plain = replace(config.export, onnx=False, int8=False)
    changed = replace(config, prune=replace(config.prune, eta=0.05), export=plain)
    run = Run(changed, finished.context.store, tmp_path / "run")
    run.all()
    assert built(run) & {"precision", "teacher", "supernet", "supernet_tasks", "search"} == set()
    assert {"prune", "retrain pretrain", "retrain reviews"} <= built(run)
    heads = json.loads((tmp_path / "run" / "prune" / "heads.json").read_text())
    assert all(layer["after"] == config.prune.min_heads for layer in heads["layers"])


def test_an_architecture_that_was_trained_is_not_trained_again(finished, config, tmp_path):
    changed = replace(config, search=replace(config.search, keep=49))
    run = Run(changed, finished.context.store, tmp_path / "run")
    run.all()
    assert "search" in built(run)
    assert run.architecture() == finished.architecture()
    assert built(run) & {"retrain pretrain", "retrain reviews", "evaluate"} == set()


def test_inherit_starts_from_the_supernet(finished, config, tmp_path):
    changed = replace(config, retrain=replace(config.retrain, init="inherit"))
    run = Run(changed, finished.context.store, tmp_path / "run")
    run.retrain()
    assert "retrain pretrain" in built(run)


def test_the_head_step_can_be_left_out_and_weights_inherited(finished, config, tmp_path):
    changed = replace(
        config, prune=replace(config.prune, mode="off"), retrain=replace(config.retrain, init="inherit")
    )
    run = Run(changed, finished.context.store, tmp_path / "run")
    run.retrain()
    architecture = run.architecture()
    assert {value for key, value in architecture.items() if key.endswith("_heads")} == {4}


def test_a_streamed_corpus_trains(finished, config, tmp_path):
    changed = replace(config, data=replace(config.data, streaming=True))
    run = Run(changed, finished.context.store, tmp_path / "run")
    run.retrain()
    assert {"supernet", "retrain pretrain"} <= built(run)


# (stage, what must have happened in it before the kill)
KILLS = [
    ("supernet", lambda run, log: any(line.get("event") == "epoch" for line in log)),
    ("supernet_tasks", lambda run, log: any(line.get("event") == "epoch" for line in log)),
    ("search", lambda run, log: any((run.parent / "store" / "search").glob("*/history.jsonl"))),
    ("retrain pretrain", lambda run, log: any(line.get("event") == "epoch" for line in log)),
    ("evaluate", lambda run, log: True),
]


def test_killed_at_any_stage_and_run_again_it_ends_the_same(finished, config, tmp_path):
    run_dir = tmp_path / "run"
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(config.to_dict()), encoding="utf-8")
    for stage, reached in KILLS:
        process = start(path, tmp_path)
        wait_for(process, run_dir, stage, reached)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (run_dir / "results.json").exists(), f"finished before it could be killed in {stage}"
    process = start(path, tmp_path)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    results, expected = json.loads((run_dir / "results.json").read_text()), finished.results()
    assert results["architecture"] == expected["architecture"]
    assert results["tasks"] == expected["tasks"]
    assert results["comparison"] == expected["comparison"]
    assert [row["tasks"] for row in results["systems"]] == [row["tasks"] for row in expected["systems"]]
    weights = ("supernet/*/supernet", "supernet_tasks/*/supernet", "pretrain/*/encoder", "finetune/*/model/model")
    for name in (f"{path}.safetensors" for path in weights):
        mine = sorted(file.read_bytes() for file in (tmp_path / "store").glob(name))
        undisturbed = {file.read_bytes() for file in finished.context.store.root.glob(name)}
        assert mine
        assert set(mine) <= undisturbed, name


def start(path: Path, folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "elm_nni.cli", "run", str(path), "--run-dir", str(folder / "run")]
    environment = {**os.environ, "ELM_NNI_STORE": str(folder / "store")}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(process, run_dir, stage, reached):
    for _ in range(20_000):
        log = []
        if (run_dir / "log.jsonl").exists():
            text = (run_dir / "log.jsonl").read_text()
            log = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        begun = [number for number, line in enumerate(log) if line.get("stage") == stage and line["state"] == "started"]
        if begun and reached(run_dir, log[begun[-1] + 1 :]):
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    raise AssertionError(f"{stage} was not reached")
