"""The condition that a latency holds under."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from elm_nni.errors import UserError

Runtime = Literal["eager", "compile", "onnx", "onnx-int8"]
Dtype = Literal["fp32", "bf16"]

TORCH_DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class LatencyCondition:
    """What a latency in milliseconds is a latency of. Two conditions are the same if all fields are equal.

    Args:
        runtime: What runs the model: ``"eager"``, ``"compile"`` (``torch.compile``), ``"onnx"`` (onnxruntime) or
            ``"onnx-int8"`` (the same with weights in 8 bits and activations quantised as they come).
        device: A torch device such as ``"cpu"`` or ``"cuda"``.
        threads: Threads of one operator.
        batch_size: Sequences at once.
        sequence_length: Tokens of each, all valid.
        dtype: ``"fp32"`` or ``"bf16"``, of what is not quantised. onnxruntime runs ``"fp32"`` on the CPU.

    Raises:
        UserError: A value outside its range, an unknown name, or another dtype or device than onnxruntime runs.

    Example:
        >>> LatencyCondition(sequence_length=64).describe()
        'eager fp32, cpu, 1 thread, batch 1, 64 tokens'
    """

    runtime: Runtime = "eager"
    device: str = "cpu"
    threads: int = 1
    batch_size: int = 1
    sequence_length: int = 128
    dtype: Dtype = "fp32"

    def __post_init__(self) -> None:
        for name, allowed in (("runtime", get_args(Runtime)), ("dtype", get_args(Dtype))):
            if getattr(self, name) not in allowed:
                raise UserError(f"latency {name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        for name in ("threads", "batch_size", "sequence_length"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"latency {name} is {value!r}; it must be a positive integer")
        try:
            torch.device(self.device)
        except (RuntimeError, TypeError) as error:
            raise UserError(f"latency device is {self.device!r}; it must be one of torch, such as 'cpu'") from error
        if self.is_onnx:
            for name, needed in (("dtype", "fp32"), ("device", "cpu")):
                if getattr(self, name) != needed:
                    raise UserError(
                        f"latency {name} is {getattr(self, name)!r}; with the runtime {self.runtime!r} it must be "
                        f"{needed!r}"
                    )

    @property
    def is_onnx(self) -> bool:
        """Whether onnxruntime runs the model."""
        return self.runtime.startswith("onnx")

    def describe(self) -> str:
        """One line for people."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        tokens = f"{self.sequence_length} token{'s' if self.sequence_length > 1 else ''}"
        runtime = self.runtime if self.runtime == "onnx-int8" else f"{self.runtime} {self.dtype}"
        return f"{runtime}, {self.device}, {threads}, batch {self.batch_size}, {tokens}"
