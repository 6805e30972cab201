"""Embedding, masks and positions: what a token may depend on."""

import pytest
import torch

from elm_nni.modeling import BLOCKS, ElmConfig, ElmEmbeddings, ElmModel, encode
from elm_nni.modeling.encoder_elm import document_positions, visible

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 60, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("is_causal", [False, True])
def test_embedding_equals_a_loop_over_tokens(is_causal: bool, make_config, randomise) -> None:
    config = make_config(is_causal=is_causal)
    embeddings = randomise(ElmEmbeddings(config))
    ids = random_ids(1, 7)
    documents = torch.tensor([[1, 1, 1, 2, 2, 0, 3]])
    segments, positions = torch.tensor([[0, 1, 0, 1, 0, 1, 0]]), torch.tensor([[0, 1, 2, 0, 1, 0, 0]])
    expected = []
    for t in range(7):
        parts = []
        for neighbour in (t - 2, t - 1, t) if is_causal else (t - 1, t, t + 1):
            inside = 0 <= neighbour < 7 and documents[0, t] > 0 and documents[0, neighbour] == documents[0, t]
            parts.append(embeddings.tokens.weight[ids[0, neighbour]] if inside else torch.zeros(8))
        row = embeddings.projection.weight @ torch.cat(parts) + embeddings.projection.bias
        row = row + embeddings.positions.weight[positions[0, t]] + embeddings.segments.weight[segments[0, t]]
        expected.append(embeddings.norm(row))
    torch.testing.assert_close(embeddings(ids, documents, segments, positions)[0], torch.stack(expected), **TOLERANCE)


def test_embedding_parameters() -> None:
    assert ElmEmbeddings.num_parameters(ElmConfig()) == 4_382_544
    for is_causal in (False, True):
        config = ElmConfig(vocab_size=50, hidden_size=6, embedding_size=4, type_vocab_size=3, is_causal=is_causal)
        built = ElmEmbeddings(config)
        assert ElmEmbeddings.num_parameters(config) == sum(p.numel() for p in built.parameters())


def test_positions_restart_with_each_document_and_skip_padding() -> None:
    packed = torch.tensor([[0, 1, 1, 1, 2, 2, 3, 0], [1, 1, 0, 2, 2, 2, 0, 0]])
    valid = packed > 0
    positions = document_positions(packed, packed=True)
    assert positions[0][valid[0]].tolist() == [0, 1, 2, 0, 1, 0]
    assert positions[1][valid[1]].tolist() == [0, 1, 0, 1, 2]
    left_padded = document_positions(torch.tensor([[0, 0, 1, 1, 0, 1]]), packed=False)
    assert left_padded[0, [2, 3, 5]].tolist() == [0, 1, 2]


def test_visible_equals_its_definition() -> None:
    documents = torch.tensor([[0, 1, 1, 2, 2, 0], [0, 0, 0, 0, 0, 0]])
    for is_causal in (False, True):
        for num_queries in (1, 3, 6):
            mask = visible(documents[:, -num_queries:], documents, is_causal=is_causal)
            assert mask.shape == (2, 1, num_queries, 6)
            for b in range(2):
                for query in range(6 - num_queries, 6):
                    for key in range(6):
                        same = documents[b, query] == documents[b, key] and documents[b, key] > 0
                        expected = query == key or bool(same and (key <= query or not is_causal))
                        assert bool(mask[b, 0, query - 6 + num_queries, key]) == expected


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side: str, is_causal: bool, make_config, randomise) -> None:
    model = randomise(ElmModel(make_config(is_causal=is_causal)))
    ids = random_ids(2, 6)
    padding = random_ids(2, 3, seed=1)
    ones, zeros = torch.ones_like(ids), torch.zeros_like(padding)
    order = (lambda valid, pad: [pad, valid]) if side == "left" else (lambda valid, pad: [valid, pad])
    padded = model(torch.cat(order(ids, padding), 1), attention_mask=torch.cat(order(ones, zeros), 1)).last_hidden_state
    kept = padded[:, 3:] if side == "left" else padded[:, :6]
    torch.testing.assert_close(kept, model(ids).last_hidden_state, **TOLERANCE)
    torch.testing.assert_close(
        model(ids, attention_mask=ones).last_hidden_state, model(ids).last_hidden_state, **TOLERANCE
    )


@pytest.mark.parametrize("is_causal", [False, True])
def test_packed_documents_equal_separate_ones(is_causal: bool, make_config, randomise) -> None:
    model = randomise(ElmModel(make_config(is_causal=is_causal)))
    lengths = (5, 1, 3)
    documents = [random_ids(1, length, seed=length) for length in lengths]
    row = torch.cat([*documents, random_ids(1, 2, seed=9)], dim=1)
    numbers = torch.tensor([[1] * 5 + [2] + [3] * 3 + [0] * 2])
    packed = model(row, document_ids=numbers).last_hidden_state
    separate = torch.cat([model(document).last_hidden_state for document in documents], dim=1)
    torch.testing.assert_close(packed[:, : sum(lengths)], separate, **TOLERANCE)
    assert packed.isfinite().all()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_rows_of_padding_are_finite_in_value_and_gradient(
    is_causal: bool, implementation: str, make_config, randomise
) -> None:
    model = randomise(ElmModel(make_config(is_causal=is_causal, attn_implementation=implementation)))
    ids, mask = random_ids(2, 5), torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    for inputs in ({"attention_mask": mask}, {"document_ids": mask}):
        model.zero_grad()
        hidden = model(ids, **inputs).last_hidden_state
        hidden.square().sum().backward()
        assert hidden.isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_encode_runs_on_bare_modules_like_the_model(make_config, randomise) -> None:
    """A search space calls ``encode`` with a configuration that no transformers model has prepared."""
    config = make_config()
    model = randomise(ElmModel(config))
    ids, mask = random_ids(2, 5), torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    bare = make_config()
    assert bare._attn_implementation is None
    for layer in model.layers:
        layer.attention.config = bare
    encoded = encode(model.embeddings, model.layers, bare, ids, mask, output_hidden_states=True)
    outputs = model(ids, attention_mask=mask, output_hidden_states=True)
    assert torch.equal(encoded.last_hidden_state, outputs.last_hidden_state)
    assert len(encoded.hidden_states) == len(outputs.hidden_states) == len(BLOCKS) + 1


def test_shapes_and_lengths_that_do_not_fit(make_config) -> None:
    model = ElmModel(make_config())
    ids = random_ids(2, 5)
    with pytest.raises(ValueError, match=r"attention_mask has the shape \(2, 4\); it must be \(2, 5\)"):
        model(ids, attention_mask=torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"document_ids has the shape \(1, 5\)"):
        model(ids, document_ids=torch.ones(1, 5, dtype=torch.long))
    with pytest.raises(ValueError, match=r"input_ids has the shape \(5,\)"):
        model(ids[0])
    with pytest.raises(ValueError, match="a sequence has 33 tokens; max_position_embeddings is 32"):
        model(random_ids(1, 33))


def test_a_packed_row_may_be_longer_than_the_longest_document(make_config) -> None:
    model = ElmModel(make_config()).eval()
    numbers = torch.tensor([[1] * 30 + [2] * 30])
    assert model(random_ids(1, 60), document_ids=numbers).last_hidden_state.shape == (1, 60, 24)
    with pytest.raises(ValueError, match="a sequence has 60 tokens"):
        model(random_ids(1, 60), document_ids=torch.ones_like(numbers))
