"""Numbers of the presets against the published ones, canonical form and digest."""

import pytest
import torch

from elm_nni.errors import UserError
from elm_nni.modeling import BLOCKS, ElmConfig, ElmModel
from elm_nni.search_spaces import PRESETS, ElmSpace, SpaceSettings, architecture_digest, canonical, preset_settings
from elm_nni.search_spaces.architecture import BLOCK_NAMES, layer_specs, shared_config


def counted(preset: str, block: str, ffn: int) -> tuple[int, int]:
    """(embeddings, one layer) of a uniform model, by counting the tensors of the real thing."""
    settings = preset_settings(preset)
    width = BLOCKS[block].attention_width(ElmConfig(**shared_config(settings)))
    layer = {"block": block, "ffn_size": ffn, "num_heads": settings.num_heads, "head_dim": width // settings.num_heads}
    with torch.device("meta"):
        model = ElmModel(ElmConfig(layers=[layer], **shared_config(settings)))
    embeddings = sum(parameter.numel() for parameter in model.embeddings.parameters())
    return embeddings, sum(parameter.numel() for parameter in model.layers.parameters())


def test_elm_small_has_the_published_sizes() -> None:
    embeddings, bert = counted("elm-small", "bert", 132)
    assert embeddings == 4_382_544
    assert embeddings + 12 * bert == pytest.approx(19.50e6, abs=0.005e6)
    mean = {ffn: sum(counted("elm-small", block, ffn)[1] for block in BLOCK_NAMES) / 6 for ffn in (132, 792)}
    assert embeddings + 12 * mean[132] == pytest.approx(12.97e6, abs=0.005e6)
    assert embeddings + 12 * mean[792] == pytest.approx(18.20e6, abs=0.005e6)


@pytest.mark.parametrize(("block", "step"), [("bert", 139_524), ("bert_kv", 139_524), ("mobile_qv", 34_980)])
def test_one_growth_step_costs_what_is_published(block: str, step: int) -> None:
    assert counted("elm-small", block, 264)[1] - counted("elm-small", block, 132)[1] == step


@pytest.mark.parametrize(
    ("preset", "layers", "hidden", "bottleneck", "widths"),
    [
        ("elm-small", 12, 528, 132, [132, 264, 396, 528, 660, 792]),
        ("elm-tiny", 6, 528, 132, [132, 264, 396, 528, 660, 792]),
        ("elm-micro", 6, 192, 48, [48, 96, 144, 192, 240, 288, 336, 384]),
        ("nano", 6, 192, 48, [48, 96, 144, 192, 240, 288, 336, 384]),
    ],
)
def test_presets(preset: str, layers: int, hidden: int, bottleneck: int, widths: list[int]) -> None:
    settings = PRESETS[preset]
    assert (settings.num_layers, settings.hidden_size, settings.bottleneck_size) == (layers, hidden, bottleneck)
    assert settings.num_heads == 12
    assert settings.widths == widths


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="elm-huge.*elm-small"):
        preset_settings("elm-huge")


@pytest.mark.parametrize(
    ("setting", "value"),
    [("num_layers", 0), ("hidden_size", 50), ("bottleneck_size", 130), ("ffn_max", 133), ("dropout", 1)],
)
def test_a_wrong_setting_is_named(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{setting}.*{value}"):
        SpaceSettings(**{setting: value})


def test_canonical_keeps_only_chosen_candidates_and_fills_heads(space: ElmSpace) -> None:
    sample = {"layer1": "bert", "layer1_bert_ffn": 8, "layer0": "mobile_kv", "layer0_mobile_kv_ffn": 16}
    sample["layer0_bert_ffn"] = 24
    expected = {
        "layer0": "mobile_kv",
        "layer0_mobile_kv_ffn": 16,
        "layer0_mobile_kv_head_dim": 2,
        "layer0_mobile_kv_heads": 4,
        "layer1": "bert",
        "layer1_bert_ffn": 8,
        "layer1_bert_head_dim": 6,
        "layer1_bert_heads": 4,
    }
    assert space.canonical(sample) == expected
    assert list(space.canonical(sample)) == sorted(expected)
    assert space.canonical(expected) == expected
    assert space.canonical({**sample, "layer0_mobile_kv_heads": 3})["layer0_mobile_kv_heads"] == 3


def test_canonical_needs_the_width_of_a_chosen_candidate() -> None:
    with pytest.raises(KeyError, match="layer0_bert_ffn"):
        canonical({"layer0": "bert"}, {"bert": (4, 6)})


def test_digest_depends_on_the_architecture_alone(space: ElmSpace) -> None:
    sample = {"layer0": "bert", "layer1": "bert", "layer0_bert_ffn": 8, "layer1_bert_ffn": 16}
    first = space.canonical({**sample, "layer0_mobile_ffn": 8})
    second = space.canonical({**dict(reversed(sample.items())), "layer0_mobile_ffn": 24})
    assert architecture_digest(first) == architecture_digest(second)
    assert architecture_digest(first) != architecture_digest(space.canonical({**sample, "layer1_bert_ffn": 8}))


def test_layer_specs_are_the_layers_of_the_configuration(space: ElmSpace) -> None:
    sample = space.random_sample(torch.Generator().manual_seed(0))
    assert layer_specs(sample) == space.architecture_config(sample).layers
    assert space.architecture_config(sample).architecture == sample
