import numpy as np
import pytest

from elm_nni.modeling import BLOCKS, ElmConfig

LAYER = {"block": "bert_kv", "ffn_size": 132, "num_heads": 12, "head_dim": 44}


def test_architecture_round_trip(make_config) -> None:
    config = make_config()
    sample = config.architecture
    assert list(sample) == sorted(sample)
    assert len(sample) == 4 * len(BLOCKS)
    assert sample["layer2"] == "bert_kv"
    assert sample["layer2_bert_kv_ffn"] == 12
    assert sample["layer2_bert_kv_heads"] == 2
    assert sample["layer2_bert_kv_head_dim"] == 5
    rebuilt = ElmConfig.from_architecture(sample, hidden_size=24)
    assert rebuilt.architecture == sample
    assert rebuilt.layers == config.layers
    assert rebuilt.hidden_size == 24


def test_architecture_of_more_than_ten_layers_keeps_their_order() -> None:
    layers = [{**LAYER, "ffn_size": 10 + index} for index in range(12)]
    rebuilt = ElmConfig.from_architecture(ElmConfig(layers=layers).architecture)
    assert [layer["ffn_size"] for layer in rebuilt.layers] == list(range(10, 22))


def test_from_architecture_passes_over_candidates_not_chosen_and_takes_numpy_integers() -> None:
    sample = {**ElmConfig(layers=[LAYER]).architecture, "layer0_bert_ffn": 5, "layer0_bert_kv_ffn": np.int64(7)}
    layer = ElmConfig.from_architecture(sample).layers[0]
    assert layer == {**LAYER, "ffn_size": 7}
    assert type(layer["ffn_size"]) is int


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer0": "brt"}, "layer0 is 'brt'; allowed: bert, bert_qv, bert_kv, mobile, mobile_qv, mobile_kv"),
        ({"layer2": "bert"}, "'layer2' that belongs to none of its 1 layers"),
        ({"layer0_bert_kv_width": 4}, "'layer0_bert_kv_width' that belongs to none"),
        ({"layer0_bert_kv_ffn": 0}, r"layers\[0\]\['ffn_size'\] is 0; it must be a positive integer"),
    ],
)
def test_from_architecture_refuses_bad_samples(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ElmConfig.from_architecture({**ElmConfig(layers=[LAYER]).architecture, **change})


def test_from_architecture_names_the_missing_label() -> None:
    sample = ElmConfig(layers=[LAYER]).architecture
    del sample["layer0_bert_kv_heads"]
    with pytest.raises(ValueError, match="no 'layer0_bert_kv_heads', which its layer0 = 'bert_kv' needs"):
        ElmConfig.from_architecture(sample)
    with pytest.raises(ValueError, match="no 'layer0'"):
        ElmConfig.from_architecture({})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": [{**LAYER, "block": "conv"}]}, "'conv'; allowed: bert, bert_qv"),
        ({"layers": [{**LAYER, "num_heads": 0}]}, "num_heads.* is 0; it must be a positive integer"),
        ({"layers": [{**LAYER, "ffn_size": 1.5}]}, "ffn_size.* is 1.5"),
        ({"layers": [{**LAYER, "ffn_size": True}]}, "ffn_size.* is True"),
        ({"layers": [{**LAYER, "width": 3}]}, "needs exactly block, ffn_size, num_heads, head_dim"),
        ({"layers": []}, "layers is empty"),
        ({"layers": [LAYER], "num_hidden_layers": 2}, "num_hidden_layers is 2, but layers has 1"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_dropout_prob": 1.5}, r"hidden_dropout_prob is 1.5; it must lie in \[0, 1\]"),
        ({"classifier_dropout": -0.1}, "classifier_dropout is -0.1"),
        ({"classifier_pooling": "max"}, "classifier_pooling is 'max'; allowed: cls, mean, last"),
        ({"sentence_embedding_size": 0}, "sentence_embedding_size is 0; it must be a positive integer"),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ElmConfig(**settings)


def test_the_given_layers_are_copied() -> None:
    layers = [dict(LAYER)]
    config = ElmConfig(layers=layers)
    layers[0]["ffn_size"] = 1
    assert config.layers[0]["ffn_size"] == 132


def test_pooling_depends_on_direction() -> None:
    assert ElmConfig().classifier_pooling == "cls"
    assert ElmConfig(is_causal=True).classifier_pooling == "last"
    assert ElmConfig(is_causal=True, classifier_pooling="mean").classifier_pooling == "mean"


def test_save_and_load(make_config, tmp_path) -> None:
    config = make_config(is_causal=True, num_labels=3, problem_type="multi_label_classification", eos_token_id=7)
    config.save_pretrained(tmp_path)
    loaded = ElmConfig.from_pretrained(tmp_path)
    assert loaded == config
    assert loaded.num_labels == 3
    assert loaded.layers == config.layers
    assert loaded != make_config(is_causal=True)
