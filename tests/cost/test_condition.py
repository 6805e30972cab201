"""Conditions: what they say and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest

from elm_nni.cost.condition import LatencyCondition
from elm_nni.errors import UserError


def test_describe() -> None:
    assert LatencyCondition(sequence_length=64).describe() == "eager fp32, cpu, 1 thread, batch 1, 64 tokens"
    other = LatencyCondition(device="cuda:0", threads=2, batch_size=8, sequence_length=1, dtype="bf16")
    assert other.describe() == "eager bf16, cuda:0, 2 threads, batch 8, 1 token"
    assert LatencyCondition(runtime="onnx-int8").describe() == "onnx-int8, cpu, 1 thread, batch 1, 128 tokens"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"runtime": "tflite"}, "runtime is 'tflite'; allowed: eager"),
        ({"dtype": "fp64"}, "dtype is 'fp64'"),
        ({"threads": 0}, "threads is 0"),
        ({"batch_size": 1.5}, "batch_size is 1.5"),
        ({"sequence_length": True}, "sequence_length is True"),
        ({"device": "abacus"}, "device is 'abacus'"),
        ({"runtime": "onnx", "dtype": "bf16"}, "dtype is 'bf16'; with the runtime 'onnx' it must be 'fp32'"),
        ({"runtime": "onnx-int8", "device": "cuda"}, "device is 'cuda'; with the runtime 'onnx-int8' it must be 'cpu'"),
    ],
)
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LatencyCondition(**settings)
