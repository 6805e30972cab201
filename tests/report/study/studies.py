"""Studies in real databases, with the attributes that trials of the pipeline leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from ..conftest import write_json

START = datetime(2026, 1, 2, 3, 4, 5)
TRAINED = ["retrain pretrain", "retrain polarity"]
ETAS, MODES = (0.7, 0.8, 0.9, 0.99), ("remove", "fuse")
ETA_SPACE: dict[str, BaseDistribution] = {
    "prune.eta": CategoricalDistribution(ETAS), "prune.mode": CategoricalDistribution(MODES),
}  # fmt: skip
MANY_SPACE: dict[str, BaseDistribution] = {
    "prune.eta": FloatDistribution(0.6, 1.0), "growth.top_k": IntDistribution(2, 24),
    "retrain.finetune.lr": FloatDistribution(1e-5, 1e-2, log=True),
    "distillation.features": CategoricalDistribution(("relational", "mse", "none")),
    "retrain.finetune.use_a_rather_long_name": CategoricalDistribution((True, False)),
}


def trial_of(
    params: Mapping[str, Any], space: Mapping[str, BaseDistribution], values: Sequence[float] | None = None, *,
    seconds: float = 60.0, state: TrialState = TrialState.COMPLETE, reports: Mapping[int, float] | None = None,
    limits: Mapping[str, float] | None = None, measured: Mapping[str, Any] | None = None,
) -> FrozenTrial:
    """A trial that began and ended at fixed times."""
    trial = create_trial(
        state=state, params=dict(params), distributions={name: space[name] for name in params}, values=values,
        user_attrs=dict(measured or {}), intermediate_values=dict(reports or {}), constraints=limits,
    )
    trial.datetime_start = START
    if state.is_finished():
        trial.datetime_complete = START + timedelta(seconds=seconds)
    return trial


def write_study(
    folder: Path, name: str, objectives: Mapping[str, str], trials: Sequence[FrozenTrial],
    proxies: Sequence[FrozenTrial] | None = None, constraints: Mapping[str, float] | None = None,
) -> Path:
    """The folder as ``elm-nni tune`` leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    url = f"sqlite:///{folder.absolute() / 'study.db'}"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(url)
    for study_name, held in ((name, trials), (f"{name}-proxy", proxies)):
        if held is not None:
            study = optuna.create_study(storage=storage, study_name=study_name, directions=list(objectives.values()))
            study.add_trials(held)
    storage.remove_session()
    storage.engine.dispose()
    write_json(folder / "study.json", {
        "storage": url, "study": name, "proxy": f"{name}-proxy" if proxies is not None else None,
        "objectives": dict(objectives), "constraints": dict(constraints or {})})
    return folder


def architecture(heads: Sequence[int]) -> dict[str, Any]:
    """Layers of alternating blocks; a count of 12, all heads, has a label in the first layer alone."""
    found: dict[str, Any] = {}
    for layer, count in enumerate(heads):
        block = ("bert", "bert_kv", "mobile_kv")[layer % 3]
        found |= {f"layer{layer}": block, f"layer{layer}_{block}_ffn": 48 * (layer + 1)}
        if count != 12 or layer == 0:
            found[f"layer{layer}_{block}_heads"] = count
    # another candidate of the space, not chosen
    return found | {"layer0_mobile_qv_heads": 99}


def heads_left(eta: float, mode: str) -> list[int]:
    return [max(2, min(12, round(12 - (0.99 - eta) * (20 + 6 * layer) + (mode == "fuse")))) for layer in range(4)]


def eta_trial(
    eta: float, mode: str, quality: float, *, built: Sequence[str] = ("prune", *TRAINED), seconds: float = 60.0
) -> FrozenTrial:
    heads = heads_left(eta, mode)
    params = 4_000_000 + 10_000 * sum(heads)
    measured = {
        "validation": quality, "polarity": quality, "params": params, "params_outside_embeddings": params - 3_500_000,
        "latency_ms": 2 + sum(heads) / 20, "architecture": architecture(heads), "stages_built": list(built),
    }
    return trial_of({"prune.eta": eta, "prune.mode": mode}, ETA_SPACE, [quality], seconds=seconds, measured=measured)


def eta_quality(eta: float, mode: str) -> float:
    return round(0.72 + 0.06 * (eta - 0.7) + 0.004 * (mode == "fuse"), 4)


def write_eta_study(folder: Path) -> Path:
    """A grid of eta and mode, one setting twice, with cheap trials of half of it."""
    grid = [(eta, mode) for eta in ETAS for mode in MODES]
    trials = [eta_trial(eta, mode, eta_quality(eta, mode), seconds=100 + 10 * i) for i, (eta, mode) in enumerate(grid)]
    # what another trial trained is found: no seconds
    trials.append(eta_trial(0.7, "remove", 0.74, built=["prune"], seconds=1))
    trials.append(trial_of({"prune.eta": 0.9, "prune.mode": "fuse"}, ETA_SPACE, state=TrialState.RUNNING))
    proxies = [eta_trial(eta, mode, 0.6 + eta_quality(eta, mode) / 10, built=TRAINED, seconds=11 + i)
               for i, (eta, mode) in enumerate(grid[:5])]
    return write_study(folder, "eta", {"validation": "maximize"}, trials, proxies)


def write_many_study(folder: Path, num_trials: int = 26) -> Path:
    """Two objectives, limits, continuous and categorical parameters, failed and waiting trials."""
    rng = np.random.default_rng(0)
    trials = []
    for number in range(num_trials):
        params = {
            "prune.eta": float(rng.uniform(0.6, 1.0)), "growth.top_k": int(rng.integers(2, 25)),
            "retrain.finetune.lr": float(10 ** rng.uniform(-5, -2)),
            "distillation.features": str(rng.choice(["relational", "mse", "none"])),
            "retrain.finetune.use_a_rather_long_name": bool(rng.integers(2)),
        }
        if number % 13 == 5:
            trials.append(trial_of(params, MANY_SPACE, state=TrialState.FAIL,
                                   measured={"reason": f"limits.params: {number} is too low"}))
            continue
        heads = heads_left(params["prune.eta"], "remove")
        size = 4_000_000 + 30_000 * params["growth.top_k"] + 9_000 * sum(heads)
        quality = 0.6 + size / 3e7 - 0.02 * (np.log10(params["retrain.finetune.lr"]) + 3.5) ** 2 + rng.normal(0, 0.004)
        latency = 2 + sum(heads) / 12 + rng.uniform(0, 0.3)
        trials.append(trial_of(
            params, MANY_SPACE, [quality, size, latency], seconds=float(rng.uniform(50, 90)),
            limits={"latency_ms": latency - 5.5},
            measured={"validation": quality, "polarity": quality, "params": size, "latency_ms": latency,
                      "architecture": architecture(heads), "stages_built": ["supernet", "search", *TRAINED]},
        ))  # fmt: skip
    trials.append(trial_of({}, {}, state=TrialState.FAIL))
    objectives = {"validation": "maximize", "params": "minimize", "latency_ms": "minimize"}
    return write_study(folder, "many", objectives, trials, [], {"latency_ms": 5.5})


def write_pruned_study(folder: Path) -> Path:
    """One minimised objective, reports on the way, pruned trials, a limit."""
    space: dict[str, BaseDistribution] = {
        "growth.top_k": IntDistribution(1, 8), "growth.score": CategoricalDistribution(("pca", "random")),
    }  # fmt: skip
    rng, trials = np.random.default_rng(1), []
    for number in range(12):
        params = {"growth.top_k": int(rng.integers(1, 9)), "growth.score": str(rng.choice(["pca", "random"]))}
        end = 1 + params["growth.top_k"] / 10
        reports = {step: float(end + 2 / (step + 1) + rng.normal(0, 0.05)) for step in range(8)}
        if number % 4 == 3:
            kept = {step: value for step, value in reports.items() if step < 3}
            trials.append(trial_of(params, space, state=TrialState.PRUNED, reports=kept))
        else:
            trials.append(trial_of(params, space, [end], reports=reports, measured={
                "params": 5e6 + 1e5 * params["growth.top_k"], "latency_ms": 3.0, "validation": 0.7}))
    return write_study(folder, "pruned", {"loss": "minimize"}, trials, None, {"params": 5.6e6})
