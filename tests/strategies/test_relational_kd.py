"""Relational distillation around a task of someone else's, on a space of someone else's."""

from pathlib import Path
from typing import Any

import nni
import pytest
import torch
from nni.nas.evaluator.pytorch import DataLoader, Lightning, LightningModule
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from nni.nas.strategy import DARTS, GumbelDARTS, Proxyless, Random, RandomOneShot
from torch import Tensor, nn

from elm_nni.distillation.losses import mse_feature_loss, relational_feature_loss
from elm_nni.strategies import ElmOneShot, RelationalKD

from .strategy_helpers import run, sequential, trainer

SAMPLING, MIXING = [ElmOneShot, RandomOneShot], [DARTS, GumbelDARTS, Proxyless]


@nni.trace
class Convolutions(ModelSpace):
    """Nothing of ours: images, two chosen convolutions, two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.first = LayerChoice({"wide": nn.Conv2d(4, 4, 5, padding=2), "narrow": nn.Conv2d(4, 4, 1)}, label="first")
        self.second = LayerChoice({"wide": nn.Conv2d(4, 6, 3, padding=1), "narrow": nn.Conv2d(4, 6, 1)}, label="second")
        self.head = nn.Linear(6, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.stem(images)).relu()).mean((2, 3)))


class Teacher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 5, 3, padding=1))
        self.dropout = nn.Dropout(0.5)
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.dropout(self.layers(images))


@nni.trace
class Classes(LightningModule):
    """A task that knows nothing of distillation; it keeps what it hears."""

    def __init__(self, forwards: int = 1, as_dict: bool = False) -> None:
        super().__init__()
        self.forwards, self.as_dict = forwards, as_dict
        self.heard: list[str] = []
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, labels = batch
        logits = [self.model(images) for _ in range(self.forwards)]
        loss = torch.stack([nn.functional.cross_entropy(one, labels) for one in logits]).mean()
        self.log("train_loss", loss)
        self.losses.append(float(loss))
        return {"loss": loss} if self.as_dict else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.model(batch[0]), batch[1]))

    def on_fit_start(self) -> None:
        self.heard.append("fit start")

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.heard.append("batch end")

    def on_fit_end(self) -> None:
        self.heard.append("fit end")
        if nni.get_current_parameter() is not None:
            nni.report_final_result(-self.losses[-1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


PAIRS = {"stem": "layers.0", "second": "layers"}
WIDTHS: dict[str, Any] = {
    "student_width": {"stem": 4, "second": 6}, "teacher_width": {"layers.0": 8, "layers": 5},
}  # fmt: skip


def batches(num_batches: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    rows = [(torch.randn(1, 5, 5, generator=generator), number % 2) for number in range(4 * num_batches)]
    return DataLoader(rows, batch_size=4)


def wrapped(task: LightningModule | None = None, teacher: nn.Module | None = None, **changes: Any) -> RelationalKD:
    torch.manual_seed(0)
    settings = {"pairs": PAIRS} | WIDTHS | changes
    return RelationalKD(task or Classes(), teacher or Teacher(), **settings)


@pytest.mark.parametrize("strategy", [*SAMPLING, *MIXING])
def test_it_distils_under_every_one_shot_strategy(strategy: type, home: Path) -> None:
    teacher, task = Teacher(), Classes()
    module = wrapped(task, teacher)
    before = {name: value.clone() for name, value in module.projections.state_dict().items()}
    evaluator = Lightning(module, trainer(home, max_epochs=2), batches(3), batches(2))
    experiment = run(Convolutions(), evaluator, strategy(), sequential(home))
    assert all(not torch.equal(value, before[name]) for name, value in module.projections.state_dict().items())
    steps = len(task.losses)
    assert teacher.calls == steps >= 6
    assert task.heard[0] == "fit start"
    assert task.heard[-1] == "fit end"
    assert task.heard.count("batch end") == 6
    assert "relational_loss" in evaluator.trainer.callback_metrics
    assert next(iter(experiment.strategy.engine.list_models())).metric == pytest.approx(-task.losses[-1])


def test_each_model_of_a_multi_trial_search_is_distilled(home: Path) -> None:
    module = wrapped()
    evaluator = Lightning(module, trainer(home, max_epochs=1), batches(2), batches(1))
    run(Convolutions(), evaluator, Random(), sequential(home, max_models=1))
    assert module.task.heard.count("batch end") == 2


@pytest.mark.parametrize("loss", ["relational", "mse"])
@pytest.mark.parametrize("as_dict", [False, True])
def test_the_loss_is_the_tasks_and_the_weighted_sum_of_the_pairs(loss: str, as_dict: bool, home: Path) -> None:
    teacher, task = Teacher(), Classes(as_dict=as_dict)
    module = wrapped(task, teacher, weight=0.3, loss=loss)
    model = Convolutions().freeze({"first": "wide", "second": "narrow"})
    module.set_model(model)
    attach(module, home)
    images, labels = next(iter(batches(1)))
    output = module.training_step((images, labels), 0)
    found = output["loss"] if as_dict else output
    function = relational_feature_loss if loss == "relational" else mse_feature_loss
    expected = nn.functional.cross_entropy(model(images), labels)
    middle = model.stem(images)
    last = model.second(model.first(middle).relu())
    for feature, key, target in (
        (middle, "stem|4", teacher.layers[0](images)), (last, "second|6", teacher.layers(images)),
    ):  # fmt: skip
        tokens, targets = feature.flatten(2).transpose(1, 2), target.flatten(2).transpose(1, 2)
        expected = expected + 0.3 * function(module.projections[key](tokens), targets, None)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_every_forward_of_a_step_is_compared(home: Path) -> None:
    one, three = wrapped(Classes(forwards=1)), wrapped(Classes(forwards=3))
    model = Convolutions().freeze({"first": "wide", "second": "wide"})
    terms = []
    for module in (one, three):
        module.set_model(model)
        attach(module, home)
        module.training_step(next(iter(batches(1))), 0)
        terms.append(float(module.logged["relational_loss"]))
    assert terms[1] == pytest.approx(3 * terms[0], rel=1e-5)


def test_a_candidate_that_did_not_run_adds_nothing(home: Path) -> None:
    pairs = {"first.wide": "layers.0", "first.narrow": "layers.0"}
    teacher = Teacher()
    module = wrapped(Classes(), teacher, pairs=pairs, student_width=4, teacher_width=8)
    space = RandomOneShot().mutate_model(Convolutions())
    module.set_model(space)
    attach(module, home)
    space.first.resample({"first": "narrow"})
    space.second.resample({"second": "wide"})
    images, labels = next(iter(batches(1)))
    module.training_step((images, labels), 0)
    narrow = space.first.narrow(space.stem(images)).flatten(2).transpose(1, 2)
    expected = relational_feature_loss(
        module.projections["first/narrow|4"](narrow), teacher.layers[0](images).flatten(2).transpose(1, 2)
    )
    assert float(module.logged["relational_loss"]) == pytest.approx(float(expected), rel=1e-6)


def test_a_path_that_changes_within_a_step_is_compared_with_its_own_forward_only() -> None:
    pairs = {"first.wide": "layers.0", "first.narrow": "layers.0"}
    module = wrapped(pairs=pairs, student_width=4, teacher_width=8)
    space = RandomOneShot().mutate_model(Convolutions())
    module.set_model(space)
    space.second.resample({"second": "wide"})
    terms: list[Tensor] = []
    with module._compared(terms):
        for path in ("wide", "narrow", "narrow"):
            space.first.resample({"first": path})
            space(torch.randn(2, 1, 5, 5))
    assert len(terms) == 3


def test_inside_a_mixed_layer_nothing_can_be_compared() -> None:
    module = wrapped(pairs={"first.wide": "layers.0"}, student_width=4, teacher_width=8)
    with pytest.raises(ValueError, match=r"'first.wide', inside 'first'"):
        module.set_model(DARTS().mutate_model(Convolutions()))


def test_the_projections_follow_the_tasks_optimizer_and_schedule(home: Path) -> None:
    module = wrapped()
    module.set_model(Convolutions().freeze({"first": "wide", "second": "wide"}))
    (group,) = module.configure_optimizers()["optimizer"].param_groups
    trained = {id(parameter) for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in module.parameters()}
    assert not any(parameter.requires_grad for parameter in module._teacher[0].parameters())
    assert not any("teacher" in name for name in module.state_dict())


def test_the_mask_keeps_padding_out() -> None:
    class Tokens(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.table, self.layer = nn.Embedding(9, width), nn.Linear(width, width)

        def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.layer(self.table(ids)) / attention_mask.sum()

    torch.manual_seed(0)
    module = RelationalKD(Classes(), Tokens(7), pairs={"layer": "layer"}, student_width=3, teacher_width=7)
    module.set_model(Tokens(3))
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    values = []
    for padding in (0, 8):
        ids = torch.tensor([[1, 2, 3, padding], [4, 5, 6, 7]])
        values.append([float(term) for term in compare(module, ids=ids, attention_mask=mask)])
    assert values[0] == values[1]
    assert values[0][0] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": {}}, "pairs is empty"),
        ({"loss": "cosine"}, "loss='cosine'"),
        ({"weight": 0.0}, "weight=0.0"),
        ({"student_width": {"stem": 4}}, "student_width has no width for 'second'"),
        ({"teacher_width": 0}, "teacher_width has 0"),
    ],
)
def test_a_wrong_setting_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrapped(**changes)


def test_a_wrong_width_or_path_is_named() -> None:
    module = wrapped(student_width={"stem": 4, "second": (7, 8)})
    model = Convolutions().freeze({"first": "wide", "second": "wide"})
    module.set_model(model)
    with pytest.raises(ValueError, match=r"'second' has width 6: student_width gave it \['7', '8'\]"):
        compare(module, torch.randn(2, 1, 5, 5))
    with pytest.raises(ValueError, match="the nearest is 'second'"):
        wrapped(pairs={"secnd": "layers"}, student_width=6, teacher_width=5).set_model(model)
    with pytest.raises(ValueError, match="the nearest is 'layers'"):
        wrapped(pairs={"second": "layer"}, student_width=6, teacher_width=5)


def attach(module: RelationalKD, home: Path) -> None:
    """Logs into a dict, since no trainer runs."""
    module.logged = {}
    module.log = lambda name, value, **_: module.logged.update({name: value})
    module.task.log = module.log


def compare(module: RelationalKD, *args: Any, **kwargs: Any) -> list[Tensor]:
    terms: list[Tensor] = []
    with module._compared(terms):
        module.model(*args, **kwargs)
    return terms
