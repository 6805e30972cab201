"""Differentiable searches under two losses: gradients and entropies by hand, sizes and scores of the saved models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import differentiable
import numpy as np
import pytest
import torch
import yaml
from differentiable import LOSSES, UNIFORM, Options, estimate, open_runs, pace_entropy, random_architectures
from differentiable_results import (
    RANDOM,
    Row,
    Weights,
    architecture_table,
    difference_table,
    differences,
    entropy,
    plot,
    summary_table,
)
from differentiable_search import held_rows, search
from nni.nas.oneshot.pytorch.supermodule.differentiable import DifferentiableMixedLayer
from nni.nas.strategy import DARTS
from pytorch_lightning import Callback
from scipy import stats

from elm_nni.cost.parameters import SIZE_TOLERANCE, embedding_parameters
from elm_nni.errors import UserError
from elm_nni.modeling import ElmForSequenceClassification
from elm_nni.pipeline.context import Context
from elm_nni.pipeline.runner import Run
from elm_nni.pipeline.supernet_stage import make_space
from elm_nni.report.style import to_png
from elm_nni.seeding import seeded
from elm_nni.strategies.distil_evaluator import DistilModule

from ..pipeline.conftest import settings
from .scores import validation_accuracy


def small(own: Path) -> dict[str, Any]:
    """Few steps, no dropout."""
    changed = settings(own)
    training = changed["supernet"]["pretrain"] | {"steps": 2}
    changed["retrain"] = {"pretrain": training, "finetune": training | {"steps": 4, "lr": 1e-2}}
    changed["space"]["dropout"] = 0.0
    return changed


@pytest.fixture
def config(own: Path, tmp_path: Path) -> str:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(small(own)), encoding="utf-8")
    return str(path)


def check_a_row(row: dict[str, Any], run: Run, sizes: list[int]) -> None:
    """Its size and score are those of the saved model; a search chose the blocks of the largest weights."""
    [found] = run.train(row["architecture"], f"anew {row['system']} {row['blocks']}", None).values()
    assert found.cached
    model = ElmForSequenceClassification.from_pretrained(found.folder / "model").eval()
    size = sum(parameter.numel() for parameter in model.elm.parameters()) - embedding_parameters(run.context.settings)
    assert row["size"] == size
    sizes.append(size)
    task = run.context.tasks["reviews"]
    assert row["scores"] == {"reviews": row["mean"]}
    assert row["mean"] == pytest.approx(validation_accuracy(found.folder / "model", task))
    if row["search"]:
        layers = row["search"]["layers"]
        assert [max(layer, key=layer.get) for layer in layers] == row["blocks"]
        assert all(sum(layer.values()) == pytest.approx(1) for layer in layers)
        assert row["entropy"] == pytest.approx(np.mean([stats.entropy(list(layer.values())) for layer in layers]))
        assert row["entropy"] < np.log(6)


@pytest.mark.slow
def test_the_command_compares_searches_and_does_nothing_twice(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out, store = tmp_path / "out", tmp_path / "store"
    given = {"source": config, "out": out, "store": store, "seeds": 2, "steps": 10, "random": 1, "set_": None}
    differentiable.main(**given, plan=True)
    assert "8 of 8 searches, 10 steps of " in capsys.readouterr().out
    assert not (store / "differentiable").exists()

    differentiable.main(**given, plan=False)
    printed = capsys.readouterr()
    assert (out / "differentiable.md").read_text(encoding="utf-8") == printed.out
    assert (out / "differentiable.png").read_bytes().startswith(b"\x89PNG")
    assert "12/12 uniform bert, seed 1: " in printed.err
    results = json.loads((out / "differentiable.json").read_text(encoding="utf-8"))
    searches = [f"{strategy}, {loss}" for strategy in ("DARTS", "GumbelDARTS") for loss in LOSSES]
    assert [row["system"] for row in results["rows"]] == 2 * [*searches, RANDOM, UNIFORM]
    runs, sizes = open_runs(config, store, out, [], seeds=2, width=None), list[int]()
    assert [run.context.settings.widths for run in runs] == [[16], [16]]
    for row in results["rows"]:
        check_a_row(row, runs[row["seed"]], sizes)
    assert max(abs(size - sizes[-1]) for size in sizes) <= SIZE_TOLERANCE * sizes[-1]
    assert all(row["blocks"] == ["bert", "bert"] for row in results["rows"] if row["system"] == UNIFORM)

    found = {(row["seed"], row["system"]): row["search"] and row["search"]["layers"] for row in results["rows"]}
    assert len({json.dumps(found[seed, name]) for seed in range(2) for name in searches}) == 8

    means = {(row["system"], row["seed"]): row["mean"] for row in results["rows"]}
    pairs = [("DARTS, relational", "DARTS, mse"), ("GumbelDARTS, relational", "GumbelDARTS, mse")]
    pairs += [(name, RANDOM) for name in searches]
    assert [(one["first"], one["second"]) for one in results["differences"]] == pairs
    for one in results["differences"]:
        apart = [means[one["first"], seed] - means[one["second"], seed] for seed in range(2)]
        assert one["by_seed"] == pytest.approx(apart)
        assert one["mean"] == pytest.approx(np.mean(apart))
        # of two values a quarter of the resamples hold the lower one alone, another the higher
        assert one["interval"] == pytest.approx(sorted(apart))

    stages = {path: path.stat().st_mtime_ns for path in store.glob("*/*/stage.json")}
    # the searches read the text that the runs packed
    assert len([path for path in (store / "corpora").iterdir() if path.is_dir()]) == 2
    differentiable.main(**given, plan=False)
    again = capsys.readouterr()
    assert "0 of 8 searches" in again.err
    assert "about 0 minutes to do" in again.err
    assert "epoch" not in again.err
    assert again.out == printed.out
    assert {path: path.stat().st_mtime_ns for path in store.glob("*/*/stage.json")} == stages
    more = estimate(runs, Options(steps=20, arch_lr=0.01, random=1))
    assert more[1].startswith("8 of 8 searches, 20 steps")


class FirstGradients(Callback):
    """Architecture weights and their gradients at the first step of all."""

    def __init__(self) -> None:
        self.weights: dict[str, torch.Tensor] = {}
        self.gradients: dict[str, torch.Tensor] = {}

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        for name, alpha_C in ({} if self.gradients else alphas(pl_module)).items():
            self.weights[name], self.gradients[name] = alpha_C.detach().clone(), alpha_C.grad.clone()


def alphas(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    mixed = (one for one in module.modules() if isinstance(one, DifferentiableMixedLayer))
    return {one.label: next(iter(one.arch_parameters())) for one in mixed}


def by_hand(context: Context, loss: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights and gradients of the feature loss on the first batch of the last rows of the text."""
    space = make_space(context)
    with seeded(0, "differentiable/weights"):
        DARTS().mutate_model(space)
    module = DistilModule(teacher=context.config.teacher.name, loss=loss, seed=0, clip=1.0)
    module.set_model(space)
    train, last = context.corpus
    rows, num_held = [*map(train.batch, ([i] for i in range(len(train))))], held_rows(context, 1)
    rows += [last.batch([i]) for i in range(len(last))]
    batch = {name: torch.cat([row[name] for row in rows[-num_held:]]) for name in rows[0]}
    assert num_held == 8
    module.feature_loss(batch).backward()
    found = alphas(space)
    return {name: one.detach() for name, one in found.items()}, {name: one.grad for name, one in found.items()}


def test_each_loss_has_its_own_gradient_on_the_same_weights_and_rows(config: str, tmp_path: Path) -> None:
    [run] = open_runs(config, tmp_path / "store", tmp_path / "out", [], seeds=1, width=None)
    seen = {}
    for loss in LOSSES:
        seen[loss] = FirstGradients()
        search(run.context, "DARTS", loss, steps=1, arch_lr=0.01, epochs=1, callbacks=[seen[loss]])
        weights, gradients = by_hand(run.context, loss)
        for name in ("layer0", "layer1"):
            assert torch.equal(seen[loss].weights[name], weights[name])
            torch.testing.assert_close(seen[loss].gradients[name], gradients[name], rtol=1e-4, atol=1e-7)
    for name in ("layer0", "layer1"):
        assert torch.equal(seen["relational"].weights[name], seen["mse"].weights[name])
        relational, mse = (seen[loss].gradients[name] for loss in LOSSES)
        assert torch.cosine_similarity(relational, mse, dim=0) < 0.999


def test_random_architectures_are_distinct_and_the_first_ones_stay(config: str, tmp_path: Path) -> None:
    run, other = open_runs(config, tmp_path / "store", tmp_path / "out", [], seeds=2, width=24)
    # which rows of a task give text depends on the seed
    assert [[spec.split_seed for spec in one.context.corpus_spec] for one in (run, other)] == [[0], [1]]
    found = random_architectures(run, 30)
    assert random_architectures(run, 3) == found[:3]
    assert random_architectures(other, 3) != found[:3]
    assert len({(one["layer0"], one["layer1"]) for one in found}) == 30
    with pytest.raises(UserError, match="--random is 37; 2,000 draws gave 36 distinct architectures"):
        random_architectures(run, 37)


def test_entropies_by_hand() -> None:
    assert entropy([0.5, 0.25, 0.25]) == pytest.approx(1.5 * np.log(2))
    assert entropy([1.0, 0.0]) == 0
    weights = Weights([{"a": 0.5, "b": 0.25, "c": 0.25}, {"a": 1.0, "b": 0.0, "c": 0.0}], 60.0)
    assert weights.entropy == pytest.approx(0.75 * np.log(2))


def test_the_entropy_that_so_many_steps_leave() -> None:
    # two blocks one apart: weights 0.5 + 0.5 * tanh(0.5) and the rest
    high = 0.5 + 0.5 * np.tanh(0.5)
    assert pace_entropy(50, 0.01, 2) == pytest.approx(stats.entropy([high, 1 - high]))
    assert pace_entropy(10, 1e-9, 6) == pytest.approx(np.log(6))


def rows() -> list[Row]:
    """Two seeds of one strategy, two random architectures each."""

    def row(seed: int, system: str, first: float, second: float, sharp: float | None = None) -> Row:
        layers = [] if sharp is None else [{"bert": sharp, "mobile": 1 - sharp}] * 2
        found = None if sharp is None else Weights(layers, 60.0 + 60 * seed)
        return Row(seed, system, ["bert", "mobile"], {}, 1234, {"x": first, "y": second}, found)

    made = [
        [row(seed, "DARTS, relational", 0.8 + seed / 10, 0.6, 0.5), row(seed, "DARTS, mse", 0.7, 0.5, 1.0),
         row(seed, RANDOM, 0.4, 0.4), row(seed, RANDOM, 0.6, 0.6), row(seed, UNIFORM, 0.75, 0.65)]
        for seed in range(2)
    ]  # fmt: skip
    return [one for of_seed in made for one in of_seed]


def test_tables_of_given_scores() -> None:
    lines = summary_table(rows())
    assert lines[0].split(" | ")[2:5] == ["mean", "x", "y"]
    assert "uniform: 0.693" in lines[0]
    # means over tasks 0.70 and 0.75, on x 0.8 and 0.9
    assert lines[2] == (
        "| DARTS, relational | 1 | 0.7250 ± 0.0354 | 0.8500 ± 0.0707 | 0.6000 ± 0.0000 | 0.693 ± 0.000 | 1.5 ± 0.7 |"
    )
    assert lines[4] == f"| {RANDOM} | 2 | 0.5000 ± 0.0000 | 0.5000 ± 0.0000 | 0.5000 ± 0.0000 |  |  |"
    assert difference_table(differences(rows()), [0, 1])[2:] == [
        "| DARTS, relational - DARTS, mse | +0.1000 | +0.1500 | +0.1250 [+0.1000, +0.1500] |",
        "| DARTS, relational - random | +0.2000 | +0.2500 | +0.2250 [+0.2000, +0.2500] |",
        "| DARTS, mse - random | +0.1000 | +0.1000 | +0.1000 [+0.1000, +0.1000] |",
    ]
    assert architecture_table(rows())[2] == (
        "| 0 | DARTS, relational | bert, mobile | 1,234 | 0.8000 | 0.6000 | 0.693 0.693 | 60 |"
    )


def test_one_seed_has_neither_deviation_nor_interval() -> None:
    first = [row for row in rows() if row.seed == 0]
    found = differences(first)
    assert difference_table(found, [0])[2] == "| DARTS, relational - DARTS, mse | +0.1000 | +0.1000 |"
    assert "±" not in "".join(summary_table(first))
    assert to_png(plot(first, found, "accuracy")).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "15"], "--steps is 15; it must be a multiple of 10, the number of epochs"),
        (["--steps", "0"], "--steps is 0; it must be at least 10"),
        (["--random", "0"], "--random is 0; it must be at least 1"),
        (["--arch-lr", "0"], "--arch-lr is 0; it must be above 0"),
        (["--strategies", "ENAS"], "--strategies: 'ENAS' is unknown; allowed: DARTS, GumbelDARTS"),
        (["--strategies", ","], "--strategies is empty; allowed: DARTS, GumbelDARTS"),
        (["--set", "seed=3"], "--set seed=3 is not allowed: this benchmark sets seed, growth.enabled, "
                              "space.ffn_start, space.ffn_max"),
    ],
)  # fmt: skip
def test_a_users_mistake_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["differentiable.py", "nano", *arguments, "--out", "out"])
    with pytest.raises(SystemExit) as ended:
        differentiable.run_command(differentiable.main, "differentiable")
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", f"differentiable: {message}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_width_outside_the_grid_and_a_stream_are_refused(config: str, tmp_path: Path) -> None:
    given = {"source": config, "store": tmp_path / "store", "out": tmp_path / "out", "seeds": 1}
    with pytest.raises(UserError, match="--width is 20; it must be one of 8, 16, 24"):
        open_runs(**given, changes=[], width=20)
    with pytest.raises(UserError, match="data.streaming=true is not allowed"):
        open_runs(**given, changes=["data.streaming=true"], width=None)
    assert not list((tmp_path / "store").glob("*/*/stage.json"))
