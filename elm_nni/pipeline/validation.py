"""Ranges of the configuration that types cannot say."""

from __future__ import annotations

import difflib
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from elm_nni.errors import UserError
from elm_nni.pipeline.task_validation import check_task

if TYPE_CHECKING:
    from elm_nni.pipeline.config import Config, SearchConfig

# What a search can look for: the fitness, and what an architecture's description gives.
SEARCH_OBJECTIVES = ("metric", "params", "latency_ms")


def validate(config: Config) -> None:
    """Checks ranges that types cannot say.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """
    runtime = f"latency.runtime {config.latency.runtime}"
    onnx = config.latency.runtime.startswith("onnx")
    checks: list[tuple[str, Any, bool, str]] = [
        ("growth.top_k", config.growth.top_k, config.growth.top_k >= 1, ">= 1"),
        ("growth.budget", config.growth.budget, config.growth.budget > 0, "> 0"),
        ("growth.threshold", config.growth.threshold, 0 < config.growth.threshold <= 1, "in (0, 1]"),
        ("growth.epoch_steps", config.growth.epoch_steps, config.growth.epoch_steps >= 1, ">= 1"),
        ("prune.eta", config.prune.eta, 0 < config.prune.eta <= 1, "in (0, 1]"),
        ("prune.min_heads", config.prune.min_heads, config.prune.min_heads >= 1, ">= 1"),
        ("search.mutation_prob", config.search.mutation_prob, 0 < config.search.mutation_prob <= 1, "in (0, 1]"),
        ("search.population", config.search.population, config.search.population >= 1, ">= 1"),
        ("search.keep", config.search.keep, config.search.keep >= 1, ">= 1"),
        ("search.mutations", config.search.mutations, config.search.mutations >= 0, ">= 0"),
        ("search.crossovers", config.search.crossovers, config.search.crossovers >= 0, ">= 0"),
        ("search.validation_size", config.search.validation_size, config.search.validation_size >= 1, ">= 1"),
        (
            "supernet.probe_rows", config.supernet.probe_rows,
            config.supernet.probe_rows == 0 or config.supernet.probe_rows >= 16, "0 or >= 16",
        ),
        (
            "search.evaluations", config.search.evaluations,
            config.search.evaluations is None or config.search.evaluations >= 1, ">= 1 or null",
        ),
        (
            "search.objectives", ", ".join(config.search.objectives), _objectives_allowed(config.search),
            f"metric, which may stand with {' and '.join(SEARCH_OBJECTIVES[1:])} where the strategy is a sampler",
        ),
        ("growth.every", config.growth.every, config.growth.every >= 1, ">= 1"),
        ("data.holdout_rows", config.data.holdout_rows, config.data.holdout_rows >= 1, ">= 1"),
        (
            "data.streaming", config.data.streaming, not config.data.streaming or config.data.limit_tokens is None,
            "false where data.limit_tokens is set",
        ),
        (
            "data.limit_tokens", config.data.limit_tokens,
            config.data.limit_tokens is None or config.data.limit_tokens >= 1, ">= 1 or null",
        ),
        ("vocabulary.min_count", config.vocabulary.min_count, config.vocabulary.min_count >= 1, ">= 1"),
        (
            "vocabulary.max_size", config.vocabulary.max_size,
            config.vocabulary.max_size is None or config.vocabulary.max_size >= 1, ">= 1 or null",
        ),
        (
            "vocabulary.max_size", config.vocabulary.max_size,
            config.vocabulary.max_size is None or config.vocabulary.trim, "null unless vocabulary.trim is true",
        ),
        (
            "vocabulary.trim", config.vocabulary.trim, not (config.vocabulary.trim and config.data.streaming),
            "false where data.streaming is true",
        ),
        ("teacher.lm_head_steps", config.teacher.lm_head_steps, config.teacher.lm_head_steps >= 1, ">= 1"),
        ("latency.repeats", config.latency.repeats, config.latency.repeats >= 1, ">= 1"),
        ("latency.threads", config.latency.threads, config.latency.threads >= 1, ">= 1"),
        ("latency.batch_size", config.latency.batch_size, config.latency.batch_size >= 1, ">= 1"),
        ("latency.sequence_length", config.latency.sequence_length, config.latency.sequence_length >= 1, ">= 1"),
        ("latency.dtype", config.latency.dtype, not onnx or config.latency.dtype == "fp32", f"fp32 with {runtime}"),
        ("latency.device", config.latency.device, not onnx or config.latency.device == "cpu", f"cpu with {runtime}"),
        ("export.int8", True, config.export.onnx or not config.export.int8, "false unless export.onnx is true"),
        ("search.generations", config.search.generations, config.search.generations >= 1, ">= 1"),
        ("data.sequence_length", config.data.sequence_length, config.data.sequence_length >= 8, ">= 8"),
        ("tasks", len(config.tasks), len(config.tasks) >= 1, "at least one task"),
        ("distillation.beta", config.distillation.beta, config.distillation.beta >= 0, ">= 0"),
        ("distillation.gamma", config.distillation.gamma, config.distillation.gamma >= 0, ">= 0"),
        ("teacher.finetune_epochs", config.teacher.finetune_epochs, config.teacher.finetune_epochs >= 1, ">= 1"),
        ("teacher.finetune_lr", config.teacher.finetune_lr, config.teacher.finetune_lr > 0, "> 0"),
        ("distillation.tau", config.distillation.tau, config.distillation.tau > 0, "> 0"),
    ]
    limits = asdict(config.limits)
    infinite = float("inf")
    checks += [(f"limits.{key}", value, value is None or 0 < value < infinite, "> 0") for key, value in limits.items()]
    runs = {
        "supernet.pretrain": config.supernet.pretrain, "supernet.tasks": config.supernet.tasks,
        "retrain.pretrain": config.retrain.pretrain, "retrain.finetune": config.retrain.finetune,
    }  # fmt: skip
    for name, run in runs.items():
        checks += [
            (f"{name}.steps", run.steps, run.steps >= 1, ">= 1"),
            (f"{name}.batch_size", run.batch_size, run.batch_size >= 1, ">= 1"),
            (f"{name}.lr", run.lr, run.lr > 0, "> 0"),
            (f"{name}.warmup", run.warmup, 0 <= run.warmup < 1, "in [0, 1)"),
            (f"{name}.checkpoint_every", run.checkpoint_every, run.checkpoint_every >= 1, ">= 1"),
        ]
    for key, value, allowed, text in checks:
        if not allowed:
            raise UserError(f"{key}: {value!r} is not allowed; it must be {text}")
    _check_strategy(config.search)
    names = [task.name for task in config.tasks]
    for name in names:
        if not re.fullmatch(r"[\w-]+", name):
            raise UserError(f"tasks: name {name!r} is not allowed; it must be of letters, digits, _ and -")
    if len(set(names)) < len(names):
        raise UserError(f"tasks: names must differ, got {', '.join(names)}")
    for task in config.tasks:
        check_task(task)
    unknown = [name for name in config.search.tasks if name not in names]
    if unknown:
        raise UserError(f"search.tasks: unknown task {unknown[0]!r}; known: {', '.join(names)}")


def _objectives_allowed(search: SearchConfig) -> bool:
    names = search.objectives
    if search.strategy == "evolution":
        return names == ("metric",)
    return "metric" in names and len(set(names)) == len(names) and set(names) <= set(SEARCH_OBJECTIVES)


def _check_strategy(search: SearchConfig) -> None:
    kind, _, sampler = search.strategy.partition(":")
    if search.strategy == "evolution":
        if search.sampler_args or search.evaluations:
            raise UserError("search: sampler_args and evaluations belong to the strategy optuna:NAME, not to evolution")
        return
    # Optuna is loaded for its own strategies alone
    from elm_nni.strategies.optuna_samplers import SAMPLERS, check_directions, checked_arguments

    if kind != "optuna" or sampler not in SAMPLERS:
        near = difflib.get_close_matches(sampler or kind, ["evolution", *SAMPLERS], n=1)
        hint = f"; did you mean {'' if near[0] == 'evolution' else 'optuna:'}{near[0]}?" if near else ""
        raise UserError(
            f"search.strategy: {search.strategy!r} is not allowed; it must be evolution or optuna: and one of "
            f"{', '.join(SAMPLERS)}{hint}"
        )
    check_directions(sampler, len(search.objectives))
    try:
        checked_arguments(sampler, search.sampler_args)
    except ValueError as error:
        raise UserError(f"search.{error}") from error
