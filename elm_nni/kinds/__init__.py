"""Kinds of tasks: the one place that knows how each is trained, scored, taught and exported."""

from typing import cast

from elm_nni.kinds.base import LossSettings, TaskKind, logits_of
from elm_nni.kinds.embedding import SentenceEmbedding
from elm_nni.kinds.language import CausalLM, LanguageModelling, MaskedLM
from elm_nni.kinds.sequence import Classification, MultiLabel, Regression
from elm_nni.kinds.tokens import QuestionAnswering, TokenClassification

KINDS: dict[str, TaskKind] = {
    kind.name: kind()
    for kind in (
        Classification, Regression, MultiLabel, TokenClassification, QuestionAnswering, SentenceEmbedding, CausalLM,
        MaskedLM,
    )
}


def language_kind(objective: str) -> LanguageModelling | None:
    """The language modelling in an objective of training on text, such as ``distill+clm``, or None.

    Example:
        >>> language_kind("distill+mlm").name
        'masked_lm'
    """
    names = {"mlm": "masked_lm", "clm": "causal_lm"}
    found = [KINDS[names[part]] for part in objective.split("+") if part in names]
    return cast(LanguageModelling, found[0]) if found else None


__all__ = [
    "KINDS",
    "CausalLM",
    "LanguageModelling",
    "LossSettings",
    "MaskedLM",
    "QuestionAnswering",
    "SentenceEmbedding",
    "TaskKind",
    "TokenClassification",
    "language_kind",
    "logits_of",
]
