"""ELM models as ordinary transformers classes: configuration, blocks, heads and export.

Importing this package registers them with the Auto classes of transformers. It needs torch and transformers only.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .blocks_elm import (
    BLOCKS,
    Attention,
    BertBlock,
    BertKVBlock,
    BertQVBlock,
    Block,
    FeedForward,
    MobileBlock,
    MobileKVBlock,
    MobileQVBlock,
    NoNorm,
    init_weights,
)
from .configuration_elm import ElmConfig
from .encoder_elm import ElmCache, ElmEmbeddings, Encoded, encode, recorded_attentions
from .export import save_with_code
from .modeling_elm import (
    ElmForCausalLM,
    ElmForMaskedLM,
    ElmForQuestionAnswering,
    ElmForSentenceEmbedding,
    ElmForSequenceClassification,
    ElmForTokenClassification,
    ElmModel,
    ElmPreTrainedModel,
    ElmSentenceEmbeddingOutput,
)
from .vocabulary import select_tokens

AutoConfig.register(ElmConfig.model_type, ElmConfig, exist_ok=True)
# The class that a configuration's ``architectures`` names, or else the first.
AutoModel.register(ElmConfig, (ElmModel, ElmForSentenceEmbedding), exist_ok=True)
AutoModelForMaskedLM.register(ElmConfig, ElmForMaskedLM, exist_ok=True)
AutoModelForCausalLM.register(ElmConfig, ElmForCausalLM, exist_ok=True)
AutoModelForSequenceClassification.register(ElmConfig, ElmForSequenceClassification, exist_ok=True)
AutoModelForTokenClassification.register(ElmConfig, ElmForTokenClassification, exist_ok=True)
AutoModelForQuestionAnswering.register(ElmConfig, ElmForQuestionAnswering, exist_ok=True)

__all__ = [
    "BLOCKS",
    "Attention",
    "BertBlock",
    "BertKVBlock",
    "BertQVBlock",
    "Block",
    "ElmCache",
    "ElmConfig",
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
    "Encoded",
    "FeedForward",
    "MobileBlock",
    "MobileKVBlock",
    "MobileQVBlock",
    "NoNorm",
    "encode",
    "init_weights",
    "recorded_attentions",
    "save_with_code",
    "select_tokens",
]
