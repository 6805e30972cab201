"""The optimizer and the schedule that every training shares."""

import pytest
import torch
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
