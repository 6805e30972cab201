import logging
from itertools import permutations

import numpy as np
import pytest
import torch

from elm_nni.analysis.cka import HeadSimilarity, linear_cka, redundant_heads


def oracle_hsic(x, y):
    """Song et al. (2012), the U-statistic, from explicit Gram matrices."""
    n = len(x)
    gram_x, gram_y = x @ x.T, y @ y.T
    np.fill_diagonal(gram_x, 0)
    np.fill_diagonal(gram_y, 0)
    one = np.ones(n)
    trace = np.trace(gram_x @ gram_y)
    totals = (one @ gram_x @ one) * (one @ gram_y @ one) / ((n - 1) * (n - 2))
    return (trace + totals - 2 * (one @ gram_x @ gram_y @ one) / (n - 2)) / (n * (n - 3))


def brute_force_hsic(x, y):
    """The same from its definition: the mean over all distinct quadruples of the kernel h of the U-statistic."""
    gram_x, gram_y = x @ x.T, y @ y.T
    terms = [
        gram_x[i, j] * (gram_y[i, j] + gram_y[k, m] - 2 * gram_y[i, k]) for i, j, k, m in permutations(range(len(x)), 4)
    ]
    return np.mean(terms)


def oracle_cka(x, y):
    return oracle_hsic(x, y) / np.sqrt(oracle_hsic(x, x) * oracle_hsic(y, y))


def contexts(num_sequences=12, num_tokens=10, num_heads=4, head_dim=3, seed=0):
    """Heads that partly share their content, with offsets; and a mask of lengths of at least one token."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_sequences, num_tokens, num_heads, head_dim)
    common = torch.randn(num_sequences, num_tokens, 1, head_dim, generator=generator, dtype=torch.float64)
    share = torch.linspace(0, 1, num_heads, dtype=torch.float64).view(1, 1, -1, 1)
    x = share * common + torch.randn(shape, generator=generator, dtype=torch.float64) + 3 * share
    lengths = torch.randint(1, num_tokens + 1, (num_sequences, 1), generator=generator)
    return x.flatten(2), torch.arange(num_tokens) < lengths


def test_the_oracle_is_the_u_statistic():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 3)) + 1, rng.normal(size=(7, 2)) - 2
    np.testing.assert_allclose(oracle_hsic(x, y), brute_force_hsic(x, y), rtol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_linear_cka_equals_the_oracle(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(30, 8)) + 10
    y = x[:, :3] ** 2 + rng.normal(size=(30, 3))
    ours = linear_cka(torch.from_numpy(x), torch.from_numpy(y))
    np.testing.assert_allclose(ours, oracle_cka(x, y), rtol=0, atol=1e-9)


def test_linear_cka_biased_form():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 8)) + 10, rng.normal(size=(30, 3))
    centring = np.eye(30) - 1 / 30
    gram_x, gram_y = centring @ x @ x.T @ centring, centring @ y @ y.T @ centring
    expected = np.sum(gram_x * gram_y) / np.sqrt(np.sum(gram_x**2) * np.sum(gram_y**2))
    ours = linear_cka(torch.from_numpy(x), torch.from_numpy(y), debiased=False)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9)


def test_debiasing_matters_for_few_samples():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(32, 256, generator=generator) for _ in range(2))
    assert linear_cka(x, y, debiased=False) > 0.85
    assert abs(linear_cka(x, y)) < 0.15


def test_invariances():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(6, 4, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    order = torch.randperm(50, generator=generator)
    expected = linear_cka(x, y)
    assert linear_cka(-7 * x @ rotation + 100, y) == pytest.approx(expected, abs=1e-9)
    assert linear_cka(x[order], y[order]) == pytest.approx(expected, abs=1e-9)
    assert linear_cka(x, 3 * x @ rotation) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_tokens_in_a_stream_equal_the_oracle(offset):
    x, mask = contexts()
    padded = (x + offset).masked_fill(~mask.unsqueeze(-1), float("nan"))
    similarity = HeadSimilarity(4, 3)
    for batch, keep in zip(padded.split(5), mask.split(5)):
        similarity.update(batch, keep)
    assert similarity.count == int(mask.sum())
    # a shift changes no HSIC, but costs the explicit Gram matrix its digits
    valid = x[mask].unflatten(1, (4, 3)).numpy()
    expected = [[oracle_cka(valid[:, g], valid[:, h]) for h in range(4)] for g in range(4)]
    np.testing.assert_allclose(similarity.matrix(), expected, rtol=0, atol=1e-6)


def test_sequences_equal_the_oracle_averaged_before_the_ratio():
    x, mask = contexts()
    padded = x.masked_fill(~mask.unsqueeze(-1), float("nan"))
    similarity = HeadSimilarity(4, 3, mode="sequences")
    hsic = np.zeros((4, 4))
    for batch, keep in zip(padded.split(6), mask.split(6)):
        similarity.update(batch, keep)
        rows = batch.nan_to_num(0).unflatten(2, (4, 3)).permute(2, 0, 1, 3).flatten(2).numpy()
        hsic += [[oracle_hsic(rows[g], rows[h]) for h in range(4)] for g in range(4)]
    expected = hsic / np.sqrt(np.outer(np.diag(hsic), np.diag(hsic)))
    np.testing.assert_allclose(similarity.matrix(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["tokens", "sequences"])
def test_merging_is_the_same_as_one_stream(mode):
    whole, merged = HeadSimilarity(4, 3, mode), HeadSimilarity(4, 3, mode)
    for seed in range(3):
        # batches of different means, so that the parts differ in their shift
        x, mask = contexts(seed=seed)
        x = x * (seed + 1) + 5 * seed
        whole.update(x, mask)
        merged.merge(HeadSimilarity(4, 3, mode).update(x, mask))
    merged.merge(HeadSimilarity(4, 3, mode))
    torch.testing.assert_close(merged.matrix(), whole.matrix(), rtol=0, atol=1e-9)
    assert merged.count == whole.count


@pytest.mark.parametrize("mode", ["tokens", "sequences"])
def test_a_constant_head_is_zero_with_a_warning(mode, caplog):
    x, _ = contexts()
    x = x.float()
    x[..., 3:6] = 0.1
    with caplog.at_level(logging.WARNING):
        matrix = HeadSimilarity(4, 3, mode).update(x).matrix()
    assert "[1]" in caplog.text
    assert torch.isfinite(matrix).all()
    assert (matrix[1] == 0).all()
    assert (matrix[:, 1] == 0).all()
    assert matrix[2, 2] == pytest.approx(1)


def test_a_copied_head_is_found():
    x, mask = contexts()
    x[..., 9:] = 2 * x[..., :3].flip(-1) + 1
    matrix = HeadSimilarity(4, 3).update(x, mask).matrix()
    assert matrix[0, 3] == pytest.approx(1, abs=1e-9)
    assert redundant_heads(matrix, 0.9) == [3]


def test_too_few_samples(caplog):
    x, _ = contexts()
    with pytest.raises(ValueError, match="3 tokens"):
        HeadSimilarity(4, 3).update(x[:1, :3]).matrix()
    similarity = HeadSimilarity(4, 3, "sequences").update(x[:3])
    assert "3 sequences is left out" in caplog.text
    with pytest.raises(ValueError, match="0 batches"):
        similarity.matrix()
    with pytest.raises(ValueError, match="3 samples"):
        linear_cka(torch.ones(3, 2), torch.ones(3, 2))


def test_bad_input():
    with pytest.raises(ValueError, match="mode='heads'"):
        HeadSimilarity(4, 3, mode="heads")
    with pytest.raises(ValueError, match="num_heads=0"):
        HeadSimilarity(0, 3)
    with pytest.raises(ValueError, match="must be"):
        HeadSimilarity(4, 3).update(torch.ones(2, 3, 13))
    with pytest.raises(ValueError, match="must be"):
        HeadSimilarity(4, 3).merge(HeadSimilarity(4, 3, mode="sequences"))


class TestRedundantHeads:
    def test_a_removed_head_removes_no_other(self):
        # 0 ~ 1, 1 ~ 2, but not 0 ~ 2: head 1 goes, and 2 resembles only the one that is gone
        cka = torch.tensor([[1, 0.95, 0.1], [0.95, 1, 0.95], [0.1, 0.95, 1]])
        assert redundant_heads(cka, 0.9, 1) == [1]

    def test_a_head_is_counted_once(self):
        assert redundant_heads(torch.ones(4, 4), 0.9, 1) == [1, 2, 3]

    def test_floor(self):
        assert redundant_heads(torch.ones(4, 4), 0.9) == [1, 2]
        assert redundant_heads(torch.ones(1, 1), 0.9) == []

    def test_equal_to_eta_is_not_above(self):
        assert redundant_heads(torch.full((3, 3), 0.5), 0.5, 1) == []

    def test_bad_input(self):
        with pytest.raises(ValueError, match="eta=1.2"):
            redundant_heads(torch.eye(2), 1.2)
        with pytest.raises(ValueError, match="min_heads=0"):
            redundant_heads(torch.eye(2), 0.9, 0)
        with pytest.raises(ValueError, match="NaN"):
            redundant_heads(torch.full((2, 2), float("nan")), 0.9)
