"""Evolution under a parameter and a latency limit on a search space of NNI's hub, MobileNetV3, here for 8 x 8 digits.

    python examples/evolve_hub_space.py

``ConstrainedEvolution`` checks both limits on every proposal before anything is trained. Parameters are counted exactly
on a copy of the space that lies on the meta device, where freezing allocates nothing. Latency is measured: the frozen
candidate and one fixed reference model run in turn on one thread, and the limit is a share of the reference's time, so
another process on the machine slows both. The fitness is a proxy, and no more: the validation accuracy after two
epochs on scikit-learn's digits.

For your project, change: ``SETTINGS`` or the whole space, the two limits, and ``fitness``, which gets a frozen model.
For a limit in milliseconds, return the milliseconds of a table or a measurement in ``latency_share``.
"""

import logging
import statistics
import tempfile
from functools import cache

import nni
import torch
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.experiment import NasExperiment, NasExperimentConfig
from nni.nas.hub.pytorch import MobileNetV3Space
from sklearn.datasets import load_digits
from torch import nn

from elm_nni.cost.timing import pinned_threads, time_rounds
from elm_nni.strategies import ConstrainedEvolution, Limit

SETTINGS = {
    "num_labels": 10, "base_widths": (16, 16, 32, 64, 128), "width_multipliers": (0.5, 1.0, 1.5),
    "expand_ratios": (1.0, 2.0, 4.0), "squeeze_excite": ("none", "optional"), "depth_range": (1, 3),
    "stride": (1, 2, 2, 1, 1), "activation": ("hswish", "relu", "hswish", "hswish", "hswish"),
}  # fmt: skip
MAX_PARAMETERS, MAX_LATENCY_SHARE = 30_000, 0.9
MARGIN = 0.85              # a measurement is noisy: search below the limit, so that the winner keeps it measured again
IMAGES, LABELS = (torch.tensor(array) for array in load_digits(return_X_y=True))
IMAGES = (IMAGES.float() / 16).view(-1, 1, 8, 8).expand(-1, 3, -1, -1)

space = MobileNetV3Space(**SETTINGS)
with torch.device("meta"):
    meta_space = MobileNetV3Space(**SETTINGS)
CHOICES = {label: list(mutable.values) for label, mutable in space.simplify().items()}
LARGEST = {label: values[-1] for label, values in CHOICES.items()}


def canonical(sample: dict) -> dict:
    """Without the labels of blocks that the chosen depth leaves out: samples that differ only there are one model."""
    return {
        label: value
        for label, value in sample.items()
        if "_i" not in label or label.startswith("s0") or int(label[4]) < sample[f"{label[:2]}_depth"]
    }


def num_parameters(sample: dict) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in meta_space.freeze(LARGEST | sample).parameters())


@cache
def reference() -> nn.Module:
    return space.freeze({label: values[len(values) // 2] for label, values in CHOICES.items()} ).eval()


@torch.inference_mode()
def measured_share(model: nn.Module, repeats: int) -> float:
    """Median over rounds of the model's time divided by the reference's."""
    models = {"model": model.eval(), "reference": reference()}
    with pinned_threads(1):
        calls = {name: (lambda one=one: one(IMAGES[:8])) for name, one in models.items()}
        times = time_rounds(calls, repeats=repeats).times_ms
    return statistics.median(ours / its for ours, its in zip(times["model"], times["reference"]))


def latency_share(sample: dict) -> float:
    return measured_share(space.freeze(LARGEST | sample), repeats=5)


def fitness(model: nn.Module) -> None:
    """Reports the accuracy on 397 digits after two epochs on the other 1,400; an interface that NNI calls."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(2):
        for rows in torch.randperm(1400).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model.train()(IMAGES[rows]), LABELS[rows]).backward()
            optimizer.step()
    with torch.inference_mode():
        right = model.eval()(IMAGES[1400:]).argmax(1) == LABELS[1400:]
    nni.report_final_result(float(right.float().mean()))


def main() -> tuple[float, dict]:
    """Searches; returns the fitness and the sample of the best architecture."""
    strategy = ConstrainedEvolution(
        limits={
            "parameters": Limit(num_parameters, MAX_PARAMETERS),
            "latency": Limit(latency_share, MARGIN * MAX_LATENCY_SHARE),
        },
        population=4, generations=3, mutations=2, crossovers=1, keep=4, seed=0, canonical=canonical,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        config = NasExperimentConfig("sequential", "raw", "local")
        config.experiment_working_directory = folder
        experiment = NasExperiment(space, FunctionalEvaluator(fitness), strategy, config)
        experiment.run()
        experiment.stop()
    accuracy, best = strategy.best
    counts = strategy.search.constraints.counts
    print(f"{counts.evaluated} trained, {counts.rejected} refused before training, {counts.duplicates} drawn twice")
    model = space.freeze(LARGEST | best.sample)
    size, share = sum(parameter.numel() for parameter in model.parameters()), measured_share(model, repeats=31)
    print(f"best: {accuracy:.1%} after two epochs (a proxy), {size:,} parameters of {MAX_PARAMETERS:,} allowed")
    print(f"best: {share:.2f} of the reference's latency, {MAX_LATENCY_SHARE} allowed; {best.sample}")
    assert size == best.costs["parameters"] <= MAX_PARAMETERS
    assert share <= MAX_LATENCY_SHARE
    return accuracy, best.sample


if __name__ == "__main__":
    logging.getLogger("nni").setLevel(logging.ERROR)
    main()
