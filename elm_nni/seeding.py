"""Torch's generator as a function of (seed, stage)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from elm_nni.digest import derive_seed


@contextmanager
def seeded(seed: int, stage: str) -> Iterator[None]:
    """Sets torch's generator from (seed, stage) inside the block and restores it after.

    Example::

        with seeded(0, "supernet/weights"):
            space = ElmSpace.preset("nano")
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, stage))
        yield
