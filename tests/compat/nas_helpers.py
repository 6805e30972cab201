"""A small space, an evaluator that counts on the disk, and driver processes that can be killed.

Imports nothing of the tests, so that a trial can import a copy of this file.
"""

import itertools
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nni
import torch
from nni.nas.experiment import NasExperimentConfig
from nni.nas.nn.pytorch import LayerChoice, ModelSpace, MutableLinear
from nni.nas.strategy import GridSearch, Random, RegularizedEvolution, Strategy

VALUES: dict[str, list[Any]] = {"width": [1, 2, 3, 4, 5, 6], "depth": [1, 2, 3, 4], "layer": ["wide", "plain"]}
ALL = [dict(zip(VALUES, values, strict=True)) for values in itertools.product(*VALUES.values())]
BUDGET = 24


class Toy(ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        width, depth = nni.choice("width", VALUES["width"]), nni.choice("depth", VALUES["depth"])
        self.layer = LayerChoice({"wide": MutableLinear(4, width), "plain": torch.nn.Linear(4, 2)}, label="layer")
        self.other = MutableLinear(4, depth)


def quality(sample: dict[str, Any]) -> float:
    """No two samples have the same."""
    return sample["width"] - (sample["depth"] - 2) ** 2 * 1.7 + (0.31 if sample["layer"] == "wide" else 0.0)


def evaluate(model: Any, calls: str, seconds: float = 0.0, fail: Any = None) -> None:
    """Reports, and counts itself in the file ``calls`` when it has finished."""
    sample = dict(nni.get_current_parameter().sample)
    time.sleep(seconds)
    if fail is not None and sample["depth"] == fail:
        raise RuntimeError("broken architecture")
    nni.report_intermediate_result(quality(sample) / 2)
    nni.report_final_result({"default": quality(sample), "width": sample["width"]})
    with Path(calls).open("a", encoding="utf-8") as file:
        file.write(json.dumps(sample, sort_keys=True) + "\n")


def called(path: Path) -> list[dict[str, Any]]:
    """The evaluations that finished, in their order."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def sequential(model_format: str = "raw", budget: int | None = BUDGET, go_on: bool = False) -> NasExperimentConfig:
    config = NasExperimentConfig("sequential", model_format, "local")
    config.execution_engine.max_model_count = budget
    config.execution_engine.continue_on_failure = go_on
    return config


def stock_strategy(name: str, seed: int | None = 3) -> Strategy:
    if name == "RegularizedEvolution":
        return RegularizedEvolution(population_size=8, sample_size=3, mutation_prob=0.4, seed=seed)
    return {"Random": Random, "GridSearch": GridSearch}[name](seed=seed)


def fork(action: Callable[[], None], log: Path) -> int:
    """Runs ``action`` in a process of its own, which starts at once since it need not import torch and NNI again."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        # handlers of the test runner are not the driver's
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(output), "w", buffering=1) for _ in range(2))
        action()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def killed_when(child: int, ready: Callable[[], bool], seconds: float) -> bool:
    """SIGKILL ``seconds`` after ``ready`` is true; False when the process ended before that."""
    limit = None
    while limit is None or time.monotonic() < limit:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, "the driver failed, see its log"
            return False
        if limit is None and ready():
            limit = time.monotonic() + seconds
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def finish(child: int) -> None:
    _, status = os.waitpid(child, 0)
    assert status == 0, "the driver failed, see its log"
