"""Floating-point operations of a forward pass, counted by torch on the meta device."""

from __future__ import annotations

import copy

import torch
from torch.utils.flop_counter import FlopCounterMode

from elm_nni.errors import UserError
from elm_nni.modeling.configuration_elm import ElmConfig
from elm_nni.modeling.modeling_elm import ElmModel


def count_flops(config: ElmConfig, *, batch_size: int = 1, sequence_length: int) -> int:
    """Operations of the matrix products of one forward pass, no task head; 1 MAC = 2 FLOPs.

    Element-wise work (norms, softmax, activations) and table look-ups count nothing. Padding counts like tokens.

    Args:
        config: The model; it is not changed.
        batch_size: Sequences.
        sequence_length: Tokens of each, at most ``config.max_position_embeddings``.

    Raises:
        UserError: A size below one, or too long a sequence.

    Example:
        >>> layer = {"block": "bert", "ffn_size": 8, "num_heads": 2, "head_dim": 4}
        >>> count_flops(ElmConfig(hidden_size=8, embedding_size=4, layers=[layer]), sequence_length=2)
        2048
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size!r}; it must be at least 1")
    if not 1 <= sequence_length <= config.max_position_embeddings:
        raise UserError(
            f"sequence_length is {sequence_length!r}; it must be from 1 to max_position_embeddings = "
            f"{config.max_position_embeddings}"
        )
    config = copy.deepcopy(config)
    # The configured attention may be a kernel that this machine lacks; eager attention is plain products anywhere.
    config._attn_implementation = "eager"
    with torch.device("meta"), torch.inference_mode():
        model = ElmModel(config).eval()
        input_ids_BT = torch.zeros(batch_size, sequence_length, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            model(input_ids_BT)
    return counter.get_total_flops()
