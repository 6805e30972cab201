"""Pieces of the task heads: language-model head, pooling and losses.

Shapes: B batch, T tokens, E embedding, D hidden, V vocabulary, C classes.
"""

import torch
from torch import nn

from .configuration_elm import ElmConfig

# Labels that no loss counts, as everywhere in transformers.
IGNORED_LABEL = -100


class ElmLMHead(nn.Module):
    """Hidden states to logits: down to the embedding width, activation, norm, token table, bias.

    Example:
        >>> head = ElmLMHead(ElmConfig())
        >>> logits = nn.functional.linear(head.transform(hidden_BTD), table_VE, head.decoder.bias)
    """

    def __init__(self, config: ElmConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.embedding_size)
        self.activation = nn.GELU()
        self.norm = nn.LayerNorm(config.embedding_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.embedding_size, config.vocab_size)

    def transform(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """What the token table is multiplied with, ``(..., E)``: all of the head but table and bias."""
        return self.norm(self.activation(self.dense(hidden_BTD)))

    def forward(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.transform(hidden_BTD))


def pool(hidden_BTD: torch.Tensor, attention_mask_BT: torch.Tensor | None, pooling: str) -> torch.Tensor:
    """One vector a sequence, ``(B, D)``: its first valid token (``"cls"``), its last (``"last"``) or the ``"mean"``.

    A row that is all padding gives its first token, or zeros for ``"mean"``.

    Example:
        >>> pool(torch.arange(6.0).view(1, 3, 2), torch.tensor([[0, 1, 1]]), "cls")
        tensor([[2., 3.]])
    """
    if attention_mask_BT is None:
        attention_mask_BT = torch.ones(hidden_BTD.shape[:2], dtype=torch.long, device=hidden_BTD.device)
    valid_BT = (attention_mask_BT != 0).long()
    if pooling == "mean":
        weights_BT1 = valid_BT[..., None].to(hidden_BTD.dtype)
        return (hidden_BTD * weights_BT1).sum(dim=1) / weights_BT1.sum(dim=1).clamp(min=1)
    steps_T = torch.arange(1, hidden_BTD.shape[1] + 1, device=hidden_BTD.device)
    if pooling == "cls":
        steps_T = steps_T.flip(0)
    index_B = (valid_BT * steps_T).argmax(dim=1)
    return hidden_BTD[torch.arange(hidden_BTD.shape[0], device=hidden_BTD.device), index_B]


def head_dropout(config: ElmConfig) -> float:
    """Dropout before a task head."""
    return config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout


def mean_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over the labels that count; 0, not NaN, if there are none."""
    total = nn.functional.cross_entropy(
        logits.float().flatten(0, -2), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="sum"
    )
    return total / (labels != IGNORED_LABEL).sum().clamp(min=1)


def position_loss(scores_BT: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of token positions; one outside the sequence is not counted."""
    positions_B = positions.flatten()
    outside_B = (positions_B < 0) | (positions_B >= scores_BT.shape[1])
    return mean_loss(scores_BT, positions_B.masked_fill(outside_B, IGNORED_LABEL))


def classification_loss(logits_BC: torch.Tensor, labels: torch.Tensor, config: ElmConfig) -> torch.Tensor:
    """The loss that ``config.problem_type`` names, or else that outputs and labels suggest."""
    problem = config.problem_type
    if problem is None:
        if config.num_labels == 1:
            problem = "regression"
        else:
            problem = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
    if problem == "regression":
        return nn.functional.mse_loss(logits_BC.float().squeeze(-1), labels.float().view(logits_BC.squeeze(-1).shape))
    if problem == "single_label_classification":
        return mean_loss(logits_BC, labels)
    return nn.functional.binary_cross_entropy_with_logits(logits_BC.float(), labels.float())
