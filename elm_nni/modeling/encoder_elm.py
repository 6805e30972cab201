"""From token ids to hidden states: trigram embedding, masks, the cache and the pass through the layers.

Shapes: B batch, T tokens (Tq queries, Tk keys), E embedding, D hidden, H heads, K head_dim.
``documents_BT`` numbers the documents of a row from 1; 0 is padding. A row without packing is one document.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import nn
from transformers.cache_utils import DynamicCache
from transformers.configuration_utils import PreTrainedConfig

from .blocks_elm import Attention, Block

# Tokens that a causal embedding looks back at.
CAUSAL_CONTEXT = 2


class Encoded(NamedTuple):
    """What ``encode`` gives: ``hidden_states`` (embeddings and each layer) and ``attentions`` only when asked for."""

    last_hidden_state: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...] | None
    attentions: tuple[torch.Tensor, ...] | None


class ElmCache(DynamicCache):
    """Keys and values of the past, with the token ids and documents that the trigram embedding and the mask look at.

    ``token_ids_BT`` and ``documents_BT`` cover all past tokens, so cropping keeps them right; document 0 is padding.

    Example:
        >>> cache = ElmCache()
        >>> model(input_ids, past_key_values=cache).past_key_values is cache
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self.token_ids_BT: torch.Tensor | None = None
        self.documents_BT: torch.Tensor | None = None

    def append(self, token_ids_BT: torch.Tensor, documents_BT: torch.Tensor) -> torch.Tensor:
        """Add the tokens of a step and return all token ids.

        ``documents_BT`` covers past and new tokens and replaces what was there.
        """
        past = [] if self.token_ids_BT is None else [self.token_ids_BT]
        self.token_ids_BT = torch.cat([*past, token_ids_BT], dim=1)
        self.documents_BT = documents_BT
        return self.token_ids_BT

    def _select(self, rows: torch.Tensor) -> None:
        if self.token_ids_BT is not None and self.documents_BT is not None:
            self.token_ids_BT = self.token_ids_BT[rows.to(self.token_ids_BT.device)]
            self.documents_BT = self.documents_BT[rows.to(self.documents_BT.device)]

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep row ``beam_idx[b]`` as the new row b."""
        super().reorder_cache(beam_idx)
        self._select(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep only these rows."""
        super().batch_select_indices(indices)
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row ``repeats`` times."""
        super().batch_repeat_interleave(repeats)
        if self.token_ids_BT is not None:
            self._select(torch.arange(self.token_ids_BT.shape[0]).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; ``tokens_to_remove`` is zero or negative, as transformers has it."""
        super().crop(tokens_to_remove)
        if tokens_to_remove and self.token_ids_BT is not None and self.documents_BT is not None:
            self.token_ids_BT = self.token_ids_BT[:, :tokens_to_remove]
            self.documents_BT = self.documents_BT[:, :tokens_to_remove]

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.token_ids_BT = self.documents_BT = None


class ElmEmbeddings(nn.Module):
    """Trigram embedding: three token vectors side by side, projected to the hidden width, plus position and segment.

    An encoder takes the previous, the current and the next token; a causal model the current and the previous two.
    A neighbour outside the sequence, in padding or in another document is a zero vector, so padded and unpadded
    outputs agree (MobileBERT, arXiv 2004.02984, section 3.2).

    Example:
        >>> embeddings = ElmEmbeddings(ElmConfig(hidden_size=8))
        >>> ids = torch.tensor([[5, 6, 7]])
        >>> embeddings(ids, torch.ones_like(ids), torch.zeros_like(ids), torch.arange(3)[None]).shape
        torch.Size([1, 3, 8])
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.offsets = (-2, -1, 0) if config.is_causal else (-1, 0, 1)
        # No padding_idx: where padding and the end of a text are one token, it would freeze a token in use.
        self.tokens = nn.Embedding(config.vocab_size, config.embedding_size)
        self.projection = nn.Linear(len(self.offsets) * config.embedding_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.segments = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    @classmethod
    def num_parameters(cls, config: PreTrainedConfig) -> int:
        """Exact number of parameters: token table, projection, positions, segments and norm."""
        rows = 3 * config.embedding_size + 1 + config.max_position_embeddings + config.type_vocab_size + 2
        return config.vocab_size * config.embedding_size + rows * config.hidden_size

    def forward(
        self,
        input_ids_BT: torch.Tensor,
        documents_BT: torch.Tensor,
        token_type_ids_BT: torch.Tensor,
        position_ids_BT: torch.Tensor,
    ) -> torch.Tensor:
        """Embed the last T tokens, ``(B, T, D)``.

        ``input_ids_BT`` and ``documents_BT`` may begin with tokens of the past that only serve as neighbours: T is
        the length of ``position_ids_BT``.
        """
        vectors_BTE = self.tokens(input_ids_BT)
        neighbours = [_neighbour(vectors_BTE, documents_BT, offset) for offset in self.offsets]
        trigram_BTE = torch.cat(neighbours, dim=-1)[:, -position_ids_BT.shape[1] :]
        hidden_BTD = self.projection(trigram_BTE) + self.positions(position_ids_BT) + self.segments(token_type_ids_BT)
        return self.dropout(self.norm(hidden_BTD))


def _neighbour(vectors_BTE: torch.Tensor, documents_BT: torch.Tensor, offset: int) -> torch.Tensor:
    """The vector of token ``t + offset`` at each t, zero unless it lies in the same document."""
    num_tokens = documents_BT.shape[1]
    before, after = max(-offset, 0), max(offset, 0)
    shifted_BTE = nn.functional.pad(vectors_BTE, (0, 0, before, after))[:, after : after + num_tokens]
    shifted_BT = nn.functional.pad(documents_BT, (before, after))[:, after : after + num_tokens]
    same_BT = (shifted_BT == documents_BT) & (documents_BT > 0)
    return shifted_BTE * same_BT[..., None].to(shifted_BTE.dtype)


def document_positions(documents_BT: torch.Tensor, *, packed: bool) -> torch.Tensor:
    """Position of each token among the valid ones of its row, or of its document when ``packed``.

    Padding has some position of no meaning. The tokens of a document stand together.

    Example:
        >>> document_positions(torch.tensor([[0, 1, 1, 2, 2]]), packed=True)
        tensor([[0, 0, 1, 0, 1]])
    """
    index_BT = (documents_BT > 0).long().cumsum(dim=1) - 1
    if packed:
        previous_BT = nn.functional.pad(documents_BT, (1, 0))[:, :-1]
        starts_BT = torch.where(documents_BT != previous_BT, index_BT, 0)
        index_BT = index_BT - starts_BT.cummax(dim=1).values
    return index_BT.clamp(min=0)


def visible(documents_BTq: torch.Tensor, documents_BTk: torch.Tensor, *, is_causal: bool) -> torch.Tensor:
    """Boolean mask ``(B, 1, Tq, Tk)``, true where a query may see a key; the queries are the last Tq of the Tk tokens.

    Keys in padding, in another document or, when causal, later than the query are hidden. Each token sees itself:
    otherwise a query in padding would see nothing, which some kernels turn into NaN.

    Example:
        >>> visible(torch.tensor([[1, 0]]), torch.tensor([[1, 0]]), is_causal=False).long()
        tensor([[[[1, 0],
                  [0, 1]]]])
    """
    num_queries, num_keys = documents_BTq.shape[1], documents_BTk.shape[1]
    keys = torch.arange(num_keys, device=documents_BTk.device)
    queries = keys[num_keys - num_queries :, None]
    mask = (documents_BTq[:, :, None] == documents_BTk[:, None, :]) & (documents_BTk > 0)[:, None, :]
    if is_causal:
        mask = mask & (keys <= queries)
    return (mask | (keys == queries))[:, None]


@contextmanager
def recorded_attentions(layers: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect the attention weights ``(B, H, Tq, Tk)`` of every forward pass within.

    Meanwhile attention runs eagerly, since other implementations keep no weights, and nothing is checkpointed, since
    the second pass of a checkpoint would run outside.
    """
    weights: list[torch.Tensor] = []
    attentions = [module for module in layers.modules() if isinstance(module, Attention)]
    blocks = [module for module in layers.modules() if isinstance(module, Block)]
    checkpointed = [block for block in blocks if block.gradient_checkpointing]
    for attention in attentions:
        attention.recorded = weights
    for block in checkpointed:
        block.gradient_checkpointing = False
    try:
        yield weights
    finally:
        for attention in attentions:
            attention.recorded = None
        for block in checkpointed:
            block.gradient_checkpointing = True


def encode(
    embeddings: nn.Module,
    layers: nn.ModuleList,
    config: PreTrainedConfig,
    input_ids_BT: torch.Tensor,
    attention_mask_BT: torch.Tensor | None = None,
    token_type_ids_BT: torch.Tensor | None = None,
    document_ids_BT: torch.Tensor | None = None,
    *,
    position_ids_BT: torch.Tensor | None = None,
    cache: ElmCache | None = None,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
) -> Encoded:
    """Run embeddings and layers; the one pass that ``ElmModel`` and a search space share.

    Args:
        embeddings: ``ElmEmbeddings`` or what wraps one; called positionally.
        layers: Blocks or what chooses between them; each is called as ``layer(hidden, mask, cache, index)``.
        config: ``is_causal`` and ``max_position_embeddings`` are read.
        input_ids_BT: Token ids.
        attention_mask_BT: 1 for tokens, 0 for padding; with a cache it covers past and new tokens. None: no padding.
        token_type_ids_BT: Segment of each token. None: all 0.
        document_ids_BT: For packed rows, the document of each token from 1, 0 for padding. No attention and no
            trigram neighbour crosses documents, and positions restart.
        position_ids_BT: Positions of the new tokens. None: counted over valid tokens.
        cache: Past of a causal model; the new tokens are added to it.
        output_hidden_states: Return the embeddings and each layer's output.
        output_attentions: Return each layer's attention weights.

    Returns:
        ``Encoded``; the hidden states are ``(B, T, D)``. Rows that are all padding give finite numbers.

    Raises:
        ValueError: Shapes that do not fit, a sequence longer than ``max_position_embeddings``, or packed rows with a
            cache.

    Example:
        >>> encode(model.embeddings, model.layers, model.config, torch.tensor([[5, 6]])).last_hidden_state.shape
        torch.Size([1, 2, 528])
    """
    documents_BT = _documents(input_ids_BT, attention_mask_BT, document_ids_BT, cache)
    num_tokens = input_ids_BT.shape[1]
    num_past = documents_BT.shape[1] - num_tokens
    if position_ids_BT is None:
        position_ids_BT = document_positions(documents_BT, packed=document_ids_BT is not None)[:, num_past:]
    _check_length(documents_BT.shape[1], position_ids_BT, config.max_position_embeddings)
    if token_type_ids_BT is None:
        token_type_ids_BT = torch.zeros_like(input_ids_BT)

    # Without padding, packing or a past, SDPA needs no mask: it masks the future by itself.
    mask = None
    if attention_mask_BT is not None or document_ids_BT is not None or num_past:
        mask = visible(documents_BT[:, num_past:], documents_BT, is_causal=config.is_causal)

    embedded_ids_BT = input_ids_BT
    if cache is not None:
        embedded_ids_BT = cache.append(input_ids_BT, documents_BT)[:, max(num_past - CAUSAL_CONTEXT, 0) :]
    hidden_BTD = embeddings(
        embedded_ids_BT, documents_BT[:, -embedded_ids_BT.shape[1] :], token_type_ids_BT, position_ids_BT
    )
    with recorded_attentions(layers) if output_attentions else nullcontext() as weights:
        states = [hidden_BTD]
        for index, layer in enumerate(layers):
            hidden_BTD = layer(hidden_BTD, mask, cache, index)
            if output_hidden_states:
                states.append(hidden_BTD)
    return Encoded(hidden_BTD, tuple(states) if output_hidden_states else None, tuple(weights) if weights else None)


def _documents(
    input_ids_BT: torch.Tensor,
    attention_mask_BT: torch.Tensor | None,
    document_ids_BT: torch.Tensor | None,
    cache: ElmCache | None,
) -> torch.Tensor:
    """The document of each past and new token; a row that is not packed is document 1."""
    if input_ids_BT.ndim != 2:
        raise ValueError(f"input_ids has the shape {tuple(input_ids_BT.shape)}; it must be (batch, tokens)")
    num_past = 0 if cache is None else cache.get_seq_length()
    if document_ids_BT is not None:
        if cache is not None:
            raise ValueError("document_ids cannot be combined with a cache; pass use_cache=False")
        _check_shape("document_ids", document_ids_BT, input_ids_BT.shape)
        documents_BT = document_ids_BT.long()
    elif attention_mask_BT is None and cache is not None and cache.documents_BT is not None:
        return torch.cat([cache.documents_BT, torch.ones_like(input_ids_BT)], dim=1)
    else:
        documents_BT = input_ids_BT.new_ones(input_ids_BT.shape[0], num_past + input_ids_BT.shape[1])
    if attention_mask_BT is not None:
        _check_shape("attention_mask", attention_mask_BT, documents_BT.shape)
        documents_BT = documents_BT * (attention_mask_BT != 0).long()
    return documents_BT


def _check_shape(name: str, tensor: torch.Tensor, shape: torch.Size) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)}; it must be {tuple(shape)} (batch, tokens)")


def _check_length(num_tokens: int, position_ids_BT: torch.Tensor, limit: int) -> None:
    # Reading the positions waits for the device, so only where they can be too large; a trace must not branch on them.
    if torch.compiler.is_compiling() or num_tokens <= limit:
        return
    if int(position_ids_BT.max()) >= limit:
        raise ValueError(f"a sequence has {int(position_ids_BT.max()) + 1} tokens; max_position_embeddings is {limit}")


__all__ = ["ElmCache", "ElmEmbeddings", "Encoded", "document_positions", "encode", "recorded_attentions", "visible"]
