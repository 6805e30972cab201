"""Sentence embeddings as a kind of task: a vector a text, in the teacher's space.

Shape suffixes: B batch, N texts, D hidden, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from elm_nni.data.pairs import retrieval_scores
from elm_nni.distillation.losses import correlation_distance
from elm_nni.kinds.base import Batch, LossSettings, TaskKind

# Temperature of the similarities that the KL form compares, at tau = 1.
_SHARPNESS = 0.05


class SentenceEmbedding(TaskKind):
    """A vector a text, trained towards the teacher's; there is no label term.

    The logit term is 1 - the mean cosine to the teacher's vectors, and how the texts of a batch are alike:
    ``relational`` takes 1 - the mean correlation of the rows of both matrices of cosines, without their diagonals;
    ``kl`` the divergence of their softmax.
    """

    name = "sentence_embedding"
    linear_head = "identity"
    auto_class, elm_class, elm_head = "AutoModel", "ElmForSentenceEmbedding", "projection"
    pipeline_tag = "sentence-similarity"

    def loss(self, logits: Tensor, batch: Batch, settings: LossSettings) -> Tensor:
        return settings.lambda_logit * self.logit_loss(logits, batch, settings)

    def label_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        raise NotImplementedError("sentence embeddings have no labels")

    def logit_loss(self, logits: Tensor, batch: Batch, settings: LossSettings) -> Tensor:
        student_BE, teacher_BE = (functional.normalize(x.float(), dim=-1) for x in (logits, batch["teacher_logits"]))
        loss = 1 - (student_BE * teacher_BE).sum(-1).mean()
        if len(student_BE) > 2:
            loss = loss + self._relation(_others(student_BE), _others(teacher_BE), settings)
        return loss

    def scores(
        self, metrics: Sequence[str], outputs: Tensor, rows: Any, label_names: Sequence[str] = (),
        threshold: float | None = None,
    ) -> dict[str, float]:  # fmt: skip
        vectors_NE = outputs.numpy()
        found = retrieval_scores(vectors_NE[: rows.num_pairs], vectors_NE[rows.num_pairs :])
        return {name: found[name] for name in metrics}

    def num_scored(self, rows: Any) -> int:
        return int(rows.num_pairs)

    def config(self, num_outputs: int, label_names: Sequence[str], tokenizer: Any) -> dict[str, Any]:
        return {"sentence_embedding_size": num_outputs}

    @staticmethod
    def _relation(student_BB: Tensor, teacher_BB: Tensor, settings: LossSettings) -> Tensor:
        if settings.logits == "relational":
            return settings.beta * correlation_distance(student_BB, teacher_BB)
        sharpness = _SHARPNESS * settings.tau
        student_BB, teacher_BB = ((x / sharpness).log_softmax(-1) for x in (student_BB, teacher_BB))
        return functional.kl_div(student_BB, teacher_BB, reduction="batchmean", log_target=True)


def _others(vectors_BE: Tensor) -> Tensor:
    """Cosines of each text with the others, (B, B - 1)."""
    size = len(vectors_BE)
    cosines_BB = vectors_BE @ vectors_BE.T
    keep = ~torch.eye(size, dtype=torch.bool, device=vectors_BE.device)
    return cosines_BB[keep].view(size, size - 1)
