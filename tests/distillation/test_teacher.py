import copy
import logging

import pytest
import torch
from torch import nn
from transformers import AlbertConfig, AlbertModel, BertModel, ViTConfig, ViTModel
from transformers.modeling_outputs import BaseModelOutput

from elm_nni.distillation.teacher import Teacher, first_layers
from elm_nni.errors import UserError

FAMILIES = ["bert", "roberta", "electra", "mpnet", "mobilebert", "distilbert", "gpt2", "llama", "t5"]
DOCUMENTS = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 3], [1, 1, 2, 2, 2, 0, 0, 0]])


def ids_like(documents, seed=0):
    return torch.randint(4, 60, documents.shape, generator=torch.Generator().manual_seed(seed))


def everything(features):
    return [features.embedding_BTD, *features.hidden, *(features.attention or [])]


@pytest.mark.parametrize("family", FAMILIES)
def test_who_reads_ahead(family, build_teacher):
    teacher = build_teacher(family)
    assert teacher.reads_ahead() == (family not in ("gpt2", "llama"))
    assert teacher.with_token_map(range(5, 20)).reads_ahead() == teacher.reads_ahead()


@pytest.mark.parametrize("family", FAMILIES)
def test_any_family_shows_all_features(family, build_teacher):
    teacher = build_teacher(family)
    features = teacher.features(ids_like(DOCUMENTS), DOCUMENTS.clamp(max=1))
    assert (teacher.num_layers, teacher.width, teacher.vocab_size) == (4, 16, 60)
    assert features.embedding_BTD.shape == (2, 8, teacher.embedding_width)
    assert [layer.shape for layer in features.hidden] == [(2, 8, 16)] * 4
    assert [layer.shape for layer in features.attention] == [(2, 8, teacher.attention_width)] * 4
    assert teacher.attention_width == (8 if family == "mobilebert" else 16)
    assert teacher.widths == {"embedding": 16, "hidden": 16, "attention": teacher.attention_width}


def test_bert_attention_block_is_what_its_feed_forward_reads(build_teacher):
    teacher = build_teacher("bert")
    features = teacher.features(ids_like(DOCUMENTS))
    layer = teacher.model.encoder.layer[1]
    expected = layer.attention(features.hidden[0])[0]
    torch.testing.assert_close(features.attention[1], expected)
    torch.testing.assert_close(features.hidden[1], layer.feed_forward_chunk(expected))


def test_gpt2_attention_block_is_after_the_residual(build_teacher):
    teacher = build_teacher("gpt2")
    features = teacher.features(ids_like(DOCUMENTS))
    block = teacher.model.h[1]
    torch.testing.assert_close(
        features.hidden[1], features.attention[1] + block.mlp(block.ln_2(features.attention[1]))
    )


def test_distilbert_and_llama_attention_blocks(build_teacher):
    distilbert, llama = build_teacher("distilbert"), build_teacher("llama")
    features = distilbert.features(ids_like(DOCUMENTS))
    block = distilbert.model.transformer.layer[2]
    after = features.attention[2]
    torch.testing.assert_close(features.hidden[2], block.output_layer_norm(block.ffn(after) + after))
    features = llama.features(ids_like(DOCUMENTS))
    block, after = llama.model.layers[2], features.attention[2]
    torch.testing.assert_close(features.hidden[2], after + block.mlp(block.post_attention_layernorm(after)))


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_are_as_if_alone(family, build_teacher):
    teacher, ids = build_teacher(family), ids_like(DOCUMENTS)
    packed = everything(teacher.features(ids, document_ids=DOCUMENTS))
    assert all(torch.isfinite(part).all() for part in packed)
    for row, document in [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2)]:
        inside = DOCUMENTS[row] == document
        alone = everything(teacher.features(ids[row, inside].unsqueeze(0)))
        for ours, expected in zip(packed, alone, strict=True):
            size = max(1.0, float(expected.abs().max()))
            torch.testing.assert_close(ours[row, inside], expected[0], rtol=0, atol=1e-5 * size)
    # and the test can fail: without documents the later ones differ
    mixed = teacher.features(ids, DOCUMENTS.clamp(max=1))
    assert not torch.allclose(mixed.hidden[-1][0, 4:7], packed[4][0, 4:7], atol=1e-3)


def test_padding_in_the_mask_wins_over_documents(build_teacher):
    teacher, ids = build_teacher("bert"), ids_like(DOCUMENTS)
    mask = torch.ones_like(ids)
    mask[0, 7] = 0
    packed = teacher.features(ids, mask, document_ids=torch.ones_like(ids))
    alone = teacher.features(ids[:1, :7])
    torch.testing.assert_close(packed.hidden[-1][0, :7], alone.hidden[-1][0])


def test_packed_minilm(minilm):
    texts = ["The state of the Union is strong.", "A film of rare charm!", "No.", "It was the longest winter in years."]
    encoded = [minilm.tokenizer(text)["input_ids"] for text in texts]
    ids = torch.tensor([sum(encoded, []) + [0] * 5])
    documents = torch.tensor([[n + 1 for n, tokens in enumerate(encoded) for _ in tokens] + [0] * 5])
    packed = everything(minilm.features(ids, document_ids=documents))
    assert len(packed) == 1 + 6 + 6
    for number, tokens in enumerate(encoded):
        inside = documents[0] == number + 1
        for ours, expected in zip(packed, everything(minilm.features(torch.tensor([tokens]))), strict=True):
            torch.testing.assert_close(ours[0, inside], expected[0], rtol=0, atol=1e-5)


def test_minilm_is_the_model_of_transformers(minilm):
    assert (minilm.num_layers, minilm.width, minilm.vocab_size, minilm.num_parameters) == (6, 384, 30522, 22713216)
    model = BertModel.from_pretrained(minilm.name).eval()
    inputs = minilm.tokenizer(["one sentence", "another, longer sentence"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs, output_hidden_states=True)
    features = minilm.features(**inputs)
    torch.testing.assert_close(torch.stack(features.hidden), torch.stack(expected.hidden_states[1:]))
    torch.testing.assert_close(features.embedding_BTD, expected.hidden_states[0])
    assert torch.equal(minilm.token_embeddings, model.embeddings.word_embeddings.weight)


def test_is_outside_modules_and_frozen(build_teacher):
    class Owner(nn.Module):
        def __init__(self, teacher):
            super().__init__()
            self.teacher = teacher
            self.own = nn.Linear(2, 2)

    teacher = build_teacher("bert")
    owner = Owner(teacher)
    assert set(owner.state_dict()) == {"own.weight", "own.bias"}
    assert len(list(owner.parameters())) == 2
    owner.train()
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert not any(part.requires_grad for part in everything(teacher.features(ids_like(DOCUMENTS))))
    assert copy.deepcopy(owner).teacher is teacher


def test_leaves_no_hooks(build_teacher):
    teacher = build_teacher("bert")
    # transformers keeps hooks of its own on a model that has shown its hidden states
    before = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in teacher.model.modules()]
    teacher.features(ids_like(DOCUMENTS))
    with pytest.raises(IndexError):
        teacher.features(ids_like(DOCUMENTS) + 1000)
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in teacher.model.modules()] == before


def test_without_attention_blocks_warns_once(caplog):
    config = AlbertConfig(
        vocab_size=60,
        hidden_size=16,
        embedding_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=20,
    )
    with caplog.at_level(logging.WARNING):
        teacher = Teacher(AlbertModel(config))
        features = [teacher.features(ids_like(DOCUMENTS)) for _ in range(3)]
    assert features[0].attention is None
    assert "attention" not in teacher.widths
    assert caplog.text.count("hidden states only") == 1
    with pytest.raises(UserError, match="cannot be cut to 1"):
        first_layers(teacher, 1)


def test_a_teacher_without_hidden_states_is_refused(build_model):
    class Silent(BertModel):
        def forward(self, input_ids, attention_mask=None, **settings):
            return BaseModelOutput(last_hidden_state=super().forward(input_ids, attention_mask)[0])

    with pytest.raises(UserError, match="gives no hidden states"):
        Teacher(Silent(build_model("bert").config))


def test_a_model_of_images_is_refused(tmp_path):
    model = ViTModel(
        ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20, image_size=16)
    )
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="takes no input_ids"):
        Teacher.load(tmp_path)


def test_save_and_load(build_teacher, tmp_path):
    teacher, ids = build_teacher("roberta"), ids_like(DOCUMENTS)
    loaded = Teacher.load(teacher.save(tmp_path / "teacher"))
    for ours, expected in zip(everything(loaded.features(ids)), everything(teacher.features(ids)), strict=True):
        torch.testing.assert_close(ours, expected)
    assert Teacher.load(tmp_path / "teacher", dtype=torch.bfloat16).features(ids).hidden[0].dtype == torch.bfloat16


def test_load_of_nothing(tmp_path):
    with pytest.raises(UserError, match="teacher '.*nowhere': there is no such folder") as raised:
        Teacher.load(tmp_path / "nowhere")
    assert "\n" not in str(raised.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot be loaded") as raised:
        Teacher.load(tmp_path / "empty")
    assert "\n" not in str(raised.value)


def test_tokenizer(build_teacher, minilm):
    text = "a tokenizer"
    assert minilm.tokenizer.decode(minilm.tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    with pytest.raises(UserError, match="has no tokenizer"):
        _ = build_teacher("bert").tokenizer


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "gpt2", "llama"])
def test_first_layers(family, build_teacher, tmp_path):
    teacher, ids = build_teacher(family), ids_like(DOCUMENTS)
    half = first_layers(teacher, 2)
    whole_features, half_features = teacher.features(ids), half.features(ids)
    assert (half.num_layers, teacher.num_layers) == (2, 4)
    assert half.num_parameters < teacher.num_parameters
    torch.testing.assert_close(half_features.embedding_BTD, whole_features.embedding_BTD)
    torch.testing.assert_close(half_features.hidden[0], whole_features.hidden[0])
    # a decoder's last layer is followed by the final norm, so compare before it
    torch.testing.assert_close(half_features.attention[1], whole_features.attention[1])
    loaded = Teacher.load(half.save(tmp_path / "half"))
    assert loaded.num_layers == 2
    torch.testing.assert_close(loaded.features(ids).hidden[-1], half_features.hidden[-1])


@pytest.mark.parametrize("keep", [0, 5])
def test_layers_that_a_teacher_does_not_have(keep, build_teacher):
    with pytest.raises(UserError, match=f"has 4 layers that cannot be cut to {keep}"):
        first_layers(build_teacher("bert"), keep)
