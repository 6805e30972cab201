"""Which precision is faster here for this student and this teacher: measured once, then kept with the run."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from elm_nni.cost.timing import median_iqr, time_interleaved
from elm_nni.distillation.student import inputs_of
from elm_nni.pipeline.context import Context
from elm_nni.pipeline.modules import TextDistillation, on_device
from elm_nni.pipeline.store import write_json
from elm_nni.pipeline.supernet_stage import make_space, text_batches
from elm_nni.seeding import seeded
from elm_nni.strategies.one_shot import set_path, to_supernet

_REPEATS, _CPU_ROWS = 3, 8
_RESULT = "precision.json"


def precision_inputs(context: Context) -> dict[str, Any]:
    """What the choice depends on, the machine among it."""
    config = context.config
    return {
        **context.identity, "student": config.precision, "teacher_precision": config.teacher.precision,
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, {context.device}",
        "rows": _rows(context), "sequence_length": config.data.sequence_length,
    }  # fmt: skip


def build_precision(context: Context, folder: Path) -> None:
    """Times one training step of a supernet path and one teacher forward in fp32 and bf16; the faster one is chosen.

    Writes ``student`` and ``teacher`` (``"fp32"`` or ``"bf16"``) and the seconds of each, from which run times are
    estimated.
    """
    config = context.config
    training = config.supernet.pretrain
    batch = text_batches(context, replace(training, batch_size=_rows(context)), "precision")(0)
    with seeded(config.seed, "precision"):
        space = make_space(context)
        to_supernet(space)
        set_path(space, space.random_sample())
        module = TextDistillation(space, context.teacher, distillation=config.distillation, training=training)
    module.to(context.device)
    batch = on_device(batch, context.device)
    known = inputs_of(batch)
    teachers = {name: context.teacher_in(name) for name in ("fp32", "bf16")}
    forwards: dict[str, Callable[[], Any]] = {
        name: partial(teacher.features, known["input_ids"], known["attention_mask"], document_ids=known["document_ids"])
        for name, teacher in teachers.items()
    }
    teacher_seconds = _median_seconds(forwards)
    features = forwards["fp32"]()

    def step(bf16: bool) -> None:
        with torch.autocast(context.device, dtype=torch.bfloat16, enabled=bf16):
            loss = module.loss(batch, features)
        loss.backward()
        module.zero_grad(set_to_none=True)

    student_seconds = _median_seconds({"fp32": lambda: step(False), "bf16": lambda: step(True)})
    write_json(
        folder / _RESULT,
        {
            "student": _choose(config.precision, student_seconds), "student_seconds": student_seconds,
            "teacher": _choose(config.teacher.precision, teacher_seconds), "teacher_seconds": teacher_seconds,
            "tokens": _rows(context) * config.data.sequence_length,
        },
    )  # fmt: skip


def _rows(context: Context) -> int:
    """A GPU takes about as long for few rows as for many, so it is timed with the rows of a step."""
    return _CPU_ROWS if context.device == "cpu" else context.config.supernet.pretrain.batch_size


def load_precision(folder: Path) -> dict[str, Any]:
    """The choice and the measured seconds."""
    return json.loads((folder / _RESULT).read_text(encoding="utf-8"))


def _choose(asked: str, seconds: dict[str, float]) -> str:
    # bf16 must be clearly faster: a near tie would fall differently in each measurement
    return asked if asked != "auto" else "bf16" if seconds["bf16"] < 0.8 * seconds["fp32"] else "fp32"


def _median_seconds(functions: dict[str, Callable[[], Any]]) -> dict[str, float]:
    times = time_interleaved(functions, repeats=_REPEATS)
    return {name: median_iqr(values)[0] / 1000 for name, values in times.items()}
