"""The six candidate blocks of ELM as plain modules: BERT and MobileBERT, each with three ways to share projections.

Shapes: B batch, T tokens (Tq queries, Tk keys), D hidden, W width the block works at, H heads, K head_dim, F ffn.
Source: ELM (arXiv 2510.27037, section 3), BERT (arXiv 1810.04805), MobileBERT (arXiv 2004.02984, section 3).
A new block is one class here and one line in ``BLOCKS``.
"""

from typing import Any, ClassVar, Literal

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

Sharing = Literal["qv", "kv"] | None


class NoNorm(nn.Module):
    """Scale and shift of each channel, without statistics (MobileBERT, arXiv 2004.02984, section 3.3).

    Example:
        >>> NoNorm(4)(torch.ones(1, 2, 4)).shape
        torch.Size([1, 2, 4])
    """

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, hidden_BTW: torch.Tensor) -> torch.Tensor:
        return hidden_BTW * self.weight + self.bias


class FeedForward(nn.Module):
    """Two linear layers with an activation between: ``width -> ffn_size -> width``.

    ``up`` gives the pre-activations that the PCA score observes. ``activation`` is a name known to transformers.

    Example:
        >>> FeedForward(8, 16, "gelu")(torch.zeros(1, 2, 8)).shape
        torch.Size([1, 2, 8])
    """

    def __init__(self, width: int, ffn_size: int, activation: str):
        super().__init__()
        self.up = nn.Linear(width, ffn_size)
        self.activation = ACT2FN[activation]
        self.down = nn.Linear(ffn_size, width)

    def forward(self, hidden_BTW: torch.Tensor) -> torch.Tensor:
        return self.down(self.activation(self.up(hidden_BTW)))


def init_weights(module: nn.Module, std: float) -> None:
    """Initialise one module as BERT does: matrices from N(0, std), biases zero, norms one and zero.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> init_weights(layer, 0.02)
    """
    if isinstance(module, nn.Linear):
        init.normal_(module.weight, mean=0.0, std=std)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        init.normal_(module.weight, mean=0.0, std=std)
    elif isinstance(module, nn.LayerNorm | NoNorm):
        init.ones_(module.weight)
        init.zeros_(module.bias)


def eager_attention(
    module: nn.Module,
    query_BHTK: torch.Tensor,
    key_BHTK: torch.Tensor,
    value_BHTK: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    dropout: float,
    is_causal: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention that returns its weights too: ``(context_BTHK, weights_BHTT)``.

    ``attention_mask`` is boolean (true: may be seen) of a shape that broadcasts to ``(B, H, Tq, Tk)``, or None. Without
    a mask, ``is_causal`` hides later keys.
    """
    scores_BHTT = query_BHTK @ key_BHTK.transpose(2, 3) * scaling
    if attention_mask is None and is_causal:
        num_queries, num_keys = scores_BHTT.shape[-2:]
        ones = torch.ones(num_queries, num_keys, dtype=torch.bool, device=scores_BHTT.device)
        attention_mask = ones.tril(num_keys - num_queries)
    if attention_mask is not None:
        scores_BHTT = scores_BHTT.masked_fill(~attention_mask, torch.finfo(scores_BHTT.dtype).min)
    weights_BHTT = scores_BHTT.softmax(dim=-1)
    dropped_BHTT = nn.functional.dropout(weights_BHTT, p=dropout, training=module.training)
    return (dropped_BHTT @ value_BHTK).transpose(1, 2), weights_BHTT


class Attention(nn.Module):
    """Multi-head attention with its output projection, residual and norm.

    Queries, keys and values read the full hidden width; the output works at ``width``. A shared projection is one
    Linear under one name (``query_value`` or ``key_value``). The input of ``output`` is the heads' context
    ``(B, T, H * K)`` in head order.

    Args:
        config: Gives the hidden size, dropouts, attention implementation and the causal flag.
        width: Width of the output, of the residual and of the norm.
        num_heads: Number of heads.
        head_dim: Channels of one head; ``num_heads * head_dim`` need not be ``width``.
        sharing: ``"qv"``, ``"kv"`` or None.
        norm: The norm behind the residual.
    """

    # Those that `projection_names` lists for the sharing at hand exist.
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    query_value: nn.Linear
    key_value: nn.Linear

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        width: int,
        num_heads: int,
        head_dim: int,
        sharing: Sharing,
        norm: nn.Module,
    ):
        super().__init__()
        self.config = config
        self.head_dim = head_dim
        self.sharing = sharing
        self.is_causal = config.is_causal
        self.scaling = head_dim**-0.5
        self.dropout_prob = config.attention_probs_dropout_prob
        inner = num_heads * head_dim
        for name in projection_names(sharing):
            setattr(self, name, nn.Linear(config.hidden_size, inner))
        self.output = nn.Linear(inner, width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.norm = norm
        # A list while `recorded_attentions` collects the weights, else None.
        self.recorded: list[torch.Tensor] | None = None

    def project(self, hidden_BTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, each ``(B, H, T, K)``."""
        if self.sharing == "qv":
            query_BHTK = value_BHTK = self._heads(self.query_value(hidden_BTD))
            return query_BHTK, self._heads(self.key(hidden_BTD)), value_BHTK
        if self.sharing == "kv":
            key_BHTK = value_BHTK = self._heads(self.key_value(hidden_BTD))
            return self._heads(self.query(hidden_BTD)), key_BHTK, value_BHTK
        query_BHTK, key_BHTK = self._heads(self.query(hidden_BTD)), self._heads(self.key(hidden_BTD))
        return query_BHTK, key_BHTK, self._heads(self.value(hidden_BTD))

    def _heads(self, projected: torch.Tensor) -> torch.Tensor:
        return projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(
        self,
        hidden_BTD: torch.Tensor,
        residual_BTW: torch.Tensor,
        mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        layer_idx: int = 0,
    ) -> torch.Tensor:
        query_BHTK, key_BHTK, value_BHTK = self.project(hidden_BTD)
        if cache is not None:
            key_BHTK, value_BHTK = cache.update(key_BHTK, value_BHTK, layer_idx)
        # A config that no transformers model has touched (a search space's) names no implementation.
        implementation = self.config._attn_implementation or "sdpa"
        if self.recorded is not None or implementation == "eager":
            attend: Any = eager_attention
        else:
            attend = ALL_ATTENTION_FUNCTIONS[implementation]
        context_BTHK, weights_BHTT = attend(
            self,
            query_BHTK,
            key_BHTK,
            value_BHTK,
            mask,
            scaling=self.scaling,
            dropout=self.dropout_prob if self.training else 0.0,
            is_causal=self.is_causal,
        )
        if self.recorded is not None:
            self.recorded.append(weights_BHTT)
        return self.norm(residual_BTW + self.dropout(self.output(context_BTHK.flatten(2))))


def projection_names(sharing: Sharing) -> tuple[str, ...]:
    """Names of the input projections: a shared one is one Linear under one name.

    Example:
        >>> projection_names("kv")
        ('query', 'key_value')
    """
    return {None: ("query", "key", "value"), "qv": ("query_value", "key"), "kv": ("query", "key_value")}[sharing]


def _linear_parameters(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


class Block(GradientCheckpointingLayer):
    """What every candidate block offers; ``BertBlock`` and ``MobileBlock`` are the two families.

    ``forward(hidden_BTD, mask, cache, layer_idx)`` gives one tensor ``(B, T, D)``. ``attention`` gives the
    attention-block output (behind residual and norm), ``ffn`` is the feed-forward module. ``sharing`` says which
    projections are one.

    Args:
        config: ``hidden_size``, ``bottleneck_size``, dropouts, ``layer_norm_eps``, attention implementation and
            ``is_causal`` are read, nothing else.
        ffn_size: Width of the feed-forward; passed on untouched, so it may be a mutable expression.
        num_heads: Number of heads.
        head_dim: Channels of one head.
        feed_forward: Class that is called as ``feed_forward(width, ffn_size, activation)``.
    """

    sharing: ClassVar[Sharing] = None
    activation: ClassVar[str]
    attention: Attention
    ffn: nn.Module

    @classmethod
    def attention_width(cls, config: PreTrainedConfig) -> int:
        """Width of the attention-block output and of the feed-forward."""
        raise NotImplementedError

    @classmethod
    def num_parameters(cls, config: PreTrainedConfig, *, ffn_size: int, num_heads: int, head_dim: int) -> int:
        """Exact number of parameters of such a block, without building it."""
        width = cls.attention_width(config)
        inner = num_heads * head_dim
        projections = len(projection_names(cls.sharing)) * _linear_parameters(config.hidden_size, inner)
        feed_forward = _linear_parameters(width, ffn_size) + _linear_parameters(ffn_size, width)
        # Two norms, each with a weight and a bias.
        return projections + _linear_parameters(inner, width) + feed_forward + 4 * width


class BertBlock(Block):
    """BERT layer with LayerNorm behind each residual; attention and feed-forward work at the hidden width (GELU).

    Example:
        >>> block = BertBlock(ElmConfig(hidden_size=8), ffn_size=16, num_heads=2, head_dim=4)
        >>> block(torch.zeros(1, 3, 8), None, None, 0).shape
        torch.Size([1, 3, 8])
    """

    activation = "gelu"

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        ffn_size: int,
        num_heads: int,
        head_dim: int,
        feed_forward: type[nn.Module] = FeedForward,
    ):
        super().__init__()
        width = self.attention_width(config)
        self.attention = Attention(
            config,
            width=width,
            num_heads=num_heads,
            head_dim=head_dim,
            sharing=self.sharing,
            norm=nn.LayerNorm(width, eps=config.layer_norm_eps),
        )
        self.ffn = feed_forward(width, ffn_size, self.activation)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    @classmethod
    def attention_width(cls, config: PreTrainedConfig) -> int:
        return config.hidden_size

    def forward(
        self,
        hidden_BTD: torch.Tensor,
        mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        layer_idx: int = 0,
    ) -> torch.Tensor:
        attended_BTD = self.attention(hidden_BTD, hidden_BTD, mask, cache, layer_idx)
        return self.norm(attended_BTD + self.dropout(self.ffn(attended_BTD)))


class BertQVBlock(BertBlock):
    """``BertBlock`` in which query and value share one projection."""

    sharing = "qv"


class BertKVBlock(BertBlock):
    """``BertBlock`` in which key and value share one projection."""

    sharing = "kv"


class MobileBlock(Block):
    """MobileBERT layer: attention and feed-forward at the bottleneck width, ReLU, NoNorm, an outer residual.

    Queries, keys and values read the full hidden width.

    Example:
        >>> block = MobileBlock(ElmConfig(hidden_size=8, bottleneck_size=4), ffn_size=16, num_heads=2, head_dim=2)
        >>> block(torch.zeros(1, 3, 8), None, None, 0).shape
        torch.Size([1, 3, 8])
    """

    activation = "relu"

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        ffn_size: int,
        num_heads: int,
        head_dim: int,
        feed_forward: type[nn.Module] = FeedForward,
    ):
        super().__init__()
        width = self.attention_width(config)
        self.bottleneck_in = nn.Linear(config.hidden_size, width)
        self.bottleneck_in_norm = NoNorm(width)
        self.attention = Attention(
            config,
            width=width,
            num_heads=num_heads,
            head_dim=head_dim,
            sharing=self.sharing,
            norm=NoNorm(width),
        )
        self.ffn = feed_forward(width, ffn_size, self.activation)
        self.ffn_norm = NoNorm(width)
        self.bottleneck_out = nn.Linear(width, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.norm = NoNorm(config.hidden_size)

    @classmethod
    def attention_width(cls, config: PreTrainedConfig) -> int:
        return config.bottleneck_size

    @classmethod
    def num_parameters(cls, config: PreTrainedConfig, *, ffn_size: int, num_heads: int, head_dim: int) -> int:
        width, hidden = cls.attention_width(config), config.hidden_size
        inner = super().num_parameters(config, ffn_size=ffn_size, num_heads=num_heads, head_dim=head_dim)
        return inner + _linear_parameters(hidden, width) + 2 * width + _linear_parameters(width, hidden) + 2 * hidden

    def forward(
        self,
        hidden_BTD: torch.Tensor,
        mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        layer_idx: int = 0,
    ) -> torch.Tensor:
        narrow_BTW = self.bottleneck_in_norm(self.bottleneck_in(hidden_BTD))
        attended_BTW = self.attention(hidden_BTD, narrow_BTW, mask, cache, layer_idx)
        narrow_BTW = self.ffn_norm(attended_BTW + self.dropout(self.ffn(attended_BTW)))
        return self.norm(hidden_BTD + self.dropout(self.bottleneck_out(narrow_BTW)))


class MobileQVBlock(MobileBlock):
    """``MobileBlock`` in which query and value share one projection."""

    sharing = "qv"


class MobileKVBlock(MobileBlock):
    """``MobileBlock`` in which key and value share one projection."""

    sharing = "kv"


BLOCKS: dict[str, type[Block]] = {
    "bert": BertBlock,
    "bert_qv": BertQVBlock,
    "bert_kv": BertKVBlock,
    "mobile": MobileBlock,
    "mobile_qv": MobileQVBlock,
    "mobile_kv": MobileKVBlock,
}
