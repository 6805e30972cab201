"""The likeness of candidates: measured anew along each path, one candidate at a time, by scipy."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import diversity
import numpy as np
import pytest
import torch
import yaml
from diversity import BLOCKS, PHASES, draw_paths, pair_means, table
from ranking_runs import LOSSES, Runs, open_runs
from scipy.spatial.distance import cosine

from elm_nni.modeling.encoder_elm import encode
from elm_nni.pipeline.supernet_stage import load_supernet
from elm_nni.strategies.one_shot import set_path

from ..pipeline.conftest import settings

NAMES = list(BLOCKS)


def small(own: Path) -> dict[str, Any]:
    """Steps so large that candidates differ after few of them."""
    changed = settings(own)
    training = changed["supernet"]["pretrain"] | {"steps": 4, "lr": 0.1}
    changed["supernet"] = {"pretrain": training, "tasks": training, "probe_rows": 0}
    changed["growth"]["enabled"] = False
    return changed


def by_one_candidate_at_a_time(runs: Runs, loss: str, phase: str, num_paths: int) -> np.ndarray:
    """Similarities (L, C, C) from whole forwards of the supernet, in each of which one layer is another block."""
    run = runs[0, loss]
    space = load_supernet(run.context, getattr(run, phase)().folder).eval()
    rows = run.context.corpus[1].batch([0, 1, 2])
    valid = rows["document_ids"] > 0
    found = np.zeros((num_paths, 2, 6, 6))
    for number, path in enumerate(draw_paths(0, num_paths, NAMES, 2)):
        for layer in range(2):
            outputs = []
            for block in NAMES:
                set_path(space, path | {f"layer{layer}": block})
                with torch.no_grad():
                    encoded = encode(
                        space.embeddings, space.layers, space.config, rows["input_ids"], rows["attention_mask"],
                        document_ids_BT=rows["document_ids"], output_hidden_states=True,
                    )  # fmt: skip
                outputs.append(encoded.hidden_states[layer + 1][valid].double().numpy())
            for i, j in np.ndindex(6, 6):
                found[number, layer, i, j] = np.mean([1 - cosine(x, y) for x, y in zip(outputs[i], outputs[j])])
    return found.mean(axis=0)


def test_the_command_measures_the_supernets_of_a_run(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config, out, store = tmp_path / "own.yaml", tmp_path / "out", tmp_path / "store"
    config.write_text(yaml.safe_dump(small(own)), encoding="utf-8")
    given = {"source": str(config), "out": out, "store": store, "seeds": 1, "paths": 2, "rows": 3, "set_": None}
    diversity.main(**given, plan=True)
    plan = capsys.readouterr().out.splitlines()
    assert [line.rsplit(", ", 1)[0] for line in plan[:2]] == [
        "relational, seed 0: teacher, supernet, supernet_tasks", "mse, seed 0: supernet, supernet_tasks"
    ]  # fmt: skip
    assert not list(store.glob("supernet/*"))

    diversity.main(**given, plan=False)
    printed = capsys.readouterr()
    results = json.loads((out / "diversity.json").read_text(encoding="utf-8"))["results"]
    found = {(one["loss"], one["stage"]): np.array(one["similarity"]) for one in results}
    assert set(found) == {(loss, phase) for loss in LOSSES for phase in PHASES}
    runs = open_runs(str(config), store, out, [], seeds=1)
    for loss, phase in (("relational", "supernet_tasks"), ("mse", "supernet")):
        expected = by_one_candidate_at_a_time(runs, loss, phase, 2)
        np.testing.assert_allclose(found[loss, phase][0], expected, atol=1e-6)
        # far from one, so that the tolerance is small beside what is measured
        assert 1 - pair_means(expected[None]).max() > 0.01
    assert abs(found["mse", "supernet"] - found["relational", "supernet"]).max() > 1e-3

    means = {
        key: [np.mean([one[i, j] for i, j in combinations(range(6), 2)]) for one in m[0]] for key, m in found.items()
    }
    for (loss, phase), layers in means.items():
        cells = " | ".join(f"{value:.3f}" for value in [*layers, np.mean(layers)])
        assert f"| {PHASES[phase]} | {loss} | {cells} |" in printed.out.splitlines()
    assert (out / "diversity.md").read_text(encoding="utf-8") == printed.out
    assert (out / "diversity.png").read_bytes().startswith(b"\x89PNG")

    lines = (out / "diversity.jsonl").read_text(encoding="utf-8")
    assert len(lines.splitlines()) == 8
    stages = {path: path.stat().st_mtime_ns for path in store.glob("*/*/stage.json")}
    (out / "diversity.jsonl").write_text(lines + '{"stage": "sup', encoding="utf-8")
    diversity.main(**(given | {"paths": 3}), plan=False)
    again = capsys.readouterr()
    assert "about 0 minutes of training to do" in again.err
    assert {path: path.stat().st_mtime_ns for path in store.glob("*/*/stage.json")} == stages
    kept = (out / "diversity.jsonl").read_text(encoding="utf-8")
    assert kept.startswith(lines)
    assert len(kept.splitlines()) == 12
    diversity.main(**given, plan=False)
    assert capsys.readouterr().out == printed.out
    assert (out / "diversity.jsonl").read_text(encoding="utf-8") == kept


def test_paths_are_uniform_and_the_first_ones_stay() -> None:
    many = draw_paths(0, 3000, NAMES, 2)
    assert draw_paths(0, 5, NAMES, 2) == many[:5]
    assert draw_paths(1, 5, NAMES, 2) != many[:5]
    counts = [sum(path["layer1"] == block for path in many) for block in NAMES]
    # 500 expected, standard deviation 20
    assert min(counts) > 400
    assert max(counts) < 600


def test_a_table_says_mean_and_deviation_over_seeds_and_paired_differences() -> None:
    low = np.full((2, 1, 6, 6), 0.25)
    low[1] = 0.75
    low[:, 0, range(6), range(6)] = 1
    similarities = {(loss, phase): low - 0.5 * (loss == "mse") for loss in LOSSES for phase in PHASES}
    assert pair_means(low).tolist() == [[0.25], [0.75]]
    assert table(similarities)[2:5] == [
        "| text | relational | 0.500 ± 0.354 | 0.500 ± 0.354 |",
        "| text | mse | 0.000 ± 0.354 | 0.000 ± 0.354 |",
        "| text | mse - relational | -0.500 ± 0.000 | -0.500 ± 0.000 |",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--paths", "0"], "--paths is 0; it must be at least 1"),
        (["--rows", "0"], "--rows is 0; it must be at least 1"),
        (["--set", "distillation.features=mse"],
         "--set distillation.features=mse is not allowed: the runs differ in seed and distillation.features"),
    ],
)  # fmt: skip
def test_a_users_mistake_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["diversity.py", "nano", *arguments, "--out", "out"])
    with pytest.raises(SystemExit) as ended:
        diversity.run_command(diversity.main, "diversity")
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", f"diversity: {message}\n")
    assert list(tmp_path.iterdir()) == []


def test_more_rows_than_are_held_out_are_refused_before_any_training(own: Path, tmp_path: Path) -> None:
    config = tmp_path / "own.yaml"
    config.write_text(yaml.safe_dump(small(own)), encoding="utf-8")
    with pytest.raises(diversity.UserError, match="--rows is 5; data.holdout_rows keeps 4 rows of text out of"):
        diversity.main(str(config), tmp_path / "out", tmp_path / "store", rows=5)
    assert not list((tmp_path / "store").glob("supernet/*"))
