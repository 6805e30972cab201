"""Masked and causal language models.

Shapes: B batch, T tokens, E embedding, D hidden, V vocabulary.
"""

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast, MaskedLMOutput
from transformers.utils.generic import can_return_tuple

from .base_elm import ElmModel, ElmPreTrainedModel
from .configuration_elm import ElmConfig
from .heads_elm import IGNORED_LABEL, ElmLMHead, mean_loss


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


__all__ = ["ElmForCausalLM", "ElmForMaskedLM"]
