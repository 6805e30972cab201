"""The models as transformers sees them: heads, losses, saving, attention, checkpointing."""

import copy
import importlib.util

import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from elm_nni.modeling import (
    BLOCKS,
    ElmConfig,
    ElmEmbeddings,
    ElmForCausalLM,
    ElmForMaskedLM,
    ElmForQuestionAnswering,
    ElmForSentenceEmbedding,
    ElmForSequenceClassification,
    ElmForTokenClassification,
    ElmModel,
    NoNorm,
)

HEADS = {
    ElmModel: AutoModel,
    ElmForMaskedLM: AutoModelForMaskedLM,
    ElmForCausalLM: AutoModelForCausalLM,
    ElmForSequenceClassification: AutoModelForSequenceClassification,
    ElmForTokenClassification: AutoModelForTokenClassification,
    ElmForQuestionAnswering: AutoModelForQuestionAnswering,
    ElmForSentenceEmbedding: AutoModel,
}
IDS = torch.randint(1, 60, (3, 7), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 7, [1, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1]])


def config_for(model_class: type, make_config) -> ElmConfig:
    return make_config(is_causal=model_class is ElmForCausalLM, num_labels=3)


@pytest.mark.parametrize("model_class", HEADS)
def test_save_and_load_by_auto_class(model_class: type, make_config, randomise, tmp_path) -> None:
    model = randomise(model_class(config_for(model_class, make_config)))
    model.save_pretrained(tmp_path)
    loaded = HEADS[model_class].from_pretrained(tmp_path)
    assert type(loaded) is model_class
    assert type(AutoConfig.from_pretrained(tmp_path)) is ElmConfig
    assert not loaded.training
    for name, expected in model(IDS, attention_mask=MASK).items():
        assert torch.equal(loaded(IDS, attention_mask=MASK)[name], expected), name
    assert loaded.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("model_class", [ElmForMaskedLM, ElmForCausalLM])
def test_the_token_table_is_tied_and_stays_so(model_class: type, make_config, tmp_path) -> None:
    config = config_for(model_class, make_config)
    model = model_class(config)
    table = model.elm.embeddings.tokens.weight
    assert model.lm_head.decoder.weight is table
    head = 24 * 8 + 8 + 2 * 8 + 60
    encoder = ElmModel(config).num_parameters()
    assert model.num_parameters() == encoder + head
    assert model.num_parameters_outside_embeddings() == encoder + head - ElmEmbeddings.num_parameters(config)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as weights:
        assert [tuple(weights.get_tensor(name).shape) for name in weights.keys()].count((60, 8)) == 1  # noqa: SIM118
    loaded = model_class.from_pretrained(tmp_path)
    assert loaded.lm_head.decoder.weight is loaded.elm.embeddings.tokens.weight
    assert torch.equal(loaded.lm_head.decoder.weight, table)


def test_an_untied_table(make_config) -> None:
    model = ElmForMaskedLM(make_config(tie_word_embeddings=False))
    assert model.lm_head.decoder.weight is not model.elm.embeddings.tokens.weight


def test_a_body_loads_into_a_head_and_back(make_config, randomise, tmp_path) -> None:
    model = randomise(ElmForMaskedLM(make_config()))
    model.save_pretrained(tmp_path)
    body = ElmModel.from_pretrained(tmp_path)
    assert torch.equal(body(IDS).last_hidden_state, model.elm(IDS).last_hidden_state)
    classifier = ElmForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(classifier.elm.layers[0].ffn.up.weight, model.elm.layers[0].ffn.up.weight)


@pytest.mark.parametrize("is_causal", [False, True])
def test_sdpa_equals_eager(is_causal: bool, make_config, randomise) -> None:
    model = randomise(ElmModel(make_config(is_causal=is_causal)))
    documents = torch.tensor([[1, 1, 1, 2, 2, 2, 2], [1] * 7, [1, 1, 0, 2, 2, 0, 0]])
    for inputs in ({}, {"attention_mask": MASK}, {"document_ids": documents}):
        assert model.config._attn_implementation == "sdpa"
        expected = model(IDS, **inputs).last_hidden_state
        model.set_attn_implementation("eager")
        torch.testing.assert_close(model(IDS, **inputs).last_hidden_state, expected, rtol=1e-4, atol=1e-5)
        model.set_attn_implementation("sdpa")


def test_elm_small_counts() -> None:
    with torch.device("meta"):
        model = ElmModel(ElmConfig())
    assert model.num_parameters() == 19_495_488
    assert model.num_parameters_outside_embeddings() == 19_495_488 - 4_382_544
    analytic = sum(
        BLOCKS[layer["block"]].num_parameters(model.config, **{k: v for k, v in layer.items() if k != "block"})
        for layer in model.config.layers
    )
    assert model.num_parameters_outside_embeddings() == analytic


def test_fresh_weights_follow_bert() -> None:
    torch.manual_seed(0)
    layers = [{"block": b, "ffn_size": 64, "num_heads": 4, "head_dim": 16} for b in ("bert", "mobile")]
    model = ElmModel(ElmConfig(vocab_size=2000, hidden_size=64, bottleneck_size=32, layers=layers))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            assert abs(module.weight.std().item() - 0.02) < 0.002, name
        elif isinstance(module, nn.LayerNorm | NoNorm):
            assert torch.equal(module.weight, torch.ones_like(module.weight)), name
        if getattr(module, "bias", None) is not None:
            assert torch.equal(module.bias, torch.zeros_like(module.bias)), name


@pytest.mark.parametrize("model_class", HEADS)
def test_a_users_configuration_is_not_changed(model_class: type, make_config) -> None:
    config = config_for(model_class, make_config)
    before = copy.deepcopy(config.to_dict())
    model = model_class(config)
    model.train()(IDS, attention_mask=MASK, output_attentions=True, output_hidden_states=True)
    assert config.to_dict() == before


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_hidden_states_and_attentions(implementation: str, make_config, randomise) -> None:
    model = randomise(ElmForSequenceClassification(make_config(attn_implementation=implementation)))
    plain = model(IDS, attention_mask=MASK)
    assert plain.hidden_states is None
    assert plain.attentions is None
    outputs = model(IDS, attention_mask=MASK, output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(outputs.logits, plain.logits, rtol=1e-4, atol=1e-5)
    assert [tuple(h.shape) for h in outputs.hidden_states] == [(3, 7, 24)] * (len(BLOCKS) + 1)
    body = model.elm
    assert torch.equal(outputs.hidden_states[-1], body(IDS, MASK, output_attentions=True).last_hidden_state)
    second = body.layers[0](outputs.hidden_states[0], None, None, 0)[0]
    torch.testing.assert_close(outputs.hidden_states[1][0], second, rtol=1e-4, atol=1e-5)
    for layer, weights in zip(model.config.layers, outputs.attentions, strict=True):
        assert weights.shape == (3, layer["num_heads"], 7, 7)
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, layer["num_heads"], 7))
        assert weights[1, :, :4, 4:].abs().max() == 0
    assert all(layer.attention.recorded is None for layer in body.layers)
    assert isinstance(model(IDS, return_dict=False), tuple)


def test_attentions_are_the_softmax_of_scaled_products(make_config, randomise) -> None:
    model = randomise(ElmModel(make_config()))
    outputs = model(IDS, output_attentions=True, output_hidden_states=True)
    attention = model.layers[0].attention
    query = attention.query(outputs.hidden_states[0])[0, :, :5]
    key = attention.key(outputs.hidden_states[0])[0, :, :5]
    torch.testing.assert_close(outputs.attentions[0][0, 0], (query @ key.T / 5**0.5).softmax(-1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("output_attentions", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(
    use_reentrant: bool, output_attentions: bool, make_config, randomise
) -> None:
    model = randomise(ElmForMaskedLM(make_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))).train()

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(IDS, attention_mask=MASK, labels=IDS, output_attentions=output_attentions).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    calls = []
    handle = model.elm.layers[0].ffn.register_forward_hook(lambda *args: calls.append(1))
    checkpointed = gradients()
    handle.remove()
    assert len(calls) == (1 if output_attentions else 2)
    assert all(layer.gradient_checkpointing for layer in model.elm.layers)
    for name, expected in plain.items():
        torch.testing.assert_close(checkpointed[name], expected, msg=name)


def test_masked_lm_loss(make_config, randomise) -> None:
    model = randomise(ElmForMaskedLM(make_config()))
    labels = torch.where(torch.arange(7) % 3 == 0, IDS, -100)
    outputs = model(IDS, labels=labels)
    expected = nn.functional.cross_entropy(outputs.logits.view(-1, 60), labels.view(-1))
    torch.testing.assert_close(outputs.loss, expected)
    assert model(IDS, labels=torch.full_like(IDS, -100)).loss == 0


def test_masked_lm_head(make_config, randomise) -> None:
    model = randomise(ElmForMaskedLM(make_config()))
    head = model.lm_head
    hidden = model.elm(IDS).last_hidden_state
    inner = nn.functional.layer_norm(
        nn.functional.gelu(hidden @ head.dense.weight.T + head.dense.bias),
        (8,),
        head.norm.weight,
        head.norm.bias,
        1e-12,
    )
    torch.testing.assert_close(head.transform(hidden), inner, rtol=1e-4, atol=1e-5)
    expected = inner @ model.elm.embeddings.tokens.weight.T + head.decoder.bias
    torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("num_labels", "problem_type", "labels"),
    [
        (1, None, torch.tensor([0.5, -1.0, 2.0])),
        (1, None, torch.tensor([[0.5], [-1.0], [2.0]])),
        (3, "regression", torch.arange(9.0).view(3, 3)),
        (3, None, torch.tensor([0, 2, 1])),
        (3, None, torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])),
        (3, "multi_label_classification", torch.tensor([[1, 0, 1], [0, 0, 1], [1, 1, 1]])),
    ],
)
def test_classification_losses(num_labels: int, problem_type, labels: torch.Tensor, make_config, randomise) -> None:
    config = make_config(num_labels=num_labels, problem_type=problem_type)
    outputs = randomise(ElmForSequenceClassification(config))(IDS, attention_mask=MASK, labels=labels)
    logits = outputs.logits
    if num_labels == 1:
        expected = ((logits[:, 0] - labels.view(-1)) ** 2).mean()
    elif problem_type == "regression":
        expected = ((logits - labels) ** 2).mean()
    elif labels.ndim == 1:
        expected = -logits.log_softmax(-1)[torch.arange(3), labels].mean()
    else:
        expected = -(labels * logits.sigmoid().log() + (1 - labels) * (1 - logits.sigmoid()).log()).mean()
    torch.testing.assert_close(outputs.loss, expected, rtol=1e-4, atol=1e-5)
    assert config.problem_type == problem_type


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_classifier_pooling(pooling: str, make_config, randomise) -> None:
    model = randomise(ElmForSequenceClassification(make_config(classifier_pooling=pooling, num_labels=3)))
    hidden = model.elm(IDS, MASK).last_hidden_state
    logits = model(IDS, attention_mask=MASK).logits
    for row, valid in enumerate(MASK.bool()):
        kept = hidden[row][valid]
        pooled = {"cls": kept[0], "mean": kept.mean(0), "last": kept[-1]}[pooling]
        torch.testing.assert_close(logits[row], model.classifier(pooled), rtol=1e-4, atol=1e-5)
    assert model(IDS, attention_mask=torch.zeros_like(MASK)).logits.isfinite().all()
    torch.testing.assert_close(model(IDS).logits, model(IDS, attention_mask=torch.ones_like(IDS)).logits)


def test_question_answering_loss(make_config, randomise) -> None:
    model = randomise(ElmForQuestionAnswering(make_config()))
    starts, ends = torch.tensor([0, 3, 99]), torch.tensor([[2], [3], [-1]])
    outputs = model(IDS, start_positions=starts, end_positions=ends)
    # The third answer lies outside and is not counted.
    start = -outputs.start_logits.log_softmax(-1)[[0, 1], [0, 3]].mean()
    end = -outputs.end_logits.log_softmax(-1)[[0, 1], [2, 3]].mean()
    torch.testing.assert_close(outputs.loss, (start + end) / 2)
    assert outputs.start_logits.shape == outputs.end_logits.shape == (3, 7)


def test_language_model_heads_refuse_the_other_direction(make_config) -> None:
    with pytest.raises(ValueError, match="ElmForCausalLM needs config.is_causal=True"):
        ElmForCausalLM(make_config())
    with pytest.raises(ValueError, match="ElmForMaskedLM needs config.is_causal=False"):
        ElmForMaskedLM(make_config(is_causal=True))


def test_exports_and_compiles_with_dynamic_shapes(make_config, randomise) -> None:
    model = randomise(ElmForSequenceClassification(make_config()))
    batch, tokens = torch.export.Dim("batch", max=64), torch.export.Dim("tokens", min=2, max=32)
    shape = {0: batch, 1: tokens}
    exported = torch.export.export(
        model,
        (),
        {"input_ids": IDS, "attention_mask": MASK},
        dynamic_shapes={"input_ids": shape, "attention_mask": shape},
    ).module()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    ids, mask = IDS[:2].repeat(1, 2), MASK[:2].repeat(1, 2)
    expected = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(exported(input_ids=ids, attention_mask=mask).logits, expected)
    torch.testing.assert_close(compiled(ids, attention_mask=mask).logits, expected)


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="transformers.Trainer needs accelerate")
def test_trainer_trains_two_steps(make_config, tmp_path) -> None:
    from transformers import Trainer, TrainingArguments

    model = ElmForSequenceClassification(make_config(num_labels=2))
    before = model.classifier.weight.detach().clone()
    data = [{"input_ids": IDS[i % 3], "attention_mask": MASK[i % 3], "labels": i % 2} for i in range(8)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=4, report_to=[], use_cpu=True
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)
    trainer.train()
    assert trainer.state.global_step == 2
    assert not torch.equal(model.classifier.weight, before)
    assert "eval_loss" in trainer.evaluate()
