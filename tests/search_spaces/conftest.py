"""A space small enough to enumerate parts of."""

import pytest
import torch

from elm_nni.search_spaces import ElmSpace

TINY = {
    "num_layers": 2,
    "hidden_size": 24,
    "num_heads": 4,
    "bottleneck_size": 8,
    "ffn_start": 8,
    "ffn_step": 8,
    "ffn_max": 24,
    "embedding_size": 8,
    "vocab_size": 50,
    "max_position_embeddings": 16,
}


@pytest.fixture
def tiny() -> dict[str, int]:
    return dict(TINY)


@pytest.fixture
def space() -> ElmSpace:
    torch.manual_seed(0)
    return ElmSpace(**TINY)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask_BT = torch.ones(3, 7, dtype=torch.long)
    mask_BT[1, 4:] = 0
    return {
        "input_ids": torch.randint(50, (3, 7), generator=generator),
        "attention_mask": mask_BT,
        "token_type_ids": torch.randint(2, (3, 7), generator=generator),
    }
