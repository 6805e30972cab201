"""What runs a module: PyTorch as it is, torch.compile, or onnxruntime. Each gives a call to time.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import tempfile
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from elm_nni.cost import onnx_graph
from elm_nni.cost.condition import LatencyCondition
from elm_nni.errors import UserError

Call = Callable[[], Any]
# Inputs of a whole model, and their free axes.
MODEL_AXES = {"input_ids": {0: "batch", 1: "length"}, "attention_mask": {0: "batch", 1: "length"}}
# Batch and length that a graph is exported with. Not those of the condition: a size of 1 would become fixed.
_EXPORTED_BATCH, _EXPORTED_LENGTH = 2, 9
# Weights in one file; the format ends at 2 GiB.
_GROUP_BYTES = 2**30


@dataclass(frozen=True)
class Part:
    """A module to time with its inputs.

    Args:
        module: In evaluation mode, on the condition's device and in its dtype. It takes two tensors by position and
            returns one.
        inputs: Name to tensor, both of them.
        axes: Name of each input to its free axes, ``"batch"`` or ``"length"``.
        group: Parts of one group have the same inputs and are exported together, which takes half the time.
    """

    module: nn.Module
    inputs: Mapping[str, torch.Tensor]
    axes: onnx_graph.Axes = field(default_factory=lambda: MODEL_AXES)
    group: str = ""


def require_runtime(condition: LatencyCondition) -> None:
    """Check that this machine can measure under a condition, as far as that is known without compiling.

    Raises:
        UserError: No such device, or missing packages, with the command that installs them.
    """
    if torch.device(condition.device).type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"latency device is {condition.device!r}; this machine has no CUDA device")
    if condition.is_onnx:
        for name in onnx_graph.PACKAGES:
            onnx_graph.require(name)


def make_calls(parts: Mapping[str, Part], condition: LatencyCondition) -> dict[str, Call]:
    """A call for each part under the condition's runtime, compiled or exported now.

    To be called with the threads pinned, as the calls themselves: compiled code depends on them. The calls are to be
    made in inference mode.

    Raises:
        UserError: A part that cannot be compiled or exported, or missing packages.

    Example:
        >>> calls = make_calls({"model": Part(model, inputs)}, LatencyCondition(runtime="compile"))
    """
    if condition.runtime == "eager":
        return {name: _eager(part) for name, part in parts.items()}
    if condition.runtime == "compile":
        return {name: _compiled(name, part) for name, part in parts.items()}
    return _exported(parts, condition)


def _eager(part: Part) -> Call:
    # Parts are thin wrappers; a model has a call of its own, with hooks.
    forward, inputs = part.module.forward, tuple(part.inputs.values())
    return lambda: forward(*inputs)


def _compiled(name: str, part: Part) -> Call:
    module, inputs = part.module, tuple(part.inputs.values())

    def run(*given: torch.Tensor) -> Any:
        return module(*given)

    # torch keeps compiled code by code object and after a few falls back to eager: each part gets one of its own.
    own = types.FunctionType(run.__code__.replace(), run.__globals__, "run", None, run.__closure__)
    compiled = torch.compile(own, dynamic=False)
    try:
        with torch.inference_mode():
            compiled(*inputs)
    except RuntimeError as error:
        raise UserError(
            f"{name} cannot be compiled: {_cause(error)}; torch.compile needs a C++ compiler (g++ or clang++ on the "
            "path, or CXX)"
        ) from error
    return lambda: compiled(*inputs)


def _exported(parts: Mapping[str, Part], condition: LatencyCondition) -> dict[str, Call]:
    calls: dict[str, Call] = {}
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode(False):
        file = Path(scratch) / "part.onnx"
        for members in _groups(parts):
            for name, graph in zip(members, _graphs(members, file), strict=True):
                onnx_graph.require("onnx").save(graph, file)
                if condition.runtime == "onnx-int8":
                    onnx_graph.quantize_graph(file, file.with_name("int8.onnx")).replace(file)
                calls[name] = onnx_graph.session_call(file, condition.threads, members[name].inputs)
    return {name: calls[name] for name in parts}


def _groups(parts: Mapping[str, Part]) -> list[dict[str, Part]]:
    """Parts to export together: of one group, and small enough for one file."""
    found: dict[str, list[dict[str, Part]]] = {}
    for name, part in parts.items():
        groups = found.setdefault(part.group or f"part {name}", [{}])
        if groups[-1] and _num_bytes({**groups[-1], name: part}) > _GROUP_BYTES:
            groups.append({})
        groups[-1][name] = part
    return [group for groups in found.values() for group in groups]


def _num_bytes(members: Mapping[str, Part]) -> int:
    return sum(value.numel() * 4 for part in members.values() for value in part.module.parameters())


def _graphs(members: Mapping[str, Part], file: Path) -> Sequence[Any]:
    """The graphs of parts that were exported as one, each cut out with what its own output needs."""
    first = next(iter(members.values()))
    outputs = [f"output{index}" for index in range(len(members))]
    modules = [part.module for part in members.values()]
    try:
        graph = onnx_graph.write_graph(_Together(modules), _examples(first), first.axes, outputs, file)
    except UserError:
        raise
    except Exception as error:
        # Whatever the exporter and the code of a model raise.
        raise UserError(f"{next(iter(members))} cannot be exported to ONNX: {_cause(error)}") from error
    extractor = onnx_graph.require("onnx.utils").Extractor(graph)
    return [extractor.extract_model([item.name for item in graph.graph.input], [name]) for name in outputs]


class _Together(nn.Module):
    """Several modules on the same two inputs, one output each."""

    def __init__(self, modules: Sequence[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(modules)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(member(first, second) for member in self.members)


def _examples(part: Part) -> dict[str, torch.Tensor]:
    """The inputs of a part, repeated or cut to the sizes that a graph is exported with."""
    found = {}
    for name, value in part.inputs.items():
        for axis, kind in part.axes[name].items():
            size = value.shape[axis]
            wanted = _EXPORTED_BATCH if kind == "batch" else min(max(size, 2), _EXPORTED_LENGTH)
            value = value.index_select(axis, torch.arange(wanted) % size)
        found[name] = value
    return found


def _cause(error: BaseException) -> str:
    """The first line of what was wrong in the first place."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
