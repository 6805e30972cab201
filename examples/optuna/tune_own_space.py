"""A model space of your own, searched by a sampler of Optuna for two objectives: accuracy up, parameters down.

    python examples/optuna/tune_own_space.py

The space is plain NNI, here for scikit-learn's digits; the fitness is the accuracy on 397 digits after five epochs on
the other 1,400. ``main`` is the whole search. Its result is a Pareto front: for every size the most accurate network.

For your project, change: ``DigitsSpace``, and ``fitness``, which gets a frozen model and reports your metrics. With
``storage="sqlite:///search.db"`` in OptunaSearch a search that was stopped goes on, and optuna-dashboard can show it.
"""

import logging

import nni
import torch
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.experiment import NasExperiment, NasExperimentConfig
from nni.nas.nn.pytorch import LayerChoice, ModelSpace, MutableLinear
from sklearn.datasets import load_digits
from torch import nn

from elm_nni.strategies import OptunaSearch

IMAGES, LABELS = (torch.tensor(array) for array in load_digits(return_X_y=True))
IMAGES = IMAGES.float() / 16


class DigitsSpace(ModelSpace):
    """Two layers of one width, with or without a layer between them: 36 networks."""

    def __init__(self) -> None:
        super().__init__()
        width = nni.choice("width", [2, 4, 8, 16, 32, 64])
        self.first = MutableLinear(64, width)
        self.activation = LayerChoice({"relu": nn.ReLU(), "tanh": nn.Tanh(), "gelu": nn.GELU()}, label="activation")
        self.middle = LayerChoice({"skip": nn.Identity(), "linear": MutableLinear(width, width)}, label="middle")
        self.last = MutableLinear(width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.activation(self.middle(self.first(images))))


def fitness(model: nn.Module) -> None:
    """Trains a network of the space and reports its metrics; NNI wants one of them to be called default."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(5):
        for rows in torch.randperm(1400).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(IMAGES[rows]), LABELS[rows]).backward()
            optimizer.step()
    right = model(IMAGES[1400:]).argmax(1) == LABELS[1400:]
    size = sum(parameter.numel() for parameter in model.parameters())
    nni.report_final_result({"default": right.float().mean().item(), "params": size})


def main() -> OptunaSearch:
    """Searches and prints the front."""
    directions = {"default": "maximize", "params": "minimize"}
    strategy = OptunaSearch("nsgaii", {"population_size": 8}, directions=directions, evaluations=24, seed=0)
    config = NasExperimentConfig("sequential", "raw", "local")
    experiment = NasExperiment(DigitsSpace(), FunctionalEvaluator(fitness), strategy, config)
    experiment.run()
    experiment.stop()
    for metrics, sample in strategy.front:
        print(f"{metrics['default']:.1%} with {metrics['params']:,.0f} parameters: {sample}")
    return strategy


if __name__ == "__main__":
    logging.getLogger("nni").setLevel(logging.ERROR)
    main()
