"""Supernet training by uniform single-path sampling, each path a function of (seed, step) (arXiv 1904.00420)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from nni.mutable import Categorical, Sample
from nni.nas.evaluator.pytorch import LightningModule
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.oneshot.pytorch.sampling import RandomSamplingLightningModule
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.strategy import RandomOneShot
from torch import nn

from elm_nni.digest import derive_seed
from elm_nni.search_spaces.elastic import ActiveWidthPolicy, MixedFeedForward


class ElmOneShotModule(RandomSamplingLightningModule):
    """Draws one path a step, uniformly, from (seed, stage, global step); widths are the active ones.

    NNI's own sampler makes a fresh generator from the operating system at every draw, so that no run could be
    repeated; here the path of a step is the same in every run and after every resume.
    """

    def __init__(
        self, training_module: LightningModule, filter: Callable[[Sample], bool] | None, *, seed: int, stage: str
    ) -> None:
        super().__init__(training_module, filter)
        self.seed, self.stage = seed, stage
        self._draws = 0
        self._choices: dict[str, list[Any]] = {}

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self._draws = 0
        return super().training_step(*args, **kwargs)

    def resample(self) -> Sample:
        return self._repeat_until_valid(self._draw)

    def on_validation_epoch_end(self) -> None:
        # NNI forwards every hook but this one
        self.training_module.on_validation_epoch_end()

    def _draw(self) -> Sample:
        step = self.trainer.global_step if self._trainer is not None else 0
        rng = np.random.default_rng([derive_seed(self.seed, f"{self.stage}/path", step), self._draws])
        self._draws += 1
        if not self._choices:
            widths = {module.label for module in self.supernet_modules() if isinstance(module, MixedFeedForward)}
            space = self.model.simplify()
            self._choices = {
                label: list(choice.values)
                for label, choice in sorted(space.items())
                if isinstance(choice, Categorical) and label not in widths
            }
        drawn = {label: values[int(rng.integers(len(values)))] for label, values in self._choices.items()}
        return set_path(self.model, drawn)


class ElmOneShot(RandomOneShot):
    """One-shot strategy of ELM: uniform single paths at the active widths, reproducible and resumable.

    Args:
        filter: as in NNI's ``RandomOneShot``.
        seed: with ``stage`` and the global step decides every path.
        stage: keeps two trainings with one seed apart.

    Works on any NNI ``ModelSpace``; growth is added by
    :class:`~elm_nni.strategies.growth_callback.GrowthCallback` on the evaluator's trainer.

    Example::

        experiment = NasExperiment(ElmSpace.preset("nano"), evaluator, ElmOneShot(seed=0))
        experiment.run()
    """

    def __init__(self, filter: Any = None, *, seed: int = 0, stage: str = "supernet", **kwargs: Any) -> None:
        super().__init__(filter, **kwargs)
        self.seed, self.stage = seed, stage

    def configure_oneshot_module(self, training_module: LightningModule) -> ElmOneShotModule:
        return ElmOneShotModule(training_module, self.filter, seed=self.seed, stage=self.stage)

    def run_hook(self, hook: Any, name: str, module: nn.Module, memo: dict[str, Any]) -> Any:
        return hook(module, name, memo, {"mixed_op_sampling": ActiveWidthPolicy})


def to_supernet(space: ModelSpace, *, seed: int = 0, stage: str = "supernet") -> ModelSpace:
    """Turns a space into its supernet in place, without an experiment."""
    return ElmOneShot(seed=seed, stage=stage).mutate_model(space)


def set_path(space: ModelSpace, sample: Sample) -> Sample:
    """Puts a supernet on the path of ``sample`` (missing widths are the active ones); returns the whole path."""
    path = dict(sample)
    for module in space.modules():
        if isinstance(module, BaseSuperNetModule):
            path.update(module.resample(memo=path))
    return path
