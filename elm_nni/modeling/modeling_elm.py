"""ELM models for transformers: all of them under one name, which saved folders refer to."""

from .base_elm import ElmModel, ElmPreTrainedModel
from .encoder_elm import ElmCache, ElmEmbeddings, encode
from .language_elm import ElmForCausalLM, ElmForMaskedLM
from .tasks_elm import (
    ElmForQuestionAnswering,
    ElmForSentenceEmbedding,
    ElmForSequenceClassification,
    ElmForTokenClassification,
    ElmSentenceEmbeddingOutput,
)

# A model that was loaded with its code is saved with the file of its class's module and what that imports. From here
# all files are found, so any other class can still be loaded from the new folder.
for _model in (
    ElmModel,
    ElmForCausalLM,
    ElmForMaskedLM,
    ElmForQuestionAnswering,
    ElmForSentenceEmbedding,
    ElmForSequenceClassification,
    ElmForTokenClassification,
):
    _model.__module__ = __name__

__all__ = [
    "ElmCache",
    "ElmEmbeddings",
    "ElmForCausalLM",
    "ElmForMaskedLM",
    "ElmForQuestionAnswering",
    "ElmForSentenceEmbedding",
    "ElmForSequenceClassification",
    "ElmForTokenClassification",
    "ElmModel",
    "ElmPreTrainedModel",
    "ElmSentenceEmbeddingOutput",
    "encode",
]
