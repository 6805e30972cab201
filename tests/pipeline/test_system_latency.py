"""Systems side by side: what is measured under which condition, and what has a reason instead."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertModel

from elm_nni.cost.condition import LatencyCondition
from elm_nni.cost.layer_parts import Model
from elm_nni.distillation.fine_tuned import FineTunedClassifier
from elm_nni.distillation.heads import LinearHead, TeacherClassifier
from elm_nni.distillation.teacher import Teacher
from elm_nni.export.onnx import export_onnx
from elm_nni.modeling import ElmConfig, ElmForSequenceClassification
from elm_nni.pipeline.evaluate_stage import _add_latency
from elm_nni.pipeline.system_latency import SystemLatency, classifier_module, measure_systems

BERT = BertConfig(
    vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
    max_position_embeddings=32,
)  # fmt: skip
CONDITION = LatencyCondition(sequence_length=16)


class Branching(nn.Module):
    """A teacher that depends on values: no graph can hold it."""

    def forward(self, input_ids, attention_mask):
        return input_ids.float() if input_ids.sum() > 7 else attention_mask.float()


@pytest.fixture(scope="module")
def elm():
    torch.manual_seed(0)
    config = ElmConfig(
        vocab_size=50, hidden_size=24, embedding_size=8, bottleneck_size=8, num_hidden_layers=1,
        max_position_embeddings=32, layers=[{"block": "bert", "ffn_size": 8, "num_heads": 4, "head_dim": 6}],
    )  # fmt: skip
    return ElmForSequenceClassification(config).eval()


@pytest.fixture(scope="module")
def int8_file(elm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("elm")
    elm.save_pretrained(folder / "model")
    return export_onnx(folder / "model", folder / "onnx", int8=True, token_types=True).int8_path


def test_modules_of_teachers_give_the_logits_that_are_scored():
    torch.manual_seed(0)
    ids_BT = torch.randint(50, (3, 9))
    mask_BT = (torch.arange(9)[None] < torch.tensor([[9], [4], [1]])).long()
    head = LinearHead(torch.randn(3, 24), torch.randn(3))
    for classifier in (
        TeacherClassifier(Teacher(BertModel(BERT).eval()), head),
        FineTunedClassifier(BertForSequenceClassification(BERT)),
    ):
        with torch.no_grad():
            found = classifier_module(classifier).eval()(ids_BT, mask_BT)
        torch.testing.assert_close(found, classifier.logits(ids_BT, mask_BT))


@pytest.mark.slow
def test_onnx_measures_what_exports_and_gives_a_reason_for_the_rest(elm, int8_file):
    condition = LatencyCondition(runtime="onnx", sequence_length=16)
    head = LinearHead(torch.randn(2, 24), torch.randn(2))
    modules = {
        "elm": Model(elm), "teacher": classifier_module(TeacherClassifier(Teacher(BertModel(BERT).eval()), head)),
        "odd": Branching(),
    }  # fmt: skip
    found = measure_systems(modules, {"int8": int8_file}, condition, 50, repeats=3)
    assert {name: one.condition for name, one in found.items()} == {
        "elm": condition.describe(), "teacher": condition.describe(), "odd": "",
        "int8": "onnx-int8, cpu, 1 thread, batch 1, 16 tokens",
    }  # fmt: skip
    assert all(found[name].median_ms > 0 and not found[name].reason for name in ("elm", "teacher", "int8"))
    assert found["odd"].median_ms is None
    assert "odd cannot be exported to ONNX" in found["odd"].reason


def test_eager_measures_all_and_bf16_leaves_the_models_as_they_are(elm, int8_file):
    found = measure_systems({"elm": Model(elm), "odd": Branching()}, {}, CONDITION, 50, repeats=3)
    assert all(one.median_ms > 0 for one in found.values())
    bf16 = LatencyCondition(dtype="bf16", sequence_length=16)
    found = measure_systems({"elm": Model(elm)}, {"int8": int8_file}, bf16, 50, repeats=3)
    assert found["elm"].condition.startswith("eager bf16")
    assert found["int8"].condition.startswith("onnx-int8, cpu")
    assert elm.dtype is torch.float32


def test_a_reason_joins_the_note():
    line = {"note": "6 layers"}
    _add_latency(line, SystemLatency(reason="cannot be exported"))
    assert line == {
        "note": "6 layers; latency not measured: cannot be exported", "latency_ms": None, "latency_iqr_ms": None,
        "condition": "",
    }  # fmt: skip
    line = {"note": ""}
    _add_latency(line, SystemLatency(3.0, 0.5, "eager"))
    assert line == {"note": "", "latency_ms": 3.0, "latency_iqr_ms": 0.5, "condition": "eager"}
