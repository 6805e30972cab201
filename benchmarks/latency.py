"""How well a latency table predicts whole models: a table of a preset and random architectures, in the same rounds.

Run: python benchmarks/latency.py --preset nano --runtime eager --models 20 --seed 0

With --busy 2 the table is measured while two processes burn the processor; the models are measured after they ended.
"""

from __future__ import annotations

import datetime
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import numpy as np
import torch
import typer
from scipy.stats import spearmanr

from elm_nni.cost import LatencyCondition, LatencyTable, measure_models, measure_table
from elm_nni.cost.parameters import full_heads
from elm_nni.modeling import ElmConfig, ElmForSequenceClassification
from elm_nni.search_spaces import SpaceSettings, preset_settings
from elm_nni.search_spaces.architecture import shared_config


def random_architecture(settings: SpaceSettings, rng: np.random.Generator) -> dict[str, Any]:
    """Any block, width and number of heads in every layer."""
    found: dict[str, Any] = {}
    for index in range(settings.num_layers):
        block, (num_heads, head_dim) = list(full_heads(settings).items())[rng.integers(6)]
        label = f"layer{index}_{block}"
        found |= {
            f"layer{index}": block, f"{label}_ffn": int(rng.choice(settings.widths)),
            f"{label}_heads": int(rng.integers(1, num_heads + 1)), f"{label}_head_dim": head_dim,
        }  # fmt: skip
    return found


@contextmanager
def burning(num_processes: int) -> Iterator[None]:
    """So many processes that never wait."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num_processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def comparison(
    table: LatencyTable, architectures: dict[str, dict[str, Any]], measured: dict[str, tuple[float, float]]
) -> list[str]:
    """Lines of predicted against measured."""
    names = list(architectures)
    predicted = np.array([table.predict(architectures[name]) for name in names])
    medians, ranges = np.array([measured[name] for name in names]).T
    ratios = predicted / medians
    worst = ratios[np.argmax(np.abs(np.log(ratios)))]
    entries = np.array(list(table.entries.values()))
    parts = np.median(entries[:, 1] / entries[:, 0])
    return [
        f"measured: {medians.min():.2f} to {medians.max():.2f} ms; predicted: {predicted.min():.2f} to "
        f"{predicted.max():.2f} ms",
        f"predicted / measured: median {np.median(ratios):.3f}, worst {worst:.3f}",
        f"Spearman correlation: {spearmanr(predicted, medians).statistic:.3f}",
        f"interquartile range / median: {np.median(ranges / medians):.1%} of a model, {parts:.1%} of a part",
        f"load average at the start: {table.notes['load']}; preempted calls: {table.notes['preempted']}",
    ]


def main(
    preset: Annotated[str, typer.Option(help="A search space.")] = "nano",
    runtime: Annotated[str, typer.Option(help="eager, compile, onnx or onnx-int8.")] = "eager",
    models: Annotated[int, typer.Option(help="Random architectures.", min=2)] = 20,
    seed: Annotated[int, typer.Option(help="Of the architectures, weights and orders.")] = 0,
    repeats: Annotated[int, typer.Option(help="Timed calls of each part and model.", min=1)] = 30,
    sequence_length: Annotated[int, typer.Option(help="Tokens.", min=1)] = 64,
    threads: Annotated[int, typer.Option(help="Threads of an operator.", min=1)] = 1,
    busy: Annotated[int, typer.Option(help="Processes that burn the processor beside the table.", min=0)] = 0,
) -> None:
    """Predicted against measured latency of random architectures."""
    condition = LatencyCondition(runtime=runtime, threads=threads, sequence_length=sequence_length)  # type: ignore[arg-type]
    settings = preset_settings(preset)
    rng = np.random.default_rng(seed)
    architectures = {f"architecture {index}": random_architecture(settings, rng) for index in range(models)}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        built = {
            name: ElmForSequenceClassification(ElmConfig.from_architecture(one, **shared_config(settings)))
            for name, one in architectures.items()
        }
    if busy:
        with burning(busy):
            table = measure_table(settings, condition, repeats=repeats, seed=seed)
        measured = measure_models(built, condition, repeats=repeats, seed=seed)
    else:
        table = measure_table(settings, condition, repeats=repeats, seed=seed, models=built)
        measured = dict(table.notes["beside"])
    typer.echo(f"{preset}, {condition.describe()}, {models} architectures, seed {seed}, {busy} busy processes")
    typer.echo(f"{datetime.date.today()}, {table.notes['machine']}, torch {torch.__version__}")
    for line in comparison(table, architectures, measured):
        typer.echo(line)


if __name__ == "__main__":
    typer.run(main)
