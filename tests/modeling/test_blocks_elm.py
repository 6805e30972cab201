"""One block against an independent computation written from the papers, with plain tensor operations."""

import pytest
import torch
from torch import nn

from elm_nni.modeling import BLOCKS, ElmConfig, FeedForward, MobileBlock, NoNorm, init_weights

HEADS, HEAD_DIM, FFN = 3, 5, 14


def build(name: str, make_config, randomise, **settings: object) -> nn.Module:
    block = BLOCKS[name](make_config(**settings), ffn_size=FFN, num_heads=HEADS, head_dim=HEAD_DIM)
    return randomise(block).double()


def linear(weights: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return torch.einsum("bti,oi->bto", x, weights[f"{name}.weight"]) + weights[f"{name}.bias"]


def layer_norm(weights: dict[str, torch.Tensor], name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weights[f"{name}.weight"]
        + weights[f"{name}.bias"]
    )


def no_norm(weights: dict[str, torch.Tensor], name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def context(weights: dict[str, torch.Tensor], names: tuple[str, str, str], x: torch.Tensor, mask) -> torch.Tensor:
    """Head by head, row by row of the batch."""
    query, key, value = (linear(weights, f"attention.{name}", x) for name in names)
    heads = []
    for head in range(HEADS):
        part = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        scores = query[..., part] @ key[..., part].transpose(1, 2) / HEAD_DIM**0.5
        if mask is not None:
            scores[~mask] = float("-inf")
        exponentials = scores.exp()
        heads.append(exponentials / exponentials.sum(-1, keepdim=True) @ value[..., part])
    return torch.cat(heads, dim=-1)


def reference(name: str, weights: dict[str, torch.Tensor], x: torch.Tensor, mask, eps: float) -> torch.Tensor:
    names = {
        "": ("query", "key", "value"),
        "qv": ("query_value", "key", "query_value"),
        "kv": ("query", "key_value", "key_value"),
    }[name.partition("_")[2]]
    mixed = linear(weights, "attention.output", context(weights, names, x, mask))
    if name.startswith("bert"):
        attended = layer_norm(weights, "attention.norm", x + mixed, eps)
        inner = linear(weights, "ffn.up", attended)
        inner = 0.5 * inner * (1 + torch.erf(inner / 2**0.5))
        return layer_norm(weights, "norm", attended + linear(weights, "ffn.down", inner), eps)
    narrow = no_norm(weights, "bottleneck_in_norm", linear(weights, "bottleneck_in", x), eps)
    attended = no_norm(weights, "attention.norm", narrow + mixed, eps)
    inner = linear(weights, "ffn.up", attended).clamp(min=0)
    narrow = no_norm(weights, "ffn_norm", attended + linear(weights, "ffn.down", inner), eps)
    return no_norm(weights, "norm", x + linear(weights, "bottleneck_out", narrow), eps)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", BLOCKS)
def test_block_equals_independent_computation(name: str, implementation: str, make_config, randomise) -> None:
    block = build(name, make_config, randomise, attn_implementation=implementation)
    hidden = torch.randn(2, 6, 24, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 6, 6, dtype=torch.bool).tril()
    mask[1, :, 0] = False
    mask[1, 0, 0] = True
    for given in (None, mask):
        got = block(hidden, None if given is None else given[:, None], None, 0)
        expected = reference(name, dict(block.state_dict()), hidden, given, eps=1e-12)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", BLOCKS)
def test_output_projection_reads_the_context_in_head_order(name: str, make_config, randomise) -> None:
    block = build(name, make_config, randomise)
    hidden = torch.randn(1, 4, 24, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    seen: list[torch.Tensor] = []
    block.attention.output.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    block(hidden, None, None, 0)
    names = {None: ("query", "key", "value"), "qv": ("query_value", "key", "query_value")}.get(
        block.sharing, ("query", "key_value", "key_value")
    )
    torch.testing.assert_close(seen[0], context(dict(block.state_dict()), names, hidden, None))


@pytest.mark.parametrize("name", BLOCKS)
def test_attention_gives_one_tensor_of_the_attention_width(name: str, make_config) -> None:
    config = make_config()
    block = BLOCKS[name](config, ffn_size=FFN, num_heads=HEADS, head_dim=HEAD_DIM)
    seen: list[torch.Tensor] = []
    block.attention.register_forward_hook(lambda module, args, output: seen.append(output))
    output = block(torch.zeros(1, 4, 24), None, None, 0)
    assert output.shape == (1, 4, 24)
    assert seen[0].shape == (1, 4, block.attention_width(config))
    assert block.attention_width(config) == (12 if name.startswith("mobile") else 24)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize(("ffn_size", "num_heads", "head_dim"), [(1, 1, 1), (14, 3, 5), (48, 12, 2)])
def test_analytic_parameter_count(name: str, ffn_size: int, num_heads: int, head_dim: int, make_config) -> None:
    sizes = {"ffn_size": ffn_size, "num_heads": num_heads, "head_dim": head_dim}
    block = BLOCKS[name](make_config(), **sizes)
    assert BLOCKS[name].num_parameters(make_config(), **sizes) == sum(p.numel() for p in block.parameters())


def test_published_parameter_counts() -> None:
    """Figures of the ELM search space at hidden 528, bottleneck 132, feed-forward 132."""
    config = ElmConfig()

    def count(name: str, ffn_size: int) -> int:
        head_dim = 11 if name.startswith("mobile") else 44
        return BLOCKS[name].num_parameters(config, ffn_size=ffn_size, num_heads=12, head_dim=head_dim)

    embeddings = 4_382_544
    assert round((embeddings + 12 * count("bert", 132)) / 1e6, 2) == 19.50
    assert round((embeddings + 12 * sum(count(name, 132) for name in BLOCKS) / 6) / 1e6, 2) == 12.97
    assert round((embeddings + 12 * sum(count(name, 792) for name in BLOCKS) / 6) / 1e6, 2) == 18.20
    assert count("bert_qv", 264) - count("bert_qv", 132) == 139_524
    assert count("mobile_kv", 264) - count("mobile_kv", 132) == 34_980


def test_a_shared_projection_is_one_linear_under_one_name(make_config) -> None:
    names = {}
    for name, block_class in BLOCKS.items():
        block = block_class(make_config(), ffn_size=FFN, num_heads=HEADS, head_dim=HEAD_DIM)
        names[name] = {key for key, _ in block.attention.named_children()} - {"output", "dropout", "norm"}
        assert len(list(block.parameters())) == len(block.state_dict())
    assert names["bert"] == names["mobile"] == {"query", "key", "value"}
    assert names["bert_qv"] == names["mobile_qv"] == {"query_value", "key"}
    assert names["bert_kv"] == names["mobile_kv"] == {"query", "key_value"}


def test_feed_forward_class_is_called_positionally_with_the_size_untouched(make_config) -> None:
    class Size:
        """Stands for a mutable expression: no arithmetic, no comparison."""

    calls = []

    class Recording(nn.Module):
        def __init__(self, *args: object):
            super().__init__()
            calls.append(args)

    size = Size()
    for block_class in BLOCKS.values():
        block = block_class(make_config(), ffn_size=size, num_heads=1, head_dim=2, feed_forward=Recording)
        assert isinstance(block.ffn, Recording)
    assert calls == [(24, size, "gelu")] * 3 + [(12, size, "relu")] * 3


def test_feed_forward_up_gives_pre_activations() -> None:
    ffn = FeedForward(4, 6, "relu")
    hidden = torch.randn(2, 3, 4)
    torch.testing.assert_close(ffn(hidden), ffn.down(ffn.up(hidden).relu()))


def test_dropout_acts_in_training_only(make_config) -> None:
    block = MobileBlock(make_config(hidden_dropout_prob=0.5), ffn_size=8, num_heads=2, head_dim=4)
    hidden = torch.randn(1, 4, 24)
    assert not torch.equal(block.train()(hidden), block(hidden))
    assert torch.equal(block.eval()(hidden), block(hidden))


@pytest.mark.parametrize("norm", [NoNorm(4), nn.LayerNorm(4)])
def test_init_weights_resets_norms(norm: nn.Module, randomise) -> None:
    """As after a load on the meta device, where the constructor's values are lost."""
    randomise(norm)
    with torch.no_grad():
        init_weights(norm, 0.02)
    assert torch.equal(norm.weight, torch.ones(4))
    assert torch.equal(norm.bias, torch.zeros(4))
