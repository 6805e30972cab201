"""Signals of growth compared: every number from the run's own files or by hand, and nothing done twice."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import growth_signals
import numpy as np
import pytest
import yaml
from growth_signals import changes_of, checked_signals, compare, open_trials, outcome, run_of
from growth_signals_results import (
    NO_GROWTH,
    PCA,
    Outcome,
    growth_steps,
    growth_table,
    mean_block_widths,
    plot,
    result_tables,
    score_differences,
    seed_table,
    shared_growth,
)
from quality.systems import size_limit
from quality.trial import Trial
from safetensors import safe_open

from elm_nni.cost.parameters import count_parameters, full_heads, mean_parameters, parameters_outside_embeddings
from elm_nni.errors import UserError
from elm_nni.modeling.blocks_elm import BLOCKS
from elm_nni.pipeline.context import Context
from elm_nni.pipeline.runner import Run
from elm_nni.pipeline.search_stage import SupernetScorer, with_widths
from elm_nni.pipeline.store import read_json_lines
from elm_nni.pipeline.supernet_stage import load_widths
from elm_nni.report.style import to_png
from elm_nni.search_spaces.architecture import canonical, preset_settings

from ..pipeline.conftest import settings
from .scores import validation_accuracy

SYSTEMS = [PCA, "random", NO_GROWTH]


def small(own: Path) -> dict[str, Any]:
    """Enough steps on the tasks for scores to differ, few in all else."""
    changed = settings(own)
    training = changed["supernet"]["pretrain"]
    long = training | {"steps": 16, "lr": 1e-2, "checkpoint_every": 16}
    changed["supernet"] = {"pretrain": training, "tasks": long, "probe_rows": 0}
    changed["retrain"] = {"pretrain": training | {"steps": 4}, "finetune": long | {"steps": 8}}
    return changed


def refused(*_: Any) -> None:
    raise AssertionError("test rows were asked for")


def grown_cells(run: Run) -> Counter[str]:
    """Cell to how often it grew, from the events of the run's growth."""
    lines = read_json_lines(run.supernet().folder / "growth.jsonl")
    return Counter(event["cell"] for line in lines for event in line["events"])


def model_size(folder: Path) -> int:
    """Parameters of the layers, counted in the file of a saved model."""
    with safe_open(folder / "model" / "model.safetensors", "pt") as tensors:
        names = [name for name in tensors.keys() if name.startswith("elm.layers.")]  # noqa: SIM118
        return sum(int(np.prod(tensors.get_slice(name).get_shape())) for name in names)


@pytest.mark.slow
def test_the_command_compares_signals(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Context, "test_rows", refused)
    config, out, store = tmp_path / "own.yaml", tmp_path / "out", tmp_path / "store"
    config.write_text(yaml.safe_dump(small(own)), encoding="utf-8")
    given = {"source": str(config), "out": out, "store": store, "seeds": 1, "signals": "random", "architectures": 3}
    given["set_"] = None
    growth_signals.main(**given, plan=True)
    planned = capsys.readouterr().out.splitlines()
    later = "supernet, supernet_tasks, inherited scores, search, training"
    assert planned[0].startswith(f"seed 0, {PCA}: teacher, {later}, ")
    assert [line.rsplit(",", 1)[0] for line in planned[1:3]] == [f"seed 0, {one}: {later}" for one in SYSTEMS[1:]]
    assert not list(store.glob("supernet/*"))

    growth_signals.main(**given, plan=False)
    printed = capsys.readouterr()
    results = json.loads((out / "growth_signals.json").read_text(encoding="utf-8"))
    found = {one["system"]: one for one in results["outcomes"]}
    assert list(found) == SYSTEMS
    [trial] = open_trials(str(config), store, out, [], seeds=1)
    runs = {system: run_of(trial, system) for system in SYSTEMS}
    check_what_grew(found, runs)
    check_no_growth(found, runs[NO_GROWTH])
    check_scores(found, runs, trial)
    assert re.search("3/3 seed 0, no growth: inherited .*; about 0 minutes left", printed.err)
    assert (out / "growth_signals.md").read_text(encoding="utf-8") == printed.out
    assert (out / "growth_signals.png").read_bytes().startswith(b"\x89PNG")
    for name, value in (("inherited", np.mean(found["random"]["inherited"])), ("trained", None)):
        one = next(one for one in results["differences_to_pca"][name] if one["system"] == "random")
        mine = found["random"]["trained"]["reviews"] if value is None else value
        theirs = found[PCA]["trained"]["reviews"] if value is None else np.mean(found[PCA]["inherited"])
        assert one["mean"] == pytest.approx(mine - theirs)

    stages = {path: path.stat().st_mtime_ns for path in store.glob("*/*/stage.json")}
    lines = (out / "evaluations.jsonl").read_text(encoding="utf-8")
    assert len(lines.splitlines()) == 9
    growth_signals.main(**given, plan=False)
    again = capsys.readouterr()
    assert again.out == printed.out
    assert "about 0 minutes to do\n" in again.err
    assert not re.search("^seed 0.* minutes$", again.err, flags=re.MULTILINE)
    assert (out / "evaluations.jsonl").read_text(encoding="utf-8") == lines
    assert {path: path.stat().st_mtime_ns for path in store.glob("*/*/stage.json")} == stages
    growth_signals.main(**(given | {"architectures": 4}), plan=True)
    planned = capsys.readouterr().out.splitlines()
    assert [line.rsplit(",", 1)[0] for line in planned[:-1]] == [f"seed 0, {one}: inherited scores" for one in SYSTEMS]
    check_the_time_left(trial, out)
    check_that_an_unreachable_size_is_left_out(trial, runs, out)

    # nothing has a size while what PCA found is missing; the estimate must not look for it by building it
    folder = runs[PCA].supernet_tasks().folder
    folder.rename(folder.with_name("aside"))
    growth_signals.main(**(given | {"signals": "random,activation_norm"}), plan=True)
    planned = capsys.readouterr().out.splitlines()
    assert [line.rsplit(",", 1)[0] for line in planned[:-1]] == [
        f"seed 0, {PCA}: {later.removeprefix('supernet, ')}", "seed 0, random: inherited scores, training",
        f"seed 0, activation_norm: {later}", f"seed 0, {NO_GROWTH}: inherited scores, training",
    ]  # fmt: skip
    assert not folder.exists()


def check_what_grew(found: dict[str, Any], runs: dict[str, Run]) -> None:
    """Widths of the supernet, all else from the events of the growth and from every architecture there is."""
    context = runs[PCA].context
    reference = grown_cells(runs[PCA])
    assert found["random"]["widths"] != found[PCA]["widths"]
    for system, one in found.items():
        run, events = runs[system], Counter[str]()
        assert one["widths"] == load_widths(run.supernet().folder)
        if system != NO_GROWTH:
            assert run.config.growth.score == system
            assert (run.config.growth.budget, run.config.seed) == (60000, 0)
            events = grown_cells(run)
            assert one["widths"] == {cell: 8 + 8 * events[cell] for cell in one["widths"]}
            shared = sum((events & reference).values())
            assert one["shared"] == pytest.approx(100 * shared / events.total())
        assert one["events"] == events.total() == (0 if system == NO_GROWTH else 6)
        heads = full_heads(context.settings)
        every = [{"layer0": first, "layer1": second} for first, second in product(BLOCKS, repeat=2)]
        sizes = [
            count_parameters(canonical(with_widths(blocks, one["widths"]), heads), context.settings) for blocks in every
        ]
        assert one["mean_parameters"] == pytest.approx(np.mean(sizes))
        assert one["mean_parameters"] <= 60000
        widths = {name: [one["widths"][f"layer{index}_{name}"] for index in range(2)] for name in BLOCKS}
        assert one["block_widths"] == {name: pytest.approx(sum(pair) / 2) for name, pair in widths.items()}


def check_no_growth(found: dict[str, Any], run: Run) -> None:
    """One width, the largest that is not over what PCA's supernet reached."""
    one = found[NO_GROWTH]
    [width] = set(one["widths"].values())
    wider = mean_parameters(dict.fromkeys(one["widths"], width + 1), run.context.settings)
    assert one["mean_parameters"] <= found[PCA]["mean_parameters"] < wider
    assert not run.config.growth.enabled
    assert one["shared"] is None


def check_scores(found: dict[str, Any], runs: dict[str, Run], trial: Trial) -> None:
    """The same blocks at each system's widths, and one architecture each at the size of PCA's."""
    drawn = found[PCA]["drawn"]
    assert len({tuple(blocks) for blocks in drawn}) == 3
    target = model_size(runs[PCA].train(found[PCA]["architecture"], "anew", None)["reviews"].folder)
    assert target == found[PCA]["found_size"]
    for system, one in found.items():
        run = runs[system]
        assert one["drawn"] == drawn
        scorer, widths = SupernetScorer(run.context, run.supernet_tasks().folder), one["widths"]
        for blocks, score in zip(drawn, one["inherited"], strict=True):
            labelled = {f"layer{index}": block for index, block in enumerate(blocks)}
            assert score == scorer(canonical(with_widths(labelled, widths), full_heads(run.context.settings)))
        if one["under_size"]:
            run = trial.run({**changes_of(trial, system), **size_limit(trial, run)})
        best = json.loads((run.search().folder / "summary.json").read_text(encoding="utf-8"))["best"]["sample"]
        assert [one["found"][f"layer{index}"] for index in range(2)] == [best["layer0"], best["layer1"]]
        assert one["found_size"] == parameters_outside_embeddings(one["found"], run.context.settings)
        if one["reason"] is not None:
            assert one["trained"] == {}
            continue
        model = trial.run().train(one["architecture"], f"{system} anew", None)["reviews"]
        assert model.cached
        accuracy = validation_accuracy(model.folder / "model", run.context.tasks["reviews"])
        assert one["trained"] == {"reviews": pytest.approx(accuracy)}
        assert one["size"] == model_size(model.folder) == pytest.approx(target, rel=0.02)
    assert len({tuple(one["inherited"]) for one in found.values()}) > 1
    assert sum(one["reason"] is None for one in found.values()) > 1


def check_the_time_left(trial: Trial, out: Path) -> None:
    told: list[str] = []
    left = {(0, PCA): {"supernet": 60.0, "search": 120.0}, (0, NO_GROWTH): {"training": 240.0}}
    compare([trial], [PCA, NO_GROWTH], 1, out / "evaluations.jsonl", left, told.append)
    assert [line.rsplit("; ")[-1] for line in told] == [f"about {number} minutes left" for number in (6, 6, 4, 0)]


def check_that_an_unreachable_size_is_left_out(trial: Trial, runs: dict[str, Run], out: Path) -> None:
    trial.target = 10
    one = outcome(trial, "random", runs, [], out / "evaluations.jsonl")
    assert one.reason is not None
    assert one.reason.startswith("no widths give this architecture 10 parameters")
    assert (one.trained, one.mean_trained, one.size, one.architecture) == ({}, None, None, None)


def test_shared_growth_counts_the_smaller_number_of_steps_in_each_cell() -> None:
    space = preset_settings("nano")
    own = growth_steps({"layer0_bert": 192, "layer0_mobile": 96, "layer1_bert": 48, "layer1_mobile": 96}, space)
    reference = growth_steps({"layer0_bert": 96, "layer0_mobile": 144, "layer1_bert": 384, "layer1_mobile": 48}, space)
    assert own == {"layer0_bert": 3, "layer0_mobile": 1, "layer1_bert": 0, "layer1_mobile": 1}
    # one of three, the only one, none, none of one
    assert shared_growth(own, reference) == pytest.approx(100 * (1 + 1 + 0 + 0) / 5)
    assert shared_growth(reference, own) == pytest.approx(100 * 2 / (1 + 2 + 7))
    assert shared_growth(own, own) == 100
    assert shared_growth(dict.fromkeys(own, 0), reference) is None
    widths = {"layer0_bert_kv": 48, "layer1_bert_kv": 96, "layer0_bert": 10, "layer1_bert": 11}
    assert mean_block_widths(widths) == {"bert_kv": 72, "bert": 10.5}


def made(system: str, seed: int, inherited: Sequence[float], trained: Sequence[float], **changes: Any) -> Outcome:
    """An outcome of given scores; ``trained`` is of two tasks."""
    numbers: dict[str, Any] = {
        "widths": {}, "mean_parameters": 1e6 + seed, "events": 4 + seed, "shared": 10.0 * seed,
        "block_widths": {"bert": 48.0 + seed}, "drawn": [["bert"]] * len(inherited),
        "found": {"layer0": "bert", "layer0_bert_ffn": 48},
        "found_size": 1200, "architecture": {}, "size": 1000,
    }  # fmt: skip
    scores = dict(zip("xy", trained))
    return Outcome(system=system, seed=seed, inherited=list(inherited), trained=scores, **(numbers | changes))


def several() -> list[Outcome]:
    """Three seeds; random has no model for the last one."""
    rng = np.random.default_rng(0)
    given = [made(system, seed, rng.random(4), rng.random(2)) for seed in range(3) for system in SYSTEMS]
    left_out = {"reason": "too small", "size": None, "architecture": None}
    given[7] = made("random", 2, [0.25, 0.75], [], **left_out)
    return given


def test_differences_are_of_the_same_seed_with_a_bootstrap_over_seeds() -> None:
    given = several()
    of = {(one.system, one.seed): one for one in given}
    apart = score_differences(given)
    [random, none] = apart["inherited"]
    assert (random.system, none.system) == ("random", NO_GROWTH)
    by_seed = np.array([np.mean(of["random", s].inherited) - np.mean(of[PCA, s].inherited) for s in range(3)])
    assert (random.seeds, random.mean) == (3, pytest.approx(by_seed.mean()))
    assert random.deviation == pytest.approx(by_seed.std(ddof=1))
    means = by_seed[np.random.default_rng(1).integers(3, size=(200_000, 3))].mean(axis=1)
    # the ends are among the 10 means that three seeds can have, so they are equal, not near
    assert [random.low, random.high] == pytest.approx(np.quantile(means, [0.025, 0.975]))
    trained = {(one.system, one.task): one for one in apart["trained"]}
    assert trained["random", "x"].seeds == 2
    pairs = [of["random", s].trained["x"] - of[PCA, s].trained["x"] for s in range(2)]
    assert trained["random", "x"].mean == pytest.approx(sum(pairs) / 2)
    means = [sum(of[NO_GROWTH, s].trained.values()) / 2 - sum(of[PCA, s].trained.values()) / 2 for s in range(3)]
    assert trained[NO_GROWTH, "mean of tasks"].mean == pytest.approx(sum(means) / 3)
    assert trained[NO_GROWTH, "mean of tasks"].higher == sum(value > 0 for value in means)


def test_tables_of_given_outcomes() -> None:
    given = several()
    assert growth_table(given)[2:4] == [
        f"| {system} | 3 | 5.0 ± 1.0 | 1,000,001 ± 1 | 10.0 ± 10.0 % | 49.0 ± 1.0 |" for system in SYSTEMS[:2]
    ]
    assert seed_table(given)[2 + 7] == (
        "| 2 | random | 6 | 1,000,002 | 20.0 % | 0.5000 | 1,200 | left out | left out | bert 48 |"
    )
    assert seed_table([made("random", 0, [0.5], [0.5, 0.7], under_size=True)])[2] == (
        "| 0 | random | 4 | 1,000,000 | 0.0 % | 0.5000 | 1,200 * | 1,000 | 0.6000 | bert 48 |"
    )
    text = "\n".join(result_tables(given))
    means = [one.mean_inherited for one in given if one.system == PCA]
    assert f"| pca | 3 | {np.mean(means):.4f} ± {np.std(means, ddof=1):.4f} |" in text
    columns = [[one.trained[task] for one in given[1:5:3]] for task in "xy"]
    columns.append([one.mean_trained for one in given[1:5:3]])
    cells = " | ".join(f"{np.mean(column):.4f} ± {np.std(column, ddof=1):.4f}" for column in columns)
    assert f"| random | 2 | {cells} |" in text
    nothing = [made(PCA, 0, [0.5], [0.5, 0.7]), made(NO_GROWTH, 0, [0.4], [], shared=None, reason="no", size=None)]
    assert growth_table(nothing)[3] == "| no growth | 1 | 4.0 | 1,000,000 |  | 48.0 |"
    assert "| pca | 1 | 0.5000 | 0.7000 | 0.6000 |" in result_tables(nothing)


def test_the_figure_shows_every_seed_and_the_mean() -> None:
    given = several()
    for axes, value in zip(plot(given, "accuracy").axes, ("mean_inherited", "mean_trained"), strict=True):
        lines = {line.get_label(): line for line in axes.get_lines()}
        for seed in range(3):
            expected = [getattr(one, value) for one in given if one.seed == seed]
            shown = [one for one in expected if one is not None]
            assert list(lines[f"seed {seed}"].get_xdata()) == pytest.approx(shown)
        bars = [line.get_xdata()[0] for line in axes.get_lines() if len(set(line.get_ydata())) == 2]
        own = [getattr(one, value) for one in given if one.system == PCA]
        # its bar, and the line to compare the others with
        assert sum(bar == pytest.approx(np.mean(own)) for bar in bars) >= 2
    assert [text.get_text() for text in axes.texts] == ["2 of 3 seeds"]
    assert to_png(plot(given[:3], "accuracy")).startswith(b"\x89PNG")


def test_pca_is_always_among_the_signals() -> None:
    assert checked_signals("random, learnable_gate,random") == [PCA, "random", "learnable_gate"]
    assert checked_signals("random,pca") == [PCA, "random"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--architectures", "0"], "--architectures is 0; it must be at least 1"),
        (["--seeds", "0"], "--seeds is 0; it must be at least 1"),
        (["--set", "seed=3"], "--set seed=3 is not allowed: the runs differ in seed and growth.score"),
        (
            ["--set", "growth.score=random"],
            "--set growth.score=random is not allowed: the runs differ in seed and growth.score",
        ),
        (
            ["--signals", "pca,gradients"],
            "--signals: 'gradients' is unknown; allowed: pca, pca_normalized, activation_norm, gradient_saliency, "
            "learnable_gate, random",
        ),
    ],
)
def test_a_users_mistake_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["growth_signals.py", "nano", *arguments, "--out", "out"])
    with pytest.raises(SystemExit) as ended:
        growth_signals.run_command(growth_signals.main, "growth_signals")
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", f"growth_signals: {message}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("growth.enabled=false", "growth.enabled: False is not allowed; signals are compared by what they grow"),
        ("retrain.init=inherit", "retrain.init: 'inherit' is not allowed; it must be scratch"),
    ],
)
def test_a_run_that_cannot_be_compared_is_refused(change: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        open_trials("nano", tmp_path / "store", tmp_path / "out", [change], seeds=1)
