import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy, pearsonr
from torch.nn import functional

from elm_nni.distillation.losses import kl_logit_loss, mse_feature_loss, relational_feature_loss, relational_logit_loss

FEATURE_LOSSES = [relational_feature_loss, mse_feature_loss]


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 9, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.arange(9) < torch.tensor([[9], [6], [3], [2]])
    return student, teacher + student, mask


def value_and_gradient(loss, student, *arguments, **settings):
    student = student.clone().requires_grad_()
    value = loss(student, *arguments, **settings)
    value.backward()
    return value.detach(), student.grad


def test_equals_scipy(features):
    student, teacher, mask = features
    expected = np.mean(
        [
            2 * (1 - pearsonr(s[keep][:, channel], t[keep][:, channel]).statistic)
            for s, t, keep in zip(student.numpy(), teacher.numpy(), mask.numpy())
            for channel in range(5)
        ]
    )
    assert float(relational_feature_loss(student, teacher, mask)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_invariant_to_scale_and_shift_of_each_channel_of_each_sample(features, dtype):
    student, teacher, mask = (features[0].to(dtype), features[1].to(dtype), features[2])
    generator = torch.Generator().manual_seed(1)
    scale = torch.logspace(-2, 2, 20).view(4, 1, 5).to(dtype)
    shift = torch.randn(4, 1, 5, generator=generator).to(dtype)
    expected = relational_feature_loss(student, teacher, mask)
    of_student = relational_feature_loss(scale * (student + shift), teacher, mask)
    of_teacher = relational_feature_loss(student, scale * (teacher + shift), mask)
    torch.testing.assert_close((of_student, of_teacher), (expected, expected), rtol=1e-4, atol=0)


@pytest.mark.parametrize("loss", FEATURE_LOSSES)
def test_zero_for_identical_features(loss, features):
    _, teacher, mask = features
    value, gradient = value_and_gradient(loss, teacher, teacher, mask)
    assert abs(value) < 1e-15
    assert gradient.abs().max() < 1e-12


def test_opposite_features_reach_four(features):
    _, teacher, mask = features
    assert float(relational_feature_loss(-teacher, teacher, mask)) == pytest.approx(4, abs=1e-9)


@pytest.mark.parametrize("loss", FEATURE_LOSSES)
@pytest.mark.parametrize("filling", [0.0, 1e6, float("nan"), float("inf")])
def test_padding_has_no_influence(loss, filling, features):
    student, teacher, mask = features
    padding = ~mask.unsqueeze(-1)
    clean = value_and_gradient(loss, student, teacher, mask)
    dirty = value_and_gradient(loss, student.masked_fill(padding, filling), teacher.masked_fill(padding, filling), mask)
    torch.testing.assert_close(dirty, clean)
    assert (dirty[1][~mask] == 0).all()
    shortened = [loss(s[None, :n], t[None, :n]) for s, t, n in zip(student, teacher, mask.sum(1).tolist())]
    if loss is relational_feature_loss:
        # no constant channel here, so each sample has as many pairs and the mean of the samples is the whole
        torch.testing.assert_close(torch.stack(shortened).mean(), clean[0])


@pytest.mark.parametrize("loss", FEATURE_LOSSES)
def test_half_precision_is_computed_in_single(loss, features):
    student, teacher, mask = features[0].bfloat16(), features[1].bfloat16(), features[2]
    expected = loss(student.float(), teacher.float(), mask)
    assert loss(student, teacher, mask).dtype == torch.float32
    torch.testing.assert_close(loss(student, teacher, mask), expected)
    torch.testing.assert_close(loss(student.float(), teacher, mask), expected)


def test_gradient_is_right(features):
    student, teacher, mask = features
    assert torch.autograd.gradcheck(lambda x: relational_feature_loss(x, teacher, mask), student.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e4])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_constant_channel_has_no_loss_and_no_gradient(side, constant, dtype, features):
    student, teacher, mask = features[0].to(dtype), features[1].to(dtype), features[2]
    (student if side == "student" else teacher)[:, :, 2] = constant
    value, gradient = value_and_gradient(relational_feature_loss, student, teacher, mask)
    others = [0, 1, 3, 4]
    expected = value_and_gradient(relational_feature_loss, student[..., others], teacher[..., others], mask)
    torch.testing.assert_close((value, gradient[..., others]), expected)
    assert (gradient[..., 2] == 0).all()


@pytest.mark.parametrize("num_valid", [0, 1])
def test_fewer_than_two_tokens_have_no_loss_and_no_gradient(num_valid, features):
    student, teacher, mask = features
    alone = torch.arange(9).expand(4, 9) < num_valid
    value, gradient = value_and_gradient(relational_feature_loss, student, teacher, alone)
    assert value == 0
    assert (gradient == 0).all()
    mask[1] = alone[1]
    value, gradient = value_and_gradient(relational_feature_loss, student, teacher, mask)
    rest = [0, 2, 3]
    torch.testing.assert_close(value, relational_feature_loss(student[rest], teacher[rest], mask[rest]))
    assert torch.isfinite(gradient).all()
    assert (gradient[1] == 0).all()
    assert (gradient[rest][mask[rest]] != 0).any()


def test_mse_equals_numpy(features):
    student, teacher, mask = features
    expected = np.mean((student.numpy()[mask.numpy()] - teacher.numpy()[mask.numpy()]) ** 2)
    assert float(mse_feature_loss(student, teacher, mask)) == pytest.approx(expected, rel=1e-12)
    assert mse_feature_loss(student, teacher, torch.zeros_like(mask)) == 0


def test_logits_equal_scipy():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (2 * torch.randn(7, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    tau, beta, gamma = 3.0, 0.7, 2.0
    s, t = (functional.softmax(x / tau, 1).numpy() for x in (student, teacher))
    inter = 1 - np.mean([pearsonr(a, b).statistic for a, b in zip(s, t)])
    intra = 1 - np.mean([pearsonr(a, b).statistic for a, b in zip(s.T, t.T)])
    expected = tau**2 * (beta * inter + gamma * intra)
    ours = relational_logit_loss(student, teacher, beta=beta, gamma=gamma, tau=tau)
    assert float(ours) == pytest.approx(expected, rel=1e-7)


def test_logits_of_a_shifted_row_are_the_same():
    teacher = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(relational_logit_loss(teacher + torch.arange(6.0).unsqueeze(1), teacher)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (torch.zeros(5, 3), torch.eye(5, 3)),
        (torch.eye(5, 3), torch.full((5, 3), 7.0)),
        (torch.randn(1, 1, generator=torch.Generator().manual_seed(0)), torch.ones(1, 1)),
    ],
)
def test_degenerate_logits_have_no_loss_and_no_gradient(student, teacher):
    value, gradient = value_and_gradient(relational_logit_loss, student, teacher)
    assert value == 0
    assert (gradient == 0).all()


def test_one_sample_keeps_the_rows_alone():
    student, teacher = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[0.5, 3.0, 0.0]])
    expected = 1 - pearsonr(student.softmax(1)[0].numpy(), teacher.softmax(1)[0].numpy()).statistic
    value, gradient = value_and_gradient(relational_logit_loss, student, teacher)
    assert float(value) == pytest.approx(expected, abs=1e-6)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0


def test_kl_equals_scipy():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(7, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = 4 * np.mean(entropy(softmax(teacher.numpy() / 2, 1), softmax(student.numpy() / 2, 1), axis=1))
    assert float(kl_logit_loss(student, teacher, tau=2.0)) == pytest.approx(expected, rel=1e-9)


def test_bad_input():
    x = torch.ones(2, 3, 4)
    with pytest.raises(ValueError, match="must be the same"):
        relational_feature_loss(x, torch.ones(2, 3, 5))
    with pytest.raises(ValueError, match="mask has shape"):
        mse_feature_loss(x, x, torch.ones(2, 4))
    with pytest.raises(ValueError, match="tau=0"):
        kl_logit_loss(torch.ones(2, 3), torch.ones(2, 3), tau=0)
    with pytest.raises(ValueError, match="beta=-1"):
        relational_logit_loss(torch.ones(2, 3), torch.ones(2, 3), beta=-1)
