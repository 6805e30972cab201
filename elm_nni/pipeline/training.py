"""One training run on Lightning; every step is a function of (seed, stage, step), so that it can be resumed exactly."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from elm_nni.pipeline.checkpoint import EpochCheckpoint, TreeCheckpointIO, latest
from elm_nni.pipeline.config import TrainingConfig
from elm_nni.training import SeededSteps

logger = logging.getLogger(__name__)

Batch = dict[str, Any]
EpochEnd = Callable[[int, int, float], None]


class Progress(Callback):
    """Writes the mean loss of every epoch, its rate and the time left to a log function."""

    def __init__(self, total: int, log: Callable[..., None], on_epoch: EpochEnd) -> None:
        self.total, self.write, self.on_epoch = total, log, on_epoch
        self.history: list[float] = []
        self._losses: list[Tensor] = []
        self._start = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start, self._losses = time.monotonic(), []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        self._losses.append(loss.detach())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seconds = time.monotonic() - self._start
        self.history.append(round(float(torch.stack(self._losses).mean()), 5))
        rate = len(self._losses) / max(seconds, 1e-9)
        left = (self.total - trainer.global_step) / max(rate, 1e-9)
        self.write(
            "epoch", step=trainer.global_step, of=self.total, loss=self.history[-1],
            steps_per_second=round(rate, 2), seconds_left=round(left),
        )  # fmt: skip
        self.on_epoch(trainer.current_epoch + 1, trainer.global_step, self.history[-1])

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = list(state_dict["history"])


class _Steps(Dataset[Batch]):
    def __init__(self, batch_of: Callable[[int], Batch], total: int) -> None:
        self.batch_of, self.total = batch_of, total

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, step: int) -> Batch:
        return self.batch_of(step)


class _Chunk(Sampler[int]):
    """The steps of the coming epoch, read off the trainer's own count, so that a resumed run goes on where it was."""

    def __init__(self, position: Callable[[], int], chunk: int, total: int) -> None:
        self.position, self.chunk, self.total = position, chunk, total

    def __len__(self) -> int:
        return min(self.chunk, self.total)

    def __iter__(self) -> Iterator[int]:
        start = self.position()
        yield from range(start, min(start + self.chunk, self.total))


def fit(
    module: LightningModule,
    batch_of: Callable[[int], Batch],
    config: TrainingConfig,
    *,
    folder: Path,
    seed: int,
    stage: str,
    precision: str,
    log: Callable[..., None],
    callbacks: Sequence[Callback] = (),
    on_epoch: EpochEnd = lambda epoch, step, loss: None,
) -> list[float]:
    """Trains ``module`` for ``config.steps`` steps, going on from the newest checkpoint in ``folder``.

    Args:
        batch_of: step to batch, a pure function.
        folder: where checkpoints live; one is written every ``config.checkpoint_every`` steps.
        precision: ``"fp32"`` or ``"bf16"`` (mixed).
        log: called with an event name and values once an epoch.
        on_epoch: called at the end of an epoch, before its checkpoint is written, with the number of the epoch (from
            1), the steps so far and the mean loss.

    Returns:
        The mean loss of each epoch (``checkpoint_every`` steps), those before a resume included.
    """
    progress = Progress(config.steps, log, on_epoch)
    trainer = Trainer(
        max_steps=config.steps, max_epochs=-1, logger=False, devices=1,
        accelerator="cuda" if torch.cuda.is_available() else "cpu",
        precision="bf16-mixed" if precision == "bf16" else "32-true",
        gradient_clip_val=config.clip, enable_progress_bar=sys.stderr.isatty(), enable_model_summary=False,
        num_sanity_val_steps=0, limit_val_batches=0, default_root_dir=folder,
        plugins=[TreeCheckpointIO()],
        callbacks=[SeededSteps(seed, stage), *callbacks, progress, EpochCheckpoint(folder)],
    )  # fmt: skip
    sampler = _Chunk(lambda: trainer.global_step, config.checkpoint_every, config.steps)
    loader = DataLoader(_Steps(batch_of, config.steps), batch_size=None, sampler=sampler)
    # from_pretrained hands out models in eval mode, and Lightning would leave their dropout off
    module.train()
    checkpoint = latest(folder)
    if checkpoint is not None:
        logger.info("%s goes on from %s", stage, checkpoint.name)
    with warnings.catch_warnings():
        # batches are made in the main process on purpose: they are cheap, and a worker would not see the step
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists.*")
        trainer.fit(module, loader, ckpt_path=checkpoint)
    return progress.history
