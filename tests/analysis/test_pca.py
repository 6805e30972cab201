import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from elm_nni.analysis.covariance import StreamingCovariance
from elm_nni.analysis.pca import pca_rank


def random_samples(seed, num_features=24):
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.logspace(0, -3, num_features, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(num_features, num_features, generator=generator, dtype=torch.float64)).Q
    return torch.randn(400, num_features, generator=generator, dtype=torch.float64) * spectrum @ rotation + 5


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.99, 0.999999])
@pytest.mark.parametrize("seed", range(3))
def test_equals_scikit_learn(seed, threshold):
    samples = random_samples(seed)
    pca = PCA().fit(samples.numpy())
    expected = int(np.searchsorted(np.cumsum(pca.explained_variance_ratio_), threshold)) + 1
    covariance = StreamingCovariance(24).update(samples).covariance()
    assert pca_rank(covariance, threshold) == expected
    eigenvalues = torch.linalg.eigvalsh(covariance).flip(0)
    np.testing.assert_allclose(eigenvalues, pca.explained_variance_, rtol=1e-6)


def test_scale_and_rotation_do_not_matter():
    covariance = StreamingCovariance(24).update(random_samples(0)).covariance()
    rotation = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(9), dtype=torch.float64)).Q
    assert 1 < pca_rank(covariance) < 24
    assert pca_rank(covariance) == pca_rank(1e-9 * covariance) == pca_rank(rotation @ covariance @ rotation.T)


def test_edges():
    assert pca_rank(torch.zeros(4, 4)) == 0
    assert pca_rank(torch.eye(4), 1.0) == 4
    assert pca_rank(torch.eye(4), 0.5) == 2
    assert pca_rank(torch.eye(4), 0.51) == 3
    direction = torch.arange(1.0, 9.0, dtype=torch.float64)
    assert pca_rank(torch.outer(direction, direction), 0.9999) == 1


def test_bad_input():
    with pytest.raises(ValueError, match="threshold=1.5"):
        pca_rank(torch.eye(2), 1.5)
    with pytest.raises(ValueError, match="square"):
        pca_rank(torch.ones(2, 3))
    with pytest.raises(ValueError, match="NaN"):
        pca_rank(torch.full((2, 2), float("nan")))
