"""What every training shares: the optimizer and its schedule, and steps that are functions of (seed, stage, step)."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from elm_nni.digest import derive_seed


class SeededSteps(Callback):
    """Sets torch's generator at each batch start from (seed, stage, step) and restores it after: dropout reads it.

    Example::

        Trainer(max_steps=100, callbacks=[SeededSteps(0, "supernet")])
    """

    def __init__(self, seed: int, stage: str) -> None:
        self.seed, self.stage = seed, stage
        self._outer: Tensor | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._outer = torch.get_rng_state()
        torch.manual_seed(derive_seed(self.seed, self.stage, trainer.global_step))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self._outer is not None
        torch.set_rng_state(self._outer)


def warmup_then_linear(optimizer: torch.optim.Optimizer, steps: int, warmup: float) -> Any:
    """Learning-rate schedule: linear warm-up over a share of the steps, then linear to zero."""
    rise = max(1, round(steps * warmup))

    def factor(step: int) -> float:
        return (step + 1) / rise if step < rise else max(0.0, (steps - step) / max(1, steps - rise))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def optimizer_and_schedule(
    module: nn.Module, *, steps: int, lr: float, weight_decay: float = 0.01, warmup: float = 0.1
) -> dict[str, Any]:
    """AdamW without decay on biases and norms, and :func:`warmup_then_linear`, in Lightning's form.

    Args:
        module: its parameters that require a gradient are trained.
        steps: of the whole training.
        lr: the highest learning rate.
        weight_decay: of weights with more than one dimension.
        warmup: share of the steps in which the rate rises.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # one pass over the token table, which is most of a small model, instead of ten
    optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
    # Lightning refuses clipping beside fused optimizers, since those unscale gradients; nothing here scales them
    optimizer._step_supports_amp_scaling = False
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": warmup_then_linear(optimizer, steps, warmup), "interval": "step"},
    }
