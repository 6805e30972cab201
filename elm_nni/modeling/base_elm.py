"""The model without a head, and what all ELM models share.

Shapes: B batch, T tokens, E embedding, D hidden.
"""

import logging

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from .blocks_elm import BLOCKS, init_weights
from .configuration_elm import ElmConfig
from .encoder_elm import ElmCache, ElmEmbeddings, encode

logger = logging.getLogger(__name__)


class ElmPreTrainedModel(PreTrainedModel):
    """What all ELM models share: configuration, initialisation, attention implementations, parameter counts."""

    config: ElmConfig
    config_class = ElmConfig
    base_model_prefix = "elm"
    supports_gradient_checkpointing = True
    _no_split_modules = [block.__name__ for block in BLOCKS.values()]
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        init_weights(module, self.config.initializer_range)

    def num_parameters_outside_embeddings(self) -> int:
        """Parameters that are not in the embeddings (token table, projection, positions, segments, norm)."""
        return self.num_parameters() - ElmEmbeddings.num_parameters(self.config)


class ElmModel(ElmPreTrainedModel):
    """Embeddings and layers without a head.

    Example:
        >>> model = ElmModel(ElmConfig())
        >>> model(torch.tensor([[101, 2023, 102]])).last_hidden_state.shape
        torch.Size([1, 3, 528])
    """

    def __init__(self, config: ElmConfig):
        super().__init__(config)
        self.embeddings = ElmEmbeddings(config)
        self.layers = nn.ModuleList(
            BLOCKS[layer["block"]](
                config, ffn_size=layer["ffn_size"], num_heads=layer["num_heads"], head_dim=layer["head_dim"]
            )
            for layer in config.layers
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.tokens = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        document_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPast:
        """Encode token ids.

        Args:
            input_ids: ``(B, T)``.
            attention_mask: ``(B, T)``, 1 for tokens and 0 for padding; with a cache, past and new tokens.
            token_type_ids: ``(B, T)`` segments. None: all 0.
            position_ids: ``(B, T)``. None: counted over valid tokens, so padding on either side changes nothing.
            document_ids: ``(B, T)`` for packed rows: document of each token from 1, 0 for padding.
            past_key_values: An ``ElmCache``, or an empty ``DynamicCache`` in whose place one is made.
            use_cache: Return a cache. None: only if one was passed.
            output_attentions: Return the attention weights (computed eagerly for this call). None: as configured.
            output_hidden_states: Return the embeddings and each layer's output. None: as configured.

        Raises:
            ValueError: Shapes that do not fit, too long a sequence, a cache without ``is_causal``, or a cache of
                another kind.
        """
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        cache = self._cache(past_key_values, use_cache)
        encoded = encode(
            self.embeddings,
            self.layers,
            self.config,
            input_ids,
            attention_mask,
            token_type_ids,
            document_ids,
            position_ids_BT=position_ids,
            cache=cache,
            output_hidden_states=bool(output_hidden_states),
            output_attentions=bool(output_attentions),
        )
        return BaseModelOutputWithPast(
            last_hidden_state=encoded.last_hidden_state,
            past_key_values=cache,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def _cache(self, past: Cache | None, use_cache: bool | None) -> ElmCache | None:
        if use_cache is False or (use_cache is None and past is None):
            return None
        if not self.config.is_causal:
            raise ValueError("use_cache needs a causal model; config.is_causal is False")
        if self.training and self.is_gradient_checkpointing:
            logger.warning("no cache is kept: gradient checkpointing runs each layer twice")
            return None
        if past is None:
            return ElmCache()
        if isinstance(past, ElmCache):
            return past
        # What `generate` makes by itself; the cache returned with the output takes its place.
        if type(past) is DynamicCache and past.get_seq_length() == 0:
            return ElmCache()
        raise ValueError(f"past_key_values is a {type(past).__name__}; it must be an ElmCache, which holds token ids")


__all__ = ["ElmModel", "ElmPreTrainedModel"]
