"""Weights at a scale where mistakes show."""

import torch
from torch import nn


def randomize(model: nn.Module, seed: int = 2) -> None:
    """Every weight at a scale where a mistake shows, norms and biases (which start as ones and zeros) included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * drawn if parameter.ndim == 1 else 0.2 * drawn)
