"""Paths of ElmOneShot: uniform, and functions of (seed, stage, step) in every run and after every resume."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from nni.nas.evaluator.pytorch import DataLoader
from scipy.stats import chi2

from elm_nni.search_spaces import ElmSpace
from elm_nni.strategies import ElmOneShot, set_path, to_supernet

from .strategy_helpers import Regression, evaluator, rows, run, sequential, trainer

Paths = list[tuple[int, tuple[str, ...]]]


def train(
    home: Path, tiny: dict[str, int], steps: int, *, seed: int = 0, stage: str = "supernet", resume: Path | None = None,
    save: Path | None = None, filter=None,
) -> Paths:  # fmt: skip
    space, module = ElmSpace(**tiny), Regression(forward=False)
    strategy = ElmOneShot(filter, seed=seed, stage=stage)
    strategy.mutate_model(space)
    one_shot = strategy.configure_oneshot_module(module)
    one_shot.set_model(space)
    fit = trainer(home, max_steps=steps, max_epochs=-1)
    fit.fit(one_shot, DataLoader(rows(8), batch_size=1), ckpt_path=resume)
    if save is not None:
        fit.save_checkpoint(save)
    return module.paths


def test_paths_are_functions_of_seed_stage_and_step(home: Path, tiny: dict[str, int]) -> None:
    torch.manual_seed(1)
    whole = train(home, tiny, 24)
    torch.manual_seed(2)
    assert train(home, tiny, 24) == whole
    assert [step for step, _ in whole] == list(range(24))
    assert train(home, tiny, 24, seed=1) != whole
    assert train(home, tiny, 24, stage="tasks") != whole


def test_a_resumed_training_goes_on_along_the_same_paths(home: Path, tiny: dict[str, int]) -> None:
    checkpoint = home / "half.ckpt"
    whole = train(home, tiny, 24)
    assert train(home, tiny, 16, save=checkpoint) == whole[:16]
    assert train(home, tiny, 24, resume=checkpoint) == whole[16:]


def test_paths_are_uniform(home: Path, tiny: dict[str, int]) -> None:
    num_steps = 432
    paths = [path for _, path in train(home, tiny, num_steps)]
    for cells, counts in ((36, Counter(paths)), (6, Counter(a for a, _ in paths)), (6, Counter(b for _, b in paths))):
        expected = num_steps / cells
        statistic = sum((count - expected) ** 2 for count in counts.values()) / expected
        statistic += expected * (cells - len(counts))
        assert statistic < chi2.ppf(0.999, cells - 1)


def test_a_filter_rejects_paths(home: Path, tiny: dict[str, int]) -> None:
    paths = train(home, tiny, 16, filter=lambda sample: sample["layer0"] == "bert")
    assert {path[0] for _, path in paths} == {"bert"}
    assert len({path[1] for _, path in paths}) > 1


def test_only_the_path_of_a_step_gets_gradients(space: ElmSpace) -> None:
    supernet = to_supernet(space)
    set_path(supernet, {"layer0": "bert", "layer1": "mobile_kv"})
    supernet(torch.tensor([[5, 6, 7]])).sum().backward()
    used = {name.split(".")[2] for name, p in supernet.layers[0].named_parameters(prefix="x.0") if p.grad is not None}
    assert used == {"bert"}


def test_it_trains_and_exports_through_an_experiment(space: ElmSpace, home: Path) -> None:
    experiment = run(space, evaluator(home, max_epochs=2), ElmOneShot(seed=0), sequential(home))
    model = next(iter(experiment.strategy.engine.list_models()))
    assert len(model.metrics.intermediates) == 2
    assert model.metric == model.metrics.intermediates[-1]
    space.cells()["layer0_bert"].active_width = 24
    with pytest.warns(UserWarning, match="arbitrary architecture"):
        sample = experiment.export_top_models(formatter="dict")[0]
    widths = {label: value for label, value in sample.items() if label.endswith("_ffn")}
    assert widths == {f"{name}_ffn": cell.active_width for name, cell in space.cells().items()}
