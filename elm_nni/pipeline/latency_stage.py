"""The latency table of a run: the user's own, checked against the condition, or measured here once."""

from __future__ import annotations

import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from elm_nni.cost.latency import measure_table
from elm_nni.cost.latency_table import LatencyTable
from elm_nni.cost.onnx_graph import require
from elm_nni.cost.runtimes import require_runtime
from elm_nni.cost.timing import METHOD
from elm_nni.pipeline.context import Context, latency_condition

_TABLE = "table.json"


def given_table(context: Context) -> LatencyTable | None:
    """The table that ``latency.table`` names, or None.

    Raises:
        UserError: it is damaged, of another condition, or of another space; or this machine lacks what the condition
            needs, since the results are measured under it too.
    """
    path = context.config.latency.table
    if path is None:
        return None
    condition = latency_condition(context.config)
    table = LatencyTable.load(path)
    table.require(condition, context.settings)
    require_runtime(condition)
    return table


def latency_inputs(context: Context) -> dict[str, Any]:
    """What a measured table depends on, the machine among it.

    Raises:
        UserError: this machine lacks what the condition needs.
    """
    condition = latency_condition(context.config)
    require_runtime(condition)
    return {
        "machine": f"{platform.node()}, {platform.processor() or platform.machine()}", "torch": torch.__version__,
        "condition": asdict(condition), "space": asdict(context.settings), "repeats": context.config.latency.repeats,
        "timing": METHOD, "onnxruntime": require("onnxruntime").__version__ if condition.is_onnx else None,
    }  # fmt: skip


def build_latency(context: Context, folder: Path) -> None:
    """Measures the table here."""
    table = measure_table(context.settings, latency_condition(context.config), repeats=context.config.latency.repeats)
    table.save(folder / _TABLE)


def load_latency(folder: Path) -> LatencyTable:
    """The measured table."""
    return LatencyTable.load(folder / _TABLE)
