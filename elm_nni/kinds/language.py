"""Language modelling as a kind of task: a head on every token that counts, scored by the likelihood of the text.

Shape suffixes: B batch, T tokens, D hidden, V vocabulary, M tokens that count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from elm_nni.kinds.base import Batch, TaskKind
from elm_nni.modeling.heads_elm import IGNORED_LABEL


class TiedHead(nn.Module):
    """``ElmLMHead`` on a token table that stays the body's: it is in neither the parameters nor the state of the head.

    Args:
        tokens: the body's table, (V, E).
        width: of the hidden states.
        eps: of the norm.
    """

    tokens: nn.Embedding

    def __init__(self, tokens: nn.Embedding, width: int, *, eps: float = 1e-12) -> None:
        super().__init__()
        self.dense = nn.Linear(width, tokens.embedding_dim)
        self.norm = nn.LayerNorm(tokens.embedding_dim, eps=eps)
        self.bias_V = nn.Parameter(torch.zeros(tokens.num_embeddings))
        # not registered: the body has it
        object.__setattr__(self, "tokens", tokens)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., D) to logits (..., V)."""
        return functional.linear(self.norm(functional.gelu(self.dense(hidden))), self.tokens.weight, self.bias_V)


class LanguageModelling(TaskKind):
    """One token of the vocabulary at every position that counts.

    Logits are those of the counted positions alone, (M, V), since a vocabulary is wide; of all rows only the
    log-likelihood of each token is kept.
    """

    per_token = True
    linear_head = None
    elm_head = "lm_head"

    def features(self, hidden_BTD: Tensor, batch: Batch, pooling: str) -> Tensor:
        return hidden_BTD[batch["labels"] != IGNORED_LABEL]

    def label_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        labels_M = batch["labels"][batch["labels"] != IGNORED_LABEL]
        return functional.cross_entropy(logits.float(), labels_M, reduction="sum") / max(len(labels_M), 1)

    def kept(self, logits: Tensor, batch: Batch) -> Tensor:
        """The log-likelihood of each counted token in nats, 0 elsewhere, (B, T, 1)."""
        batch_labels = batch["labels"].to(logits.device)
        counted_BT = batch_labels != IGNORED_LABEL
        labels_M = batch_labels[counted_BT]
        if logits.ndim == 3:
            # a model of transformers has logits everywhere
            logits = logits[counted_BT]
        found_BT = torch.zeros(counted_BT.shape, dtype=torch.float64, device=logits.device)
        nats_M = -functional.cross_entropy(logits.float(), labels_M, reduction="none")
        found_BT[counted_BT] = nats_M.double()
        return found_BT.unsqueeze(-1)

    def scores(
        self, metrics: Sequence[str], outputs: Tensor, rows: Any, label_names: Sequence[str] = (),
        threshold: float | None = None,
    ) -> dict[str, float]:  # fmt: skip
        total = float(outputs.sum())
        mean = total / max(1, int((rows.labels != IGNORED_LABEL).sum()))
        measures = {
            "log_likelihood": lambda: mean,
            "perplexity": lambda: math.exp(-mean),
            "bits_per_byte": lambda: -total / math.log(2) / rows.num_bytes,
        }
        return {name: measures[name]() for name in metrics}

    def new_head(self, model: Any, width: int, num_outputs: int) -> nn.Module:
        # a model of another family brings its own
        own = getattr(model, "new_lm_head", None)
        return own() if own is not None else TiedHead(model.embeddings.tokens, width, eps=model.config.layer_norm_eps)

    def config(self, num_outputs: int, label_names: Sequence[str], tokenizer: Any) -> dict[str, Any]:
        """A model that generates is told where a text begins and ends."""
        return {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}

    def install_head(self, head: nn.Module, model: Any) -> None:
        state = {name.replace("bias_V", "decoder.bias"): value for name, value in head.state_dict().items()}
        state["decoder.weight"] = model.elm.embeddings.tokens.weight
        model.lm_head.load_state_dict(state)


class CausalLM(LanguageModelling):
    """The next token."""

    name = "causal_lm"
    auto_class, elm_class = "AutoModelForCausalLM", "ElmForCausalLM"
    pipeline_tag = "text-generation"


class MaskedLM(LanguageModelling):
    """The hidden tokens; perplexity is over those alone."""

    name = "masked_lm"
    auto_class, elm_class = "AutoModelForMaskedLM", "ElmForMaskedLM"
    pipeline_tag = "fill-mask"
