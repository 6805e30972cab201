"""Counted operations against formulas written out by hand."""

from __future__ import annotations

import pytest

from elm_nni.cost.flops import count_flops
from elm_nni.errors import UserError
from elm_nni.modeling import ElmConfig

D, W, E, F, H, K = 24, 8, 10, 18, 3, 5


def config(block: str) -> ElmConfig:
    layer = {"block": block, "ffn_size": F, "num_heads": H, "head_dim": K}
    return ElmConfig(
        vocab_size=30, hidden_size=D, bottleneck_size=W, embedding_size=E, layers=[layer], max_position_embeddings=16
    )


def by_hand(block: str, batch_size: int, tokens: int) -> int:
    """Multiply-accumulates of a token, then of all pairs of tokens, twice."""
    num_projections = 3 if "_" not in block else 2
    width = D if block.startswith("bert") else W
    bottleneck = 0 if block.startswith("bert") else 2 * D * W
    a_token = 3 * E * D + num_projections * D * H * K + H * K * width + 2 * width * F + bottleneck
    pairs = 2 * H * K * tokens * tokens
    return 2 * batch_size * (tokens * a_token + pairs)


@pytest.mark.parametrize("block", ["bert", "bert_qv", "mobile", "mobile_kv"])
@pytest.mark.parametrize(("batch_size", "tokens"), [(1, 7), (3, 16)])
def test_against_the_formula(block: str, batch_size: int, tokens: int) -> None:
    expected = by_hand(block, batch_size, tokens)
    assert count_flops(config(block), batch_size=batch_size, sequence_length=tokens) == expected


def test_the_configured_attention_need_not_exist_here_and_is_left_alone() -> None:
    given = config("bert")
    given._attn_implementation = "flash_attention_2"
    assert count_flops(given, sequence_length=4) == by_hand("bert", 1, 4)
    assert given._attn_implementation == "flash_attention_2"


def test_sizes_out_of_range() -> None:
    with pytest.raises(UserError, match="max_position_embeddings = 16"):
        count_flops(config("bert"), sequence_length=17)
    with pytest.raises(UserError, match="sequence_length is 0"):
        count_flops(config("bert"), sequence_length=0)
    with pytest.raises(UserError, match="batch_size is 0"):
        count_flops(config("bert"), batch_size=0, sequence_length=4)
