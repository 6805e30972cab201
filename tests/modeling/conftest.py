"""Small ELM models for the tests of this folder."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from elm_nni.modeling import BLOCKS, ElmConfig


def small_config(**settings: object) -> ElmConfig:
    """One layer of each block; head width times heads differs from the widths on purpose."""
    layers = [
        {"block": block, "ffn_size": 10 + index, "num_heads": 2 + index % 2, "head_dim": 5}
        for index, block in enumerate(BLOCKS)
    ]
    sizes = {"vocab_size": 60, "hidden_size": 24, "embedding_size": 8, "bottleneck_size": 12, "layers": layers}
    return ElmConfig(**{**sizes, "max_position_embeddings": 32, **settings})


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in evaluation mode with every parameter random: no norm is the identity, no bias zero.

    The scales keep the signal alive through all layers, or a model that ignores its input would pass any comparison.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                noise = torch.randn(parameter.shape, generator=generator)
                if name == "bias":
                    parameter.copy_(0.2 * noise)
                elif isinstance(module, nn.Linear):
                    parameter.copy_(noise * module.in_features**-0.5)
                elif isinstance(module, nn.Embedding):
                    parameter.copy_(noise)
                else:
                    parameter.copy_(1 + 0.2 * noise)
    return model.eval()


@pytest.fixture
def make_config() -> Callable[..., ElmConfig]:
    return small_config


@pytest.fixture
def randomise() -> Callable[..., nn.Module]:
    return randomised
