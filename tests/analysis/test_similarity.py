"""Mean cosine similarity against scipy's distance, token by token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine

from elm_nni.analysis.similarity import candidate_similarity, mean_of_pairs


@pytest.fixture
def outputs() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 5, 4, generator=generator) for _ in range(3)]


@pytest.fixture
def mask() -> torch.Tensor:
    return torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 0, 0], [1, 0, 0, 0, 0]])


def test_each_pair_is_the_mean_of_cosines_of_valid_tokens(outputs: list[torch.Tensor], mask: torch.Tensor) -> None:
    found = candidate_similarity(outputs, mask)
    tokens = [(b, t) for b in range(3) for t in range(5) if mask[b, t]]
    expected = [[np.mean([1 - cosine(x[at], y[at]) for at in tokens]) for y in outputs] for x in outputs]
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    assert mean_of_pairs(found) == pytest.approx((expected[0][1] + expected[0][2] + expected[1][2]) / 3)


def test_neither_padding_nor_the_size_of_a_token_is_read(outputs: list[torch.Tensor], mask: torch.Tensor) -> None:
    expected = candidate_similarity(outputs, mask)
    sizes = 0.1 + torch.rand(3, 5, 1, generator=torch.Generator().manual_seed(1))
    changed = [torch.where(mask.bool()[..., None], one * sizes, torch.nan) for one in outputs]
    torch.testing.assert_close(candidate_similarity(changed, mask.bool()), expected, rtol=1e-6, atol=1e-7)


def test_opposite_and_empty_outputs() -> None:
    ones = torch.ones(1, 2, 3)
    found = candidate_similarity([ones, -2 * ones, 0 * ones], torch.ones(1, 2))
    np.testing.assert_allclose(found.numpy(), [[1, -1, 0], [-1, 1, 0], [0, 0, 0]], atol=1e-12)


def test_a_low_precision_is_computed_in_a_high_one(outputs: list[torch.Tensor], mask: torch.Tensor) -> None:
    rounded = [one.bfloat16() for one in outputs]
    found = candidate_similarity(rounded, mask)
    torch.testing.assert_close(found, candidate_similarity([one.double() for one in rounded], mask), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("shapes", "mask_shape", "message"),
    [
        ([], (1, 2), r"outputs have shapes \[\]: must be one or more"),
        ([(1, 2, 3), (1, 2, 4)], (1, 2), r"outputs have shapes \[\(1, 2, 3\), \(1, 2, 4\)\]"),
        ([(2, 3)], (2, 3), r"outputs have shapes \[\(2, 3\)\]"),
        ([(1, 2, 3)], (1, 3), r"mask has shape \(1, 3\): must be \(1, 2\)"),
    ],
)
def test_shapes_that_do_not_fit(shapes: list[tuple[int, ...]], mask_shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        candidate_similarity([torch.ones(shape) for shape in shapes], torch.ones(mask_shape))


def test_a_mask_without_tokens_and_a_matrix_without_pairs() -> None:
    with pytest.raises(ValueError, match="mask has no valid token"):
        candidate_similarity([torch.ones(1, 2, 3)], torch.zeros(1, 2))
    for shape in ((1, 1), (2, 3), (2,)):
        with pytest.raises(ValueError, match="must be square with at least two rows"):
            mean_of_pairs(torch.ones(shape))
