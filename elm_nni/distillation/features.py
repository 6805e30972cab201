"""What a model shows to the feature losses.

Shape suffixes: B batch, T tokens, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Features:
    """Embedding output, layer outputs and attention-block outputs of one forward, of a student or a teacher.

    Attributes:
        embedding_BTD: output of the embeddings, None if it is not to be compared.
        hidden: output of each layer, (B, T, D), first layer first.
        attention: output of each layer's attention block after the residual connection, (B, T, D) with a width
            that may differ between layers; None where the model shows none.
    """

    embedding_BTD: Tensor | None
    hidden: list[Tensor]
    attention: list[Tensor] | None = None
