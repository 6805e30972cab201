"""Measurement of latency tables and of whole models. Needs torch and transformers only.

Shapes: B batch, T tokens, D hidden.
"""

from __future__ import annotations

import copy
import logging
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from elm_nni.cost.condition import TORCH_DTYPES, LatencyCondition
from elm_nni.cost.latency_table import EMBEDDING, HEAD, LatencyTable, entry_key, space_fields
from elm_nni.cost.parameters import Blocks, full_heads, space_config
from elm_nni.cost.timing import median_iqr, pinned_threads, time_interleaved
from elm_nni.errors import UserError
from elm_nni.modeling.blocks_elm import BLOCKS
from elm_nni.modeling.configuration_elm import ElmConfig
from elm_nni.modeling.encoder_elm import encode, visible
from elm_nni.modeling.heads_elm import pool
from elm_nni.modeling.modeling_elm import ElmForSequenceClassification
from elm_nni.search_spaces.architecture import SpaceSettings

logger = logging.getLogger(__name__)

# Widths measured for each block by default; those between are interpolated.
NUM_WIDTHS = 4
# Whole models measured beside the layers, to find what a layer takes beyond its entry.
NUM_WHOLE_MODELS = 3
# Interquartile range by median from which on a warning is given; an idle machine stays well below.
NOISY = 0.25

Call = Callable[[], Any]


def measure_table(
    settings: SpaceSettings,
    condition: LatencyCondition,
    *,
    repeats: int = 30,
    widths: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    blocks: Blocks | None = None,
    seed: int = 0,
) -> LatencyTable:
    """Measure the layers, the embedding and the head of a space on this machine.

    Every layer is measured alone with fresh weights, all of them in rounds of random order. A few whole models of
    mixed layers run in the same rounds; what they take beyond the sum of their parts is ``overhead_ms`` of a layer.
    Torch's number of threads, its random generator and its gradient mode are as before afterwards.

    Args:
        settings: The space.
        condition: What to measure under; its runtime must be ``"eager"``.
        repeats: Timed calls of each part.
        widths: Feed-forward widths, each with all heads. None: four, from the first to the last of the space.
        heads: Head counts, each at the smallest width; all heads are measured anyway. None: one and half of them.
        blocks: Name to block class; None takes the six of the paper.
        seed: Of weights, token ids and orders.

    Returns:
        The table; its ``notes`` say how it was measured.

    Raises:
        UserError: Another runtime, no such device, a sequence that the space cannot hold, or sizes out of range.

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
    started = time.perf_counter()
    widths = _spread(settings.widths) if widths is None else _sizes("widths", widths, None)
    pruned = [max(settings.num_heads // 2, 1), 1] if heads is None else _sizes("heads", heads, settings.num_heads)
    with _quiet(condition, seed):
        parts = _Parts(settings, condition, dict(BLOCKS if blocks is None else blocks), widths, pruned)
        times = time_interleaved(parts.calls, repeats=repeats, seed=seed)
    measured = {name: median_iqr(values) for name, values in times.items()}
    models: list[dict[str, Any]] = []
    for name, keys in parts.models.items():
        sum_ms = sum(measured[key][0] for key in (EMBEDDING, *keys, HEAD))
        models.append({"layers": keys, "median_ms": measured[name][0], "sum_ms": sum_ms})
    _warn_if_noisy(measured, condition)
    table = LatencyTable(
        condition=condition,
        space=space_fields(settings),
        entries={name: values for name, values in measured.items() if name not in parts.models},
        overhead_ms=statistics.mean((model["median_ms"] - model["sum_ms"]) / len(model["layers"]) for model in models),
        notes={
            "repeats": repeats,
            "widths": widths,
            "heads": sorted({*pruned, settings.num_heads}),
            "between": "widths and head counts between the measured ones are interpolated",
            "models": models,
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
        condition: What to measure under; its runtime must be ``"eager"``.
        repeats: Timed calls of each model.
        seed: Of token ids and orders.

    Returns:
        Name to ``(median, interquartile range)`` in ms.

    Raises:
        UserError: Another runtime or no such device.

    Example:
        >>> measure_models({"ours": ours, "teacher": teacher}, LatencyCondition(threads=2))["ours"]
        (3.1, 0.1)
    """
    _check_repeats(repeats)
    with _quiet(condition, seed):
        calls = {name: _model_call(model, condition) for name, model in models.items()}
        times = time_interleaved(calls, repeats=repeats, seed=seed)
    measured = {name: median_iqr(values) for name, values in times.items()}
    _warn_if_noisy(measured, condition)
    return measured


def measure_model(
    model: nn.Module, condition: LatencyCondition, *, repeats: int = 30, seed: int = 0
) -> tuple[float, float]:
    """Median and interquartile range in ms of one model; see :func:`measure_models`.

    Example:
        >>> median_ms, iqr_ms = measure_model(model, LatencyCondition(sequence_length=64))
    """
    return measure_models({"model": model}, condition, repeats=repeats, seed=seed)["model"]


class _Parts:
    """The calls to time: layers by entry key, embedding, head, and whole models, whose layers ``models`` names."""

    def __init__(
        self,
        settings: SpaceSettings,
        condition: LatencyCondition,
        blocks: Blocks,
        widths: Sequence[int],
        pruned: Sequence[int],
    ):
        self.condition = condition
        self.blocks = blocks
        self.heads = full_heads(settings, blocks)
        shell = ElmForSequenceClassification(_one_layer_config(settings))
        self.config = shell.config
        self.shell = self._ready(shell)
        self.input_ids_BT, self.mask_BT = _inputs(condition, settings.vocab_size)
        documents_BT = self.mask_BT.long()
        self.mask = visible(documents_BT, documents_BT, is_causal=settings.is_causal)
        dtype = TORCH_DTYPES[condition.dtype]
        self.hidden_BTD = torch.randn(
            *self.input_ids_BT.shape, settings.hidden_size, dtype=dtype, device=condition.device
        )
        self.calls: dict[str, Call] = {EMBEDDING: self._embed, HEAD: self._classify}
        for name, (num_heads, head_dim) in self.heads.items():
            sizes = [(width, num_heads) for width in widths] + [(min(widths), count) for count in pruned]
            for width, count in dict.fromkeys(sizes):
                self.calls[entry_key(name, width, count, head_dim)] = self._layer_call(self._block(name, width, count))
        self.models: dict[str, list[str]] = {}
        for index in range(NUM_WHOLE_MODELS):
            width = sorted(widths)[index * (len(widths) - 1) // (NUM_WHOLE_MODELS - 1)]
            self._add_model(f"model {index}", settings.num_layers, width, offset=index)

    def _add_model(self, label: str, num_layers: int, width: int, *, offset: int) -> None:
        names = list(self.blocks)
        chosen = [names[(offset + index) % len(names)] for index in range(num_layers)]
        # Layers of its own: in a model, no layer finds the weights of the one before in the cache.
        layers = nn.ModuleList(self._block(name, width, self.heads[name][0]) for name in chosen)
        model = copy.copy(self.shell)
        model._modules = {**self.shell._modules, "elm": copy.copy(self.shell.elm)}
        model.elm._modules = {**self.shell.elm._modules, "layers": layers}
        self.calls[label] = lambda: model(input_ids=self.input_ids_BT, attention_mask=self.mask_BT)
        self.models[label] = [entry_key(name, width, *self.heads[name]) for name in chosen]

    def _block(self, name: str, width: int, num_heads: int) -> nn.Module:
        head_dim = self.heads[name][1]
        return self._ready(self.blocks[name](self.config, ffn_size=width, num_heads=num_heads, head_dim=head_dim))

    def _ready(self, module: nn.Module) -> Any:
        return module.to(self.condition.device, TORCH_DTYPES[self.condition.dtype]).eval()

    def _layer_call(self, block: nn.Module) -> Call:
        return lambda: block(self.hidden_BTD, self.mask, None, 0)

    def _embed(self) -> Any:
        return encode(self.shell.elm.embeddings, nn.ModuleList(), self.config, self.input_ids_BT, self.mask_BT)

    def _classify(self) -> Any:
        return self.shell.classifier(pool(self.hidden_BTD, self.mask_BT, self.config.classifier_pooling))


@contextmanager
def _quiet(condition: LatencyCondition, seed: int) -> Iterator[None]:
    """Threads pinned, no gradients, and a seeded generator that leaves torch's own as it was."""
    if condition.runtime != "eager":
        raise UserError(
            f"latency runtime is {condition.runtime!r}; only 'eager' is measured here, bring a table for another one"
        )
    device = torch.device(condition.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"latency device is {condition.device!r}; this machine has no CUDA device")
    with pinned_threads(condition.threads), torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _inputs(condition: LatencyCondition, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (condition.batch_size, condition.sequence_length)
    input_ids_BT = torch.randint(vocab_size, shape).to(condition.device)
    return input_ids_BT, torch.ones_like(input_ids_BT)


def _model_call(model: nn.Module, condition: LatencyCondition) -> Call:
    measured = copy.deepcopy(model).to(condition.device, TORCH_DTYPES[condition.dtype]).eval()
    config: Any = model.config
    input_ids_BT, mask_BT = _inputs(condition, config.vocab_size)
    return lambda: measured(input_ids=input_ids_BT, attention_mask=mask_BT)


def _one_layer_config(settings: SpaceSettings) -> ElmConfig:
    config = copy.deepcopy(space_config(settings))
    config.layers = config.layers[:1]
    config.num_hidden_layers = 1
    return config


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


def _warn_if_noisy(measured: Mapping[str, tuple[float, float]], condition: LatencyCondition) -> None:
    spread = statistics.median(iqr_ms / median_ms for median_ms, iqr_ms in measured.values())
    if spread > NOISY:
        logger.warning(
            "latencies under (%s) vary by %.0f %% from call to call: does other work run on this machine?",
            condition.describe(),
            100 * spread,
        )


def _machine(condition: LatencyCondition) -> str:
    if torch.device(condition.device).type == "cuda":
        return torch.cuda.get_device_name(condition.device)
    return f"{platform.system()} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
