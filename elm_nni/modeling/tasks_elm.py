"""Models for tasks: one vector, one score or one class a sequence or a token.

Shapes: B batch, T tokens, D hidden, C classes, E sentence embedding.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.modeling_outputs import (
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils.generic import ModelOutput, can_return_tuple

from .base_elm import ElmModel, ElmPreTrainedModel
from .configuration_elm import ElmConfig
from .heads_elm import classification_loss, head_dropout, mean_loss, pool, position_loss


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


class ElmForTokenClassification(ElmPreTrainedModel):
    """ELM with a linear head on each token: tagging, named entities.

    Example:
        >>> model = ElmForTokenClassification(ElmConfig(num_labels=9))
        >>> model(torch.tensor([[101, 2023, 102]])).logits.shape
        torch.Size([1, 3, 9])
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
    ) -> TokenClassifierOutput:
        """Classify tokens; see ``ElmModel.forward``.

        Args:
            labels: ``(B, T)`` class indices; -100 is not counted, and padding without it is. A batch without any label
                has loss 0.
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
        logits_BTC = self.classifier(self.dropout(outputs.last_hidden_state))
        return TokenClassifierOutput(
            loss=None if labels is None else mean_loss(logits_BTC, labels),
            logits=logits_BTC,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


@dataclass
class ElmSentenceEmbeddingOutput(ModelOutput):
    """What ``ElmForSentenceEmbedding`` gives.

    Attributes:
        last_hidden_state: ``(B, T, D)``.
        sentence_embeddings: ``(B, E)``.
        hidden_states: Embeddings and each layer's output, if asked for.
        attentions: Each layer's attention weights, if asked for.
    """

    # The order of transformers' outputs with a pooled vector: tokens first.
    last_hidden_state: torch.Tensor | None = None
    sentence_embeddings: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class ElmForSentenceEmbedding(ElmPreTrainedModel):
    """ELM that gives one vector a text, for search and similarity.

    The hidden states are pooled as ``config.classifier_pooling`` says (``"mean"`` is usual), projected to
    ``config.sentence_embedding_size`` (None: not projected, D wide) and, unless ``config.normalize_embeddings`` is
    False, divided by their length, so that a dot product is the cosine. A text of padding alone gives a finite vector.

    A folder that ``save_with_code`` wrote loads with ``AutoModel.from_pretrained(folder, trust_remote_code=True)`` and,
    where a tokenizer lies in it, with ``SentenceTransformer(folder, trust_remote_code=True)``.

    Example:
        >>> model = ElmForSentenceEmbedding(ElmConfig(classifier_pooling="mean", sentence_embedding_size=384))
        >>> model(torch.tensor([[101, 2023, 102]])).sentence_embeddings.shape
        torch.Size([1, 384])
    """

    def __init__(self, config: ElmConfig):
        super().__init__(config)
        self.elm = ElmModel(config)
        size = config.sentence_embedding_size
        self.projection = nn.Identity() if size is None else nn.Linear(config.hidden_size, size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> ElmSentenceEmbeddingOutput:
        """Embed texts; see ``ElmModel.forward``."""
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
        embeddings_BE = self.projection(pooled_BD)
        if self.config.normalize_embeddings:
            embeddings_BE = nn.functional.normalize(embeddings_BE, dim=-1)
        return ElmSentenceEmbeddingOutput(
            last_hidden_state=outputs.last_hidden_state,
            sentence_embeddings=embeddings_BE,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = [
    "ElmForQuestionAnswering",
    "ElmForSentenceEmbedding",
    "ElmForSequenceClassification",
    "ElmForTokenClassification",
    "ElmSentenceEmbeddingOutput",
]
