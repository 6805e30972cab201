"""Relational distillation losses and the plain baselines beside them.

Everything is computed in float32 or wider, whatever the inputs are. No loss is ever NaN for finite valid inputs:
where a correlation is not defined, loss and gradient are zero.

Shape suffixes: B batch, T tokens, D hidden, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Inside each square root. Pairs without variance are left out before it, so it only bounds the gradient of
# channels that are nearly constant; it must stay far below the variance of real features.
_EPS = 1e-12


def relational_feature_loss(student_BTD: Tensor, teacher_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
    """Mean squared difference of channels standardised over the tokens of a sample: 2 (1 - Pearson).

    Each (sample, channel) pair is standardised over its valid tokens with the population variance; the loss is the
    mean over all pairs for which the correlation is defined. It does not change with the scale (if positive) or shift
    of a channel of a sample. (PKD, Cao et al., 2022, arXiv 2207.02039, section 3.2.)

    A pair with fewer than two valid tokens, or constant (up to rounding) in student or teacher, is left out: no
    loss, no gradient. With no pair left the loss is 0.

    Args:
        student_BTD: already projected to the teacher's width.
        teacher_BTD: a target; pass it without gradient.
        mask_BT: true or 1 for valid tokens; values at padding are never read.

    Returns:
        A scalar in [0, 4].

    Raises:
        ValueError: shapes differ.

    Example::

        relational_feature_loss(projection(student_BTE), teacher_BTD, attention_mask_BT).backward()
    """
    loss: Tensor = _RelationalFeatureLoss.apply(*_checked(student_BTD, teacher_BTD, mask_BT))
    return loss


class _RelationalFeatureLoss(torch.autograd.Function):
    """The loss above with its gradient written out: features are large, and every pass over them that is saved counts.

    For centred x and y, variances v and w, a = 1 / sqrt(v + eps), b likewise of w, and r = mean(x y) a b, the loss of a
    pair is v a^2 + w b^2 - 2 r. Its gradient is linear in x and y. Only the student gets one.
    """

    @staticmethod
    def forward(ctx: Any, student_BTD: Tensor, teacher_BTD: Tensor, keep_BT1: Tensor) -> Tensor:
        count_B1 = keep_BT1.sum(1)
        student_BTD, student_scale_BD, student_valid_BD = _centred(student_BTD, keep_BT1, count_B1)
        teacher_BTD, teacher_scale_BD, teacher_valid_BD = _centred(teacher_BTD, keep_BT1, count_B1)
        valid_BD = student_valid_BD & teacher_valid_BD & (count_B1 >= 2)
        count_B1 = count_B1.clamp(min=1)
        correlation_BD = (student_BTD * teacher_BTD).sum(1) / count_B1 * student_scale_BD * teacher_scale_BD
        unexplained_BD = _EPS * (student_scale_BD.square() + teacher_scale_BD.square())
        share_BD = valid_BD / valid_BD.sum().clamp(min=1) / count_B1
        of_student_BD = 2 * share_BD * (correlation_BD + _EPS * student_scale_BD.square()) * student_scale_BD.square()
        of_teacher_BD = -2 * share_BD * student_scale_BD * teacher_scale_BD
        ctx.save_for_backward(student_BTD, teacher_BTD, of_student_BD, of_teacher_BD)
        return _mean_where(2 - unexplained_BD - 2 * correlation_BD, valid_BD)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        student_BTD, teacher_BTD, of_student_BD, of_teacher_BD = ctx.saved_tensors
        (gradient,) = gradients
        result_BTD = student_BTD * (gradient * of_student_BD).unsqueeze(1)
        return result_BTD.addcmul_(teacher_BTD, (gradient * of_teacher_BD).unsqueeze(1)), None, None


def mse_feature_loss(student_BTD: Tensor, teacher_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
    """Plain mean squared difference over valid tokens and channels, the baseline; 0 without a valid token.

    Arguments and errors as in :func:`relational_feature_loss`.

    Example::

        mse_feature_loss(projection(student_BTE), teacher_BTD, attention_mask_BT).backward()
    """
    student_BTD, teacher_BTD, keep_BT1 = _checked(student_BTD, teacher_BTD, mask_BT)
    return _mean_where((student_BTD - teacher_BTD).square(), keep_BT1.expand_as(student_BTD))


def relational_logit_loss(
    student_logits_BC: Tensor, teacher_logits_BC: Tensor, *, beta: float = 1.0, gamma: float = 1.0, tau: float = 1.0,
    independent: bool = False,
) -> Tensor:  # fmt: skip
    """tau^2 (beta inter + gamma intra) on softened class probabilities (DIST, arXiv 2205.10536, section 4).

    ``inter`` is 1 - the mean Pearson correlation of the rows (classes of a sample), ``intra`` the same of the columns
    (samples of a class). Rows or columns that are constant in student or teacher are left out; a term with none
    left is 0 without gradient. With two classes the rows correlate by 1 or -1 and only ``intra`` has a gradient.
    ``independent``: the outputs are labels of which any number may hold, each with a probability of its own (sigmoid).

    Raises:
        ValueError: shapes differ or are not (B, C); ``tau`` not positive; ``beta`` or ``gamma`` negative.

    Example::

        relational_logit_loss(student_logits_BC, teacher_logits_BC, tau=4.0).backward()
    """
    _check_logits(student_logits_BC, teacher_logits_BC, tau)
    for name, value in (("beta", beta), ("gamma", gamma)):
        if value < 0:
            raise ValueError(f"{name}={value}: must be at least 0")
    logits = (logits / tau for logits in _widened(student_logits_BC, teacher_logits_BC))
    student_BC, teacher_BC = (each.sigmoid() if independent else each.softmax(1) for each in logits)
    inter = correlation_distance(student_BC, teacher_BC)
    intra = correlation_distance(student_BC.T, teacher_BC.T)
    return tau**2 * (beta * inter + gamma * intra)


def kl_logit_loss(
    student_logits_BC: Tensor, teacher_logits_BC: Tensor, *, tau: float = 1.0, independent: bool = False
) -> Tensor:
    """tau^2 KL(teacher || student) of softened probabilities, mean over samples; the baseline (Hinton et al., 2015).

    ``independent``: the outputs are labels with a probability of its own each; their divergences are summed.

    Raises:
        ValueError: shapes differ or are not (B, C), or ``tau`` is not positive.

    Example::

        kl_logit_loss(student_logits_BC, teacher_logits_BC, tau=4.0).backward()
    """
    _check_logits(student_logits_BC, teacher_logits_BC, tau)
    student_BCK, teacher_BCK = (
        _log_probabilities(logits / tau, independent) for logits in _widened(student_logits_BC, teacher_logits_BC)
    )
    total = functional.kl_div(student_BCK, teacher_BCK, reduction="sum", log_target=True)
    return tau**2 * total / max(len(student_BCK), 1)


def _checked(student_BTD: Tensor, teacher_BTD: Tensor, mask_BT: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    if student_BTD.ndim != 3 or student_BTD.shape != teacher_BTD.shape:
        shapes = f"student {tuple(student_BTD.shape)}, teacher {tuple(teacher_BTD.shape)}"
        raise ValueError(f"{shapes}: must be the same (B, T, D)")
    if mask_BT is None:
        mask_BT = torch.ones(student_BTD.shape[:2], dtype=torch.bool, device=student_BTD.device)
    if mask_BT.shape != student_BTD.shape[:2]:
        raise ValueError(f"mask has shape {tuple(mask_BT.shape)}: must be {tuple(student_BTD.shape[:2])}")
    keep_BT1 = mask_BT.to(device=student_BTD.device, dtype=torch.bool).unsqueeze(-1)
    # zero at padding at once: whatever stands there, NaN too, must reach neither the value nor the gradient
    student_BTD, teacher_BTD = _widened(student_BTD, teacher_BTD)
    if not keep_BT1.all():
        student_BTD, teacher_BTD = torch.where(keep_BT1, student_BTD, 0.0), torch.where(keep_BT1, teacher_BTD, 0.0)
    return student_BTD, teacher_BTD, keep_BT1


def _check_logits(student_BC: Tensor, teacher_BC: Tensor, tau: float) -> None:
    if student_BC.ndim != 2 or student_BC.shape != teacher_BC.shape:
        shapes = f"student {tuple(student_BC.shape)}, teacher {tuple(teacher_BC.shape)}"
        raise ValueError(f"{shapes}: must be the same (B, C)")
    if not tau > 0:
        raise ValueError(f"tau={tau}: must be above 0")


def _log_probabilities(logits_BC: Tensor, independent: bool) -> Tensor:
    """Of the classes, (B, C); of independent labels of each holding and not, (B, C, 2)."""
    if independent:
        return torch.stack([functional.logsigmoid(logits_BC), functional.logsigmoid(-logits_BC)], dim=-1)
    return logits_BC.log_softmax(1)


def _widened(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    return student.to(dtype), teacher.to(dtype)


def _centred(x_BTD: Tensor, keep_BT1: Tensor, count_B1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``x`` (zero at padding) less its mean over kept tokens, 1 / its standard deviation, and where it varies at all.

    These run for every layer at every step, so passes over (B, T, D) are few: a product with the mask instead of a
    second selection.
    """
    mean_BD = x_BTD.sum(1) / count_B1.clamp(min=1)
    centred_BTD = x_BTD.addcmul(keep_BT1.to(x_BTD.dtype), mean_BD.unsqueeze(1), value=-1)
    variance_BD = _mean_square(centred_BTD, count_B1)
    # A constant channel has the variance of rounding, not zero: judge it against the channel's own size.
    rounding_BD = (8 * torch.finfo(x_BTD.dtype).eps) ** 2 * mean_BD.square()
    varies_BD = variance_BD > rounding_BD
    # Without eps the gradient of the root at 0 is infinite and survives the later mask as NaN.
    return centred_BTD, (variance_BD + _EPS).rsqrt(), varies_BD


def _mean_square(x_BTD: Tensor, count_B1: Tensor) -> Tensor:
    return x_BTD.square().sum(1) / count_B1.clamp(min=1)


def correlation_distance(student_NM: Tensor, teacher_NM: Tensor) -> Tensor:
    """1 - mean Pearson correlation of the rows for which it is defined, 0 if there is none.

    Example::

        correlation_distance(cosines_of_student_BB, cosines_of_teacher_BB).backward()
    """
    num_columns = student_NM.shape[1]
    keep = torch.ones(1, num_columns, 1, dtype=torch.bool, device=student_NM.device)
    count = keep.sum(1)
    # rows as channels of one sample
    student_1MN, student_scale_1N, student_varies_1N = _centred(student_NM.T.unsqueeze(0), keep, count)
    teacher_1MN, teacher_scale_1N, teacher_varies_1N = _centred(teacher_NM.T.unsqueeze(0), keep, count)
    distance_1N = 1 - (student_1MN * teacher_1MN).mean(1) * student_scale_1N * teacher_scale_1N
    return _mean_where(distance_1N, student_varies_1N & teacher_varies_1N)


def _mean_where(values: Tensor, valid: Tensor) -> Tensor:
    return values.masked_fill(~valid, 0).sum() / valid.sum().clamp(min=1)
