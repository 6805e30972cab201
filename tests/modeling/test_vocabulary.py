"""A part of the vocabulary: what is kept behaves as before, under new ids."""

import pytest
import torch
from torch import nn

from elm_nni.modeling import (
    ElmForCausalLM,
    ElmForMaskedLM,
    ElmForSequenceClassification,
    ElmModel,
    select_tokens,
)

# Not sorted: the order given is the order of the new ids.
KEPT = [0, 40, 7, 59, 13, 2, 31]
NEW_IDS = torch.tensor([[1, 2, 3, 4], [6, 5, 4, 0]])
OLD_IDS = torch.tensor(KEPT)[NEW_IDS]
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


def build(model_class: type, make_config, randomise, **settings: object) -> nn.Module:
    return randomise(model_class(make_config(is_causal=model_class is ElmForCausalLM, eos_token_id=59, **settings)))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_class", [ElmForMaskedLM, ElmForCausalLM])
def test_language_models_give_the_same_logits(model_class, tied: bool, make_config, randomise, tmp_path) -> None:
    model = build(model_class, make_config, randomise, tie_word_embeddings=tied)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small = select_tokens(model, KEPT)
    expected = model(OLD_IDS, attention_mask=MASK).logits[..., KEPT]
    for one in (small, _saved_and_loaded(small, tmp_path)):
        assert type(one) is model_class
        torch.testing.assert_close(one(NEW_IDS, attention_mask=MASK).logits, expected, rtol=0, atol=1e-6)
        assert (one.lm_head.decoder.weight is one.elm.embeddings.tokens.weight) is tied
        assert one.config.vocab_size == one.elm.config.vocab_size == one.lm_head.decoder.out_features == 7
        assert one.elm.embeddings.tokens.num_embeddings == 7
        assert (one.config.pad_token_id, one.config.eos_token_id) == (0, 3)
    assert model.config.vocab_size == 60
    assert model.config.eos_token_id == 59
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def _saved_and_loaded(model: nn.Module, folder) -> nn.Module:
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder)


@pytest.mark.parametrize("model_class", [ElmModel, ElmForSequenceClassification])
def test_models_without_a_language_head(model_class, make_config, randomise) -> None:
    model = build(model_class, make_config, randomise)
    small = select_tokens(model, KEPT)
    assert torch.equal(small(NEW_IDS, attention_mask=MASK)[0], model(OLD_IDS, attention_mask=MASK)[0])
    assert small.num_parameters() == model.num_parameters() - 53 * 8


def test_generation_ends_at_the_new_id_of_the_end(make_config, randomise) -> None:
    model = build(ElmForCausalLM, make_config, randomise)
    model.generation_config.eos_token_id = [2, 59]
    small = select_tokens(model, KEPT)
    assert small.generation_config.eos_token_id == [5, 3]
    assert model.generation_config.eos_token_id == [2, 59]
    everything = [59, *range(59)]
    turned = select_tokens(model, everything)
    generated = model.generate(OLD_IDS[:1], max_new_tokens=12, do_sample=False)
    new_ids = torch.tensor([[everything.index(one) for one in OLD_IDS[0]]])
    assert [everything[one] for one in turned.generate(new_ids, max_new_tokens=12, do_sample=False)[0]] == (
        generated[0].tolist()
    )


def test_the_selected_model_trains_what_was_trained(make_config, randomise) -> None:
    model = build(ElmForMaskedLM, make_config, randomise).train()
    model.elm.embeddings.tokens.weight.requires_grad_(False)
    small = select_tokens(model, KEPT)
    assert small.training
    small(NEW_IDS, labels=NEW_IDS).loss.backward()
    assert small.elm.embeddings.tokens.weight.grad is None
    assert small.lm_head.decoder.bias.grad.shape == (7,)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([], "kept_ids is empty"),
        ([0, 59, 60], "kept_ids has 60; the vocabulary is 0 to 59"),
        ([0, 59, -1], "kept_ids has -1; the vocabulary is 0 to 59"),
        ([0, 59, 5, 5], "kept_ids has 5 2 times; give each token once"),
        ([0, 5], "kept_ids lacks 59, which is config.eos_token_id"),
        ([59, 5], "kept_ids lacks 0, which is config.pad_token_id"),
    ],
)
def test_bad_selections_are_refused(kept: list[int], message: str, make_config, randomise) -> None:
    with pytest.raises(ValueError, match=message):
        select_tokens(build(ElmModel, make_config, randomise), kept)


@pytest.mark.parametrize("model_class", [ElmForMaskedLM, ElmForCausalLM])
@pytest.mark.parametrize("size", [65, 45])
def test_resized_token_embeddings(size: int, model_class, make_config, randomise, tmp_path) -> None:
    model = build(model_class, make_config, randomise)
    ids, common = OLD_IDS % 45, min(size, 60)
    expected = model(ids).logits[..., :common]
    model.resize_token_embeddings(size)
    for one in (model, _saved_and_loaded(model, tmp_path)):
        logits = one(ids).logits
        assert logits.shape[-1] == one.config.vocab_size == one.elm.config.vocab_size == size
        torch.testing.assert_close(logits[..., :common], expected, rtol=0, atol=1e-6)
        assert one.lm_head.decoder.weight is one.elm.embeddings.tokens.weight
        assert one.lm_head.decoder.bias.shape == (size,)
