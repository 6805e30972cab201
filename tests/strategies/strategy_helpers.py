"""NNI experiments and a Lightning module for the tests."""

from pathlib import Path
from typing import Any

import nni
import torch
from nni.nas.evaluator.pytorch import DataLoader, Lightning, LightningModule, Trainer
from nni.nas.experiment import NasExperiment, NasExperimentConfig
from torch import Tensor

Batch = dict[str, Tensor]


def sequential(
    home: Path, model_format: str = "raw", *, max_models: int | None = None, continue_on_failure: bool = False
) -> NasExperimentConfig:
    """In this process, without a server, in a folder of the test's own."""
    config = NasExperimentConfig("sequential", model_format, "local")
    config.execution_engine.max_model_count = max_models
    config.execution_engine.continue_on_failure = continue_on_failure
    config.experiment_working_directory = home / "experiments"
    return config


def run(space: Any, evaluator: Any, strategy: Any, config: NasExperimentConfig) -> NasExperiment:
    """A finished experiment, stopped whatever happens."""
    experiment = NasExperiment(space, evaluator, strategy, config)
    try:
        experiment.run()
    finally:
        experiment.stop()
    return experiment


@nni.trace
class Regression(LightningModule):
    """Moves the mean of the last hidden states; the first loss and each path are kept."""

    def __init__(self, forward: bool = True) -> None:
        super().__init__()
        self.runs_forward = forward
        self.paths: list[tuple[int, Any]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        layers = self.model.layers
        self.paths.append((self.trainer.global_step, tuple(getattr(layer, "_sampled", None) for layer in layers)))
        if self.runs_forward:
            loss = (self.model(**batch) - 1).square().mean()
            self.log("train_loss", loss)
            return loss
        # the path is drawn before this step; without a forward a long training is cheap
        return self.model.embeddings.norm.bias.square().sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("val_loss", (self.model(**batch) - 1).square().mean(), batch_size=len(batch["input_ids"]))

    def on_validation_epoch_end(self) -> None:
        nni.report_intermediate_result(-float(self.trainer.callback_metrics["val_loss"]))

    def on_fit_end(self) -> None:
        # differentiable strategies take the validation rows to train on
        metrics = self.trainer.callback_metrics
        if self.runs_forward:
            nni.report_final_result(-float(metrics["val_loss"] if "val_loss" in metrics else metrics["train_loss"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def rows(num_rows: int) -> list[Batch]:
    """Token ids and masks, some of them padded."""
    generator = torch.Generator().manual_seed(num_rows)
    ids_NT = torch.randint(50, (num_rows, 6), generator=generator)
    mask_NT = torch.ones_like(ids_NT)
    mask_NT[::2, 4:] = 0
    return [{"input_ids": ids_T, "attention_mask": mask_T} for ids_T, mask_T in zip(ids_NT, mask_NT)]


def trainer(home: Path, **settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return Trainer(accelerator="cpu", default_root_dir=home, enable_checkpointing=False, **quiet, **settings)


def evaluator(home: Path, **settings: Any) -> Lightning:
    train, validation = DataLoader(rows(8), batch_size=4), DataLoader(rows(4), batch_size=4)
    return Lightning(
        Regression(), trainer(home, **settings), train_dataloaders=train, val_dataloaders=validation
    )
