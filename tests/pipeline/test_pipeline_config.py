"""Presets, overrides, and a clear line for every mistake."""

from dataclasses import asdict
from typing import get_args, get_type_hints

import pytest

from elm_nni.cost.condition import LatencyCondition
from elm_nni.errors import UserError
from elm_nni.pipeline.config import Config, GrowthConfig, load_config, parse_assignment, preset_names
from elm_nni.pipeline.context import latency_condition
from elm_nni.pipeline.conversion import parse_count
from elm_nni.search_spaces import PRESETS
from elm_nni.strategies.growth_scores import SCORE_NAMES


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_survives_a_round_trip(name, tmp_path):
    config = load_config(name)
    assert config.space.preset in PRESETS
    path = tmp_path / "copy.yaml"
    import yaml

    path.write_text(yaml.safe_dump(config.to_dict()), encoding="utf-8")
    assert load_config(str(path)) == config


def test_overrides_reach_nested_keys_and_read_counts():
    config = load_config("nano", {"growth.top_k": 3, "limits.max_params": "10M", "supernet.pretrain.lr": "1e-4"})
    assert (config.growth.top_k, config.limits.max_params, config.supernet.pretrain.lr) == (3, 10e6, 1e-4)


def test_the_configuration_knows_every_growth_score():
    assert get_args(get_type_hints(GrowthConfig)["score"]) == SCORE_NAMES


def test_a_file_starts_from_a_preset(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("preset: nano\ngrowth: {top_k: 2}\n", encoding="utf-8")
    config, nano = load_config(str(path)), load_config("nano")
    assert config.growth.top_k == 2
    assert config.growth.budget == nano.growth.budget
    assert config.supernet == nano.supernet


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("growth.topk", 3, ["growth.topk", "growth.top_k"]),
        ("growht.top_k", 3, ["growht", "growth"]),
        ("growth.top_k", 0, ["growth.top_k", "0", ">= 1"]),
        ("growth.top_k", "many", ["growth.top_k", "many", "a whole number"]),
        ("growth.threshold", 1.5, ["growth.threshold", "1.5", "(0, 1]"]),
        ("growth.score", "norm", ["growth.score", "norm", "pca, pca_normalized, activation_norm"]),
        ("prune.mode", "cut", ["prune.mode", "cut", "remove, fuse, off"]),
        ("prune.eta", 0, ["prune.eta", "(0, 1]"]),
        ("retrain.pretrain.warmup", 1, ["retrain.pretrain.warmup", "[0, 1)"]),
        ("tasks", [], ["tasks", "at least one"]),
        ("tasks", ["polarity", "polarity"], ["tasks", "differ"]),
        ("search.tasks", ["cola"], ["search.tasks", "cola", "polarity"]),
        ("limits.max_params", -1, ["limits.max_params", "> 0"]),
        ("latency.runtime", "tflite", ["latency.runtime", "tflite", "eager, compile, onnx, onnx-int8"]),
        ("latency.dtype", "fp16", ["latency.dtype", "fp16", "fp32, bf16"]),
        ("latency.threads", 0, ["latency.threads", "0", ">= 1"]),
        ("latency", {"runtime": "onnx", "dtype": "bf16"}, ["latency.dtype", "bf16", "fp32 with latency.runtime onnx"]),
        ("latency", {"runtime": "onnx-int8", "device": "cuda"}, ["latency.device", "cuda", "cpu with"]),
        ("seed.x", 1, ["seed"]),
        ("tasks", [{"name": "squad", "max_length": 7}], ["tasks.squad.max_length", "7", ">= 16 or null"]),
        ("tasks", [{"name": "imdb", "max_length": 7}], ["tasks.imdb.max_length", "7", ">= 8 or null"]),
        (
            "tasks", [{"name": "a", "source": "a.json", "kind": "question_answering", "max_length": 15}],
            ["tasks.a.max_length", "15", ">= 16 or null"],
        ),
        (
            "tasks", [{"name": "a", "source": "a.CONLL", "kind": "multi_label"}],
            ["tasks.a.kind", "multi_label", "a.CONLL has words and tags"],
        ),
        ("tasks", [{"name": "imdb", "limit_rows": 5}], ["tasks.imdb.limit_rows", "5", ">= 10 or null"]),
    ],
)
def test_mistakes_name_key_value_and_what_is_allowed(key, value, words):
    with pytest.raises(UserError) as caught:
        load_config("nano", {key: value})
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(("name", "hint"), [("nanoo", "did you mean nano?"), ("zzz", "elm-small")])
def test_unknown_preset_names_the_nearest(name, hint):
    with pytest.raises(UserError, match="unknown preset") as caught:
        load_config(name)
    assert hint in str(caught.value)


@pytest.mark.parametrize("content", [b"- a list\n", b"a: [\n", b"\xff\xfe\n"])
def test_a_file_that_is_no_configuration_is_one_line(content, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match="bad.yaml") as caught:
        load_config(str(path))
    assert "\n" not in str(caught.value)


def test_off_is_a_mode_though_yaml_reads_it_as_false():
    assert load_config("nano", {"prune.mode": parse_assignment("prune.mode=off")[1]}).prune.mode == "off"


def test_assignments_and_counts():
    assert parse_assignment("growth.top_k=8") == ("growth.top_k", 8)
    assert [parse_count(value) for value in ("10M", "2.5k", "x", 3)] == [10e6, 2500.0, "x", 3]
    with pytest.raises(UserError, match="key=value"):
        parse_assignment("growth.top_k")


def test_every_key_is_a_plain_value():
    assert set(Config().to_dict()) >= {"space", "teacher", "data", "tasks", "limits", "growth", "search", "prune"}


def test_the_condition_takes_every_key_of_latency():
    changes = {
        "runtime": "compile", "dtype": "bf16", "device": "cpu:0", "threads": 2, "batch_size": 3, "sequence_length": 7,
    }  # fmt: skip
    condition = latency_condition(load_config("nano", {f"latency.{key}": value for key, value in changes.items()}))
    assert asdict(condition) == changes
    assert asdict(latency_condition(Config())) == asdict(LatencyCondition())
