"""Realistic run directories in the layout that the pipeline writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BLOCKS = ("bert", "bert_qv", "bert_kv", "mobile", "mobile_qv", "mobile_kv")


@dataclass(frozen=True)
class Size:
    """Sizes of a sample run."""

    num_layers: int
    num_heads: int
    head_dim: int
    step: int
    grown_per_epoch: int
    num_epochs: int
    num_generations: int
    population: int
    params: int
    budget: int


NANO = Size(6, 12, 16, 48, 4, 4, 8, 16, 5_412_345, 6_000_000)
ELM_SMALL = Size(12, 12, 44, 132, 21, 10, 40, 50, 15_612_345, 15_700_000)
# Every part of a run, drawn quickly.
TINY = Size(2, 4, 8, 16, 2, 2, 2, 6, 5_012_345, 5_200_000)
SIZES = {"tiny": TINY, "nano": NANO, "elm-small": ELM_SMALL}


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_lines(path: Path, values: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def edit_results(run_dir: Path, **changes: Any) -> None:
    write_json(run_dir / "results.json", read_json(run_dir / "results.json") | changes)


def growth_lines(size: Size, rng: np.random.Generator) -> list[dict[str, Any]]:
    widths = {f"layer{i}_{block}": size.step for i in range(size.num_layers) for block in BLOCKS}
    bottleneck = size.num_heads * size.head_dim // 4
    lines, mean_params = [], 0.8 * size.budget
    for epoch in range(size.num_epochs):
        scores = {}
        for i in range(size.num_layers):
            for block in BLOCKS:
                limit = widths[f"layer{i}_{block}"] if block.startswith("bert") else min(
                    bottleneck, widths[f"layer{i}_{block}"])
                scores[f"layer{i}_{block}"] = float(limit * rng.uniform(0.55, 0.95) * (0.7 + 0.3 * i / size.num_layers))
        events = []
        free = [cell for cell in sorted(scores, key=lambda cell: -scores[cell]) if widths[cell] < 6 * size.step]
        for cell in free[: size.grown_per_epoch]:
            cost = 2 * size.step * (size.num_heads * size.head_dim if "_bert" in cell else bottleneck) / 6
            if mean_params + cost > size.budget:
                continue
            events.append({"cell": cell, "old": widths[cell], "new": widths[cell] + size.step, "score": scores[cell]})
            widths[cell] += size.step
            mean_params += cost
        normalized = {cell: score / widths[cell] for cell, score in scores.items()}
        lines.append({"epoch": epoch, "scores": scores, "normalized": normalized, "widths": dict(widths),
                      "events": events, "mean_params": mean_params, "budget": size.budget, "loss": 3.0 / (epoch + 1.5)})
    return lines


def random_sample(size: Size, rng: np.random.Generator) -> dict[str, Any]:
    sample: dict[str, Any] = {}
    for i in range(size.num_layers):
        block = str(rng.choice(BLOCKS))
        sample |= {f"layer{i}": block, f"layer{i}_{block}_ffn": int(size.step * rng.integers(1, 6)),
                   f"layer{i}_{block}_heads": size.num_heads, f"layer{i}_{block}_head_dim": size.head_dim}
    return dict(sorted(sample.items()))


def history_lines(size: Size, rng: np.random.Generator) -> list[dict[str, Any]]:
    lines = []
    for generation in range(size.num_generations):
        for member in range(size.population):
            sample = random_sample(size, rng)
            params = int(size.budget * rng.uniform(0.75, 1.0))
            skill = 0.66 + 0.08 * (1 - np.exp(-generation / 8)) + 0.05 * (params / size.budget - 0.87)
            origin = "random" if generation == 0 else ("mutation" if member % 2 else "crossover")
            digest = hashlib.sha256(json.dumps(sample).encode()).hexdigest()[:12]
            lines.append({"generation": generation, "digest": digest, "sample": sample,
                          "metric": float(skill + rng.normal(0, 0.012)), "params": params,
                          "latency_ms": float(2.0 + 1.8 * rng.beta(2, 2) * params / size.budget), "origin": origin})
    return lines


def head_files(size: Size, rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    layers, arrays = [], {}
    for i in range(size.num_layers):
        common = 1.1 * rng.normal(size=(24, 1)) * rng.uniform(size=size.num_heads)
        features = rng.normal(size=(24, size.num_heads)) + common
        matrix = np.corrcoef(features.T) ** 2
        num_redundant = (i * 2) % min(7, size.num_heads - 1)
        others = np.arange(1, size.num_heads)
        redundant = sorted(int(h) for h in rng.choice(others, size=num_redundant, replace=False))
        for head in redundant:
            matrix[head, 0] = matrix[0, head] = 0.93
        kept = [h for h in range(size.num_heads) if h not in redundant]
        layers.append({"layer": i, "before": size.num_heads, "after": len(kept), "kept": kept, "redundant": redundant,
                       "head_dim_before": size.head_dim, "head_dim_after": size.head_dim})
        arrays |= {f"layer{i}_before": matrix, f"layer{i}_after": matrix[np.ix_(kept, kept)]}
    afters = [layer["after"] for layer in layers]
    sweep = {f"{eta:g}": [max(2, after - int(round((0.9 - eta) * 30))) if eta <= 0.9 else min(size.num_heads, after + 2)
                          for after in afters] for eta in (0.7, 0.8, 0.9, 0.95)}
    return {"eta": 0.9, "mode": "remove", "min_heads": 2, "layers": layers, "eta_sweep": sweep}, arrays


def results(size: Size, sample: dict[str, Any]) -> dict[str, Any]:
    condition = "eager fp32, cpu, 1 thread, batch 1, 64 tokens"
    int8 = "onnx int8, cpu, 1 thread, batch 1, 64 tokens"
    inner = size.params - 4_382_544
    rows = [
        ("ELM (ours)", 0.7843, size.params, inner, 20.6, 3.21, condition, ""),
        ("ELM int8 ONNX", 0.7808, size.params, inner, 6.4, 1.75, int8, "largest difference to PyTorch 0.08"),
        ("uniform bert", 0.7796, size.params - 40_000, inner - 40_000, 20.5, 3.37, condition, "same size and recipe"),
        ("teacher + head", 0.7995, 22_713_986, 10_990_000, 86.6, 11.84, condition, "linear head on frozen features"),
        ("teacher half depth", 0.7620, 17_389_826, 5_670_000, 66.3, 6.03, condition, "3 of 6 layers, head refitted"),
        ("TF-IDF + logistic regression", 0.7690, None, None, 1.9, None, "", "fitted on the same rows"),
    ]
    keys = ("params", "params_outside_embeddings", "megabytes", "latency_ms", "condition", "note")
    systems = [{"name": name, "tasks": {"polarity": value}} | dict(zip(keys, rest)) for name, value, *rest in rows]
    intervals = [
        ("uniform bert", 0.0047, -0.0094, 0.0188),
        ("teacher + head", -0.0152, -0.0305, -0.0012),
        ("teacher half depth", 0.0223, 0.0047, 0.0399),
        ("TF-IDF + logistic regression", 0.0153, 0.0021, 0.0287),
    ]
    comparisons = [{"against": against, "task": "polarity", "metric": "accuracy", "difference": difference, "low": low,
                    "high": high, "resamples": 10000, "n": 853} for against, difference, low, high in intervals]
    seconds = {"teacher": 31.0, "supernet": 231.4, "search": 118.9, "prune": 9.3, "retrain": 187.2, "evaluate": 64.8,
               "export": 22.1}
    return {
        "architecture": sample, "digest": "9f3c1a77d0e2", "params": size.params,
        "params_outside_embeddings": size.params - 4_382_544, "param_budget": size.budget,
        "latency_ms": {"predicted": 3.14, "measured": 3.21, "limit": 4.0, "condition": condition},
        "tasks": {"polarity": {"metric": "accuracy", "value": 0.7843, "split": "test", "n": 853}},
        "systems": systems,
        "comparison": comparisons[-1], "comparisons": comparisons,
        "stages": {name: {"seconds": value, "cached": name == "teacher", "peak_memory_mb": 900 + 5 * value}
                   for name, value in seconds.items()},
        "versions": {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.0.0", "nni": "3.0", "elm_nni": "0.1.0"},
        "seed": 7, "device": "cpu, 2 threads",
    }


def write_sample_run(run_dir: Path, size: Size, *, seed: int = 0) -> Path:
    """Writes every file of a finished run of that size."""
    rng = np.random.default_rng(seed)
    write_lines(run_dir / "growth.jsonl", growth_lines(size, rng))
    history = history_lines(size, rng)
    write_lines(run_dir / "search/history.jsonl", history)
    best = max(history, key=lambda line: line["metric"])
    write_json(run_dir / "search/summary.json", {
        "evaluated": len(history), "duplicates": 9, "rejected": {"params": 113, "latency_ms": 37},
        "limits": {"params": size.budget, "latency_ms": 4.0}, "best": best})
    write_json(run_dir / "search/pareto.json", [best])
    heads, arrays = head_files(size, rng)
    write_json(run_dir / "prune/heads.json", heads)
    np.savez(run_dir / "prune/cka.npz", **arrays)
    sample = dict(best["sample"])
    for layer in heads["layers"]:
        name = f"layer{layer['layer']}"
        sample[f"{name}_{sample[name]}_heads"] = layer["after"]
    write_json(run_dir / "results.json", results(size, sample))
    write_json(run_dir / "model/config.json", {"architectures": ["ElmForSequenceClassification"], "model_type": "elm"})
    return run_dir


MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Makes a fresh sample run directory of the given size."""

    def make(size: str = "nano") -> Path:
        return write_sample_run(tmp_path / size, SIZES[size])

    return make
