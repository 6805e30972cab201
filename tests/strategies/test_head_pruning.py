"""Head pruning on models whose heads are made alike or unlike, against oracles that share no code with it."""

import copy
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from elm_nni.analysis.cka import redundant_heads
from elm_nni.errors import UserError
from elm_nni.modeling import BLOCKS, ElmConfig, ElmForMaskedLM, ElmForSequenceClassification, ElmModel
from elm_nni.modeling.blocks_elm import projection_names
from elm_nni.strategies.head_pruning import (
    CkaHeadPruner,
    HeadPlan,
    eta_sweep,
    fused_num_heads,
    load_pruned,
    slice_heads,
    validate_plan,
)

NUM_HEADS, HEAD_DIM, HIDDEN, VOCAB = 6, 4, 24, 50
EVERY_BLOCK = list(BLOCKS)


def make_config(blocks: list[str] = EVERY_BLOCK, num_heads: int = NUM_HEADS, **settings: Any) -> ElmConfig:
    layer = {"ffn_size": 16, "num_heads": num_heads, "head_dim": HEAD_DIM}
    return ElmConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        embedding_size=16,
        bottleneck_size=12,
        max_position_embeddings=40,
        layers=[{"block": block, **layer} for block in blocks],
        hidden_dropout_prob=0.3,
        attention_probs_dropout_prob=0.3,
        **settings,
    )


def randomised(model: nn.Module, seed: int = 0) -> Any:
    """Every parameter drawn, norms included, and large enough for attention to be far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm_weight = "norm" in name and name.endswith("weight")
            parameter.copy_(1 + 0.1 * noise if is_norm_weight else 0.3 * noise)
    return model.eval()


def rotation(size: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed)))[0]


@torch.no_grad()
def make_alike(attention: nn.Module, source: int, target: int, turn_KK: torch.Tensor | None = None) -> None:
    """Give head ``target`` the projections of ``source``, turned: scores stay, the context is the turned one."""
    turn_KK = torch.eye(attention.head_dim) if turn_KK is None else turn_KK
    for name in projection_names(attention.sharing):
        linear = getattr(attention, name)
        for parameter in (linear.weight, linear.bias):
            heads = parameter.unflatten(0, (-1, attention.head_dim))
            heads[target] = turn_KK @ heads[source]


def make_batches(num: int = 3, rows: int = 12, tokens: int = 10, seed: int = 1) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(num):
        ids_BT = torch.randint(1, VOCAB, (rows, tokens), generator=generator)
        length_B = torch.randint(4, tokens + 1, (rows,), generator=generator)
        mask_BT = (torch.arange(tokens) < length_B[:, None]).long()
        batches.append({"input_ids": ids_BT * mask_BT, "attention_mask": mask_BT})
    return batches


def model_with_twins() -> ElmModel:
    """In each of the six blocks head 2 copies head 0 and head 5 is head 1 turned."""
    model = randomised(ElmModel(make_config()))
    for index, block in enumerate(model.layers):
        make_alike(block.attention, 0, 2)
        make_alike(block.attention, 1, 5, rotation(HEAD_DIM, index))
    return model


def matrices(plan: HeadPlan) -> np.ndarray:
    return np.array([layer.cka_before for layer in plan.layers])


def contexts(model: ElmModel, batches: list[dict[str, torch.Tensor]]) -> list[torch.Tensor]:
    """Contexts of the valid tokens of each layer, (N, C), by plain hooks."""
    seen: list[list[torch.Tensor]] = [[] for _ in model.layers]
    handles = [
        block.attention.output.register_forward_pre_hook(lambda _, args, rows=rows: rows.append(args[0]))
        for block, rows in zip(model.layers, seen)
    ]
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for handle in handles:
        handle.remove()
    keep = torch.cat([batch["attention_mask"].flatten() for batch in batches]) == 1
    return [torch.cat([part.flatten(0, 1) for part in rows])[keep] for rows in seen]


def gram_cka(x_NP: np.ndarray, y_NP: np.ndarray) -> float:
    """Unbiased CKA from Gram matrices with zero diagonals (Song et al. 2012), written out."""
    n = len(x_NP)
    grams = [side @ side.T for side in (x_NP - x_NP.mean(0), y_NP - y_NP.mean(0))]
    for gram in grams:
        np.fill_diagonal(gram, 0)

    def hsic(k: np.ndarray, g: np.ndarray) -> float:
        return (
            np.trace(k @ g) + k.sum() * g.sum() / ((n - 1) * (n - 2)) - 2 * (k.sum(0) @ g.sum(0)) / (n - 2)
        ) / (n * (n - 3))

    k, g = grams
    return hsic(k, g) / np.sqrt(hsic(k, k) * hsic(g, g))


@pytest.mark.parametrize("samples", ["tokens", "sequences"])
def test_copied_and_turned_heads_are_found_in_every_block_and_others_stay(samples: Any) -> None:
    plan = CkaHeadPruner(eta=0.99, samples=samples).plan(model_with_twins(), make_batches())
    for layer in plan.layers:
        assert layer.redundant == (2, 5)
        assert layer.kept == (0, 1, 3, 4)
        assert (layer.before, layer.after) == (6, 4)
        assert (layer.head_dim_before, layer.head_dim_after) == (HEAD_DIM, HEAD_DIM)
        assert layer.cka_before[0][2] == pytest.approx(1, abs=1e-5)
        assert layer.cka_before[1][5] == pytest.approx(1, abs=1e-5)


def test_matrices_equal_an_independent_cka_of_plainly_captured_contexts() -> None:
    model, batches = model_with_twins(), make_batches()
    plan = CkaHeadPruner().plan(model, batches)
    for layer, context_NC in zip(plan.layers, contexts(model, batches)):
        heads_HNK = context_NC.double().unflatten(1, (NUM_HEADS, HEAD_DIM)).transpose(0, 1).numpy()
        expected = [[gram_cka(one, two) for two in heads_HNK] for one in heads_HNK]
        np.testing.assert_allclose(layer.cka_before, expected, atol=1e-9)
        assert list(layer.redundant) == redundant_heads(torch.tensor(expected), 0.9, 2)


@pytest.mark.parametrize("block", EVERY_BLOCK)
def test_independent_heads_are_kept(block: str) -> None:
    model = randomised(ElmModel(make_config([block])))
    attention = model.layers[0].attention
    value = next(name for name in projection_names(attention.sharing) if "value" in name)
    with torch.no_grad():
        # Each head's value reads channels of its own.
        getattr(attention, value).weight.copy_(torch.eye(HIDDEN))
    plan = CkaHeadPruner(eta=0.5).plan(model, make_batches(rows=64))
    assert plan.layers[0].redundant == ()
    assert plan.architecture == plan.source
    similar_HH = matrices(plan)[0] - np.eye(NUM_HEADS)
    assert np.abs(similar_HH).max() < 0.4


def test_a_head_counts_once_however_many_it_resembles() -> None:
    model = randomised(ElmModel(make_config(["bert"])))
    for target in (1, 2, 3):
        make_alike(model.layers[0].attention, 0, target)
    layer = CkaHeadPruner(eta=0.99).plan(model, make_batches()).layers[0]
    # Six pairs are alike, three heads are redundant.
    assert layer.redundant == (1, 2, 3)
    assert layer.after == 3


@pytest.mark.parametrize(("min_heads", "after"), [(1, 1), (2, 2), (4, 4), (6, 6), (9, 6)])
@pytest.mark.parametrize("mode", ["remove", "fuse"])
def test_min_heads_stay(mode: Any, min_heads: int, after: int) -> None:
    model = randomised(ElmModel(make_config(["mobile_kv"])))
    for target in range(1, NUM_HEADS):
        make_alike(model.layers[0].attention, 0, target)
    pruner = CkaHeadPruner(eta=0.9, mode=mode, min_heads=min_heads)
    plan = pruner.plan(model, make_batches())
    assert plan.layers[0].after == after
    assert pruner.apply(model, plan).config.layers[0]["num_heads"] == after


def test_fused_head_counts_are_divisors_at_or_below_the_kept_number() -> None:
    got = [fused_num_heads(528, kept) for kept in range(12, 0, -1)]
    assert got == [12, 11, 8, 8, 8, 6, 6, 4, 4, 3, 2, 1]
    # No divisor from 5 to 5: rather more heads than asked for than fewer than min_heads.
    assert fused_num_heads(528, 5, 5) == fused_num_heads(528, 4, 5) == 6
    for kept, min_heads in ((0, 1), (529, 1), (3, 0)):
        with pytest.raises(ValueError, match=r"must be from 1 to width=528"):
            fused_num_heads(528, kept, min_heads)


def test_fuse_keeps_width_weights_and_parameters_and_says_so_in_the_plan() -> None:
    model = randomised(ElmModel(make_config(num_heads=6)))
    for block in model.layers:
        make_alike(block.attention, 0, 1)
    pruner = CkaHeadPruner(eta=0.99, mode="fuse")
    plan = pruner.plan(model, make_batches())
    fused = pruner.apply(model, plan)
    # Five heads are kept; the next divisor of 24 is 4.
    assert [(len(x.kept), x.after, x.head_dim_after) for x in plan.layers] == [(5, 4, 6)] * len(EVERY_BLOCK)
    assert fused.num_parameters() == model.num_parameters()
    assert fused.config.architecture == plan.architecture
    for (name, before), after in zip(model.state_dict().items(), fused.state_dict().values(), strict=True):
        assert torch.equal(before, after), name


def test_fused_attention_equals_torch_attention_with_fewer_wider_heads() -> None:
    model = randomised(ElmModel(make_config(["bert"])))
    make_alike(model.layers[0].attention, 0, 1)
    pruner = CkaHeadPruner(eta=0.99, mode="fuse")
    attention = pruner.apply(model, pruner.plan(model, make_batches())).layers[0].attention
    oracle = nn.MultiheadAttention(HIDDEN, 4, batch_first=True).eval()
    own = model.layers[0].attention
    with torch.no_grad():
        oracle.in_proj_weight.copy_(torch.cat([own.query.weight, own.key.weight, own.value.weight]))
        oracle.in_proj_bias.copy_(torch.cat([own.query.bias, own.key.bias, own.value.bias]))
        oracle.out_proj.load_state_dict(own.output.state_dict())
        hidden_BTD = torch.randn(3, 7, HIDDEN, generator=torch.Generator().manual_seed(5))
        expected_BTD = own.norm(hidden_BTD + oracle(hidden_BTD, hidden_BTD, hidden_BTD, need_weights=False)[0])
        torch.testing.assert_close(attention(hidden_BTD, hidden_BTD), expected_BTD, atol=1e-5, rtol=0)


@pytest.mark.parametrize("block", EVERY_BLOCK)
def test_removing_heads_without_output_weight_changes_nothing(block: str) -> None:
    model = randomised(ElmModel(make_config([block, block])))
    for layer in model.layers:
        make_alike(layer.attention, 0, 2)
        make_alike(layer.attention, 1, 5, rotation(HEAD_DIM, 3))
    pruner, batches = CkaHeadPruner(eta=0.99), make_batches()
    plan = pruner.plan(model, batches)
    with torch.no_grad():
        for layer in model.layers:
            layer.attention.output.weight.unflatten(1, (NUM_HEADS, HEAD_DIM))[:, [2, 5]] = 0
    pruned = pruner.apply(model, plan)
    assert [x["num_heads"] for x in pruned.config.layers] == [4, 4]
    with torch.no_grad():
        for batch in batches:
            before, after = model(**batch).last_hidden_state, pruned(**batch).last_hidden_state
            assert (before - after).abs().max() <= 1e-5 * max(1.0, float(before.abs().max()))


def test_parameters_after_removing_are_the_analytic_ones() -> None:
    model = model_with_twins()
    pruner = CkaHeadPruner(eta=0.99)
    pruned = pruner.apply(model, pruner.plan(model, make_batches()))
    for name, old, new in zip(EVERY_BLOCK, model.layers, pruned.layers):
        counted = sum(parameter.numel() for parameter in new.parameters())
        assert counted == BLOCKS[name].num_parameters(model.config, ffn_size=16, num_heads=4, head_dim=HEAD_DIM)
        width = old.attention.output.out_features
        num_inputs = len(projection_names(old.sharing))
        saved = 2 * HEAD_DIM * (num_inputs * (HIDDEN + 1) + width)
        assert sum(parameter.numel() for parameter in old.parameters()) - counted == saved


def test_pruned_model_survives_saving_and_loading(tmp_path: Any) -> None:
    model = randomised(ElmForSequenceClassification(make_config(num_labels=3)))
    for block in model.elm.layers:
        make_alike(block.attention, 0, 4)
    pruner, batches = CkaHeadPruner(eta=0.99), make_batches()
    plan = pruner.plan(model, batches)
    pruned = pruner.apply(model, plan)
    assert type(pruned) is ElmForSequenceClassification
    assert torch.equal(pruned.classifier.weight, model.classifier.weight)
    pruned.save_pretrained(tmp_path)
    for loaded in (ElmForSequenceClassification.from_pretrained(tmp_path).eval(), load_pruned(tmp_path)):
        assert type(loaded) is ElmForSequenceClassification
        assert not loaded.training
        assert loaded.config.architecture == plan.architecture
        for batch in batches:
            assert torch.equal(loaded(**batch).logits, pruned(**batch).logits)


def test_folders_that_hold_no_elm_model_are_refused(tmp_path: Any) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        load_pruned(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(UserError, match="holds BertModel; it must be one ELM model, or head_map.json"):
        load_pruned(tmp_path)


def test_apply_leaves_the_model_alone_and_copies_everything_else() -> None:
    model = randomised(ElmForMaskedLM(make_config()))
    for block in model.elm.layers:
        make_alike(block.attention, 0, 4)
    pruner, batches = CkaHeadPruner(eta=0.99), make_batches()
    plan = pruner.plan(model, batches)
    model.to(torch.bfloat16).train()
    model.elm.layers[0].attention.key.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    random_state = torch.random.get_rng_state()
    pruned = pruner.apply(model, plan)
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert model.config.architecture == plan.source
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert pruned.lm_head.decoder.weight is pruned.elm.embeddings.tokens.weight
    assert pruned.lm_head.decoder.weight is not model.lm_head.decoder.weight
    assert {parameter.dtype for parameter in pruned.parameters()} == {torch.bfloat16}
    assert all(module.training for module in pruned.modules())
    assert pruned.config is pruned.elm.config is pruned.elm.layers[0].attention.config
    frozen = [name for name, parameter in pruned.named_parameters() if not parameter.requires_grad]
    assert frozen == ["elm.layers.0.attention.key.weight"]
    pruned(**batches[0]).logits.float().sum().backward()
    assert pruned.elm.layers[1].attention.output.weight.grad is not None
    assert all(parameter.grad is None for parameter in model.parameters())


def test_any_module_that_holds_one_encoder_can_be_pruned() -> None:
    wrapper = nn.ModuleDict({"body": model_with_twins(), "head": nn.Linear(HIDDEN, 2)})
    pruner = CkaHeadPruner(eta=0.99)
    pruned = pruner.apply(wrapper, pruner.plan(wrapper, make_batches()))
    assert [layer["num_heads"] for layer in pruned["body"].config.layers] == [4] * len(EVERY_BLOCK)
    for modules in ([nn.Linear(2, 2)], [ElmModel(make_config(["bert"])), ElmModel(make_config(["bert"]))]):
        with pytest.raises(UserError, match=r"it must hold one"):
            pruner.plan(nn.ModuleList(modules), make_batches())


def padded(batches: list[dict[str, torch.Tensor]], left: int, right: int) -> list[dict[str, torch.Tensor]]:
    """The same sequences with more padding of random token ids."""
    generator = torch.Generator().manual_seed(9)
    out = []
    for batch in batches:
        mask_BT = nn.functional.pad(batch["attention_mask"], (left, right))
        ids_BT = nn.functional.pad(batch["input_ids"], (left, right))
        junk_BT = torch.randint(1, VOCAB, ids_BT.shape, generator=generator)
        # A row that is all padding is no sequence.
        mask_BT, ids_BT = nn.functional.pad(mask_BT, (0, 0, 1, 0)), nn.functional.pad(ids_BT, (0, 0, 1, 0))
        junk_BT = nn.functional.pad(junk_BT, (0, 0, 1, 0), value=3)
        if left:
            # All of a row's padding stands before its tokens, so rows of unlike lengths begin at unlike places.
            order_BT = mask_BT.argsort(dim=1, stable=True)
            ids_BT, mask_BT = ids_BT.gather(1, order_BT), mask_BT.gather(1, order_BT)
        out.append({"input_ids": torch.where(mask_BT == 1, ids_BT, junk_BT), "attention_mask": mask_BT})
    return out


@pytest.mark.parametrize("samples", ["tokens", "sequences"])
@pytest.mark.parametrize(("left", "right"), [(0, 7), (5, 0)])
def test_padding_has_no_influence(samples: Any, left: int, right: int) -> None:
    model, batches = model_with_twins(), make_batches()
    pruner = CkaHeadPruner(eta=0.9, samples=samples)
    plain, other = pruner.plan(model, batches), pruner.plan(model, padded(batches, left, right))
    np.testing.assert_allclose(matrices(other), matrices(plain), atol=1e-5)
    assert other.architecture == plain.architecture
    assert other.num_sequences == plain.num_sequences == 36


def test_packed_documents_count_like_rows_of_their_own() -> None:
    model = model_with_twins()
    generator = torch.Generator().manual_seed(2)
    first_BT, second_BT = (torch.randint(1, VOCAB, (8, length), generator=generator) for length in (6, 9))
    ids_BT = torch.cat([first_BT, second_BT, torch.zeros(8, 2, dtype=torch.long)], dim=1)
    documents_BT = torch.tensor([1] * 6 + [2] * 9 + [0] * 2).expand(8, -1)
    packed = CkaHeadPruner().plan(model, [{"input_ids": ids_BT, "document_ids": documents_BT}])
    apart = CkaHeadPruner().plan(model, [{"input_ids": first_BT}, {"input_ids": second_BT}])
    np.testing.assert_allclose(matrices(packed), matrices(apart), atol=1e-5)


def test_batches_are_streamed_and_their_cut_does_not_matter() -> None:
    model, batches = model_with_twins(), make_batches()
    whole = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}

    def once() -> Iterator[dict[str, Any]]:
        for batch in batches:
            yield {**batch, "labels": torch.zeros(12), "token_type_ids": None}

    streamed, at_once = CkaHeadPruner().plan(model, once()), CkaHeadPruner().plan(model, [whole])
    np.testing.assert_allclose(matrices(streamed), matrices(at_once), atol=1e-6)


def test_segments_reach_the_model() -> None:
    model, (batch,) = model_with_twins(), make_batches(1)
    segments_BT = torch.ones_like(batch["input_ids"])
    plain = CkaHeadPruner().plan(model, [batch])
    other = CkaHeadPruner().plan(model, [{**batch, "token_type_ids": segments_BT}])
    assert np.abs(matrices(other) - matrices(plain)).max() > 1e-3


def test_planning_is_without_dropout_and_restores_training_modes() -> None:
    model, batches = model_with_twins(), make_batches()
    expected = CkaHeadPruner().plan(model, batches)
    model.train()
    model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    assert CkaHeadPruner().plan(model, batches) == expected
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(UserError, match="input_ids"):
        CkaHeadPruner().plan(model, [{"ids": batches[0]["input_ids"]}])
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("batches", [[], [{"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.zeros(2, 3)}]])
def test_batches_without_a_token_are_refused(batches: Any) -> None:
    with pytest.raises(UserError, match="hold no token"):
        CkaHeadPruner().plan(randomised(ElmModel(make_config(["bert"]))), batches)


def test_few_sequences_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    model = randomised(ElmModel(make_config(["mobile"])))
    with caplog.at_level(logging.WARNING, logger="elm_nni.strategies.head_pruning"):
        CkaHeadPruner().plan(model, make_batches(num=7, rows=73, tokens=4))
        assert "511 sequences; at least 512" in caplog.text
        caplog.clear()
        CkaHeadPruner().plan(model, make_batches(num=8, rows=64, tokens=4))
        assert caplog.text == ""


def test_a_diverged_model_is_refused() -> None:
    model = randomised(ElmModel(make_config(["bert"])))
    with torch.no_grad():
        model.layers[0].attention.value.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        CkaHeadPruner().plan(model, make_batches())


def test_other_etas_come_from_the_stored_matrices() -> None:
    model, batches = model_with_twins(), make_batches()
    plan = CkaHeadPruner(eta=0.9, min_heads=1).plan(model, batches)
    etas = [0.0, 0.3, 0.6, 0.9, 1.0]
    sweep = eta_sweep(plan, etas)
    assert list(sweep) == etas
    assert len({tuple(heads) for heads in sweep.values()}) >= 3
    for eta in etas:
        again = CkaHeadPruner(eta=eta, min_heads=1).plan(model, batches)
        assert plan.plan_at(eta) == again
        assert sweep[eta] == [layer.after for layer in again.layers]
    with pytest.raises(ValueError, match=r"eta=1.5: must be a number in \[0, 1\]"):
        plan.plan_at(1.5)


def test_similarities_after_pruning_are_those_of_the_pruned_model() -> None:
    model, batches = model_with_twins(), make_batches()
    pruner = CkaHeadPruner(eta=0.99, samples="sequences")
    plan = pruner.plan(model, batches)
    pruned = pruner.apply(model, plan)
    # Another pruner's setting must not matter: before and after are sampled alike.
    measured = CkaHeadPruner().cka_after(plan, pruned, batches)
    assert measured.architecture == plan.architecture
    expected = matrices(pruner.plan(pruned, batches))
    np.testing.assert_array_equal([layer.cka_after for layer in measured.layers], expected)
    # The first layer's input did not change, so its kept heads are what they were.
    kept = list(plan.layers[0].kept)
    np.testing.assert_allclose(expected[0], matrices(plan)[0][np.ix_(kept, kept)], atol=1e-6)
    assert measured.plan_at(0.5).layers[0].cka_after is None
    with pytest.raises(UserError, match="which the head plan gives"):
        pruner.cka_after(plan, model, batches)


def test_plan_goes_through_json_and_through_a_folder(tmp_path: Any) -> None:
    model, batches = model_with_twins(), make_batches()
    pruner = CkaHeadPruner(eta=0.97)
    plan = pruner.plan(model, batches)
    measured = pruner.cka_after(plan, pruner.apply(model, plan), batches)
    for one in (plan, measured):
        assert HeadPlan.from_dict(json.loads(json.dumps(one.to_dict()))) == one
        one.save(tmp_path / "prune", etas=[0.7, 0.9])
        assert HeadPlan.load(tmp_path / "prune") == one
    assert sorted(path.name for path in (tmp_path / "prune").iterdir()) == ["cka.npz", "heads.json"]
    heads = json.loads((tmp_path / "prune" / "heads.json").read_text())
    assert heads["layers"][1] == {
        "layer": 1, "before": 6, "after": 4, "kept": [0, 1, 3, 4], "redundant": [2, 5],
        "head_dim_before": HEAD_DIM, "head_dim_after": HEAD_DIM,
    }  # fmt: skip
    assert list(heads["eta_sweep"]) == ["0.7", "0.9", "0.97"]
    assert heads["eta_sweep"]["0.97"] == [4] * 6
    assert (heads["eta"], heads["mode"], heads["min_heads"]) == (0.97, "remove", 2)
    assert heads["architecture"] == plan.architecture
    with np.load(tmp_path / "prune" / "cka.npz") as archive:
        names = {f"layer{index}_{when}" for index in range(6) for when in ("before", "after")}
        assert set(archive.files) == names
        assert archive["layer3_before"].shape == (6, 6)
        assert archive["layer3_after"].shape == (4, 4)
        np.testing.assert_array_equal(archive["layer3_after"], measured.layers[3].cka_after)


def test_damaged_plans_are_refused(tmp_path: Any) -> None:
    plan = CkaHeadPruner(eta=0.99).plan(model_with_twins(), make_batches())
    with pytest.raises(UserError, match="cannot read the head plan"):
        HeadPlan.load(tmp_path)
    plan.save(tmp_path)
    (tmp_path / "heads.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        HeadPlan.load(tmp_path)
    values = plan.to_dict()
    del values["eta"]
    with pytest.raises(UserError, match="'eta' is missing"):
        HeadPlan.from_dict(values)
    for changes, message in (
        ({"after": 5}, "after=5"),
        ({"before": 7}, "each of the 7 heads once"),
        ({"kept": [0, 1, 3, 3]}, "each of the 6 heads once"),
        ({"kept": [1, 0, 3, 4]}, "ascending"),
        ({"head_dim_after": 5}, "do not follow"),
        ({"head_dim_before": 5, "head_dim_after": 5}, "the architecture has 6 of 4"),
        ({"cka_before": [[1.0]]}, "must be 6 x 6"),
        ({"layer": 3}, "in order"),
    ):
        values = copy.deepcopy(plan.to_dict())
        values["layers"][0].update(changes)
        with pytest.raises(UserError, match=message):
            HeadPlan.from_dict(values)


def test_a_plan_of_another_architecture_is_refused() -> None:
    model = model_with_twins()
    pruner = CkaHeadPruner(eta=0.99)
    plan = pruner.plan(model, make_batches())
    validate_plan(plan, model)
    pruned = pruner.apply(model, plan)
    for call in (lambda: validate_plan(plan, pruned), lambda: pruner.apply(pruned, plan)):
        with pytest.raises(UserError, match=rf"is for architecture {plan.digest}, the model has"):
            call()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"eta": -0.1}, r"eta=-0.1: must be a number in \[0, 1\]"),
        ({"eta": float("nan")}, r"eta=nan: must be a number in \[0, 1\]"),
        ({"mode": "merge"}, r"mode='merge': must be one of remove, fuse"),
        ({"min_heads": 0}, r"min_heads=0: must be an integer, at least 1"),
        ({"min_heads": 1.5}, r"min_heads=1.5: must be an integer, at least 1"),
        ({"samples": "rows"}, r"samples='rows': must be one of tokens, sequences"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CkaHeadPruner(**setting)


def test_slice_heads_takes_rows_of_inputs_and_columns_of_the_output() -> None:
    weight_CD, bias_C, output_WC = torch.arange(12.0).view(6, 2), torch.arange(6.0), torch.arange(18.0).view(3, 6)
    sliced, output = slice_heads({"w": weight_CD, "b": bias_C}, output_WC, kept=[0, 2], head_dim=2)
    assert sliced["w"].tolist() == [[0, 1], [2, 3], [8, 9], [10, 11]]
    assert sliced["b"].tolist() == [0, 1, 4, 5]
    assert output.tolist() == [[0, 1, 4, 5], [6, 7, 10, 11], [12, 13, 16, 17]]
    for arguments, message in (
        ({"kept": [], "head_dim": 2}, "kept"),
        ({"kept": [1, 1], "head_dim": 2}, "kept"),
        ({"kept": [3], "head_dim": 2}, "from 0 to 2"),
        ({"kept": [0], "head_dim": 4}, "head_dim=4: must divide"),
        ({"kept": [0], "head_dim": 0}, "head_dim=0"),
    ):
        with pytest.raises(ValueError, match=message):
            slice_heads({"w": weight_CD}, output_WC, **arguments)
    with pytest.raises(ValueError, match="w has 4 rows: must be 6"):
        slice_heads({"w": weight_CD[:4]}, output_WC, kept=[0], head_dim=2)


def test_imports_without_nni_and_lightning() -> None:
    code = (
        "import sys\n"
        "for name in ('nni', 'lightning', 'pytorch_lightning'): sys.modules[name] = None\n"
        "from elm_nni.strategies.head_pruning import CkaHeadPruner\n"
        "CkaHeadPruner()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
