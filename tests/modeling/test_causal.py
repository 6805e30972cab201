"""The decoder: it sees no future, and its cache changes nothing."""

import pytest
import torch
from torch import nn
from transformers import DynamicCache, StaticCache

from elm_nni.modeling import ElmCache, ElmForCausalLM, ElmForMaskedLM, ElmModel

IDS = torch.randint(1, 60, (2, 9), generator=torch.Generator().manual_seed(0))
LEFT_PADDED = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1], [1] * 9])
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture
def model(make_config, randomise) -> nn.Module:
    return randomise(ElmForCausalLM(make_config(is_causal=True, eos_token_id=59)))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("with_mask", [False, True])
def test_logits_before_a_changed_token_are_unchanged(model, implementation: str, with_mask: bool) -> None:
    model.set_attn_implementation(implementation)
    inputs = {"attention_mask": LEFT_PADDED} if with_mask else {}
    logits = model(IDS, **inputs).logits
    for t in range(4, 9):
        changed = IDS.clone()
        changed[:, t] = changed[:, t] % 59 + 1
        after = model(changed, **inputs).logits
        assert torch.equal(after[:, :t], logits[:, :t])
        assert (after[:, t] - logits[:, t]).abs().max() > 1e-3


def test_an_encoder_does_see_the_future(make_config, randomise) -> None:
    """The check above would find a leak: it finds the encoder's."""
    encoder = randomise(ElmForMaskedLM(make_config()))
    changed = IDS.clone()
    changed[:, 5] = changed[:, 5] % 59 + 1
    assert not torch.equal(encoder(changed).logits[:, :5], encoder(IDS).logits[:, :5])


def test_no_gradient_flows_from_a_prediction_to_later_token_vectors(model) -> None:
    vectors: list[torch.Tensor] = []
    model.elm.embeddings.tokens.register_forward_hook(lambda module, args, output: vectors.append(output))
    logits = model(IDS).logits
    gradient = torch.autograd.grad(logits[:, 4].sum(), vectors[0])[0]
    assert gradient[:, 5:].abs().max() == 0
    assert gradient[:, :5].abs().amin(dim=(0, 2)).min() > 0


@pytest.mark.parametrize(
    ("steps", "pass_mask"),
    [
        *[(steps, pass_mask) for steps in [(9,), (4, 1, 1, 3), (5, 4)] for pass_mask in ("always", "first", "never")],
        *[(steps, pass_mask) for steps in [(1,) * 9, (1, 8)] for pass_mask in ("always", "never")],
    ],
)
def test_cached_steps_equal_one_pass(model, steps: tuple[int, ...], pass_mask: str) -> None:
    mask = torch.ones_like(IDS) if pass_mask == "never" else LEFT_PADDED
    expected = model(IDS, attention_mask=mask).logits
    cache, start, logits = ElmCache(), 0, []
    for step in steps:
        given = None if pass_mask == "never" or (pass_mask == "first" and start) else mask[:, : start + step]
        outputs = model(IDS[:, start : start + step], attention_mask=given, past_key_values=cache)
        assert outputs.past_key_values is cache
        logits.append(outputs.logits)
        start += step
    valid = mask.bool()
    torch.testing.assert_close(torch.cat(logits, dim=1)[valid], expected[valid], **TOLERANCE)


def continued(model, cache: ElmCache, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return model(ids[:, -1:], attention_mask=mask, past_key_values=cache).logits[:, -1]


@pytest.mark.parametrize("rows", [[1, 0], [0, 0], [1, 1]])
def test_reordered_cache(model, rows: list[int]) -> None:
    cache = model(IDS[:, :8], attention_mask=LEFT_PADDED[:, :8], use_cache=True).past_key_values
    cache.reorder_cache(torch.tensor(rows))
    ids, mask = torch.cat([IDS[rows, :8], IDS[:, 8:]], dim=1), LEFT_PADDED[rows]
    expected = model(ids, attention_mask=mask).logits[:, -1]
    torch.testing.assert_close(continued(model, cache, ids, mask), expected, **TOLERANCE)


def test_repeated_selected_and_cropped_cache(model) -> None:
    cache = model(IDS, attention_mask=LEFT_PADDED, use_cache=True).past_key_values
    cache.batch_repeat_interleave(3)
    cache.batch_select_indices(torch.tensor([5, 0]))
    cache.crop(-2)
    assert cache.get_seq_length() == 7
    ids, mask = IDS[[1, 0], :8], LEFT_PADDED[[1, 0], :8]
    torch.testing.assert_close(
        continued(model, cache, ids, mask), model(ids, attention_mask=mask).logits[:, -1], **TOLERANCE
    )
    cache.reset()
    torch.testing.assert_close(model(IDS, past_key_values=cache).logits, model(IDS).logits, **TOLERANCE)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 0.7, "top_k": 20},
        {"do_sample": False, "num_beams": 4, "num_return_sequences": 2},
        {"do_sample": True, "num_beams": 3},
        {"do_sample": False, "repetition_penalty": 1.3},
    ],
)
def test_generate_with_cache_equals_without(model, settings: dict) -> None:
    model.double()

    def generate(use_cache: bool):
        torch.manual_seed(3)
        return model.generate(
            IDS,
            attention_mask=LEFT_PADDED,
            max_new_tokens=12,
            pad_token_id=0,
            use_cache=use_cache,
            return_dict_in_generate=True,
            output_logits=True,
            **settings,
        )

    cached, plain = generate(True), generate(False)
    assert cached.sequences.shape[1] > IDS.shape[1] + 2
    assert torch.equal(cached.sequences, plain.sequences)
    for with_cache, without in zip(cached.logits, plain.logits, strict=True):
        torch.testing.assert_close(with_cache, without, rtol=1e-9, atol=1e-9)
    assert isinstance(cached.past_key_values, ElmCache)


def test_generate_feeds_one_token_a_step(model) -> None:
    lengths: list[int] = []
    model.elm.layers[0].register_forward_hook(lambda module, args, output: lengths.append(output.shape[1]))
    model.generate(IDS, max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert lengths == [9, 1, 1, 1, 1]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_left_padding_does_not_change_what_is_generated(model, num_beams: int) -> None:
    settings = {"max_new_tokens": 8, "do_sample": False, "num_beams": num_beams, "pad_token_id": 0}
    batched = model.generate(IDS, attention_mask=LEFT_PADDED, **settings)[:, 9:]
    for row, mask in enumerate(LEFT_PADDED.bool()):
        ids = IDS[row : row + 1, mask]
        alone = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, ids.shape[1] :]
        assert torch.equal(batched[row, : len(alone)], alone)
        # Behind the end of a row that stops first is padding.
        assert batched[row, len(alone) :].eq(0).all()


def test_sampling_follows_the_seed_and_the_distribution_of_each_row_alone(model) -> None:
    settings = {"max_new_tokens": 8, "do_sample": True, "eos_token_id": None, "pad_token_id": 0, "temperature": 0.5}

    def sample(seed: int):
        torch.manual_seed(seed)
        return model.generate(
            IDS, attention_mask=LEFT_PADDED, return_dict_in_generate=True, output_scores=True, **settings
        )

    first = sample(1)
    assert torch.equal(sample(1).sequences, first.sequences)
    assert not torch.equal(sample(2).sequences, first.sequences)
    for row, mask in enumerate(LEFT_PADDED.bool()):
        new = first.sequences[row, 9:]
        alone = model(torch.cat([IDS[row, mask], new])[None]).logits[0, mask.sum() - 1 : -1]
        for step, scores in enumerate(first.scores):
            # The 50 best are left, as is usual in transformers.
            kept = scores[row].isfinite()
            assert kept.sum() == 50
            assert kept[new[step]]
            torch.testing.assert_close(scores[row][kept], alone[step][kept] / 0.5, **TOLERANCE)


@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_stops_at_the_last_position(model, use_cache: bool) -> None:
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "use_cache": use_cache}
    full = model.generate(IDS, attention_mask=LEFT_PADDED, max_length=33, **settings)
    assert full.shape == (2, 33)
    with pytest.raises(ValueError, match="a sequence has 33 tokens; max_position_embeddings is 32"):
        model.generate(IDS, attention_mask=LEFT_PADDED, max_length=34, **settings)
    # Padding takes no position.
    padded = model.generate(IDS[:1], attention_mask=LEFT_PADDED[:1], max_length=37, **settings)
    assert torch.equal(padded[:, :33], full[:1])


def test_generation_that_crops_or_continues_the_cache(model, randomise) -> None:
    settings = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = model.generate(IDS[1:], max_new_tokens=14, use_cache=False, **settings)
    # Wrong guesses of the prompt look-up are cropped from the cache.
    looked_up = model.generate(IDS[1:], max_new_tokens=14, prompt_lookup_num_tokens=3, **settings)
    assert torch.equal(looked_up, expected)
    assistant = randomise(ElmForCausalLM(model.config), seed=1)
    assert torch.equal(model.generate(IDS[1:], max_new_tokens=14, assistant_model=assistant, **settings), expected)
    cache = ElmCache()
    begun = model.generate(IDS[1:], max_new_tokens=5, past_key_values=cache, **settings)
    assert torch.equal(model.generate(begun, max_new_tokens=9, past_key_values=cache, **settings), expected)


def test_loss_is_shifted_and_stops_at_documents(model) -> None:
    outputs = model(IDS, labels=IDS)
    expected = nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    torch.testing.assert_close(outputs.loss, expected)

    documents = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 2, 2]]).expand(2, -1)
    packed = model(IDS, labels=IDS, document_ids=documents).loss
    first, second = model(IDS[:, :4], labels=IDS[:, :4]).loss, model(IDS[:, 4:], labels=IDS[:, 4:]).loss
    torch.testing.assert_close(packed, (first * 3 + second * 4) / 7, **TOLERANCE)


def test_logits_to_keep(model) -> None:
    assert torch.equal(model(IDS, logits_to_keep=2).logits, model(IDS).logits[:, -2:])
    with pytest.raises(ValueError, match="logits_to_keep is 2; with labels it must be 0"):
        model(IDS, labels=IDS, logits_to_keep=2)


def test_caches_that_cannot_serve_are_refused(model, make_config) -> None:
    outputs = model(IDS, past_key_values=DynamicCache())
    assert isinstance(outputs.past_key_values, ElmCache)
    filled = DynamicCache()
    filled.update(torch.zeros(2, 2, 3, 5), torch.zeros(2, 2, 3, 5), 0)
    with pytest.raises(ValueError, match="past_key_values is a DynamicCache; it must be an ElmCache"):
        model(IDS, past_key_values=filled)
    with pytest.raises(ValueError, match="past_key_values is a StaticCache"):
        model(IDS, past_key_values=StaticCache(config=model.config, max_cache_len=20))
    with pytest.raises(ValueError, match="document_ids cannot be combined with a cache"):
        model(IDS, document_ids=torch.ones_like(IDS), use_cache=True)
    with pytest.raises(ValueError, match="use_cache needs a causal model"):
        ElmModel(make_config())(IDS, use_cache=True)


def test_no_cache_is_kept_while_checkpointing(model) -> None:
    model.train()
    model.gradient_checkpointing_enable()
    assert model(IDS, use_cache=True).past_key_values is None
    assert isinstance(model.eval()(IDS, use_cache=True).past_key_values, ElmCache)
