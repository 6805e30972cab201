"""ONNX graphs of modules: written, quantised and loaded. The packages are an extra, imported where they are used.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from elm_nni.errors import UserError

INSTALL = 'pip install "elm-nni[onnx]"'
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Name of an input to the axes that are free, each with "batch" or "length".
Axes = Mapping[str, Mapping[int, str]]


def require(name: str) -> Any:
    """The package of that name.

    Raises:
        UserError: It is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"ONNX export needs the package {name}; install it with: {INSTALL}") from error


def write_graph(
    module: nn.Module, inputs: Mapping[str, torch.Tensor], axes: Axes, outputs: Sequence[str], path: Path
) -> Any:
    """Export a module to ``path``, with batch and length free.

    Args:
        module: Takes the inputs by position and returns one tensor, or a tuple of as many as ``outputs``.
        inputs: Name to an example of at least two rows and two tokens: a size of 1 would become fixed.
        axes: Free axes of each input.
        outputs: Names of the outputs.
        path: The file, replaced.

    Returns:
        The graph as onnx has it, without the shapes of intermediate values, which stop the quantiser.

    Raises:
        UserError: Missing packages.

    Example:
        >>> write_graph(nn.Linear(2, 2), {"x": torch.ones(2, 2)}, {"x": {0: "batch"}}, ["y"], Path("y.onnx"))
    """
    for name in PACKAGES:
        require(name)
    onnx = require("onnx")
    dimensions = {name: torch.export.Dim(name) for name in ("batch", "length")}
    with quiet_exporter(), torch.no_grad():
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=tuple({axis: dimensions[kind] for axis, kind in axes[name].items()} for name in inputs),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    proto = onnx.load(path)
    del proto.graph.value_info[:]
    return proto


def quantize_graph(source: Path, target: Path) -> Path:
    """Write ``source`` with weights and token table in 8 bits, activations quantised as they come; returns ``target``.

    Weights are unsigned: sums of products with signed ones saturate at 16 bits on x86 processors that have AVX2 or
    AVX-512 but no VNNI, and the file would give other answers there.
    """
    quantization = require("onnxruntime.quantization")
    prepared = target.with_name(f"{target.stem}.prepared.onnx")
    with quiet_exporter():
        quantization.shape_inference.quant_pre_process(source, prepared, skip_symbolic_shape=True)
        # The token table is most of a small model: it is read by Gather.
        quantization.quantize_dynamic(
            prepared,
            target,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            weight_type=quantization.QuantType.QUInt8,
        )
    prepared.unlink()
    return target


def open_session(path: Path, threads: int) -> Any:
    """A session of onnxruntime on the CPU, with so many threads for one operator.

    Raises:
        UserError: Missing package, or a file that it cannot load.
    """
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # The threads of a session would spin for a while after a run, beside what is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # The runtime's errors have no common base of their own.
        raise UserError(f"onnxruntime cannot load {path}: {' '.join(str(error).split())}") from error


def session_call(path: Path, threads: int, inputs: Mapping[str, torch.Tensor]) -> Callable[[], Any]:
    """A call of the file with these inputs; those that its graph does not read are left out."""
    session = open_session(path, threads)
    feeds = {item.name: inputs[item.name].numpy() for item in session.get_inputs()}
    return lambda: session.run(None, feeds)


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Without what exporter and quantiser, some of it in the root logger, tell about their own internals."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
