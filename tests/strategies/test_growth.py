"""Growth on features whose number of components is planted."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from elm_nni.strategies.growth import Growable, PcaGrowth


class Cell(nn.Module):
    """Maps R-dimensional input to ``active_width`` features without losing a dimension (while R fits)."""

    def __init__(self, widths: list[int], start: int, rank: int) -> None:
        super().__init__()
        self.widths, self.active_width, self.features = widths, start, nn.Identity()
        basis, _ = torch.linalg.qr(torch.randn(max(widths), max(widths), generator=torch.Generator().manual_seed(rank)))
        self.basis_RF = basis

    def forward(self, planted_BTR: Tensor) -> Tensor:
        # the first `active_width` rows of an orthogonal matrix keep equal variances up to mixing
        basis_RF, _ = torch.linalg.qr(self.basis_RF[: self.active_width, : planted_BTR.shape[-1]])
        return self.features(planted_BTR @ basis_RF.T)


def planted(rank: int, tokens: int = 400, seed: int = 0) -> Tensor:
    """(1, T, R) whose covariance is exactly the identity, so that each component holds the same share."""
    drawn = torch.randn(tokens, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    white, _ = torch.linalg.qr(drawn - drawn.mean(0))
    return white.float()[None] * 10


def cells(**ranks: int) -> dict[str, Cell]:
    return {name: Cell([8, 16, 24], 8, rank) for name, rank in ranks.items()}


def observe(growth: PcaGrowth, ranks: dict[str, int]) -> None:
    with growth.watch():
        for name, rank in ranks.items():
            growth.cells[name](planted(rank))


def total(widths: dict[str, int]) -> float:
    return sum(widths.values())


def make(ranks: dict[str, int], cost: Callable[[dict[str, int]], float] = total, **changes) -> PcaGrowth:
    return PcaGrowth(cells(**ranks), **({"top_k": 1, "budget": 1000, "cost": cost} | changes))


RANKS = {"low": 2, "middle": 4, "high": 7}


@pytest.mark.parametrize("mode", ["step", "epoch"])
def test_scores_are_the_planted_ranks_and_the_best_cells_grow(mode: str) -> None:
    growth = make(RANKS, mode=mode, top_k=2)
    observe(growth, RANKS)
    assert growth.scores() == {"low": 2.0, "middle": 4.0, "high": 7.0}
    events = growth.step()
    assert [(event.cell, event.old, event.new, event.score) for event in events] == [
        ("high", 8, 16, 7.0),
        ("middle", 8, 16, 4.0),
    ]
    assert growth.widths == {"low": 8, "middle": 16, "high": 16}
    record = growth.history[0]
    assert (record.epoch, record.widths, record.cost, record.budget) == (0, growth.widths, 40, 1000)
    assert record.normalized == {"low": 2 / 8, "middle": 4 / 8, "high": 7 / 8}
    assert growth.scores() == {}


def test_the_threshold_decides_the_number_of_components() -> None:
    growth = make({"cell": 4}, threshold=0.5)
    observe(growth, {"cell": 4})
    assert growth.scores() == {"cell": 2.0}


def test_a_normalised_score_divides_by_the_width() -> None:
    growth = make({"wide": 7, "narrow": 6}, score="pca_normalized")
    growth.cells["wide"].active_width = 16
    observe(growth, {"wide": 7, "narrow": 6})
    assert [event.cell for event in growth.step()] == ["narrow"]


def test_full_cells_are_passed_over_and_growth_of_full_cells_is_no_error() -> None:
    growth = make(RANKS)
    growth.cells["high"].active_width = 24
    observe(growth, RANKS)
    assert [event.cell for event in growth.step()] == ["middle"]
    for cell in growth.cells.values():
        cell.active_width = 24
    observe(growth, RANKS)
    assert growth.step() == []


def test_the_budget_is_met_exactly_but_never_crossed() -> None:
    growth = make(RANKS, top_k=3, budget=24 + 16)
    observe(growth, RANKS)
    assert len(growth.step()) == 2
    assert growth.history[-1].cost == 40
    observe(growth, RANKS)
    assert growth.step() == []


def test_a_step_over_the_budget_leaves_its_place_to_the_next_cell() -> None:
    prices = {"low": 1, "middle": 1, "high": 100}
    growth = make(RANKS, cost=lambda widths: sum(prices[name] * width for name, width in widths.items()), budget=900)
    observe(growth, RANKS)
    assert [event.cell for event in growth.step()] == ["middle"]


def test_unseen_cells_and_cells_of_one_token_do_not_grow() -> None:
    growth = make(RANKS, top_k=3)
    observe(growth, {"low": 2})
    with growth.watch():
        growth.cells["high"](planted(7)[:, :1])
    assert [event.cell for event in growth.step()] == ["low"]


@pytest.mark.parametrize("mode", ["step", "epoch"])
def test_padding_is_left_out(mode: str) -> None:
    growth = make({"cell": 3}, mode=mode)
    hidden_BTR = torch.cat([planted(3), 100 * torch.randn(1, 50, 3, generator=torch.Generator().manual_seed(1))], dim=1)
    mask_BT = torch.arange(450)[None] < 400
    noise_BTF = 50 * torch.randn(1, 450, 8, generator=torch.Generator().manual_seed(2))

    def forward() -> None:
        features_BTF = growth.cells["cell"].basis_RF[:3, :8]
        growth.cells["cell"].features(torch.where(mask_BT[..., None], hidden_BTR @ features_BTF, noise_BTF))

    growth.set_mask(mask_BT)
    with growth.watch():
        forward()
    assert growth.scores() == {"cell": 3.0}
    growth.step()
    growth.set_mask(None)
    with growth.watch():
        forward()
    assert growth.scores()["cell"] > 3


@pytest.mark.parametrize(("mode", "score"), [("step", 2.0), ("epoch", 6.0)])
def test_step_mode_averages_batches_and_epoch_mode_pools_them(mode: str, score: float) -> None:
    growth = make({"cell": 8}, mode=mode)
    white_TR = planted(8)[0]
    with growth.watch():
        for start in (0, 2, 4):
            batch_TF = torch.zeros(400, 8)
            batch_TF[:, start : start + 2] = white_TR[:, start : start + 2]
            growth.cells["cell"].features(batch_TF[None])
    assert growth.scores() == {"cell": score}


def test_one_forward_in_every_is_observed() -> None:
    growth = make({"cell": 8}, every=2)
    with growth.watch():
        for rank in (2, 7, 4, 7):
            growth.cells["cell"](planted(rank))
    assert growth.scores() == {"cell": 3.0}


def test_hooks_are_removed_also_after_an_error() -> None:
    growth = make(RANKS)
    with growth.watch():
        assert all(len(cell.features._forward_hooks) == 1 for cell in growth.cells.values())
    with pytest.raises(RuntimeError, match="mat1"), growth.watch():
        growth.cells["low"](torch.ones(1, 2, 8).T.reshape(4, 4) @ torch.ones(3, 3))
    assert all(len(cell.features._forward_hooks) == 0 for cell in growth.cells.values())


@pytest.mark.parametrize("mode", ["step", "epoch"])
def test_the_state_resumes_in_the_middle_of_an_epoch(mode: str) -> None:
    whole, first = make(RANKS, mode=mode), make(RANKS, mode=mode)
    for growth in (whole, first):
        observe(growth, RANKS)
        growth.step()
        observe(growth, {"low": 6})
    resumed = make(RANKS, mode=mode)
    resumed.load_state_dict(first.state_dict())
    for growth in (whole, resumed):
        observe(growth, {"low": 5, "middle": 3})
        growth.step()
    assert resumed.history == whole.history
    assert resumed.widths == whole.widths
    assert len(whole.history[1].events) == 1


def test_a_state_of_other_cells_is_refused() -> None:
    with pytest.raises(ValueError, match="2 cells does not fit these 3"):
        make(RANKS).load_state_dict(make({"a": 1, "b": 2}).state_dict())


def test_export_writes_the_grown_widths_into_a_sample() -> None:
    growth = make({"layer0_bert": 7, "layer0_mobile": 2})
    observe(growth, {"layer0_bert": 7})
    growth.step()
    assert growth.export({"layer0": "bert", "layer0_bert_ffn": 8}) == {
        "layer0": "bert",
        "layer0_bert_ffn": 16,
        "layer0_mobile_ffn": 8,
    }


def test_the_cells_of_these_tests_are_growable() -> None:
    assert isinstance(Cell([8], 8, 1), Growable)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("top_k", 0), ("every", 0), ("threshold", 0), ("threshold", 1.5), ("mode", "batch"), ("score", "rank")],
)
def test_a_wrong_setting_is_named(setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{setting}.*{value}"):
        make(RANKS, **{setting: value})
    with pytest.raises(ValueError, match="cells"):
        PcaGrowth({}, top_k=1, budget=1, cost=total)
