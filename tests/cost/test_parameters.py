"""Analytic counts against the parameters of real models, and against the published numbers of the spaces."""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

from elm_nni.cost.parameters import (
    count_parameters,
    embedding_parameters,
    extreme_architecture,
    full_heads,
    match_size,
    mean_parameters,
    parameters_outside_embeddings,
    space_config,
    uniform_width,
)
from elm_nni.errors import UserError
from elm_nni.modeling import BLOCKS, BertBlock, ElmConfig, ElmForSequenceClassification, ElmModel
from elm_nni.search_spaces import PRESETS, SpaceSettings, canonical

TINY = SpaceSettings(
    num_layers=3,
    hidden_size=24,
    num_heads=4,
    bottleneck_size=8,
    ffn_start=6,
    ffn_step=6,
    ffn_max=24,
    embedding_size=10,
    vocab_size=50,
    max_position_embeddings=16,
)


def random_architecture(rng: random.Random, settings: SpaceSettings) -> dict[str, Any]:
    sample: dict[str, Any] = {}
    for index in range(settings.num_layers):
        block = rng.choice(list(BLOCKS))
        sample[f"layer{index}"] = block
        sample[f"layer{index}_{block}_ffn"] = rng.choice(settings.widths)
        sample[f"layer{index}_{block}_heads"] = rng.randint(1, settings.num_heads)
        if rng.random() < 0.5:
            sample[f"layer{index}_{block}_head_dim"] = rng.randint(1, 9)
    return canonical(sample, full_heads(settings))


def build(architecture: dict[str, Any], settings: SpaceSettings) -> ElmModel:
    with torch.device("meta"):
        return ElmModel(
            ElmConfig.from_architecture(
                architecture,
                vocab_size=settings.vocab_size,
                hidden_size=settings.hidden_size,
                embedding_size=settings.embedding_size,
                bottleneck_size=settings.bottleneck_size,
                max_position_embeddings=settings.max_position_embeddings,
            )
        )


def all_widths(settings: SpaceSettings, width: int) -> dict[str, int]:
    return {f"layer{i}_{b}": width for i in range(settings.num_layers) for b in BLOCKS}


def uniform(settings: SpaceSettings, block: str, width: int) -> dict[str, Any]:
    sample: dict[str, Any] = {f"layer{i}": block for i in range(settings.num_layers)}
    sample |= {f"layer{i}_{block}_ffn": width for i in range(settings.num_layers)}
    return canonical(sample, full_heads(settings))


def test_equals_counting_200_random_models() -> None:
    rng = random.Random(0)
    for _ in range(200):
        architecture = random_architecture(rng, TINY)
        model = build(architecture, TINY)
        assert count_parameters(architecture, TINY) == sum(p.numel() for p in model.parameters())
        assert parameters_outside_embeddings(architecture, TINY) == sum(p.numel() for p in model.layers.parameters())
        assert parameters_outside_embeddings(architecture, TINY) == model.num_parameters_outside_embeddings()


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_equals_counting_a_random_model_of_each_preset(preset: str) -> None:
    settings = PRESETS[preset]
    architecture = random_architecture(random.Random(1), settings)
    counted = sum(p.numel() for p in build(architecture, settings).parameters())
    assert count_parameters(architecture, settings) == counted


def test_the_published_numbers_of_elm_small() -> None:
    settings = PRESETS["elm-small"]
    assert embedding_parameters(settings) == 4_382_544
    assert round(count_parameters(uniform(settings, "bert", 132), settings) / 1e6, 1) == 19.5
    assert round(mean_parameters(all_widths(settings, 132), settings) / 1e6, 2) == 12.97
    assert round(mean_parameters(all_widths(settings, 792), settings) / 1e6, 2) == 18.20


@pytest.mark.parametrize(("block", "step"), [("bert", 139_524), ("bert_kv", 139_524), ("mobile_qv", 34_980)])
def test_one_step_of_one_cell(block: str, step: int) -> None:
    settings = PRESETS["elm-small"]
    grown = uniform(settings, block, 132) | {f"layer5_{block}_ffn": 264}
    assert count_parameters(grown, settings) - count_parameters(uniform(settings, block, 132), settings) == step
    widths = all_widths(settings, 132)
    mean_step = mean_parameters({**widths, f"layer5_{block}": 264}, settings) - mean_parameters(widths, settings)
    assert mean_step == pytest.approx(step / 6)


def test_mean_is_the_mean_over_every_architecture() -> None:
    settings = replace(TINY, num_layers=2)
    rng = random.Random(2)
    widths = {cell: rng.choice(settings.widths) for cell in all_widths(settings, 6)}
    counts = []
    for blocks in product(BLOCKS, repeat=2):
        sample: dict[str, Any] = {f"layer{i}": block for i, block in enumerate(blocks)}
        sample |= {f"layer{i}_{block}_ffn": widths[f"layer{i}_{block}"] for i, block in enumerate(blocks)}
        counts.append(count_parameters(canonical(sample, full_heads(settings)), settings))
    assert mean_parameters(widths, settings) == pytest.approx(statistics.mean(counts))
    del widths["layer1_mobile"]
    with pytest.raises(UserError, match="layer1_mobile"):
        mean_parameters(widths, settings)


@pytest.mark.parametrize("largest", [False, True])
def test_extremes_against_brute_force(largest: bool) -> None:
    settings = replace(TINY, num_layers=2)
    counts = []
    for first, second in product(product(BLOCKS, settings.widths), repeat=2):
        sample = {"layer0": first[0], f"layer0_{first[0]}_ffn": first[1]}
        sample |= {"layer1": second[0], f"layer1_{second[0]}_ffn": second[1]}
        counts.append(count_parameters(canonical(sample, full_heads(settings)), settings))
    found = extreme_architecture(settings, largest=largest)
    assert count_parameters(found, settings) == (max(counts) if largest else min(counts))


def test_extremes_with_given_widths_and_another_cost() -> None:
    widths = all_widths(TINY, 12) | {"layer1_mobile_kv": 6}

    def prefers_kv(architecture: dict[str, Any]) -> float:
        return 0.0 if architecture["layer0"] == "mobile_kv" else 1.0

    found = extreme_architecture(TINY, widths, cost=prefers_kv)
    assert [found[f"layer{i}"] for i in range(3)] == ["mobile_kv"] * 3
    assert [found[f"layer{i}_mobile_kv_ffn"] for i in range(3)] == [12, 6, 12]
    with pytest.raises(UserError, match="layer0_bert'"):
        extreme_architecture(TINY, {})


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("block", sorted(BLOCKS))
@pytest.mark.parametrize("share", [0.15, 0.5, 1.0, 1.7])
def test_uniform_width_matches_the_target(preset: str, block: str, share: float) -> None:
    settings = PRESETS[preset]
    target = round(share * parameters_outside_embeddings(uniform(settings, "bert", settings.ffn_start), settings))
    found = uniform_width(block, target, settings)
    blocks = {value for key, value in found.items() if key.removeprefix("layer").isdigit()}
    assert blocks == {block}
    assert abs(parameters_outside_embeddings(found, settings) - target) <= 0.02 * target
    if share >= 1:
        assert f"layer{settings.num_layers - 1}" in found


@pytest.mark.parametrize("block", sorted(BLOCKS))
def test_uniform_width_finds_a_width_back(block: str) -> None:
    settings = PRESETS["nano"]
    given = uniform(settings, block, 101)
    assert uniform_width(block, parameters_outside_embeddings(given, settings), settings) == given


def test_uniform_width_that_cannot_be() -> None:
    with pytest.raises(UserError, match="one layer of width 1 has"):
        uniform_width("bert", 1000, PRESETS["nano"])
    with pytest.raises(UserError, match="unknown block 'brt'"):
        uniform_width("brt", 1_000_000, PRESETS["nano"])


@pytest.mark.parametrize("seed", range(20))
def test_match_size_keeps_blocks_and_heads_and_meets_the_target_of_a_built_model(seed: int) -> None:
    rng = random.Random(seed)
    settings = rng.choice([TINY, PRESETS["nano"], PRESETS["elm-small"]])
    given = random_architecture(rng, settings)
    target = round(rng.uniform(0.98, 2.5) * parameters_outside_embeddings(given, settings))
    found = match_size(given, target, settings)
    built = sum(p.numel() for p in build(found, settings).layers.parameters())
    assert abs(built - target) <= 0.02 * target
    assert list(found) == sorted(given)
    widths = {key: value for key, value in given.items() if key.endswith("_ffn")}
    assert {key: value for key, value in found.items() if key not in widths} == {
        key: value for key, value in given.items() if key not in widths
    }
    # one factor for all: each width is the factor times its own, but for rounding and a few single steps
    factor = sum(found[key] for key in widths) / sum(widths.values())
    assert all(abs(found[key] - factor * width) <= 0.02 * factor * width + 3 for key, width in widths.items())


def test_match_size_comes_as_near_as_any_widths_of_small_layers() -> None:
    settings = replace(TINY, num_layers=2)
    given = uniform(settings, "bert", 6) | {"layer1_bert_ffn": 12}
    for target in range(7_000, 9_000, 61):
        found = match_size(given, target, settings)
        miss = abs(parameters_outside_embeddings(found, settings) - target)
        # one width costs 49 parameters, so the best sum of widths is at most half of that away
        assert miss <= 49 / 2
        assert found["layer1_bert_ffn"] >= found["layer0_bert_ffn"] - 1


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_match_size_leaves_what_has_the_size(preset: str) -> None:
    settings = PRESETS[preset]
    given = random_architecture(random.Random(4), settings)
    assert match_size(given, parameters_outside_embeddings(given, settings), settings) == given


def test_match_size_that_cannot_be() -> None:
    smallest = uniform(TINY, "bert", 1)
    limit = parameters_outside_embeddings(smallest, TINY)
    given = uniform(TINY, "bert", 12)
    # widths of 1 are allowed, and the size may be missed by 2 %
    assert match_size(given, round(limit / 1.019), TINY) == smallest
    with pytest.raises(UserError, match=f"parameters outside the embeddings within 2%; with every width.*{limit:,}"):
        match_size(given, round(limit / 1.021), TINY)
    with pytest.raises(UserError, match="layer0"):
        match_size({}, 1000, TINY)


def test_a_block_of_the_users() -> None:
    class Wide(BertBlock):
        @classmethod
        def num_parameters(cls, config: Any, *, ffn_size: int, num_heads: int, head_dim: int) -> int:
            return 1000 * ffn_size

    blocks = {"wide": Wide}
    found = extreme_architecture(TINY, blocks=blocks)
    assert parameters_outside_embeddings(found, TINY, blocks=blocks) == 3 * 1000 * 6
    with pytest.raises(UserError, match="unknown block 'wide'; known: bert"):
        count_parameters(found, TINY)


def test_no_layers() -> None:
    with pytest.raises(UserError, match="layer0"):
        count_parameters({}, TINY)


def test_the_search_space_builds_the_same_sizes() -> None:
    from elm_nni.search_spaces import ElmSpace

    space = ElmSpace(**{field: getattr(TINY, field) for field in TINY.__dataclass_fields__})
    assert space.heads == full_heads(TINY)
    assert space.config._settings() == space_config(TINY)._settings()
    causal = replace(TINY, is_causal=True, pooling="last", dropout=0.2, pad_token_id=3)
    other = ElmSpace(**{field: getattr(causal, field) for field in TINY.__dataclass_fields__})
    assert other.config._settings() == space_config(causal)._settings()
    frozen = space.freeze(space.random_sample(torch.Generator().manual_seed(0)))
    sample = space.random_sample(torch.Generator().manual_seed(0))
    assert sum(p.numel() for p in frozen.parameters()) == count_parameters(sample, TINY)


def test_works_where_nni_is_missing() -> None:
    code = "import sys; sys.modules['nni'] = None; sys.modules['pytorch_lightning'] = None; import elm_nni.cost"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_classifier_has_these_and_its_head() -> None:
    architecture = random_architecture(random.Random(3), TINY)
    with torch.device("meta"):
        model = ElmForSequenceClassification(build(architecture, TINY).config)
    head = (TINY.hidden_size + 1) * model.config.num_labels
    assert model.num_parameters() == count_parameters(architecture, TINY) + head
