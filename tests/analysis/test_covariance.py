import numpy as np
import pytest
import torch

from elm_nni.analysis.covariance import StreamingCovariance


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    return torch.randn(40, 6, 5, generator=generator, dtype=torch.float64) @ mixing + 1e4


@pytest.fixture
def mask():
    return torch.rand(40, 6, generator=torch.Generator().manual_seed(1)) < 0.7


def test_equals_numpy_over_valid_samples_only(samples, mask):
    # what stands at padding must not be read, NaN included
    padded = samples.masked_fill(~mask.unsqueeze(-1), float("nan"))
    covariance = StreamingCovariance(5)
    for x, keep in zip(padded.split(7), mask.split(7)):
        covariance.update(x, keep)
    valid = samples[mask].numpy()
    assert covariance.count == len(valid)
    np.testing.assert_allclose(covariance.mean(), valid.mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance.covariance(), np.cov(valid.T), rtol=1e-9)


def test_merging_is_the_same_as_one_stream(samples, mask):
    parts = [StreamingCovariance(5).update(x, keep) for x, keep in zip(samples.split(13), mask.split(13))]
    merged = StreamingCovariance(5)
    for part in parts:
        merged.merge(part)
    merged.merge(StreamingCovariance(5))
    whole = StreamingCovariance(5).update(samples, mask)
    assert merged.count == whole.count
    torch.testing.assert_close(merged.covariance(), whole.covariance(), rtol=1e-10, atol=0)


def test_float32_samples_with_a_large_offset_keep_their_digits():
    x = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)) + 1000
    expected = np.cov(x.double().numpy().T)
    np.testing.assert_allclose(StreamingCovariance(3).update(x).covariance(), expected, rtol=1e-10)


def test_state_round_trip_and_reset(samples):
    covariance = StreamingCovariance(5).update(samples[:20])
    copy = StreamingCovariance(5)
    copy.load_state_dict(covariance.state_dict())
    before = covariance.covariance()
    copy.update(samples[20:])
    assert torch.equal(covariance.covariance(), before)
    expected = StreamingCovariance(5).update(samples).covariance()
    torch.testing.assert_close(copy.covariance(), expected, rtol=1e-9, atol=0)
    copy.reset()
    assert copy.count == 0
    torch.testing.assert_close(copy.update(samples[:20]).covariance(), before)


def test_a_batch_of_padding_changes_nothing(samples):
    covariance = StreamingCovariance(5).update(samples)
    before = covariance.covariance()
    covariance.update(samples, torch.zeros(40, 6))
    assert torch.equal(covariance.covariance(), before)


def test_bad_input(samples):
    with pytest.raises(ValueError, match="num_features=0"):
        StreamingCovariance(0)
    covariance = StreamingCovariance(5)
    with pytest.raises(ValueError, match="4 features"):
        covariance.update(samples[..., :4])
    with pytest.raises(ValueError, match=r"\(40,\)"):
        covariance.update(samples, torch.ones(40))
    with pytest.raises(ValueError, match="0 samples"):
        covariance.mean()
    with pytest.raises(ValueError, match="1 samples"):
        covariance.update(samples[0, :1]).covariance()
    with pytest.raises(ValueError, match="num_features=4"):
        covariance.merge(StreamingCovariance(4))
