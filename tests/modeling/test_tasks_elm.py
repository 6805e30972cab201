"""Token classification and sentence embeddings; classification and question answering are in test_modeling_elm."""

import pytest
import torch
from torch import nn

from elm_nni.modeling import ElmForSentenceEmbedding, ElmForTokenClassification

IDS = torch.randint(1, 60, (3, 7), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 7, [1, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1]])


def tagger(make_config, randomise, **settings: object) -> nn.Module:
    return randomise(ElmForTokenClassification(make_config(num_labels=5, **settings)))


def embedder(make_config, randomise, **settings: object) -> nn.Module:
    config = make_config(**{"classifier_pooling": "mean", "sentence_embedding_size": 6, **settings})
    return randomise(ElmForSentenceEmbedding(config))


def test_token_classification_counts_labelled_tokens(make_config, randomise) -> None:
    model = tagger(make_config, randomise)
    labels = torch.full_like(IDS, -100)
    labels[0, 1], labels[1, 3], labels[2, 2] = 4, 0, 2
    outputs = model(IDS, attention_mask=MASK, labels=labels)
    log_probabilities = outputs.logits.log_softmax(-1)
    expected = -(log_probabilities[0, 1, 4] + log_probabilities[1, 3, 0] + log_probabilities[2, 2, 2]) / 3
    torch.testing.assert_close(outputs.loss, expected)
    assert model(IDS, labels=torch.full_like(IDS, -100)).loss == 0
    assert model(IDS).loss is None


def test_token_logits_do_not_depend_on_padding(make_config, randomise) -> None:
    model = tagger(make_config, randomise)
    logits = model(IDS, attention_mask=MASK).logits
    assert logits.shape == (3, 7, 5)
    for row, valid in enumerate(MASK.bool()):
        alone = model(IDS[row : row + 1, valid]).logits[0]
        torch.testing.assert_close(logits[row, valid], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [None, 6])
@pytest.mark.parametrize("normalize", [True, False])
def test_sentence_embeddings(size: int | None, normalize: bool, make_config, randomise) -> None:
    model = embedder(make_config, randomise, sentence_embedding_size=size, normalize_embeddings=normalize)
    outputs = model(IDS, attention_mask=MASK)
    assert outputs.sentence_embeddings.shape == (3, size or 24)
    assert torch.equal(outputs.last_hidden_state, model.elm(IDS, MASK).last_hidden_state)
    for row, valid in enumerate(MASK.bool()):
        expected = outputs.last_hidden_state[row, valid].mean(0)
        if size:
            expected = model.projection.weight @ expected + model.projection.bias
        if normalize:
            expected = expected / expected.pow(2).sum().sqrt()
        torch.testing.assert_close(outputs.sentence_embeddings[row], expected, rtol=1e-4, atol=1e-5)
        alone = model(IDS[row : row + 1, valid]).sentence_embeddings[0]
        torch.testing.assert_close(outputs.sentence_embeddings[row], alone, rtol=1e-4, atol=1e-5)
    assert model(IDS, attention_mask=torch.zeros_like(MASK)).sentence_embeddings.isfinite().all()
    assert torch.equal(model(IDS, MASK, return_dict=False)[1], outputs.sentence_embeddings)


def test_sentence_embeddings_are_pooled_as_configured(make_config, randomise) -> None:
    first = embedder(make_config, randomise, classifier_pooling="cls", sentence_embedding_size=None)
    outputs = first(IDS, attention_mask=MASK)
    expected = nn.functional.normalize(outputs.last_hidden_state[[0, 1, 2], [0, 0, 2]], dim=-1)
    torch.testing.assert_close(outputs.sentence_embeddings, expected)


@pytest.mark.parametrize("build", [tagger, embedder])
def test_sdpa_equals_eager(build, make_config, randomise) -> None:
    model = build(make_config, randomise)
    expected = model(IDS, attention_mask=MASK)
    model.set_attn_implementation("eager")
    outputs = model(IDS, attention_mask=MASK, output_attentions=True, output_hidden_states=True)
    name = "logits" if build is tagger else "sentence_embeddings"
    torch.testing.assert_close(outputs[name], expected[name], rtol=1e-4, atol=1e-5)
    assert len(outputs.attentions) == 6
    assert len(outputs.hidden_states) == 7


@pytest.mark.parametrize("build", [tagger, embedder])
def test_gradient_checkpointing_gives_the_same_gradients(build, make_config, randomise) -> None:
    model = build(make_config, randomise, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        outputs = model(IDS, attention_mask=MASK)
        # Not symmetric, or the gradient of a normalised vector would vanish.
        (outputs.logits if build is tagger else outputs.sentence_embeddings)[..., 0].sum().backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    plain = gradients()
    model.gradient_checkpointing_enable()
    calls = []
    model.elm.layers[0].ffn.register_forward_hook(lambda *args: calls.append(1))
    checkpointed = gradients()
    assert len(calls) == 2
    assert plain["elm.layers.0.ffn.up.weight"].abs().max() > 1e-6
    for name, expected in plain.items():
        torch.testing.assert_close(checkpointed[name], expected, msg=name)
