"""Latencies of the final systems, side by side under one condition.

Shape suffixes: B batch, T tokens, C classes, D hidden.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from elm_nni.cost.condition import TORCH_DTYPES, LatencyCondition
from elm_nni.cost.latency import time_calls
from elm_nni.cost.layer_parts import Model, model_inputs
from elm_nni.cost.onnx_graph import session_call
from elm_nni.cost.runtimes import Call, Part, make_calls
from elm_nni.cost.timing import median_iqr, pinned_threads
from elm_nni.distillation.fine_tuned import FineTunedClassifier
from elm_nni.distillation.heads import TeacherClassifier, mean_pool
from elm_nni.distillation.language import LanguageTeacher
from elm_nni.errors import UserError

logger = logging.getLogger(__name__)

_REPEATS = 40


@dataclass(frozen=True)
class SystemLatency:
    """Median and interquartile range in ms and the condition; where nothing was measured, the reason instead."""

    median_ms: float | None = None
    iqr_ms: float | None = None
    condition: str = ""
    reason: str = ""


class _TeacherWithHead(nn.Module):
    def __init__(self, classifier: TeacherClassifier):
        super().__init__()
        self.model, self.head = classifier.teacher.model, classifier.head

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden_BTD = self.model(input_ids=input_ids, attention_mask=attention_mask)[0]
        return self.head(mean_pool(hidden_BTD, attention_mask))


class _TeacherOfLanguage(nn.Module):
    """Logits of the last token, as a causal model begins to generate."""

    def __init__(self, language: LanguageTeacher):
        super().__init__()
        self.model, self.head = language.teacher.model, language.head

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.model(input_ids=input_ids, attention_mask=attention_mask)[0][:, -1:])


def classifier_module(classifier: TeacherClassifier | FineTunedClassifier | LanguageTeacher) -> nn.Module:
    """A teacher with its head as a module from token ids and mask (B, T) to logits (B, C), without features."""
    if isinstance(classifier, LanguageTeacher):
        return _TeacherOfLanguage(classifier)
    return Model(classifier.model) if isinstance(classifier, FineTunedClassifier) else _TeacherWithHead(classifier)


def measure_systems(
    modules: Mapping[str, nn.Module],
    files: Mapping[str, Path],
    condition: LatencyCondition,
    vocab_size: int,
    *,
    repeats: int = _REPEATS,
    seed: int = 0,
) -> dict[str, SystemLatency]:
    """Measure systems in the same rounds.

    Args:
        modules: Name to a module from token ids and mask to logits, measured under ``condition``. One that cannot be
            compiled, exported or run so has a reason instead of a latency.
        files: Name to an int8 ONNX file, measured in onnxruntime with the condition's threads, batch and length.
        condition: What to measure under.
        vocab_size: Token ids are drawn below it.
        repeats: Timed calls of each.
        seed: Of ids and orders.
    """
    with pinned_threads(condition.threads), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        inputs = model_inputs(condition, vocab_size)
        made = {name: _call(name, module, inputs, condition) for name, module in modules.items()}
        calls: dict[str, Call] = {name: call for name, call in made.items() if not isinstance(call, str)}
        feeds = {name: value.cpu() for name, value in inputs.items()}
        feeds["token_type_ids"] = torch.zeros_like(feeds["input_ids"])
        calls |= {name: session_call(file, condition.threads, feeds) for name, file in files.items()}
    times = time_calls(calls, condition, repeats=repeats, seed=seed).times_ms if calls else {}
    int8 = replace(condition, runtime="onnx-int8", dtype="fp32", device="cpu")
    found = {name: SystemLatency(reason=reason) for name, reason in made.items() if isinstance(reason, str)}
    for name, values in times.items():
        found[name] = SystemLatency(*median_iqr(values), (int8 if name in files else condition).describe())
    return found


def _call(name: str, module: nn.Module, inputs: dict[str, Tensor], condition: LatencyCondition) -> Call | str:
    """The call to time, or why there is none."""
    dtype = TORCH_DTYPES[condition.dtype]
    ready: Any = module if dtype is torch.float32 else copy.deepcopy(module).to(dtype)
    try:
        call = make_calls({name: Part(ready.to(condition.device).eval(), inputs)}, condition)[name]
        with torch.inference_mode():
            call()
    except (UserError, RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        logger.warning("%s has no latency under (%s): %s", name, condition.describe(), reason)
        return reason
    return call
