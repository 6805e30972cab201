"""What a tuning file says: a run to start from, the keys that are tuned, and what is optimised."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from elm_nni.errors import UserError
from elm_nni.files import read_settings
from elm_nni.pipeline.config import Config, load_config

# What a trial measures, beside the score of each task under the task's name.
VALUES = ("validation", "params", "params_outside_embeddings", "latency_ms")
PRUNERS = ("none", "median", "hyperband", "patient")
# The stages in their order, each with the keys (or sections) that make it the first to be built again.
_FIRST_STAGE = {
    "precision": (
        "seed", "precision", "space", "teacher.name", "teacher.precision", "data.sequence_length", "vocabulary",
    ),
    "latency": ("latency",),
    "teacher": ("teacher", "tasks", "search.validation_size"),
    "supernet": (
        "data", "growth", "supernet.pretrain", "distillation.features", "distillation.token_table",
        "distillation.objective",
    ),
    "supernet_tasks": ("supernet.tasks", "distillation"),
    "search": ("limits", "latency.table", "search"),
    "prune": ("prune",),
    "pretrain": ("retrain.init", "retrain.pretrain"),
    "finetune": ("retrain.finetune",),
}  # fmt: skip

Mode = Literal["maximize", "minimize"]


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A tuning file, checked.

    Attributes:
        base: preset or YAML file of the run.
        space: dotted key to what may be drawn for it.
        objectives: value to its direction; more than one is multi-objective.
        constraints: value to its largest allowed number.
        overrides: dotted keys that every trial has.
        proxy: dotted keys that make a trial cheap, or empty: all trials are then full ones.
        trials: how many the study has in the end, all its workers together.
        grace: seconds without a sign of life after which a worker counts as dead and its trial is tried again.
    """

    base: str
    space: dict[str, BaseDistribution]
    objectives: dict[str, Mode] = field(default_factory=lambda: {"validation": "maximize"})
    constraints: dict[str, float] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)
    proxy: dict[str, Any] = field(default_factory=dict)
    trials: int = 20
    sampler: str = "tpe"
    sampler_args: dict[str, Any] = field(default_factory=dict)
    pruner: str = "none"
    storage: str | None = None
    name: str = "study"
    seed: int = 0
    grace: float = 180.0

    def config(self, parameters: Mapping[str, Any], *, proxy: bool = False) -> Config:
        """The configuration of a trial."""
        return load_config(self.base, {**self.overrides, **(self.proxy if proxy else {}), **parameters})


def load_tuning(path: Path) -> Tuning:
    """Reads and checks a tuning file; every end of every range must be a value that its key allows.

    Raises:
        UserError: naming the key, the value and what is allowed.

    Example::

        load_tuning(Path("examples/optuna/eta_topk.yaml")).space["prune.eta"]
    """
    content = read_settings(path)
    known = [*Tuning.__dataclass_fields__]
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise UserError(f"{path}: unknown key {key}" + (f"; did you mean {near[0]}?" if near else ""))
    for key in ("base", "space"):
        if not content.get(key):
            raise UserError(f"{path}: {key} is missing")
    for key in ("space", "objectives", "constraints", "overrides", "proxy", "sampler_args"):
        if not isinstance(content.get(key, {}), dict):
            raise UserError(f"{path}: {key}: {content[key]!r} is not allowed; it must be keys and values")
    base = path.parent / content["base"]
    content["base"] = str(base) if base.is_file() else content["base"]
    content["space"] = {str(key): _distribution(str(key), spec) for key, spec in content["space"].items()}
    tuning = Tuning(**content)
    _check(tuning)
    return tuning


def first_stage(key: str) -> str:
    """The first stage that is built again when a key of the configuration changes.

    Example:
        >>> first_stage("prune.eta"), first_stage("growth.top_k")
        ('prune', 'supernet')
    """
    found = [
        (len(prefix), stage)
        for stage, prefixes in _FIRST_STAGE.items()
        for prefix in prefixes
        if key == prefix or key.startswith(f"{prefix}.")
    ]
    # the most specific rule; keys without one leave all that a trial builds as it is
    return max(found)[1] if found else "evaluate"


def _distribution(key: str, spec: Any) -> BaseDistribution:
    if not isinstance(spec, dict):
        raise UserError(f"space.{key}: {spec!r} is not allowed; it must have a type and a range or choices")
    given = dict(spec)
    kind = given.pop("type", None)
    makers = {"float": FloatDistribution, "int": IntDistribution, "categorical": CategoricalDistribution}
    if kind not in makers:
        raise UserError(f"space.{key}: type {kind!r} is not allowed; it must be one of {', '.join(makers)}")
    allowed = ("choices",) if kind == "categorical" else ("low", "high", "step", "log")
    for name in given:
        if name not in allowed:
            raise UserError(f"space.{key}: {name} is not allowed; {kind} has {', '.join(allowed)}")
    try:
        # YAML 1.1 reads 1e-4 as text
        numbers = {name: float(value) if isinstance(value, str) else value for name, value in given.items()}
        return makers[kind](**(given if kind == "categorical" else numbers))
    except (TypeError, ValueError) as error:
        raise UserError(f"space.{key}: {spec!r} is not allowed: {error}") from error


def _check(tuning: Tuning) -> None:
    values = [*VALUES, *(task.name for task in tuning.config({}).tasks)]
    for kind, names in (("objectives", tuning.objectives), ("constraints", tuning.constraints)):
        for name in names:
            if name not in values:
                raise UserError(f"{kind}: {name!r} is not allowed; a trial measures {', '.join(values)}")
    checks: list[tuple[str, Any, bool, str]] = [
        ("objectives", tuning.objectives, bool(tuning.objectives), "at least one"),
        ("trials", tuning.trials, isinstance(tuning.trials, int) and tuning.trials >= 1, ">= 1"),
        ("pruner", tuning.pruner, tuning.pruner in PRUNERS, f"one of {', '.join(PRUNERS)}"),
        ("pruner", tuning.pruner, tuning.pruner == "none" or len(tuning.objectives) == 1, "none with many objectives"),
        ("seed", tuning.seed, isinstance(tuning.seed, int) and tuning.seed >= 0, ">= 0"),
        ("grace", tuning.grace, isinstance(tuning.grace, (int, float)) and tuning.grace >= 3, "at least 3 seconds"),
        *[(f"objectives.{key}", mode, mode in ("maximize", "minimize"), "maximize or minimize")
          for key, mode in tuning.objectives.items()],
        *[(f"constraints.{key}", limit, isinstance(limit, (int, float)), "a number")
          for key, limit in tuning.constraints.items()],
    ]  # fmt: skip
    for key, value, allowed, text in checks:
        if not allowed:
            raise UserError(f"{key}: {value!r} is not allowed; it must be {text}")
    for key in tuning.proxy:
        if key in tuning.space:
            raise UserError(f"proxy: {key} is tuned, so the proxy cannot set it")
    for key, distribution in tuning.space.items():
        for value in _ends(distribution):
            tuning.config({key: value}, proxy=True)


def _ends(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    return [distribution.low, distribution.high]
