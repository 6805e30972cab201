"""ProxylessNAS over blocks that take more than one tensor.

Shape suffixes: B batch, T tokens, D hidden.
"""

from __future__ import annotations

from typing import Any

from nni.nas.oneshot.pytorch.supermodule.proxyless import ProxylessMixedLayer, _ProxylessFunction
from torch import Tensor


class BlockProxylessLayer(ProxylessMixedLayer):
    """NNI's layer saves every argument as a tensor for the backward pass; here only the first one is such a tensor."""

    def forward(self, hidden_BTD: Tensor, *others: Any) -> Tensor:
        """The block of the sampled path; ``others`` (mask, cache, layer number) are passed on as they are."""
        if self._sample_idx is None:
            raise RuntimeError("resample() needs to be called before forward()")

        def run(index: int, hidden_BTD: Tensor) -> Tensor:
            output_BTD: Tensor = self.forward_path(index, hidden_BTD, *others)
            return output_BTD

        output_BTD = run(self._sample_idx, hidden_BTD)
        passed_BTD: Tensor = _ProxylessFunction.apply(
            run, self._sample_idx, 1, self._softmax, self._arch_alpha, hidden_BTD, output_BTD
        )
        return passed_BTD
