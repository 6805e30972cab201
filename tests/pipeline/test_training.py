"""A training run is a function of (seed, stage, step): the schedule, dropout, and exact resume from any checkpoint."""

import pytest
import torch
from pytorch_lightning import Callback, LightningModule
from torch import nn

from elm_nni.pipeline.config import TrainingConfig
from elm_nni.pipeline.training import fit
from elm_nni.training import optimizer_and_schedule

CONFIG = TrainingConfig(steps=10, batch_size=4, lr=1e-2, warmup=0.2, checkpoint_every=4)


class Toy(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def training_step(self, batch, batch_idx):
        return (self.layer(batch["x"]) - batch["y"]).square().mean()

    def configure_optimizers(self):
        return optimizer_and_schedule(self, steps=10, lr=1e-2, warmup=0.2)


def batch_of(step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(4, 3, generator=generator)
    return {"x": x, "y": x.sum(1, keepdim=True)}


class StopAt(Callback):
    """Ends a run in the middle of an epoch, as a kill would."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def train(folder, seed=0, stop=None, mode=True):
    torch.manual_seed(1)
    module = Toy().train(mode)
    events = []
    callbacks = [StopAt(stop)] if stop is not None else []
    try:
        fit(
            module, batch_of, CONFIG, folder=folder, seed=seed, stage="toy", precision="fp32",
            log=lambda event, **values: events.append(values), callbacks=callbacks,
        )  # fmt: skip
    except (KeyboardInterrupt, SystemExit):
        assert stop is not None
    return module, events


@pytest.mark.parametrize("stop", [2, 4, 7, 9])
def test_resumed_run_ends_with_the_same_weights(stop, tmp_path):
    whole, _ = train(tmp_path / "whole")
    train(tmp_path / "parts", stop=stop)
    resumed, _ = train(tmp_path / "parts")
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_the_seed_reaches_dropout_and_torchs_generator_is_left_as_it_was(tmp_path):
    first, _ = train(tmp_path / "a", seed=0)
    state = torch.get_rng_state()
    other, _ = train(tmp_path / "b", seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first.layer[0].weight, other.layer[0].weight)


def test_a_model_that_comes_in_eval_mode_is_trained_with_its_dropout(tmp_path):
    # transformers' from_pretrained hands out models in eval mode
    first, _ = train(tmp_path / "a")
    other, _ = train(tmp_path / "b", mode=False)
    assert torch.equal(first.layer[0].weight, other.layer[0].weight)


def test_every_epoch_is_logged_and_one_checkpoint_is_kept(tmp_path):
    _, events = train(tmp_path / "run")
    assert [event["step"] for event in events] == [4, 8, 10]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["step-10"]
