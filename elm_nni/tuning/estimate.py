"""How long a study will take: which stages its keys build again, how often, and what that costs here."""

from __future__ import annotations

import math
from dataclasses import replace

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from elm_nni.pipeline import precision
from elm_nni.pipeline.context import Context
from elm_nni.pipeline.plan import estimated_seconds
from elm_nni.pipeline.store import StageStore
from elm_nni.tuning.tune_file import Tuning, first_stage

_ORDER = (
    "precision", "latency", "teacher", "supernet", "supernet_tasks", "search", "prune", "pretrain", "finetune",
    "evaluate",
)  # fmt: skip
# What the plan calls the stages that take time.
_STAGES = {
    "teacher": "teacher", "supernet": "supernet", "supernet_tasks": "supernet_tasks", "search (evaluations)": "search",
    "retrain and baseline": "pretrain", "fine-tune and baseline": "finetune",
}  # fmt: skip


def estimate(tuning: Tuning, store: StageStore, *, proxy: bool = False) -> list[str]:
    """A line for each stage that takes time: how often it is built at most, and hours; then the sum.

    Times a few steps of the base configuration if the store has no such measurement. Stages that the store holds
    already are counted as if it did not, so the sum is an upper bound but for the noise of the measurement.
    """
    config = tuning.config({}, proxy=proxy)
    context = Context(
        replace(config, baselines=replace(config.baselines, uniform=False)), store, lambda event, **values: None
    )
    timing = store.build(
        "precision", precision.precision_inputs(context), lambda folder: precision.build_precision(context, folder)
    )
    lines, total = [], 0.0
    for name, _, seconds in estimated_seconds(context, precision.load_precision(timing.folder)):
        stage = _STAGES[name]
        times = builds(tuning, stage)
        total += times * seconds
        lines.append(f"{stage:<16}{times:>5} x {seconds / 3600:8.3f} h")
    return [*lines, f"at most {total / 3600:.2f} h for {tuning.trials} trials, one after the other"]


def builds(tuning: Tuning, stage: str) -> int:
    """How often a stage is built at most: once for each setting of the keys that touch it or a stage before it."""
    settings = math.prod(
        _cardinality(distribution)
        for key, distribution in tuning.space.items()
        if _ORDER.index(first_stage(key)) <= _ORDER.index(stage)
    )
    return int(min(settings, tuning.trials))


def _cardinality(distribution: BaseDistribution) -> float:
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    if distribution.step is None:
        return math.inf
    return math.floor((distribution.high - distribution.low) / distribution.step + 1e-9) + 1
