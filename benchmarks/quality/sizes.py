"""The number and width of equal layers of a model of transformers that give it a size."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from transformers import PreTrainedConfig

from elm_nni.search_spaces.architecture import SpaceSettings
from quality.trial import LeftOut

Config = TypeVar("Config", bound=PreTrainedConfig)


def config_of_size(
    target: int, settings: SpaceSettings, config_of: Callable[[int, int], Config], size_of: Callable[[Config], int]
) -> Config:
    """The space's number of layers, or as many as leave a feed-forward width of at least 1.

    Args:
        target: parameters outside the embeddings.
        settings: of the space.
        config_of: number of layers and feed-forward width to a configuration.
        size_of: a configuration to its parameters outside the embeddings, linear in the width.

    Raises:
        LeftOut: the size is below one layer of width 1.
    """
    for num_layers in range(settings.num_layers, 0, -1):
        sizes = [size_of(config_of(num_layers, width)) for width in (1, 2)]
        width = 1 + round((target - sizes[0]) / (sizes[1] - sizes[0]))
        if width >= 1:
            return config_of(num_layers, width)
    name = type(config_of(1, 1)).__name__
    raise LeftOut(f"no {name} of width {settings.hidden_size} has {target} parameters outside the embeddings")
