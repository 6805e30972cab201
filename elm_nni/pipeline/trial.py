"""A pipeline run as a trial of NNI: parameters are keys of the configuration, metrics go to the experiment."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nni

from elm_nni.pipeline.config import load_config
from elm_nni.pipeline.probe import Point
from elm_nni.pipeline.runner import Run
from elm_nni.pipeline.store import StageResult, StageStore


def run_trial(
    source: str,
    store: StageStore,
    *,
    overrides: Mapping[str, Any] | None = None,
    announce: Callable[[str, StageResult], None] = lambda name, result: None,
) -> dict[str, float]:
    """Runs the pipeline with the parameters that NNI hands out and reports to it.

    After every supernet epoch and every generation an intermediate result: ``default`` is the validation metric of
    :class:`~elm_nni.pipeline.probe.Probe`, the same throughout, beside ``phase``, ``step`` and ``loss``. The final
    result: ``default`` is the mean over tasks of the finished model's main metric on the validation rows, beside
    ``params``, ``params_outside_embeddings``, ``latency_ms`` (predicted by the latency table: a measurement among other
    trials would be worth little) and each task's metric. Test rows are not read. The run directory is ``run`` in the
    trial's output folder; stages are shared through the store, so that a trial builds what no other built.

    Without NNI around it, the trial runs with the file's own values and nothing is sent.

    Args:
        source: a preset or YAML file.
        store: shared by all trials of a machine.
        overrides: dotted keys that hold for every trial; the experiment's parameters are set after them.
        announce: as of :class:`Run`.

    Returns:
        The final result.

    Raises:
        UserError: a parameter that is no key of the configuration, or a value it does not allow.
    """
    parameters = nni.get_next_parameter() or {}
    config = load_config(source, {**(overrides or {}), **_flat(parameters)})
    run = Run(config, store, _directory(source), announce, _report)
    found = run.validate()
    result = {"default": found.pop("validation"), **found}
    nni.report_final_result(result)
    return result


def _report(point: Point) -> None:
    loss = {} if point.loss is None else {"loss": point.loss}
    nni.report_intermediate_result({"default": point.metric, "phase": point.phase, "step": point.step, **loss})


def _flat(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """NNI's parameters as overrides; the keys of a nested choice are those of the chosen branch."""
    found: dict[str, Any] = {}
    for key, value in parameters.items():
        if isinstance(value, Mapping):
            found |= _flat({name: item for name, item in value.items() if name != "_name"})
        else:
            found[key] = value
    return found


def _directory(source: str) -> Path:
    output = os.environ.get("NNI_OUTPUT_DIR")
    return Path(output) / "run" if output else Path("runs") / f"trial-{Path(source).stem}"
