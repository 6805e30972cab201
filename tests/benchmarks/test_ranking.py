"""The ranking of architectures: scores from the run's own parts, coefficients by scipy, and nothing done twice."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ranking
import yaml
from ranking import LOSSES, draw
from ranking_results import (
    Scored,
    choice_table,
    correlation_table,
    correlations,
    difference_table,
    plot,
    tau_difference,
)
from ranking_runs import Runs, open_runs
from scipy import stats

from elm_nni.cost.parameters import count_parameters, full_heads
from elm_nni.errors import UserError
from elm_nni.pipeline.search_stage import SupernetScorer, with_widths
from elm_nni.pipeline.supernet_stage import load_widths
from elm_nni.report.style import to_png
from elm_nni.search_spaces.architecture import canonical

from ..pipeline.conftest import settings
from .scores import validation_accuracy

BLOCKS = ["bert", "bert_qv", "bert_kv", "mobile", "mobile_qv", "mobile_kv"]


def small(own: Path) -> dict[str, Any]:
    """Enough steps on the tasks for inherited scores to differ, few in all else."""
    changed = settings(own)
    training = changed["supernet"]["pretrain"] | {"steps": 4}
    changed["supernet"] = {"pretrain": training, "tasks": training | {"steps": 14, "lr": 1e-2}, "probe_rows": 0}
    changed["retrain"] = {"pretrain": training | {"steps": 2}, "finetune": training | {"steps": 6, "lr": 1e-2}}
    return changed


def test_the_command_ranks_the_architectures_of_a_run(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config, out, store = tmp_path / "own.yaml", tmp_path / "out", tmp_path / "store"
    config.write_text(yaml.safe_dump(small(own)), encoding="utf-8")
    given = {"source": str(config), "out": out, "store": store, "architectures": 3, "seeds": 1, "set_": None}
    ranking.main(**given, plan=True)
    plan = capsys.readouterr().out
    assert "relational, seed 0: 3 of 3 architectures" in plan
    assert not list(store.glob("supernet/*"))

    ranking.main(**given, plan=False)
    printed = capsys.readouterr()
    results = json.loads((out / "ranking.json").read_text(encoding="utf-8"))
    runs = open_runs(str(config), store, out, [], seeds=1)
    for loss in LOSSES:
        run = runs[0, loss]
        scorer = SupernetScorer(run.context, run.supernet_tasks().folder)
        own_widths = load_widths(run.supernet_tasks().folder)
        mine = [one for one in results["architectures"] if one["loss"] == loss]
        assert len({tuple(one["blocks"]) for one in mine}) == 3
        for one in mine:
            blocks = {f"layer{index}": block for index, block in enumerate(one["blocks"])}
            expected = canonical(with_widths(blocks, own_widths), full_heads(run.context.settings))
            assert one["architecture"] == expected
            assert one["params"] == count_parameters(expected, run.context.settings) <= 60000
            assert one["inherited"] == scorer(expected)
            assert one["standalone"] == {"reviews": one["mean_standalone"]}
        [first] = run.train(mine[0]["architecture"], "anew", None).values()
        assert first.cached
        accuracy = validation_accuracy(first.folder / "model", runs[0, loss].context.tasks["reviews"])
        assert mine[0]["mean_standalone"] == pytest.approx(accuracy)
        found = next(one for one in results["correlations"] if one["loss"] == loss)
        scores = [one["inherited"] for one in mine], [one["mean_standalone"] for one in mine]
        if found["kendall"]:
            assert found["kendall"]["value"] == pytest.approx(stats.kendalltau(*scores).statistic)
            assert found["spearman"]["value"] == pytest.approx(stats.spearmanr(*scores).statistic)
    relational, mse = ([o["blocks"] for o in results["architectures"] if o["loss"] == loss] for loss in LOSSES)
    assert relational == mse
    assert (out / "ranking.md").read_text(encoding="utf-8") == printed.out
    assert (out / "ranking.png").read_bytes().startswith(b"\x89PNG")

    stages = {path: path.stat().st_mtime_ns for path in store.glob("*/*/stage.json")}
    lines = (out / "evaluations.jsonl").read_text(encoding="utf-8")
    assert len(lines.splitlines()) == 6
    ranking.main(**given, plan=False)
    again = capsys.readouterr()
    assert "mse, seed 0: 0 of 3 architectures" in again.err
    assert "about 0 minutes of training to do" in again.err
    assert again.out == printed.out
    assert (out / "evaluations.jsonl").read_text(encoding="utf-8") == lines
    assert {path: path.stat().st_mtime_ns for path in store.glob("*/*/stage.json")} == stages
    ranking.main(**(given | {"architectures": 4}), plan=True)
    assert "mse, seed 0: 1 of 4 architectures" in capsys.readouterr().out

    of_seed = {loss: runs[0, loss] for loss in LOSSES}
    assert draw(of_seed, 30)[:3] == draw(of_seed, 3)
    check_that_draws_keep_the_limits(runs, tmp_path)


def check_that_draws_keep_the_limits(runs: Runs, folder: Path) -> None:
    """Every architecture that both supernets' widths leave under the limit is drawn, and no other."""
    of_seed = {loss: runs[0, loss] for loss in LOSSES}
    context = runs[0, LOSSES[0]].context
    widths = [load_widths(of_seed["relational"].supernet().folder)]
    # one layer wider, so that the two supernets allow different architectures
    widths.append({cell: 24 if cell.startswith("layer0_m") else width for cell, width in widths[0].items()})
    (folder / "widths.json").write_text(json.dumps(widths[1]), encoding="utf-8")
    supernets = {"relational": of_seed["relational"].supernet(), "mse": SimpleNamespace(folder=folder)}

    def largest(pair: tuple[str, ...]) -> int:
        blocks = {f"layer{index}": block for index, block in enumerate(pair)}
        heads = full_heads(context.settings)
        return max(count_parameters(canonical(with_widths(blocks, one), heads), context.settings) for one in widths)

    sizes = {pair: largest(pair) for pair in product(BLOCKS, repeat=2)}
    limit = int(np.median(list(sizes.values())))
    inside = {pair for pair, size in sizes.items() if size <= limit}
    assert 3 < len(inside) < 36
    # the draw reads configuration, context, table and widths
    tight = {
        loss: SimpleNamespace(
            config=SimpleNamespace(seed=0, limits=type(run.config.limits)(max_params=limit)), context=run.context,
            latency=run.latency, supernet=lambda loss=loss: supernets[loss],
        )
        for loss, run in of_seed.items()
    }  # fmt: skip
    found = draw(tight, len(inside))
    assert {(one["relational"]["layer0"], one["relational"]["layer1"]) for one in found} == inside
    for one in found:
        assert [one["mse"][f"layer{index}"] for index in range(2)] == [
            one["relational"][f"layer{index}"] for index in range(2)
        ]
        cell = f"layer0_{one['mse']['layer0']}_ffn"
        assert [one[loss][cell] for loss in LOSSES] == [own[cell.removesuffix("_ffn")] for own in widths]
    with pytest.raises(UserError, match=f"--architectures is 36; 10,000 draws gave {len(inside)} distinct ones under"):
        draw(tight, 36)


def scored(seed: int, loss: str, inherited: list[float], standalone: list[float]) -> list[Scored]:
    return [
        Scored(seed, loss, [str(number)], {}, 1, 1.0, a, {"x": b}, b)
        for number, (a, b) in enumerate(zip(inherited, standalone))
    ]


def test_tables_of_given_scores() -> None:
    rng = np.random.default_rng(0)
    own = {(seed, loss): (rng.normal(size=20), rng.normal(size=20)) for seed in range(2) for loss in LOSSES}
    own[0, "relational"] = (own[0, "mse"][1], own[0, "mse"][1] + 0.25)
    everything = [one for (seed, loss), pair in own.items() for one in scored(seed, loss, *map(list, pair))]
    lines = correlation_table(everything, correlations(everything))
    assert lines[2].startswith("| relational | 0 | 20 | 1.000 [1.000, 1.000] | 1.000 [1.000, 1.000] | ")
    taus = [stats.kendalltau(*own[seed, "mse"]).statistic for seed in range(2)]
    assert lines[6].startswith(f"| mse | 1 | 20 | {taus[1]:.3f} [")
    assert lines[7].startswith(f"| mse | mean of 2 | | {np.mean(taus):.3f} ± {np.std(taus, ddof=1):.3f} | ")
    apart = tau_difference(everything, 0)
    assert apart is not None
    assert apart.value == pytest.approx(1 - taus[0])
    # resampled by hand, both losses with the same architectures
    drawn = np.random.default_rng(0).integers(20, size=(2000, 20))
    values = [1 - stats.kendalltau(own[0, "mse"][0][one], own[0, "mse"][1][one]).statistic for one in drawn]
    assert [apart.low, apart.high] == pytest.approx(np.percentile(values, [2.5, 97.5]))
    assert difference_table(everything)[2] == (
        f"| 0 | {apart.value:+.3f} [{apart.low:+.3f}, {apart.high:+.3f}] | 20 | +0.2500 ± 0.0000 |"
    )
    # what a supernet made larger is not compared
    larger = [replace(one, params=2, mean_standalone=9.0) if one.blocks == ["3"] and one.loss == "mse" else one
              for one in everything]  # fmt: skip
    assert difference_table(larger)[2].endswith("| 19 | +0.2500 ± 0.0000 |")


def test_a_choice_by_inherited_score_gains_over_the_mean() -> None:
    both = {
        (0, "relational"): ([0.1, 0.9, 0.2, 0.3], [0.5, 0.6, 0.7, 0.4]),
        (1, "relational"): ([0.1, 0.2, 0.3, 0.9], [0.5, 0.6, 0.7, 0.4]),
        # two with the highest inherited score
        (0, "mse"): ([0.1, 0.9, 0.9, 0.3], [0.5, 0.6, 0.7, 0.6]),
        (1, "mse"): ([0.1, 0.2, 0.3, 0.9], [0.1, 0.2, 0.3, 0.4]),
    }
    everything = [one for (seed, loss), pair in both.items() for one in scored(seed, loss, *pair)]
    assert choice_table(everything, correlations(everything))[2:] == [
        "| relational | 0 | +0.0500 | +0.1500 |",
        "| relational | 1 | -0.1500 | +0.1500 |",
        "| relational | mean of 2 | -0.0500 ± 0.1414 | +0.1500 ± 0.0000 |",
        "| mse | 0 | +0.0500 | +0.1000 |",
        "| mse | 1 | +0.1500 | +0.1500 |",
        "| mse | mean of 2 | +0.1000 ± 0.0707 | +0.1250 ± 0.0354 |",
    ]


def test_equal_scores_have_no_coefficient_and_say_why() -> None:
    everything = [
        *scored(0, "relational", [0.5] * 4, [0.1, 0.2, 0.3, 0.4]),
        *scored(0, "mse", [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]),
    ]
    lines = correlation_table(everything, correlations(everything))
    assert lines[2].startswith("| relational | 0 | 4 | not defined | not defined | 0.5000 to 0.5000 | ")
    assert lines[-1].endswith("relational, seed 0: all values of the first side are equal, so there is no order.")
    assert difference_table(everything)[2].startswith("| 0 | not defined | ")
    assert to_png(plot(everything, correlations(everything), "accuracy")).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--architectures", "2"], "--architectures is 2; it must be at least 3"),
        (["--seeds", "0"], "--seeds is 0; it must be at least 1"),
        (["--set", "seed=3"], "--set seed=3 is not allowed: the runs differ in seed and distillation.features"),
    ],
)
def test_a_users_mistake_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["ranking.py", "nano", *arguments, "--out", "out"])
    with pytest.raises(SystemExit) as ended:
        ranking.run_command(ranking.main, "ranking")
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", f"ranking: {message}\n")
    assert list(tmp_path.iterdir()) == []
