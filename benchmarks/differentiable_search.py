"""One search by NNI's own strategy, with the architecture weights that it ends with; kept in the store.

Shape suffixes: C candidates.
"""

from __future__ import annotations

import json
import platform
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from differentiable_results import Weights, system_name
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.oneshot.pytorch.supermodule.differentiable import DifferentiableMixedLayer
from nni.nas.space import RawFormatModelSpace
from nni.nas.strategy import DARTS, GumbelDARTS
from pytorch_lightning import Callback, LightningModule, Trainer
from ranking_runs import LOSSES

from elm_nni.pipeline.context import Context
from elm_nni.pipeline.runner import Architecture
from elm_nni.pipeline.store import StageResult, write_json
from elm_nni.pipeline.supernet_stage import make_space
from elm_nni.search_spaces.architecture import layer_label
from elm_nni.seeding import seeded
from elm_nni.strategies.distil_evaluator import DistilEvaluator

STRATEGIES = {"DARTS": DARTS, "GumbelDARTS": GumbelDARTS}
# GumbelDARTS lowers its temperature once an epoch
EPOCHS = 10
STAGE, RESULT = "differentiable", "search.json"
_TIMED_STEPS = 3


@dataclass(frozen=True)
class Options:
    """Of every search.

    Attributes:
        steps: each one step of the architecture weights and one of the model.
        arch_lr: learning rate of the architecture weights.
        random: random architectures of each seed.
        strategies: names.
    """

    steps: int
    arch_lr: float
    random: int
    strategies: Sequence[str] = tuple(STRATEGIES)


class _Clock(Callback):
    """Times steps and tells of epochs."""

    def __init__(self, name: str) -> None:
        self.name, self.seconds = name, list[float]()
        self._start = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._start = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.seconds.append(time.monotonic() - self._start)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        done, of = trainer.current_epoch + 1, trainer.max_epochs
        typer.echo(f"{self.name}: epoch {done}/{of}, {np.median(self.seconds):.2f} s a step", err=True)


def search(
    context: Context, strategy: str, loss: str, *, steps: int, arch_lr: float, epochs: int = EPOCHS,
    callbacks: Sequence[Callback] = (),
) -> tuple[Architecture, Weights]:  # fmt: skip
    """One search by NNI; both losses begin with the same weights and see the same batches.

    Returns:
        The exported architecture at the space's width, and where the search ended.
    """
    config, seed = context.config, context.config.seed
    training = config.supernet.pretrain
    start = time.monotonic()
    evaluator = DistilEvaluator(
        config.teacher.name, context.corpus_spec, epochs=epochs, steps_per_epoch=steps // epochs,
        batch_size=training.batch_size, learning_rate=training.lr, weight_decay=training.weight_decay,
        clip=training.clip, sequence_length=config.data.sequence_length, limit_tokens=config.data.limit_tokens,
        validation_rows=held_rows(context, steps // epochs), loss=loss, seed=seed,
        cache=str(context.store.root / "corpora"), callbacks=callbacks,
    )  # fmt: skip
    space = make_space(context)
    searching = STRATEGIES[strategy](arc_learning_rate=arch_lr)
    with seeded(seed, "differentiable/weights"), warnings.catch_warnings():
        # of few workers, which cheap batches need not, and of validation, which becomes the step of the architecture
        warnings.filterwarnings("ignore", module="pytorch_lightning.*")
        searching(RawFormatModelSpace.from_model(space, evaluator), SequentialExecutionEngine())
    [found] = searching.list_models()
    mixed = {one.label: one for one in searching.supernet.modules() if isinstance(one, DifferentiableMixedLayer)}
    layers = [_weights(mixed[layer_label(index)]) for index in range(context.settings.num_layers)]
    return space.canonical(found.sample), Weights(layers, round(time.monotonic() - start, 2))


def _weights(layer: DifferentiableMixedLayer) -> dict[str, float]:
    # GumbelDARTS draws noise in its own export
    [alpha_C] = layer.arch_parameters()
    return dict(zip(layer.names, torch.softmax(alpha_C.detach().double(), -1).tolist()))


def held_rows(context: Context, epoch_steps: int) -> int:
    """The last rows of the text, for the architecture weights alone: as many as an epoch reads, at most half of all."""
    num_rows = sum(map(len, context.corpus))
    return max(1, min(epoch_steps * context.config.supernet.pretrain.batch_size, num_rows // 2))


def search_inputs(context: Context, strategy: str, loss: str, options: Options) -> dict[str, Any]:
    """What a search depends on."""
    training = asdict(context.config.supernet.pretrain)
    read = {name: training[name] for name in ("batch_size", "lr", "weight_decay", "clip")}
    return {
        **context.identity, "data": context.corpus[0].manifest["digest"], "strategy": strategy, "loss": loss,
        "steps": options.steps, "epochs": EPOCHS, "arch_lr": options.arch_lr, "training": read,
        "token_table": context.config.distillation.token_table,
    }  # fmt: skip


def searched(context: Context, strategy: str, loss: str, options: Options) -> StageResult:
    """The finished search; it is run where the store does not hold it."""

    def build(folder: Path) -> None:
        clock = _Clock(f"{system_name(strategy, loss)}, seed {context.config.seed}")
        architecture, weights = search(
            context, strategy, loss, steps=options.steps, arch_lr=options.arch_lr, callbacks=[clock]
        )
        write_json(folder / RESULT, {"architecture": architecture, **asdict(weights)})

    return context.store.build(STAGE, search_inputs(context, strategy, loss, options), build)


def read_search(result: StageResult) -> tuple[Architecture, Weights]:
    """What :func:`search` returned."""
    content = json.loads((result.folder / RESULT).read_text(encoding="utf-8"))
    return content.pop("architecture"), Weights(**content)


def step_seconds(context: Context) -> float:
    """Seconds of one step of a search here, timed once."""
    inputs = {
        **context.identity, "training": asdict(context.config.supernet.pretrain), "steps": _TIMED_STEPS,
        "sequence_length": context.config.data.sequence_length,
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, {context.device}",
    }  # fmt: skip

    def build(folder: Path) -> None:
        clock = _Clock("timing")
        search(context, "DARTS", LOSSES[0], steps=_TIMED_STEPS, arch_lr=1e-3, epochs=1, callbacks=[clock])
        # the first step also fills caches
        write_json(folder / RESULT, {"seconds": min(clock.seconds[1:])})

    result = context.store.build(f"{STAGE}-timing", inputs, build)
    return float(json.loads((result.folder / RESULT).read_text(encoding="utf-8"))["seconds"])
