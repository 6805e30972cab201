"""ELM models for transformers: the encoder or decoder and its task heads.

Shapes: B batch, T tokens, E embedding, D hidden, V vocabulary, C classes.
"""

import logging

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from .blocks_elm import BLOCKS, init_weights
from .configuration_elm import ElmConfig
from .encoder_elm import ElmCache, ElmEmbeddings, encode
from .heads_elm import IGNORED_LABEL, ElmLMHead, classification_loss, head_dropout, mean_loss, pool, position_loss

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


class _ElmWithLMHead(ElmPreTrainedModel):
    """A model whose head's matrix is the token table."""

    _tied_weights_keys = {"lm_head.decoder.weight": "elm.embeddings.tokens.weight"}

    def __init__(self, config: ElmConfig):
        super().__init__(config)
        self.elm = ElmModel(config)
        self.lm_head = ElmLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.lm_head.decoder = new_embeddings


class ElmForMaskedLM(_ElmWithLMHead):
    """ELM encoder with a masked-language-model head.

    Example:
        >>> model = ElmForMaskedLM(ElmConfig())
        >>> model(torch.tensor([[101, 103, 102]])).logits.shape
        torch.Size([1, 3, 30522])
    """

    def __init__(self, config: ElmConfig):
        if config.is_causal:
            raise ValueError("ElmForMaskedLM needs config.is_causal=False; for a causal model take ElmForCausalLM")
        super().__init__(config)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        document_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> MaskedLMOutput:
        """Predict tokens; see ``ElmModel.forward``.

        Args:
            labels: ``(B, T)`` token ids; -100 is not counted. A batch without any label has loss 0.
        """
        outputs = self.elm(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            document_ids=document_ids,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits_BTV = self.lm_head(outputs.last_hidden_state)
        return MaskedLMOutput(
            loss=None if labels is None else mean_loss(logits_BTV, labels),
            logits=logits_BTV,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class ElmForCausalLM(_ElmWithLMHead, GenerationMixin):
    """ELM decoder with a language-model head and ``generate``.

    The cache carries the token ids of the past beside keys and values, because the embedding of a token looks at the
    two before it.

    Example:
        >>> model = ElmForCausalLM(ElmConfig(is_causal=True))
        >>> model.generate(torch.tensor([[101, 2023]]), max_new_tokens=3, do_sample=False).shape
        torch.Size([1, 5])
    """

    def __init__(self, config: ElmConfig):
        if not config.is_causal:
            raise ValueError("ElmForCausalLM needs config.is_causal=True; else a token sees what it has to predict")
        super().__init__(config)

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
        labels: torch.Tensor | None = None,
        logits_to_keep: int = 0,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> CausalLMOutputWithPast:
        """Predict the next tokens; see ``ElmModel.forward``.

        Args:
            labels: ``(B, T)``, not shifted; -100 is not counted. The first token of a packed document is not
                predicted from the document before it.
            logits_to_keep: Compute logits of only the last so many tokens; 0: of all. Not together with ``labels``.
        """
        if labels is not None and logits_to_keep:
            raise ValueError(f"logits_to_keep is {logits_to_keep}; with labels it must be 0")
        outputs = self.elm(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            document_ids=document_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits_BTV = self.lm_head(outputs.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            targets_BT = labels[:, 1:]
            if document_ids is not None:
                targets_BT = targets_BT.masked_fill(document_ids[:, 1:] != document_ids[:, :-1], IGNORED_LABEL)
            loss = mean_loss(logits_BTV[:, :-1], targets_BT)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits_BTV,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class ElmForSequenceClassification(ElmPreTrainedModel):
    """ELM with a linear head on one vector a sequence: classification, or regression with ``num_labels=1``.

    Example:
        >>> model = ElmForSequenceClassification(ElmConfig(num_labels=3))
        >>> model(torch.tensor([[101, 2023, 102]])).logits.shape
        torch.Size([1, 3])
    """

    def __init__(self, config: ElmConfig):
        super().__init__(config)
        self.elm = ElmModel(config)
        self.dropout = nn.Dropout(head_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Classify sequences; see ``ElmModel.forward``.

        Args:
            labels: ``(B,)`` class indices or values, or ``(B, C)`` for several labels or values at once. Without
                ``config.problem_type``, one output means regression, integer labels one class of C, and others
                several labels.
        """
        outputs = self.elm(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        pooled_BD = pool(outputs.last_hidden_state, attention_mask, self.config.classifier_pooling)
        logits_BC = self.classifier(self.dropout(pooled_BD))
        return SequenceClassifierOutput(
            loss=None if labels is None else classification_loss(logits_BC, labels, self.config),
            logits=logits_BC,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class ElmForQuestionAnswering(ElmPreTrainedModel):
    """ELM with two scores a token, for the first and the last token of an answer.

    Example:
        >>> model = ElmForQuestionAnswering(ElmConfig())
        >>> model(torch.tensor([[101, 2023, 102]])).start_logits.shape
        torch.Size([1, 3])
    """

    def __init__(self, config: ElmConfig):
        super().__init__(config)
        self.elm = ElmModel(config)
        self.dropout = nn.Dropout(head_dropout(config))
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> QuestionAnsweringModelOutput:
        """Score spans; see ``ElmModel.forward``.

        Args:
            start_positions: ``(B,)`` index of the answer's first token; an index outside the sequence is not counted.
            end_positions: ``(B,)`` index of its last token, likewise.
        """
        outputs = self.elm(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        start_BT, end_BT = self.qa_outputs(self.dropout(outputs.last_hidden_state)).unbind(dim=-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = (position_loss(start_BT, start_positions) + position_loss(end_BT, end_positions)) / 2
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_BT,
            end_logits=end_BT,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = [
    "ElmCache",
    "ElmEmbeddings",
    "ElmForCausalLM",
    "ElmForMaskedLM",
    "ElmForQuestionAnswering",
    "ElmForSequenceClassification",
    "ElmModel",
    "ElmPreTrainedModel",
    "encode",
]
