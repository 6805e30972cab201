"""Mean and covariance of a stream of feature vectors, exact over batches and over processes.

Shape suffixes: F features; ``..`` any leading dimensions (batch, tokens).
"""

from __future__ import annotations

import torch
from torch import Tensor


class StreamingCovariance:
    """Count, mean and scatter of all samples seen so far, in float64.

    Batches are centred before their outer products are summed (Chan, Golub and LeVeque, 1983), so a large common
    offset costs no digits, and any split of the samples into batches or accumulators gives the same result.
    Nothing here waits for a GPU until a result is read.

    Example::

        covariance = StreamingCovariance(132)
        covariance.update(hidden_BTF, mask_BT).covariance()   # (132, 132)
    """

    def __init__(self, num_features: int) -> None:
        if num_features < 1:
            raise ValueError(f"num_features={num_features}: must be at least 1")
        self.num_features = num_features
        self.reset()

    def reset(self) -> None:
        """Forget every sample."""
        self._count = torch.zeros((), dtype=torch.float64)
        self._mean_F = torch.zeros(self.num_features, dtype=torch.float64)
        self._scatter_FF = torch.zeros(self.num_features, self.num_features, dtype=torch.float64)

    @property
    def count(self) -> int:
        """Number of samples seen, padding not counted."""
        return int(self._count)

    @torch.no_grad()
    def update(self, x: Tensor, mask: Tensor | None = None) -> StreamingCovariance:
        """Add samples and return the accumulator.

        Args:
            x: (.., F), any floating type; the state follows its device.
            mask: (..), true or 1 for valid samples. Values at left-out samples are never read, NaN included;
                a batch without a valid sample changes nothing.

        Raises:
            ValueError: the last dimension is not ``num_features``, or the mask's shape is not that of the samples.
        """
        if x.shape[-1] != self.num_features:
            raise ValueError(f"x has {x.shape[-1]} features: must be num_features={self.num_features}")
        if mask is not None and mask.shape != x.shape[:-1]:
            raise ValueError(f"mask has shape {tuple(mask.shape)}: must be {tuple(x.shape[:-1])}")
        x_NF = x.detach().reshape(-1, self.num_features).to(torch.float64)
        if mask is None:
            keep_N1 = torch.ones(len(x_NF), 1, dtype=torch.bool, device=x.device)
        else:
            keep_N1 = mask.reshape(-1, 1).to(device=x.device, dtype=torch.bool)
        count = keep_N1.sum().to(torch.float64)
        mean_F = x_NF.masked_fill(~keep_N1, 0).sum(0) / count.clamp(min=1)
        centred_NF = (x_NF - mean_F).masked_fill(~keep_N1, 0)
        self._add(count, mean_F, centred_NF.T @ centred_NF)
        return self

    def merge(self, other: StreamingCovariance) -> StreamingCovariance:
        """Add the samples of another accumulator, as if this one had seen them, and return this one.

        Raises:
            ValueError: the two differ in ``num_features``.
        """
        if other.num_features != self.num_features:
            raise ValueError(f"other has num_features={other.num_features}: must be {self.num_features}")
        self._add(other._count, other._mean_F, other._scatter_FF)
        return self

    def mean(self) -> Tensor:
        """The mean, (F,) float64.

        Raises:
            ValueError: no sample was seen.
        """
        if self.count < 1:
            raise ValueError("mean of 0 samples: at least 1 is needed")
        return self._mean_F.clone()

    def covariance(self) -> Tensor:
        """The unbiased covariance (divided by count - 1), (F, F) float64.

        Raises:
            ValueError: fewer than two samples were seen.
        """
        if self.count < 2:
            raise ValueError(f"covariance of {self.count} samples: at least 2 are needed")
        return self._scatter_FF / (self._count - 1)

    def state_dict(self) -> dict[str, Tensor]:
        """The whole state as tensors: ``count`` (), ``mean`` (F,), ``scatter`` (F, F)."""
        return {"count": self._count.clone(), "mean": self._mean_F.clone(), "scatter": self._scatter_FF.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over a state from :meth:`state_dict`.

        Raises:
            ValueError: the state is of another ``num_features``.
        """
        if state["mean"].shape != (self.num_features,):
            raise ValueError(f"state has num_features={len(state['mean'])}: must be {self.num_features}")
        self._count, self._mean_F, self._scatter_FF = (
            state[name].detach().to(torch.float64).clone() for name in ("count", "mean", "scatter")
        )

    def _add(self, count: Tensor, mean_F: Tensor, scatter_FF: Tensor) -> None:
        device = mean_F.device
        own_count, own_mean_F = self._count.to(device), self._mean_F.to(device)
        total = own_count + count
        delta_F = mean_F - own_mean_F
        # clamp: with no samples on either side every term below is zero anyway
        share = count / total.clamp(min=1)
        between_FF = torch.outer(delta_F, delta_F) * (own_count * share)
        self._scatter_FF = self._scatter_FF.to(device) + scatter_FF + between_FF
        self._mean_F = own_mean_F + delta_F * share
        self._count = total
