"""Head pruning of stock transformers models, against stock models that compute the same in another way."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    RobertaConfig,
    RobertaForTokenClassification,
    RobertaModel,
    StaticCache,
    T5Config,
    T5Model,
)

from elm_nni.errors import UserError
from elm_nni.strategies import CkaHeadPruner, HeadPlan, load_pruned, save_pruned
from elm_nni.strategies.stock_heads import StockHeads

from .test_head_pruning import gram_cka, rotation

HIDDEN, NUM_HEADS, HEAD_DIM, VOCAB = 24, 6, 4, 60
FAMILIES = ["bert", "roberta", "distilbert", "gpt2"]
IMPLEMENTATIONS = ["eager", "sdpa"]
# what the twins below lead to
KEPT = [(0, 1, 3, 4), (0, 1, 2, 3, 5)]


def config(family: str, **changes: Any) -> Any:
    common = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    bert = {
        "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": NUM_HEADS, "intermediate_size": 16,
        "max_position_embeddings": 40,
    }  # fmt: skip
    if family == "bert":
        return BertConfig(**common | bert | changes)
    if family == "roberta":
        return RobertaConfig(**common | bert | changes)
    if family == "distilbert":
        sizes = {"dim": HIDDEN, "n_layers": 2, "n_heads": NUM_HEADS, "hidden_dim": 16, "max_position_embeddings": 40}
        return DistilBertConfig(**common | sizes | changes)
    sizes = {"n_embd": HIDDEN, "n_layer": 2, "n_head": NUM_HEADS, "n_inner": 16, "n_positions": 40}
    return GPT2Config(**common | sizes | changes)


CLASSES: dict[str, Any] = {
    "bert": BertModel, "roberta": RobertaModel, "distilbert": DistilBertModel, "gpt2": GPT2Model,
}  # fmt: skip
TASKS: dict[str, Any] = {
    "bert": BertForSequenceClassification, "roberta": RobertaForTokenClassification,
    "distilbert": DistilBertForSequenceClassification, "gpt2": GPT2LMHeadModel,
}  # fmt: skip


ATTENTION = {
    "bert": "layer.{}.attention.self", "roberta": "layer.{}.attention.self", "distilbert": "layer.{}.attention",
    "gpt2": "h.{}.attn",
}  # fmt: skip
SIZES = {
    "bert": ["num_attention_heads", "attention_head_size", "all_head_size"],
    "roberta": ["num_attention_heads", "attention_head_size", "all_head_size"],
    "distilbert": ["n_heads", "attention_head_size"], "gpt2": ["num_heads", "head_dim", "split_size"],
}  # fmt: skip


def randomised(model: Any, seed: int = 0) -> Any:
    """Weights large enough for attention to be far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.3 * noise if parameter.ndim > 1 else parameter + 0.1 * noise)
    return model.eval()


def base(model: Any) -> Any:
    return model.base_model


def parts(model: Any, layer: int) -> tuple[list[Tensor], Tensor]:
    """Writable views of a layer's query, key and value, (C, D), of their biases, (C,), and of its output, (D, C)."""
    body = base(model)
    if isinstance(body, GPT2Model):
        attention = body.h[layer].attn
        inputs = [*attention.c_attn.weight.T.chunk(3), *attention.c_attn.bias.chunk(3)]
        return inputs, attention.c_proj.weight.T
    if isinstance(body, DistilBertModel):
        attention = body.transformer.layer[layer].attention
        linears, output = [attention.q_lin, attention.k_lin, attention.v_lin], attention.out_lin
    else:
        attention = body.encoder.layer[layer].attention
        linears, output = [attention.self.query, attention.self.key, attention.self.value], attention.output.dense
    return [one.weight for one in linears] + [one.bias for one in linears], output.weight


@torch.no_grad()
def make_alike(model: Any, layer: int, source: int, target: int, turn_KK: Tensor | None = None) -> None:
    """Give head ``target`` the projections of ``source``, turned: scores stay, the context is the turned one."""
    turn_KK = torch.eye(HEAD_DIM) if turn_KK is None else turn_KK
    for tensor in parts(model, layer)[0]:
        heads = tensor.unflatten(0, (-1, HEAD_DIM))
        heads[target] = turn_KK @ heads[source]


def with_twins(family: str, classes: dict[str, Any] = CLASSES, **changes: Any) -> Any:
    """Layer 0 can do without heads 2 and 5, layer 1 without head 4: the layers become unequal."""
    model = randomised(classes[family](config(family, **changes)))
    make_alike(model, 0, 0, 2)
    make_alike(model, 0, 1, 5, rotation(HEAD_DIM, 3))
    make_alike(model, 1, 0, 4, rotation(HEAD_DIM, 4))
    return model


@torch.no_grad()
def silenced(model: Any) -> Any:
    """A copy whose redundant heads say nothing: their columns of the output projection are zero."""
    silent = copy.deepcopy(model)
    for layer, kept in enumerate(KEPT):
        gone = [head for head in range(NUM_HEADS) if head not in kept]
        parts(silent, layer)[1].unflatten(1, (NUM_HEADS, HEAD_DIM))[:, gone] = 0
    return silent


def make_batches(num: int = 3, rows: int = 12, tokens: int = 10, seed: int = 1) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(num):
        ids_BT = torch.randint(3, VOCAB, (rows, tokens), generator=generator)
        length_B = torch.randint(4, tokens + 1, (rows,), generator=generator)
        mask_BT = (torch.arange(tokens) < length_B[:, None]).long()
        batches.append({"input_ids": ids_BT * mask_BT, "attention_mask": mask_BT})
    return batches


def plan_of(model: Any, **settings: Any) -> HeadPlan:
    return CkaHeadPruner(**{"eta": 0.99} | settings).plan(model, make_batches())


def pruned_of(model: Any, **settings: Any) -> Any:
    pruner = CkaHeadPruner(**{"eta": 0.99} | settings)
    return pruner.apply(model, pruner.plan(model, make_batches()))


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def outputs(model: Any) -> Tensor:
    """First output on every batch, at valid tokens where it has tokens."""
    found = []
    for batch in make_batches():
        first = model(**batch)[0]
        found.append(first if first.ndim == 2 else first[batch["attention_mask"] == 1])
    return torch.cat(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_alike_heads_are_found_and_the_matrices_are_those_of_an_independent_cka(family: str) -> None:
    model = with_twins(family)
    plan = plan_of(model)
    assert [layer.kept for layer in plan.layers] == KEPT
    assert plan.num_sequences == 36
    # contexts from the attention weights and hidden states that transformers gives out
    model.set_attn_implementation("eager")
    contexts: list[list[Tensor]] = [[], []]
    for batch in make_batches():
        with torch.no_grad():
            answer = model(**batch, output_attentions=True, output_hidden_states=True)
            for layer, (weights_BHTT, hidden_BTD) in enumerate(zip(answer.attentions, answer.hidden_states)):
                if family == "gpt2":
                    hidden_BTD = model.h[layer].ln_1(hidden_BTD)
                value_CD, value_C = (parts(model, layer)[0][index] for index in (2, 5))
                value_BHTK = (hidden_BTD @ value_CD.T + value_C).unflatten(2, (NUM_HEADS, HEAD_DIM)).transpose(1, 2)
                context_BTHK = (weights_BHTT @ value_BHTK).transpose(1, 2)
                contexts[layer].append(context_BTHK[batch["attention_mask"] == 1])
    for layer, rows in zip(plan.layers, contexts):
        heads = torch.cat(rows).double().transpose(0, 1).numpy()
        expected = [[gram_cka(one, two) for two in heads] for one in heads]
        np.testing.assert_allclose(layer.cka_before, expected, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pruned_model_computes_what_the_model_does_without_those_heads(family: str, implementation: str) -> None:
    model = with_twins(family)
    model.set_attn_implementation(implementation)
    silent = silenced(model)
    expected = outputs(silent)
    assert (expected - outputs(model)).abs().max() > 1e-2
    torch.testing.assert_close(outputs(pruned_of(model)), expected, atol=2e-6, rtol=1e-5)
    # heads without output weight: nothing changes
    torch.testing.assert_close(outputs(pruned_of(silent)), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_really_are_smaller(family: str) -> None:
    model = with_twins(family)
    pruned = pruned_of(model)
    # three heads: rows and biases of query, key and value, columns of the output
    assert size(model) - size(pruned) == 3 * HEAD_DIM * (3 * (HIDDEN + 1) + HIDDEN)
    for layer, kept in enumerate(KEPT):
        inputs, output = parts(pruned, layer)
        width = len(kept) * HEAD_DIM
        assert [tuple(one.shape) for one in inputs] == [(width, HIDDEN)] * 3 + [(width,)] * 3
        assert output.shape == (HIDDEN, width)
        attention = next(one for name, one in pruned.named_modules() if name.endswith(ATTENTION[family].format(layer)))
        sizes = dict(zip(("heads", "head_dim", "width"), [getattr(attention, name) for name in SIZES[family]]))
        assert sizes.items() <= {"heads": len(kept), "head_dim": HEAD_DIM, "width": width}.items()
    shapes = {name: one.shape for name, one in model.state_dict().items()}
    changed = [name for name, one in pruned.state_dict().items() if one.shape != shapes[name]]
    assert len(changed) == 2 * (3 if family == "gpt2" else 7)
    for name, module in pruned.named_modules():
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == module.weight.shape, name
        elif type(module).__name__ == "Conv1D":
            assert (module.nx, module.nf) == module.weight.shape, name


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_weights_of_the_kept_heads_come_out(family: str) -> None:
    model = with_twins(family, attn_implementation="eager")
    pruned, (batch, *_) = pruned_of(model), make_batches()
    with torch.no_grad():
        # the second forward of a copied model too, whose hooks transformers installed before
        before = model(**batch, output_attentions=True).attentions
        after = pruned(**batch, output_attentions=True).attentions
        again = pruned_of(model)(**batch, output_attentions=True).attentions
    torch.testing.assert_close(after[0], before[0][:, list(KEPT[0])])
    assert [one.shape[1] for one in after] == [one.shape[1] for one in again] == [4, 5]


@pytest.mark.parametrize("family", FAMILIES)
def test_task_models_and_modules_around_them_keep_everything_else(family: str) -> None:
    task = with_twins(family, TASKS)
    torch.testing.assert_close(outputs(pruned_of(task)), outputs(silenced(task)), atol=2e-6, rtol=1e-5)
    assert type(pruned_of(task)) is TASKS[family]
    # the encoder alone is run, whatever the model around it wants
    assert StockHeads(task).encoder is task.base_model

    class AttentionPooling(nn.Module):
        """Of the user's; its name must not matter."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.query = task, nn.Linear(HIDDEN, 1)

    wrapper = AttentionPooling()
    found = pruned_of(wrapper)
    assert torch.equal(outputs(found.body), outputs(pruned_of(task)))
    assert torch.equal(found.query.weight, wrapper.query.weight)
    assert found.query.weight is not wrapper.query.weight


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_stays_as_it_is(family: str) -> None:
    model = with_twins(family)
    plan = plan_of(model)
    model.to(torch.bfloat16).train()
    parts_frozen = next(name for name, _ in model.named_parameters() if "attn.c_attn.weight" in name or "q" in name)
    model.get_parameter(parts_frozen).requires_grad_(False)
    before, random_state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    pruned = CkaHeadPruner(eta=0.99).apply(model, plan)
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert plan_of(model.float().eval()).source == plan.source
    assert {parameter.dtype for parameter in pruned.parameters()} == {torch.bfloat16}
    assert all(module.training for module in pruned.modules())
    assert [name for name, one in pruned.named_parameters() if not one.requires_grad] == [parts_frozen]
    pruned(**make_batches()[0])[0].float().square().sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pruned_model_can_be_fine_tuned_saved_and_pruned_again(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = pruned_of(with_twins(family, TASKS))
    before = (outputs(model) - 1).square().mean()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(10):
        loss = (model.train()(**make_batches()[0])[0] - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    attention = [one for name, one in model.named_parameters() if "att" in name and "weight" in name]
    assert all(one.grad is not None and one.grad.abs().max() > 0 for one in attention)
    assert (outputs(model.eval()) - 1).square().mean() < before / 2
    # make another pair alike in the pruned model
    make_alike(model, 1, 0, 1)
    pruner = CkaHeadPruner(eta=0.99)
    plan = pruner.plan(model, make_batches())
    assert [layer.before for layer in plan.layers] == [4, 5]
    assert plan.layers[1].redundant == (1,)
    again = pruner.apply(model, plan).eval()
    measured = pruner.cka_after(plan, again, make_batches())
    assert [len(layer.cka_after or ()) for layer in measured.layers] == [layer.after for layer in plan.layers]
    save_pruned(again, tmp_path)
    assert torch.equal(outputs(load_pruned(tmp_path)), outputs(again))


@pytest.mark.parametrize("mode", ["remove", "fuse"])
@pytest.mark.parametrize("classes", [CLASSES, TASKS], ids=["encoders", "task models"])
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_models_load_with_their_heads(family: str, classes: Any, mode: Any, tmp_path: Path) -> None:
    pruned = pruned_of(with_twins(family, classes, tie_word_embeddings=True).to(torch.float32), mode=mode)
    save_pruned(pruned, tmp_path)
    random_state = torch.random.get_rng_state()
    loaded = load_pruned(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert type(loaded) is classes[family]
    assert not loaded.training
    assert torch.equal(outputs(loaded), outputs(pruned))
    assert {name: one.shape for name, one in loaded.state_dict().items()} == {
        name: one.shape for name, one in pruned.state_dict().items()
    }
    loaded.set_attn_implementation("eager")
    shapes = [one.shape[1] for one in loaded(**make_batches()[0], output_attentions=True).attentions]
    # fused, 24 channels become four heads where four or five were kept
    assert shapes == ([4, 5] if mode == "remove" else [4, 4])
    heads = json.loads((tmp_path / "head_map.json").read_text())
    assert [one["num_heads"] for one in heads["layers"].values()] == shapes
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        classes[family].from_pretrained(tmp_path)


def test_a_fresh_process_loads_a_model_that_gives_out_attention_weights(tmp_path: Path) -> None:
    save_pruned(pruned_of(with_twins("bert")), tmp_path)
    # transformers looks up what a class can give out under a name that only instances of the class register
    code = (
        "import sys, torch\n"
        "from elm_nni.strategies import load_pruned\n"
        "model = load_pruned(sys.argv[1])\n"
        "model.set_attn_implementation('eager')\n"
        "answer = model(torch.tensor([[3, 4, 5]]), output_attentions=True, output_hidden_states=True)\n"
        "print([one.shape[1] for one in answer.attentions], len(answer.hidden_states))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[4, 5] 3\n", done.stderr


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_classes_cannot_load_unequal_layers_which_is_why_there_is_a_head_map(
    family: str, tmp_path: Path
) -> None:
    pruned_of(with_twins(family)).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="mismatched"):
        CLASSES[family].from_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"it must be one ELM model, or head_map\.json of save_pruned must be beside"):
        load_pruned(tmp_path)


def test_tied_weights_and_dtype_survive(tmp_path: Path) -> None:
    masked = randomised(BertForMaskedLM(config("bert", tie_word_embeddings=True)))
    for classes, model in ((BertForMaskedLM, masked), (GPT2LMHeadModel, with_twins("gpt2", TASKS))):
        folder = tmp_path / classes.__name__
        save_pruned(pruned_of(model, eta=0.0).to(torch.bfloat16), folder)
        loaded = load_pruned(folder)
        assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
        assert size(loaded) == size(pruned_of(model, eta=0.0))


FUSED: dict[str, dict[str, Any]] = {
    "bert": {"num_attention_heads": 4}, "roberta": {"num_attention_heads": 4}, "distilbert": {"n_heads": 4},
    "gpt2": {"n_head": 4},
}  # fmt: skip


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("family", "changes"),
    [*((family, {}) for family in FAMILIES), ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
     ("gpt2", {"scale_attn_weights": False}), ("gpt2", {"reorder_and_upcast_attn": True})],
)  # fmt: skip
def test_fused_heads_are_those_of_a_stock_model_built_with_fewer(
    family: str, changes: dict[str, Any], implementation: str
) -> None:
    model = with_twins(family, attn_implementation=implementation, **changes)
    plan = plan_of(model, mode="fuse")
    assert [(layer.after, layer.head_dim_after) for layer in plan.layers] == [(4, 6), (4, 6)]
    fused = CkaHeadPruner(eta=0.99, mode="fuse").apply(model, plan)
    oracle = CLASSES[family](config(family, attn_implementation=implementation, **FUSED[family], **changes)).eval()
    oracle.load_state_dict(model.state_dict())
    assert size(fused) == size(model)
    torch.testing.assert_close(outputs(fused), outputs(oracle), atol=2e-6, rtol=1e-5)
    assert (outputs(fused) - outputs(model)).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_removed_heads_can_be_followed_by_fused_ones(family: str, tmp_path: Path) -> None:
    removed = pruned_of(with_twins(family))
    pruner = CkaHeadPruner(eta=0.0, mode="fuse")
    plan = pruner.plan(removed, make_batches())
    # 16 and 20 channels in at least two heads
    assert [(layer.after, layer.head_dim_after) for layer in plan.layers] == [(2, 8), (2, 10)]
    fused = pruner.apply(removed, plan)
    save_pruned(fused, tmp_path)
    assert torch.equal(outputs(load_pruned(tmp_path)), outputs(fused))
    for batch in make_batches():
        assert all(one.isfinite().all() for one in fused(**batch, output_hidden_states=True).hidden_states)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gpt2_generates_with_and_without_a_cache(implementation: str) -> None:
    model = with_twins("gpt2", TASKS, attn_implementation=implementation)
    pruned, silent = pruned_of(model), silenced(model)
    prompt_BT = torch.tensor([[0, 0, 5, 9], [7, 8, 4, 3]])
    inputs = {"input_ids": prompt_BT, "attention_mask": (prompt_BT > 0).long()}
    settings = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    expected = silent.generate(**inputs, **settings, use_cache=False)
    assert expected.shape == (2, 16)
    assert torch.equal(pruned.generate(**inputs, **settings, use_cache=False), expected)
    assert torch.equal(pruned.generate(**inputs, **settings, use_cache=True), expected)
    # a cache that is allocated beforehand takes its sizes from the keys of each layer
    static = StaticCache(config=pruned.config, max_cache_len=20)
    assert torch.equal(pruned.generate(**inputs, **settings, past_key_values=static), expected)
    beams = {"num_beams": 3, "use_cache": True}
    assert torch.equal(pruned.generate(**inputs, **settings, **beams), silent.generate(**inputs, **settings, **beams))
    with torch.no_grad():
        cache = pruned(**inputs, use_cache=True).past_key_values
    assert [layer.keys.shape for layer in cache.layers] == [(2, 4, 4, HEAD_DIM), (2, 5, 4, HEAD_DIM)]


@pytest.mark.parametrize("samples", ["tokens", "sequences"])
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_padding_has_no_influence(family: str, samples: Any) -> None:
    model, batches = with_twins(family), make_batches()
    longer = [
        {
            "input_ids": nn.functional.pad(batch["input_ids"], (0, 5), value=7),
            "attention_mask": nn.functional.pad(batch["attention_mask"], (0, 5)),
        }
        for batch in batches
    ]
    pruner = CkaHeadPruner(eta=0.99, samples=samples)
    plain, other = pruner.plan(model, batches), pruner.plan(model, longer)
    for one, two in zip(plain.layers, other.layers):
        np.testing.assert_allclose(one.cka_before, two.cka_before, atol=1e-5)
    assert [layer.kept for layer in plain.layers] == KEPT


def test_inputs_that_a_model_does_not_take_are_passed_over_and_packed_documents_refused() -> None:
    batches = [{**batch, "token_type_ids": batch["attention_mask"], "labels": 3} for batch in make_batches()]
    assert CkaHeadPruner(eta=0.99).plan(with_twins("distilbert"), batches) == plan_of(with_twins("distilbert"))
    assert "token_type_ids" not in StockHeads(with_twins("distilbert")).input_names
    bert = with_twins("bert")
    assert CkaHeadPruner(eta=0.99).plan(bert, batches).layers != plan_of(bert).layers
    packed = [{"input_ids": batch["input_ids"], "document_ids": batch["attention_mask"]} for batch in make_batches()]
    with pytest.raises(UserError, match=r"'document_ids'; BertModel cannot tell packed documents apart"):
        CkaHeadPruner().plan(bert, packed)


def test_a_plan_is_for_the_heads_it_was_made_for_and_goes_through_a_folder(tmp_path: Path) -> None:
    model = with_twins("bert")
    plan = plan_of(model)
    plan.save(tmp_path)
    assert HeadPlan.load(tmp_path) == plan
    assert plan.architecture == {
        "layer0": "BertSelfAttention", "layer0_BertSelfAttention_head_dim": 4, "layer0_BertSelfAttention_heads": 4,
        "layer1": "BertSelfAttention", "layer1_BertSelfAttention_head_dim": 4, "layer1_BertSelfAttention_heads": 5,
    }  # fmt: skip
    # a plan of the encoder fits a task model around the same encoder
    task = BertForSequenceClassification(config("bert"))
    task.bert.load_state_dict(model.state_dict(), strict=False)
    pruned = CkaHeadPruner().apply(task, HeadPlan.load(tmp_path))
    torch.testing.assert_close(outputs(pruned.bert.eval()), outputs(pruned_of(model)))
    for other in (pruned, with_twins("roberta"), with_twins("gpt2")):
        with pytest.raises(UserError, match="is for architecture"):
            CkaHeadPruner().apply(other, plan)


class Subclass(type(BertModel(config("bert")).encoder.layer[0].attention.self)):  # type: ignore[misc]
    """May compute anything."""


def subclassed() -> Any:
    model = BertModel(config("bert"))
    model.encoder.layer[1].attention.self = Subclass(model.config)
    return model


def replaced() -> Any:
    class Adapter(nn.Linear):
        pass

    model = RobertaModel(config("roberta"))
    model.encoder.layer[1].attention.self.key = Adapter(HIDDEN, HIDDEN)
    return model


def other_version() -> Any:
    model = DistilBertModel(config("distilbert"))
    del model.transformer.layer[0].attention.scaling
    return model


KNOWN = "BertSelfAttention, RobertaSelfAttention, DistilBertSelfAttention, GPT2Attention"
CROSS = {"is_decoder": True, "add_cross_attention": True}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: T5Model(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)),
            rf"^T5Model holds attention of class \S+modeling_t5\.T5Attention; it must hold one ElmModel, .* {KNOWN}$",
        ),
        (lambda: nn.TransformerEncoderLayer(8, 2), r"holds attention of class torch\S+MultiheadAttention; it must"),
        (lambda: BertModel(config("bert", **CROSS)), r"BertModel holds attention of class \S+BertCrossAttention; it"),
        (lambda: GPT2Model(config("gpt2", **CROSS)), r"holds attention of class \S+GPT2Attention for cross-attention"),
        (subclassed, r"BertModel holds attention of class \S+\.Subclass; it must hold one ElmModel, or one model"),
        (replaced, r"encoder\.layer\.1\.attention\.self\.key is of class Adapter; it must be a plain Linear"),
        (other_version, r"DistilBertSelfAttention of transformers 5\S+ has no scaling; heads can be given up with"),
        (lambda: nn.Linear(2, 2), r"Linear holds no attention heads; it must hold one ElmModel"),
        (lambda: nn.ModuleList([BertModel(config("bert")) for _ in range(2)]), "holds 2 models of transformers"),
        (lambda: BertModel(config("bert")).encoder, r"BertEncoder holds 0 models of transformers .* must hold one"),
    ],
)
def test_what_cannot_be_pruned_is_refused_in_one_line(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        plan_of(build())
    assert "\n" not in str(refusal.value)


def test_what_cannot_be_saved_or_loaded_is_refused_in_one_line(tmp_path: Path) -> None:
    class Mine(BertModel):
        pass

    for model, message in (
        (Mine(config("bert")), "Mine is not a class of transformers; save the Mine inside it"),
        (nn.ModuleList([with_twins("bert")]), "ModuleList is not a class of transformers; save the BertModel inside"),
        (nn.Linear(2, 2), "holds no attention heads"),
    ):
        with pytest.raises(UserError, match=message):
            save_pruned(model, tmp_path)
    assert not list(tmp_path.iterdir())
    save_pruned(pruned_of(with_twins("bert")), tmp_path)
    heads = tmp_path / "head_map.json"
    good = heads.read_text()
    for old, new in (
        ('"BertModel"', '"BertConfig"'), ('"BertModel"', '"NoSuchModel"'), ('"num_heads": 4', '"num_heads": 3'),
        ('"num_heads": 4', '"num_heads": 7'), ("layer.0.attention.self", "layer.9.attention.self"),
        ("layer.0.attention.self", "layer.0.attention"), ('"layers"', '"rows"'), ("{", ""),
    ):  # fmt: skip
        heads.write_text(good.replace(old, new, 1))
        with pytest.raises(UserError, match=r"cannot load the pruned model in .*; save it again by save_pruned") as bad:
            load_pruned(tmp_path)
        assert "\n" not in str(bad.value)
    heads.write_text(good)
    (weights,) = tmp_path.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(UserError, match="cannot load the pruned model"):
        load_pruned(tmp_path)
