"""Growth inside a real Lightning training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader

from elm_nni.search_spaces import ElmSpace
from elm_nni.strategies import ElmOneShot, GrowthCallback, GrowthRecord, PcaGrowth

from .strategy_helpers import evaluator, run, sequential, trainer

RANKS = {"low": 2, "middle": 4, "high": 7}


class Cell(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.widths, self.active_width, self.features = [8, 16, 24], 8, torch.nn.Identity()


class Planted(LightningModule):
    """Feeds each cell features of its planted rank; validation and padding are of full rank."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.cells = torch.nn.ModuleDict({name: Cell() for name in RANKS})
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.fails_at = fails_at

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        if self.trainer.global_step == self.fails_at:
            raise RuntimeError("interrupted")
        white_BTR = batch["white"]
        for name, rank in RANKS.items():
            features_BTF = torch.zeros(*white_BTR.shape[:2], self.cells[name].active_width)
            features_BTF[..., :rank] = white_BTR[..., :rank]
            noise_BTF = 50 * torch.randn(features_BTF.shape, generator=torch.Generator().manual_seed(1))
            self.cells[name].features(torch.where(batch["attention_mask"][..., None] > 0, features_BTF, noise_BTF))
        return self.weight.square()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        for cell in self.cells.values():
            cell.features(torch.randn(1, 100, cell.active_width, generator=torch.Generator().manual_seed(2)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(num_batches: int = 2) -> DataLoader:
    white_TR, _ = torch.linalg.qr(torch.randn(300, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    white_TR -= white_TR.mean(0)
    white_TR = torch.linalg.qr(white_TR)[0].float()
    padded_BTR = torch.cat([white_TR, torch.zeros(20, 8)])[None]
    mask_BT = (torch.arange(320) < 300).long()[None]
    return DataLoader([{"white": padded_BTR, "attention_mask": mask_BT}] * num_batches, batch_size=None)


def growing(module: Planted, records: list[GrowthRecord], **changes: Any) -> GrowthCallback:
    settings = {"top_k": 1, "budget": 64, "cost": lambda widths: sum(widths.values())}
    growth = PcaGrowth(module.cells, **(settings | changes))
    return GrowthCallback(growth, on_record=records.append)


def test_each_epoch_grows_the_highest_planted_rank_within_the_budget(home: Path) -> None:
    module, records = Planted(), []
    trainer(home, max_epochs=7, callbacks=[growing(module, records)]).fit(module, loader(), loader(1))
    assert [record.scores for record in records] == [{name: float(rank) for name, rank in RANKS.items()}] * 7
    grown = [[(event.cell, event.new) for event in record.events] for record in records]
    assert grown == [[("high", 16)], [("high", 24)], [("middle", 16)], [("middle", 24)], [("low", 16)], [], []]
    assert max(record.cost for record in records) == 64
    assert all(len(cell.features._forward_hooks) == 0 for cell in module.cells.values())


def test_it_grows_every_n_th_epoch(home: Path) -> None:
    module = Planted()
    callback = growing(module, [])
    callback.every_n_epochs = 2
    trainer(home, max_epochs=5, callbacks=[callback]).fit(module, loader())
    assert len(callback.growth.history) == 2


def test_a_checkpoint_resumes_the_growth(home: Path) -> None:
    whole, first, resumed = [], [], []
    module = Planted()
    trainer(home, max_epochs=4, callbacks=[growing(module, whole)]).fit(module, loader())
    module = Planted()
    half = trainer(home, max_epochs=2, callbacks=[growing(module, first)])
    half.fit(module, loader())
    half.save_checkpoint(home / "half.ckpt")
    module = Planted()
    callback = growing(module, resumed)
    trainer(home, max_epochs=4, callbacks=[callback]).fit(module, loader(), ckpt_path=home / "half.ckpt")
    assert first + resumed == whole
    assert callback.growth.history == whole


def test_hooks_do_not_outlive_an_error(home: Path) -> None:
    module = Planted(fails_at=1)
    with pytest.raises(RuntimeError, match="interrupted"):
        trainer(home, max_epochs=1, callbacks=[growing(module, [])]).fit(module, loader())
    assert all(len(cell.features._forward_hooks) == 0 for cell in module.cells.values())


def test_a_batch_without_the_mask_is_refused(home: Path) -> None:
    module = Planted()
    callback = GrowthCallback(growing(module, []).growth, mask_key="mask")
    with pytest.raises(ValueError, match=r"mask_key='mask'.*attention_mask"):
        trainer(home, max_epochs=1, callbacks=[callback]).fit(module, loader())


def test_without_a_mask_padding_counts(home: Path) -> None:
    module = Planted()
    growth = growing(module, []).growth
    trainer(home, max_epochs=1, callbacks=[GrowthCallback(growth, mask_key=None)]).fit(module, loader())
    assert growth.history[0].scores["low"] > 2


@pytest.mark.parametrize(("setting", "value"), [("every_n_epochs", 0), ("on_record", 3), ("growth", 3)])
def test_a_wrong_setting_is_named(setting: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{setting}.*{value}"):
        GrowthCallback(**({"growth": growing(Planted(), []).growth} | {setting: value}))


def test_a_supernet_grows_in_an_nni_experiment_and_exports_its_widths(space: ElmSpace, home: Path) -> None:
    budget = 6 * 12 * 2
    callback = GrowthCallback(
        lambda module: PcaGrowth(space.cells(), top_k=3, budget=budget, cost=lambda widths: sum(widths.values()))
    )
    with pytest.raises(RuntimeError, match="before training"):
        _ = callback.growth
    experiment = run(space, evaluator(home, max_epochs=4, callbacks=[callback]), ElmOneShot(), sequential(home))
    history = callback.growth.history
    assert len(history) == 4
    assert sum(len(record.events) for record in history) == (budget - 12 * 8) / 8
    assert max(record.cost for record in history) == budget
    sample = experiment.export_top_models(formatter="dict")[0]
    assert callback.growth.export({}).items() <= sample.items()
    frozen = space.freeze(sample)
    for index, layer in enumerate(frozen.layers):
        assert layer.ffn.up.out_features == callback.growth.widths[f"layer{index}_{sample[f'layer{index}']}"]


@pytest.mark.parametrize("score", ["gradient_saliency", "learnable_gate"])
def test_a_supernet_grows_by_what_the_backward_of_its_steps_tells(score: str, space: ElmSpace, home: Path) -> None:
    callback = GrowthCallback(
        lambda module: PcaGrowth(
            space.cells(), top_k=2, budget=1e6, cost=lambda widths: sum(widths.values()), score=score
        )
    )
    run(space, evaluator(home, max_epochs=1, callbacks=[callback]), ElmOneShot(), sequential(home))
    record = callback.growth.history[0]
    # two steps, each with one block a layer
    assert 2 <= len(record.scores) <= 4
    assert {event.cell for event in record.events} == set(sorted(record.scores, key=record.scores.get)[-2:])
    assert (1.0 if score == "learnable_gate" else 0.0) not in record.scores.values()
    assert all(not cell.features._forward_hooks for cell in space.cells().values())
