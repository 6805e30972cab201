"""The optimizer and the schedule that every training shares."""

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn

from elm_nni.training import optimizer_and_schedule, warmup_then_linear


def test_schedule_warms_up_then_falls_to_zero():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = warmup_then_linear(optimizer, 10, 0.2)
    rates = []
    for _ in range(10):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])
    assert schedule.get_last_lr()[0] == 0


def test_biases_and_norms_do_not_decay():
    layers = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 1))
    groups = optimizer_and_schedule(layers, steps=10, lr=1e-2)["optimizer"].param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(2, 0.01), (2, 0.0)]


def test_steps_are_those_of_plain_adamw():
    torch.manual_seed(0)
    ours, plain = nn.Linear(3, 2), nn.Linear(3, 2)
    plain.load_state_dict(ours.state_dict())
    optimizer = optimizer_and_schedule(ours, steps=10, lr=1e-2, weight_decay=0.1)["optimizer"]
    groups = [{"params": [plain.weight], "weight_decay": 0.1}, {"params": [plain.bias], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=optimizer.param_groups[0]["lr"], fused=False)
    for _ in range(5):
        inputs = torch.randn(4, 3)
        for layer, steps in ((ours, optimizer), (plain, reference)):
            steps.zero_grad()
            layer(inputs).square().sum().backward()
            steps.step()
    torch.testing.assert_close(ours.state_dict(), plain.state_dict())


class _Clipped(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def training_step(self, batch, batch_idx):
        return 100 * self.layer(batch).sum()

    def configure_optimizers(self):
        return optimizer_and_schedule(self, steps=1, lr=1e-3)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.norm = float(torch.cat([parameter.grad.flatten() for parameter in self.parameters()]).norm())


def test_gradients_are_clipped_in_bf16_too(tmp_path):
    module = _Clipped()
    trainer = Trainer(
        max_steps=1, accelerator="cpu", precision="bf16-mixed", gradient_clip_val=0.5, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader([torch.ones(3)] * 4))
    assert module.norm == pytest.approx(0.5, rel=1e-3)
