"""Calls of every runtime against PyTorch: what is timed must be what was asked for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from elm_nni.cost import onnx_graph, runtimes
from elm_nni.cost.condition import LatencyCondition, Runtime
from elm_nni.cost.layer_parts import SpaceParts
from elm_nni.cost.runtimes import Part, make_calls, require_runtime
from elm_nni.errors import UserError
from elm_nni.modeling import BLOCKS
from elm_nni.search_spaces import SpaceSettings

SETTINGS = SpaceSettings(
    num_layers=1, hidden_size=24, num_heads=4, bottleneck_size=8, ffn_start=8, ffn_step=8, ffn_max=16, vocab_size=50
)
AXES = {"a": {0: "batch", 1: "length"}, "b": {0: "batch", 1: "length"}}


class Mix(nn.Module):
    """relu(a W + b)."""

    def __init__(self, size: int, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(size, size, generator=generator))

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.relu(a @ self.weight + b)


class Branching(Mix):
    """Depends on a value, which no graph can."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return super().forward(a, b) if a.sum() > 0 else b


def mixes(count: int, *, group: str = "") -> dict[str, Part]:
    generator = torch.Generator().manual_seed(0)
    inputs = {name: torch.randn(1, 5, 16, generator=generator) for name in "ab"}
    return {f"mix {index}": Part(Mix(16, index), inputs, AXES, group) for index in range(count)}


def outputs(parts: dict[str, Part], runtime: Runtime) -> dict[str, torch.Tensor]:
    calls = make_calls(parts, LatencyCondition(runtime=runtime))
    assert list(calls) == list(parts)
    with torch.inference_mode():
        found: dict[str, Any] = {name: call() for name, call in calls.items()}
    return {name: value if torch.is_tensor(value) else torch.from_numpy(value[0]) for name, value in found.items()}


def expected(parts: dict[str, Part]) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        return {name: part.module(*part.inputs.values()) for name, part in parts.items()}


@pytest.mark.slow
def test_every_part_of_a_space_in_onnx_gives_what_pytorch_gives() -> None:
    """All sizes of a block are exported at once, and embedding and models together."""
    condition = LatencyCondition(runtime="onnx", batch_size=3, sequence_length=12)
    blocks = {"mobile_kv": BLOCKS["mobile_kv"]}
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        parts = SpaceParts(SETTINGS, condition, blocks, [8, 16], [1]).parts
        calls = make_calls(parts, condition)
        assert len(parts) == 2 + 3 + 3
        for name, wanted in expected(parts).items():
            torch.testing.assert_close(torch.from_numpy(calls[name]()[0]), wanted, atol=1e-4, rtol=1e-4, msg=name)


def test_int8_differs_a_little() -> None:
    parts = mixes(2, group="mix")
    for name, wanted in expected(parts).items():
        difference = (outputs(parts, "onnx-int8")[name] - wanted).abs().max() / wanted.abs().max()
        assert 1e-4 < difference < 0.1


def test_too_large_a_group_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    write = onnx_graph.write_graph

    def count(module: nn.Module, *rest: Any) -> Any:
        written.append(sum(value.numel() for value in module.parameters()))
        return write(module, *rest)

    monkeypatch.setattr(onnx_graph, "write_graph", count)
    monkeypatch.setattr(runtimes, "_GROUP_BYTES", 2 * 16 * 16 * 4)
    parts = mixes(3, group="mix")
    found = outputs(parts, "onnx")
    assert written == [512, 256]
    for name, wanted in expected(parts).items():
        torch.testing.assert_close(found[name], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_each_part_is_compiled_however_many_there_are() -> None:
    """torch stops compiling a code object after eight parts and says so in no error."""
    parts = mixes(10)
    before = counters["stats"]["unique_graphs"]
    found = outputs(parts, "compile")
    assert counters["stats"]["unique_graphs"] - before == 10
    for name, wanted in expected(parts).items():
        torch.testing.assert_close(found[name], wanted, atol=1e-5, rtol=1e-5)


def test_without_a_compiler() -> None:
    import torch._inductor.config as inductor

    with (
        inductor.patch({"cpp.cxx": (None, "/no/such/compiler"), "force_disable_caches": True}),
        pytest.raises(UserError, match=r"mix 0 cannot be compiled: .*/no/such/compiler.*a C\+\+ compiler") as error,
    ):
        outputs(mixes(1), "compile")
    assert "\n" not in str(error.value)


def test_what_cannot_be_exported_is_one_line() -> None:
    part = mixes(1)["mix 0"]
    with pytest.raises(UserError, match="branching cannot be exported to ONNX: ") as error:
        outputs({"branching": Part(Branching(16, 0), part.inputs, AXES)}, "onnx")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("package", onnx_graph.PACKAGES)
def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    require_runtime(LatencyCondition(runtime="onnx"))
    monkeypatch.setitem(sys.modules, package, None)
    require_runtime(LatencyCondition(runtime="compile"))
    with pytest.raises(UserError, match=package) as error:
        require_runtime(LatencyCondition(runtime="onnx-int8"))
    assert 'pip install "elm-nni[onnx]"' in str(error.value)


def test_threads_of_a_session(tmp_path: Path) -> None:
    part = mixes(1)["mix 0"]
    graph = onnx_graph.write_graph(
        part.module, {name: value.repeat(2, 1, 1) for name, value in part.inputs.items()}, AXES, ["y"], tmp_path / "y"
    )
    onnx_graph.require("onnx").save(graph, tmp_path / "y.onnx")
    options = onnx_graph.open_session(tmp_path / "y.onnx", 2).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    (tmp_path / "broken.onnx").write_text("no graph")
    with pytest.raises(UserError, match="onnxruntime cannot load"):
        onnx_graph.open_session(tmp_path / "broken.onnx", 1)
