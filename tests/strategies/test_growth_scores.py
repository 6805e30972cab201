"""Each signal of a growth against numbers computed another way, on a small feed-forward network."""

import copy
import logging
from typing import get_args, get_type_hints

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from elm_nni.pipeline.checkpoint import load_tree, save_tree
from elm_nni.strategies.growth import PcaGrowth
from elm_nni.strategies.growth_scores import (
    SCORE_NAMES,
    ActivationNorm,
    GrowthScore,
    LearnableGate,
    MeanScore,
    RandomScore,
    make_score,
)

NAMES = ("a", "b", "c")
WITH_BACKWARD = ("gradient_saliency", "learnable_gate")


class Cell(nn.Module):
    """A residual feed-forward network of which the first ``active_width`` units are used."""

    def __init__(self) -> None:
        super().__init__()
        self.widths, self.active_width = [4, 6, 8], 4
        self.up, self.down = nn.Linear(3, 8), nn.Linear(8, 3)
        self.features = nn.Identity()

    def before(self, hidden_BTD: Tensor) -> Tensor:
        return functional.linear(hidden_BTD, self.up.weight[: self.active_width], self.up.bias[: self.active_width])

    def after(self, hidden_BTD: Tensor, features_BTF: Tensor) -> Tensor:
        weight_DF = self.down.weight[:, : self.active_width]
        return hidden_BTD + functional.linear(features_BTF.tanh(), weight_DF, self.down.bias)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        return self.after(hidden_BTD, self.features(self.before(hidden_BTD)))


def cells() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({name: Cell() for name in NAMES}).double()


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Hidden states (2, 5, 3) and a mask (2, 5) of 7 valid tokens."""
    generator = torch.Generator().manual_seed(step)
    mask_BT = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    return torch.randn(2, 5, 3, dtype=torch.float64, generator=generator), mask_BT


def loss_of(model: nn.ModuleDict, step: int, path: tuple[str, ...] = NAMES) -> Tensor:
    """A loss that padding has a part in, so that a signal which reads padding is found out."""
    hidden_BTD, _ = batch(step)
    for name in path:
        hidden_BTD = model[name](hidden_BTD)
    return (hidden_BTD - 1).square().mean()


def make(model: nn.ModuleDict, score: str | GrowthScore, **settings) -> PcaGrowth:
    budget = {"top_k": 1, "budget": 100, "cost": lambda widths: sum(widths.values())}
    return PcaGrowth(dict(model), score=score, **(budget | settings))


def train(growth: PcaGrowth, model: nn.ModuleDict, steps: range, path: tuple[str, ...] = NAMES) -> None:
    for step in steps:
        growth.set_mask(batch(step)[1])
        with growth.watch():
            model.zero_grad()
            loss_of(model, step, path).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.01 * parameter.grad


def test_the_activation_norm_is_the_root_mean_square_of_valid_tokens_of_all_batches() -> None:
    score = ActivationNorm()
    score.observe("cell", torch.tensor([[[3.0, 4.0], [torch.nan, 9.0]]]), torch.tensor([[True, False]]))
    score.observe("cell", torch.tensor([[[0.0, 0.0], [2.0, 1.0]]]), None)
    score.observe("padding", torch.ones(1, 2, 2), torch.zeros(1, 2))
    assert score.scores() == {"cell": pytest.approx(((9 + 16 + 4 + 1) / 6) ** 0.5)}
    with pytest.raises(ValueError, match=r"\(2, 1\): must be \(1, 2\)"):
        score.observe("cell", torch.ones(1, 2, 2), torch.ones(2, 1))


def test_gradient_saliency_is_the_mean_of_feature_times_gradient_by_autograd() -> None:
    model = cells()
    growth = make(model, "gradient_saliency")
    expected = {name: [] for name in ("a", "b")}
    for step in range(2):
        hidden_BTD, mask_BT = batch(step)
        kept = {}
        for name in expected:
            kept[name] = model[name].before(hidden_BTD)
            hidden_BTD = model[name].after(hidden_BTD, kept[name])
        gradients = torch.autograd.grad((hidden_BTD - 1).square().mean(), list(kept.values()))
        for (name, features_BTF), gradient_BTF in zip(kept.items(), gradients):
            expected[name] += (features_BTF * gradient_BTF).abs()[mask_BT > 0].flatten().tolist()
        growth.set_mask(mask_BT)
        with growth.watch():
            loss_of(model, step, ("a", "b")).backward()
    assert len(expected["a"]) == 2 * 7 * 4
    assert growth.scores() == {name: pytest.approx(sum(values) / len(values)) for name, values in expected.items()}


def test_gates_follow_gradient_descent_written_out() -> None:
    model, lr = cells(), 0.5
    by_hand = copy.deepcopy(model)
    growth = make(model, LearnableGate(lr=lr))
    train(growth, model, range(4), ("a", "b"))
    gates = {"a": 1.0, "b": 1.0}
    for step in range(4):
        hidden_BTD, mask_BT = batch(step)
        # a gate for each token, so that autograd itself tells the valid ones from padding
        ones_BT1 = torch.ones(2, 5, 1, dtype=torch.float64)
        by_token = {name: (gate * ones_BT1).requires_grad_() for name, gate in gates.items()}
        for name, gate_BT1 in by_token.items():
            cell = by_hand[name]
            hidden_BTD = cell.after(hidden_BTD, gate_BT1 * cell.before(hidden_BTD))
        by_hand.zero_grad()
        (hidden_BTD - 1).square().mean().backward()
        gates = {name: gates[name] - lr * float((gate.grad[..., 0] * mask_BT).sum()) for name, gate in by_token.items()}
        with torch.no_grad():
            for parameter in by_hand.parameters():
                if parameter.grad is not None:
                    parameter -= 0.01 * parameter.grad
    assert growth.scores() == {name: pytest.approx(gate, rel=1e-6) for name, gate in gates.items()}
    assert all(abs(gate - 1) > 1e-3 for gate in gates.values())
    for ours, theirs in zip(model.parameters(), by_hand.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


def test_gates_stay_within_their_limit_and_are_gone_after_the_growth_and_outside_of_watching() -> None:
    model = cells()
    growth = make(model, LearnableGate(lr=1e4, limit=0.25))
    plain = loss_of(model, 0)
    with growth.watch():
        loss_of(model, 0).backward()
        assert set(growth.scores().values()) <= {0.75, 1.25}
        assert loss_of(model, 0) != plain
        with torch.no_grad():
            assert loss_of(model, 0) != plain
    assert loss_of(model, 0) == plain
    growth.step()
    growth.cells["a"].active_width = growth.cells["b"].active_width = growth.cells["c"].active_width = 4
    with growth.watch():
        assert loss_of(model, 0) == plain


@pytest.mark.parametrize(("setting", "value"), [("lr", 0), ("limit", 0), ("limit", 1)])
def test_a_wrong_setting_of_the_gates_is_named(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{setting}.*{value}"):
        LearnableGate(**{setting: value})


def test_random_scores_depend_on_seed_growth_and_name_alone() -> None:
    model = cells()
    growth, other = make(model, "random", seed=3), make(cells(), "random", seed=3)
    train(growth, model, range(1), ("a",))
    first = growth.scores()
    assert first == other.scores() == RandomScore(["c", "b", "a"], 3).scores()
    assert RandomScore(["d", "a"], 3).scores()["a"] == first["a"]
    growth.step()
    other.step()
    assert growth.history == other.history
    assert growth.scores() == other.scores()
    assert not set(first.values()) & set(growth.scores().values())
    assert not set(first.values()) & set(make(model, "random", seed=4).scores().values())
    draws = torch.tensor(list(RandomScore(map(str, range(2000))).scores().values()))
    assert 0 <= draws.min() < 0.01 < 0.99 < draws.max() <= 1
    assert abs(draws.mean() - 0.5) < 0.03


@pytest.mark.parametrize("score", SCORE_NAMES)
def test_the_state_resumes_in_the_middle_of_an_epoch(score: str, tmp_path) -> None:
    model = cells()
    whole = make(model, score, every=2)
    train(whole, model, range(4))
    whole.step()
    train(whole, model, range(4, 7), ("a", "b"))
    other = copy.deepcopy(model)
    save_tree(whole.state_dict(), tmp_path / "state")
    resumed = make(other, score, every=2)
    resumed.load_state_dict(load_tree(tmp_path / "state"))
    assert resumed.scores() == whole.scores()
    for growth, own in ((whole, model), (resumed, other)):
        train(growth, own, range(7, 11), ("a", "c"))
        growth.step()
        train(growth, own, range(11, 12))
        growth.step()
    assert resumed.history == whole.history
    assert all(len(record.events) == 1 for record in whole.history)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), other.parameters()))


@pytest.mark.parametrize("score", SCORE_NAMES)
def test_watching_changes_neither_outputs_nor_gradients_and_leaves_no_hook(score: str) -> None:
    model, watched = cells(), cells()
    growth = make(watched, score)
    with growth.watch():
        watched_loss = loss_of(watched, 0)
        watched_loss.backward()
    loss = loss_of(model, 0)
    loss.backward()
    assert torch.equal(loss, watched_loss)
    for ours, theirs in zip(model.parameters(), watched.parameters()):
        assert torch.equal(ours.grad, theirs.grad)
    before = growth.state_dict()
    loss_of(watched, 1).backward()
    assert growth.state_dict() == before
    assert all(not cell.features._forward_hooks for cell in watched.values())
    assert {name for name, _ in watched.named_parameters()} == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("score", [name for name in SCORE_NAMES if name != "random"])
def test_cells_off_the_path_have_no_score_and_normalized_scores_are_those_of_the_width(score: str) -> None:
    model = cells()
    growth = make(model, score, top_k=3)
    train(growth, model, range(2), ("c", "a"))
    assert set(growth.scores()) == {"a", "c"}
    growth.step()
    record = growth.history[0]
    assert {event.cell for event in record.events} == {"a", "c"}
    share = 4 if score.startswith("pca") else 1
    assert record.normalized == {name: value / share for name, value in record.scores.items()}
    shown = record.normalized if score == "pca_normalized" else record.scores
    assert {event.cell: event.score for event in record.events} == shown
    assert growth.scores() == {}


@pytest.mark.parametrize("score", WITH_BACKWARD)
def test_forwards_without_gradients_leave_no_trace(score: str, caplog) -> None:
    model = cells()
    growth, plain = make(model, score, every=2), make(copy.deepcopy(model), score, every=2)
    with torch.no_grad(), growth.watch():
        loss_of(model, 9)
    assert growth.state_dict() == plain.state_dict()
    with caplog.at_level(logging.WARNING):
        assert growth.step() == []
    assert caplog.messages == [f"growth 0: no cell has a score; {score} needs forwards with a backward"]
    with growth.watch():
        loss_of(model, 0).backward()
        with torch.no_grad():
            loss_of(model, 9)
        loss_of(model, 1).backward()
        one = growth.scores()
        loss_of(model, 2).backward()
    assert set(one) == set(NAMES)
    assert growth.scores() != one
    assert growth.state_dict()["seen"] == dict.fromkeys(NAMES, 3)


def test_features_changed_in_place_are_refused() -> None:
    features_BTF = torch.ones(1, 2, 4, requires_grad=True) * 2
    make_score("gradient_saliency", cells=["x"]).observe("x", features_BTF, None)
    with pytest.raises(RuntimeError, match="'x' were changed in place"):
        features_BTF.relu_().sum().backward()


def test_a_state_of_another_score_is_refused_and_nothing_is_loaded() -> None:
    model = cells()
    state = make(model, "activation_norm").state_dict() | {"widths": dict.fromkeys(NAMES, 8)}
    growth = make(model, "gradient_saliency")
    with pytest.raises(ValueError, match="another score.*'gradient_saliency'"):
        growth.load_state_dict(state)
    assert growth.widths == dict.fromkeys(NAMES, 4)


def test_the_state_of_the_pca_scores_is_as_it_always_was() -> None:
    growth = make(cells(), "pca")
    assert list(growth.state_dict()) == ["widths", "history", "seen", "ranks", "pooled"]
    make(cells(), "pca_normalized").load_state_dict(growth.state_dict())


def test_a_signal_of_ones_own() -> None:
    class Magnitude(MeanScore):
        name = "magnitude"

        def observe(self, cell: str, features: Tensor, mask: Tensor | None) -> None:
            self.add(cell, features.detach().abs(), mask)

    model = cells()
    growth = make(model, Magnitude())
    with growth.watch():
        model["b"](batch(0)[0])
    features_BTF = model["b"].before(batch(0)[0]).detach()
    assert growth.scores() == {"b": pytest.approx(float(features_BTF.abs().mean()))}
    assert growth.score == "magnitude"
    assert [event.cell for event in growth.step()] == ["b"]


def test_every_name_is_made_and_named_alike_here_and_in_the_signature() -> None:
    assert [make_score(name, cells=NAMES).name for name in SCORE_NAMES] == list(SCORE_NAMES)
    hints = get_type_hints(PcaGrowth.__init__)["score"]
    assert set(get_args(get_args(hints)[0])) == set(SCORE_NAMES)
    with pytest.raises(ValueError, match="'learnable_gate'.*got 'rank'"):
        make_score("rank", cells=NAMES)
