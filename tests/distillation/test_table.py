import pytest
import torch
from sklearn.decomposition import TruncatedSVD

from elm_nni.distillation.table import svd_token_table
from elm_nni.errors import UserError


@pytest.fixture
def table():
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.logspace(1, -2, 24, dtype=torch.float64)
    return torch.randn(200, 24, generator=generator, dtype=torch.float64) * spectrum + 0.3


def test_is_the_truncated_svd(table):
    ours = svd_token_table(table, 6, target_std=None)
    expected = torch.from_numpy(TruncatedSVD(6, algorithm="arpack").fit_transform(table.numpy()))
    signs = (ours * expected).sum(0).sign()
    torch.testing.assert_close(ours * signs, expected, rtol=0, atol=1e-8)


def test_keeps_scalar_products_as_well_as_the_rank_allows(table):
    left, singular, right = torch.linalg.svd(table, full_matrices=False)
    best = left[:, :6] * singular[:6] @ right[:6]
    ours = svd_token_table(table, 6, target_std=None)
    torch.testing.assert_close(ours @ ours.T, best @ best.T, rtol=0, atol=1e-9)
    full = svd_token_table(table, 24, target_std=None)
    torch.testing.assert_close(full @ full.T, table @ table.T, rtol=0, atol=1e-9)


def test_scale_and_dtype(table):
    ours = svd_token_table(table.float(), 6)
    assert ours.dtype == torch.float32
    assert float(ours.square().mean().sqrt()) == pytest.approx(0.02, rel=1e-5)
    torch.testing.assert_close(ours, svd_token_table(7 * table.float(), 6))
    assert not svd_token_table(torch.zeros(10, 4), 2).any()


def test_sign_is_fixed(table):
    # the table of the mirrored space is the same token table
    rotation = torch.diag(torch.tensor([-1.0, 1.0] * 12, dtype=torch.float64))
    ours, mirrored = svd_token_table(table, 6), svd_token_table(table @ rotation, 6)
    torch.testing.assert_close(ours.abs(), mirrored.abs())
    assert torch.equal(ours, svd_token_table(table.clone(), 6))
    vectors = torch.linalg.lstsq(table, svd_token_table(table, 6, target_std=None)).solution
    assert (vectors.gather(0, vectors.abs().argmax(0, keepdim=True)) > 0).all()


def test_bad_input(table):
    with pytest.raises(UserError, match="embedding size 25"):
        svd_token_table(table, 25)
    with pytest.raises(ValueError, match="target_std=0"):
        svd_token_table(table, 4, target_std=0)
