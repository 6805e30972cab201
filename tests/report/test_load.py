"""Reading run directories: values equal the files, absent files are no error, broken ones name the place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from elm_nni.errors import UserError
from elm_nni.report.growth_files import parse_cell
from elm_nni.report.load import load_run

from .conftest import MakeRun, edit_results, read_json, read_lines, write_json


@pytest.mark.parametrize("size", ["nano", "elm-small"])
def test_values_equal_the_files(make_run: MakeRun, size: str) -> None:
    run_dir = make_run(size)
    run = load_run(run_dir)
    growth, history = read_lines(run_dir / "growth.jsonl"), read_lines(run_dir / "search/history.jsonl")
    assert [dict(epoch.scores) for epoch in run.growth] == [line["scores"] for line in growth]
    assert {epoch.signal for epoch in run.growth} == {"pca"}
    assert [epoch.num_events for epoch in run.growth] == [len(line["events"]) for line in growth]
    assert [epoch.budget_left for epoch in run.growth] == [line["budget"] - line["mean_params"] for line in growth]
    assert [(c.digest, c.metric, c.latency_ms) for c in run.history] == [
        (line["digest"], line["metric"], line["latency_ms"]) for line in history]
    heads, results = read_json(run_dir / "prune/heads.json"), read_json(run_dir / "results.json")
    assert run.pruning is not None
    assert [list(layer.kept) for layer in run.pruning.layers] == [layer["kept"] for layer in heads["layers"]]
    assert run.pruning.num_changed_layers == sum(layer["before"] != layer["after"] for layer in heads["layers"])
    with np.load(run_dir / "prune/cka.npz") as arrays:
        np.testing.assert_array_equal(run.pruning.cka_before[2], arrays["layer2_before"])
    assert run.results is not None
    assert [layer.block for layer in run.results.layers] == [
        results["architecture"][f"layer{i}"] for i in range(len(run.results.layers))]
    assert [s.tasks for s in run.results.systems] == [s["tasks"] for s in results["systems"]]
    assert run.model_class == "ElmForSequenceClassification"


def test_parse_cell() -> None:
    assert parse_cell("layer11_mobile_qv") == (11, "mobile_qv")
    for wrong in ("layer_bert", "layer1", "block1_bert", "layer1_", "layer²_bert"):
        assert parse_cell(wrong) is None


def test_nan_and_null_mean_unknown(make_run: MakeRun) -> None:
    run_dir = make_run()
    lines = read_lines(run_dir / "search/history.jsonl")
    lines[0]["latency_ms"], lines[1]["latency_ms"] = float("nan"), None
    (run_dir / "search/history.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    assert [c.latency_ms is None for c in load_run(run_dir).history[:3]] == [True, True, False]


@pytest.mark.parametrize(
    ("name", "attribute", "empty"),
    [
        ("growth.jsonl", "growth", ()),
        ("search/history.jsonl", "history", ()),
        ("search/pareto.json", "pareto", ()),
        ("search/summary.json", "summary", None),
        ("prune/heads.json", "pruning", None),
        ("results.json", "results", None),
        ("model/config.json", "model_class", None),
    ],
)
def test_absent_file(make_run: MakeRun, name: str, attribute: str, empty: object) -> None:
    run_dir = make_run()
    (run_dir / name).unlink()
    assert getattr(load_run(run_dir), attribute) == empty


def test_pareto_stands_in_for_a_missing_history(make_run: MakeRun) -> None:
    run_dir = make_run()
    (run_dir / "search/history.jsonl").unlink()
    run = load_run(run_dir)
    assert run.candidates == run.pareto
    assert len(run.pareto) == 1


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to report"):
        load_run(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        load_run(tmp_path / "absent")


@pytest.mark.parametrize("name", ["growth.jsonl", "search/history.jsonl", "search/summary.json", "search/pareto.json",
                                  "prune/heads.json", "prune/cka.npz", "results.json"])
@pytest.mark.parametrize("content", [b'{"epoch": 0', b"\xff\xfe\x00", b"[1, 2]", b"3"])
def test_broken_file_is_named(make_run: MakeRun, name: str, content: bytes) -> None:
    run_dir = make_run()
    (run_dir / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_run(run_dir)
    assert str(run_dir / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def change(name: str, edit: Callable[[Any], object]) -> Callable[[Path], None]:
    def apply(run_dir: Path) -> None:
        value = read_json(run_dir / name)
        edit(value)
        write_json(run_dir / name, value)

    return apply


@pytest.mark.parametrize(
    ("apply", "words"),
    [
        (change("results.json", lambda v: v.pop("params")), "'params' is missing"),
        (change("results.json", lambda v: v.update(params=-1)), "'params' is -1"),
        (change("results.json", lambda v: v.update(params=True)), "'params' is True"),
        (change("results.json", lambda v: v.update(params=float("inf"))), "'params' is inf"),
        (change("results.json", lambda v: v.update(architecture={})), "'layer0' is missing"),
        (change("results.json", lambda v: v["architecture"].update(layer1="other")), "'layer1_other_ffn' is missing"),
        (change("results.json", lambda v: v["systems"][0].pop("name")), "systems\\[0\\]: 'name' is missing"),
        (change("results.json", lambda v: v["comparisons"][1].update(low=1.0)), "comparisons\\[1\\]: 'low' is 1.0"),
        (change("results.json", lambda v: v["stages"]["search"].update(cached=1)), "'cached' is 1"),
        (change("prune/heads.json", lambda v: v.update(mode="drop")), "'mode' is 'drop'; it must be remove or fuse"),
        (change("prune/heads.json", lambda v: v["layers"][0].update(after=13)), "'after' is 13; it must be from 1"),
        (change("prune/heads.json", lambda v: v["layers"][0].update(kept=[1, 1])), "'kept' is"),
        (change("prune/heads.json", lambda v: v["layers"][1].update(before=24)), "has shape \\(12, 12\\)"),
        (change("prune/heads.json", lambda v: v["eta_sweep"].update(high=[])), "'high'"),
        (change("prune/heads.json", lambda v: v["eta_sweep"].update({"0.7": [3]})), "a list of 6 head counts"),
    ],
)
def test_wrong_value_is_named(make_run: MakeRun, apply: Callable[[Path], None], words: str) -> None:
    run_dir = make_run()
    apply(run_dir)
    with pytest.raises(UserError, match=words):
        load_run(run_dir)


def test_wrong_line_is_numbered(make_run: MakeRun) -> None:
    run_dir = make_run()
    with (run_dir / "search/history.jsonl").open("a") as file:
        file.write('\n{"generation": 0}\n')
    number = 8 * 16 + 2
    with pytest.raises(UserError, match=f"line {number}: 'digest' is missing"):
        load_run(run_dir)


def test_unknown_cell_is_named(make_run: MakeRun) -> None:
    run_dir = make_run()
    (run_dir / "growth.jsonl").write_text(json.dumps(read_lines(run_dir / "growth.jsonl")[0] | {"widths": {"cell": 3}}))
    with pytest.raises(UserError, match="line 1: cell 'cell'"):
        load_run(run_dir)


def test_results_without_optional_parts(make_run: MakeRun) -> None:
    run_dir = make_run()
    edit_results(run_dir, latency_ms=None, comparison=None, comparisons=None, systems=[], stages={}, versions={},
                 seed=None)
    shutil.rmtree(run_dir / "search")
    results = load_run(run_dir).results
    assert results is not None
    assert (results.comparisons, results.systems, results.latency.limit, results.seed) == ((), (), None, None)


def test_a_single_comparison_is_read_where_there_is_no_list(make_run: MakeRun) -> None:
    run_dir = make_run()
    single = read_json(run_dir / "results.json")["comparison"]
    del single["metric"]
    edit_results(run_dir, comparisons=None, comparison=single)
    results = load_run(run_dir).results
    assert results is not None
    assert [(c.against, c.metric, c.low) for c in results.comparisons] == [(single["against"], "accuracy", 0.0021)]


def test_stages_tasks_and_systems_keep_the_order_of_the_file(make_run: MakeRun) -> None:
    run_dir = make_run()
    values = read_json(run_dir / "results.json")
    stages = dict(reversed(values["stages"].items()))
    tasks = dict.fromkeys(("polarity", "agreement", "quality"), values["tasks"]["polarity"])
    edit_results(run_dir, stages=stages, tasks=tasks)
    results = load_run(run_dir).results
    assert results is not None
    assert [stage.name for stage in results.stages] == list(stages)
    assert list(results.tasks) == list(tasks)
