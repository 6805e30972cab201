"""Measurement of latency tables and of whole models. Needs torch and transformers only."""

from __future__ import annotations

import copy
import logging
import os
import platform
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from elm_nni.cost.condition import TORCH_DTYPES, LatencyCondition
from elm_nni.cost.latency_table import EMBEDDING, HEAD, LatencyTable, space_fields
from elm_nni.cost.layer_parts import Model, SpaceParts, model_inputs
from elm_nni.cost.parameters import Blocks
from elm_nni.cost.runtimes import Call, Part, make_calls, require_runtime
from elm_nni.cost.timing import METHOD, Rounds, median_iqr, pinned_threads, time_rounds, watch
from elm_nni.errors import UserError
from elm_nni.modeling.blocks_elm import BLOCKS
from elm_nni.search_spaces.architecture import SpaceSettings

logger = logging.getLogger(__name__)

# Widths measured for each block by default; those between are interpolated.
NUM_WIDTHS = 4
# Interquartile range by median from which on a warning is given; an idle machine stays well below.
NOISY = 0.25
# Share of preempted calls from which on a warning is given.
PREEMPTED = 0.5


def measure_table(
    settings: SpaceSettings,
    condition: LatencyCondition,
    *,
    repeats: int = 30,
    widths: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    blocks: Blocks | None = None,
    seed: int = 0,
    models: Mapping[str, nn.Module] | None = None,
) -> LatencyTable:
    """Measure the layers, the embedding and the head of a space on this machine.

    Every layer is measured alone with fresh weights, all of them in rounds of random order. A few whole models of
    mixed layers run in the same rounds; what they take beyond the sum of their parts is ``overhead_ms`` of a layer.
    Torch's number of threads, its random generator and its gradient mode are as before afterwards.

    Args:
        settings: The space.
        condition: What to measure under. Compiled and exported parts are made one by one: minutes for a large space.
        repeats: Timed calls of each part.
        widths: Feed-forward widths, each with all heads. None: four, from the first to the last of the space.
        heads: Head counts, each at the smallest width; all heads are measured anyway. None: one and half of them.
        blocks: Name to block class; None takes the six of the paper.
        seed: Of weights, token ids and orders.
        models: Name to model, measured in the same rounds to be compared with what the table predicts; see
            :func:`measure_models`. Their medians and interquartile ranges are ``notes["beside"]``.

    Returns:
        The table; its ``notes`` say how it was measured.

    Raises:
        UserError: No such device, missing packages or compiler, a block that cannot be compiled or exported, a sequence
            that the space cannot hold, or sizes out of range.

    Example:
        >>> table = measure_table(preset_settings("nano"), LatencyCondition(sequence_length=64), repeats=5)
        >>> table.condition.describe()
        'eager fp32, cpu, 1 thread, batch 1, 64 tokens'
    """
    if condition.sequence_length > settings.max_position_embeddings:
        raise UserError(
            f"latency sequence_length is {condition.sequence_length}; it must be at most max_position_embeddings = "
            f"{settings.max_position_embeddings}"
        )
    _check_repeats(repeats)
    started, load = time.perf_counter(), _load()
    widths = _spread(settings.widths) if widths is None else _sizes("widths", widths, None)
    pruned = [max(settings.num_heads // 2, 1), 1] if heads is None else _sizes("heads", heads, settings.num_heads)
    with _quiet(condition, seed):
        parts = SpaceParts(settings, condition, dict(BLOCKS if blocks is None else blocks), widths, pruned)
        beside = {f"beside {name}": _model_part(model, condition) for name, model in (models or {}).items()}
        rounds = time_calls(make_calls({**parts.parts, **beside}, condition), condition, repeats=repeats, seed=seed)
    measured = {name: median_iqr(values) for name, values in rounds.times_ms.items()}
    compared = {name: measured.pop(f"beside {name}") for name in models or {}}
    whole: list[dict[str, Any]] = []
    for name, keys in parts.models.items():
        sum_ms = sum(measured[key][0] for key in (EMBEDDING, *keys, HEAD))
        whole.append({"layers": keys, "median_ms": measured[name][0], "sum_ms": sum_ms})
    table = LatencyTable(
        condition=condition,
        space=space_fields(settings),
        entries={name: values for name, values in measured.items() if name not in parts.models},
        overhead_ms=statistics.mean((model["median_ms"] - model["sum_ms"]) / len(model["layers"]) for model in whole),
        notes={
            "repeats": repeats,
            "timing": METHOD,
            "preempted": {"repeated": rounds.repeated, "kept": sum(rounds.preempted.values())},
            "widths": widths,
            "heads": sorted({*pruned, settings.num_heads}),
            "between": "widths and head counts between the measured ones are interpolated",
            "models": whole,
            **({"beside": compared} if compared else {}),
            "load": load,
            "machine": _machine(condition),
            "torch": torch.__version__,
        },
    )
    seconds = time.perf_counter() - started
    logger.info("latency table %s (%s): %d parts in %.1f s", table.digest, condition.describe(), len(measured), seconds)
    return table


def measure_models(
    models: Mapping[str, nn.Module], condition: LatencyCondition, *, repeats: int = 30, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Measure several models side by side, so that their latencies can be compared.

    Args:
        models: Name to model; each is called as ``model(input_ids=..., attention_mask=...)`` and has
            ``config.vocab_size``. Copies are measured: the models keep mode, device and dtype.
        condition: What to measure under.
        repeats: Timed calls of each model.
        seed: Of token ids and orders.

    Returns:
        Name to ``(median, interquartile range)`` in ms.

    Raises:
        UserError: No such device, missing packages or compiler, or a model that cannot be compiled or exported.

    Example:
        >>> measure_models({"ours": ours, "teacher": teacher}, LatencyCondition(threads=2))["ours"]
        (3.1, 0.1)
    """
    _check_repeats(repeats)
    with _quiet(condition, seed):
        parts = {name: _model_part(model, condition) for name, model in models.items()}
        rounds = time_calls(make_calls(parts, condition), condition, repeats=repeats, seed=seed)
    return {name: median_iqr(values) for name, values in rounds.times_ms.items()}


def measure_model(
    model: nn.Module, condition: LatencyCondition, *, repeats: int = 30, seed: int = 0
) -> tuple[float, float]:
    """Median and interquartile range in ms of one model; see :func:`measure_models`.

    Example:
        >>> median_ms, iqr_ms = measure_model(model, LatencyCondition(sequence_length=64))
    """
    return measure_models({"model": model}, condition, repeats=repeats, seed=seed)["model"]


@contextmanager
def _quiet(condition: LatencyCondition, seed: int) -> Iterator[None]:
    """Threads pinned, no gradients, and a seeded generator that leaves torch's own as it was."""
    require_runtime(condition)
    with pinned_threads(condition.threads), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _model_part(model: nn.Module, condition: LatencyCondition) -> Part:
    measured = copy.deepcopy(model).to(condition.device, TORCH_DTYPES[condition.dtype]).eval()
    config: Any = model.config
    return Part(Model(measured), model_inputs(condition, config.vocab_size))


def time_calls(calls: Mapping[str, Call], condition: LatencyCondition, *, repeats: int, seed: int = 0) -> Rounds:
    """Time calls side by side under a condition, in inference mode and with its threads.

    A warning says when calls vary much or when most were preempted.

    Example:
        >>> time_calls({"one": lambda: model(ids_BT)}, LatencyCondition(), repeats=3).times_ms["one"]
        [3.2, 3.1, 3.1]
    """
    watched = watch(threads=condition.threads, on_cpu=torch.device(condition.device).type == "cpu")
    with pinned_threads(condition.threads), torch.inference_mode():
        rounds = time_rounds(calls, repeats=repeats, seed=seed, watched=watched)
    _warn_if_noisy(rounds, condition)
    return rounds


def _spread(widths: Sequence[int]) -> list[int]:
    last = len(widths) - 1
    return [widths[index] for index in sorted({round(i * last / (NUM_WIDTHS - 1)) for i in range(NUM_WIDTHS)})]


def _sizes(name: str, values: Sequence[int], highest: int | None) -> list[int]:
    allowed = "positive integers" if highest is None else f"integers from 1 to {highest}"
    for value in values:
        if not isinstance(value, int) or value < 1 or (highest is not None and value > highest):
            raise UserError(f"{name} to measure hold {value!r}; they must be {allowed}")
    if not values and highest is None:
        raise UserError(f"{name} to measure are empty; give at least one")
    return sorted(set(values))


def _check_repeats(repeats: int) -> None:
    if repeats < 1:
        raise UserError(f"latency repeats is {repeats!r}; it must be at least 1")


def _warn_if_noisy(rounds: Rounds, condition: LatencyCondition) -> None:
    measured = [median_iqr(times) for times in rounds.times_ms.values()]
    spread = statistics.median(iqr_ms / median_ms for median_ms, iqr_ms in measured)
    if spread > NOISY:
        logger.warning(
            "latencies under (%s) vary by %.0f %% from call to call: does other work run on this machine?",
            condition.describe(),
            100 * spread,
        )
    if rounds.preempted_share > PREEMPTED:
        logger.warning(
            "other work took the processor during %.0f %% of the calls under (%s), however often they were repeated: "
            "measure again on an idle machine",
            100 * rounds.preempted_share,
            condition.describe(),
        )


def _load() -> float | None:
    """Processes that wanted a processor during the last minute; None where the system does not say."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _machine(condition: LatencyCondition) -> str:
    if torch.device(condition.device).type == "cuda":
        return torch.cuda.get_device_name(condition.device)
    return f"{platform.system()} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
