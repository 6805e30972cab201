"""Measurements on this machine. Bounds are wide: other work may run beside the tests."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace

import pytest
import torch

from elm_nni.cost.condition import LatencyCondition, Runtime
from elm_nni.cost.latency import measure_model, measure_models, measure_table
from elm_nni.cost.latency_table import LatencyTable, cheapest
from elm_nni.cost.parameters import extreme_architecture, uniform_width
from elm_nni.cost.timing import METHOD, Watch
from elm_nni.errors import UserError
from elm_nni.modeling import BLOCKS, ElmConfig, ElmForSequenceClassification, MobileBlock
from elm_nni.search_spaces import SpaceSettings

SETTINGS = SpaceSettings(
    num_layers=3, hidden_size=48, num_heads=4, bottleneck_size=16, ffn_start=16, ffn_step=16, ffn_max=64, vocab_size=90
)
CONDITION = LatencyCondition(sequence_length=32)


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    return measure_table(SETTINGS, CONDITION, repeats=5)


def test_the_table_covers_the_space(table: LatencyTable) -> None:
    expected = {"embedding", "head"}
    for block in BLOCKS:
        head_dim = 12 if block.startswith("bert") else 4
        expected |= {f"{block}|{width}|4|{head_dim}" for width in (16, 32, 48, 64)}
        expected |= {f"{block}|16|{heads}|{head_dim}" for heads in (1, 2)}
    assert set(table.entries) == expected
    table.require(CONDITION, SETTINGS)
    slowest = extreme_architecture(SETTINGS, cost=table.predict, largest=True)
    assert 0 < cheapest(table, SETTINGS)[1] <= table.predict(slowest)
    assert table.notes["repeats"] == 5
    assert table.notes["widths"] == [16, 32, 48, 64]


def test_whole_models_give_the_overhead(table: LatencyTable) -> None:
    excess = [(model["median_ms"] - model["sum_ms"]) / len(model["layers"]) for model in table.notes["models"]]
    assert [len(model["layers"]) for model in table.notes["models"]] == [3, 3, 3]
    assert table.overhead_ms == pytest.approx(sum(excess) / 3)


def test_threads_generator_and_gradients_are_as_before() -> None:
    before = torch.get_num_threads()
    state = torch.get_rng_state()
    measure_table(SETTINGS, replace(CONDITION, threads=before + 1), repeats=1, widths=[16], heads=[])
    assert torch.get_num_threads() == before
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    with pytest.raises(UserError):
        measure_table(SETTINGS, CONDITION, repeats=1, widths=[0])
    assert torch.get_num_threads() == before


def test_a_wide_layer_is_slower_than_a_narrow_one() -> None:
    settings = replace(SETTINGS, ffn_max=16 + 16 * 300)
    condition = LatencyCondition(sequence_length=256)
    blocks = {"bert": BLOCKS["bert"]}
    table = measure_table(settings, condition, repeats=5, widths=[16, settings.ffn_max], heads=[1], blocks=blocks)
    widest = {"block": "bert", "ffn_size": settings.ffn_max, "num_heads": 4, "head_dim": 12}
    assert table.predict_layer(widest) > 1.5 * table.predict_layer({**widest, "ffn_size": 16})


def test_a_block_of_the_users_and_bf16() -> None:
    class Mine(MobileBlock):
        pass

    condition = replace(CONDITION, dtype="bf16", batch_size=2)
    table = measure_table(SETTINGS, condition, repeats=1, blocks={"mine": Mine})
    assert "mine|16|4|4" in table.entries
    assert list(table.curves) == ["mine"]


def test_models_side_by_side() -> None:
    small = uniform_width("mobile", 12_000, SETTINGS)
    sizes = {"vocab_size": 90, "hidden_size": 48, "bottleneck_size": 16}
    models = {
        "small": ElmForSequenceClassification(ElmConfig.from_architecture(small, **sizes)).train(),
        "large": ElmForSequenceClassification(ElmConfig(vocab_size=90, hidden_size=384)).train(),
    }
    before = models["small"].state_dict()["classifier.weight"].clone()
    measured = measure_models(models, replace(CONDITION, dtype="bf16"), repeats=3)
    assert measured["large"][0] > 2 * measured["small"][0] > 0
    assert models["small"].training
    assert torch.equal(models["small"].state_dict()["classifier.weight"], before)
    median_ms, iqr_ms = measure_model(models["small"], CONDITION, repeats=3)
    assert median_ms > 0
    assert iqr_ms >= 0


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["compile", "onnx", "onnx-int8"])
def test_other_runtimes(runtime: Runtime) -> None:
    settings, blocks = replace(SETTINGS, num_layers=1), {"bert": BLOCKS["bert"]}
    condition = replace(CONDITION, runtime=runtime)
    model = ElmForSequenceClassification(ElmConfig(vocab_size=90, hidden_size=48, num_hidden_layers=1))
    table = measure_table(
        settings, condition, repeats=3, widths=[16, 64], heads=[], blocks=blocks, models={"mine": model}
    )
    assert set(table.entries) == {"embedding", "head", "bert|16|4|12", "bert|64|4|12"}
    table.require(condition, settings)
    assert table.notes["beside"]["mine"][0] > table.entries["head"][0] > 0
    with pytest.raises(UserError, match="measure a table for the limit's condition"):
        table.require(CONDITION)


def test_models_beside_a_table_change_no_entry(table: LatencyTable) -> None:
    model = ElmForSequenceClassification(ElmConfig(vocab_size=90, hidden_size=12, num_hidden_layers=1))
    found = measure_table(SETTINGS, CONDITION, repeats=1, models={"mine": model})
    assert set(found.entries) == set(table.entries)
    assert list(found.notes["beside"]) == ["mine"]
    assert "beside" not in table.notes


def test_notes_say_how_it_was_timed(table: LatencyTable) -> None:
    assert table.notes["timing"] == METHOD
    assert set(table.notes["preempted"]) == {"repeated", "kept"}
    assert table.notes["load"] >= 0


def test_mostly_preempted_calls_are_reported(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    switches = itertools.count()
    monkeypatch.setattr("elm_nni.cost.latency.watch", lambda **_: Watch(lambda: next(switches)))
    model = ElmForSequenceClassification(ElmConfig(vocab_size=90, hidden_size=12, num_hidden_layers=1))
    with caplog.at_level(logging.WARNING):
        measure_model(model, CONDITION, repeats=3)
    assert "took the processor during 100 % of the calls under (eager fp32" in caplog.text


def test_a_restless_machine_is_reported(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ElmForSequenceClassification(ElmConfig(vocab_size=90, hidden_size=12, num_hidden_layers=1))
    monkeypatch.setattr("elm_nni.cost.latency.NOISY", -1.0)
    with caplog.at_level(logging.WARNING):
        measure_model(model, CONDITION, repeats=3)
    assert "vary by" in caplog.text


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (LatencyCondition(sequence_length=513), "at most max_position_embeddings = 512"),
    ],
)
def test_conditions_that_cannot_be_measured(condition: LatencyCondition, message: str) -> None:
    with pytest.raises(UserError, match=message):
        measure_table(SETTINGS, condition)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_no_such_device() -> None:
    with pytest.raises(UserError, match="no CUDA device"):
        measure_table(SETTINGS, LatencyCondition(device="cuda"))


def test_sizes_out_of_range() -> None:
    with pytest.raises(UserError, match="heads to measure hold 5; they must be integers from 1 to 4"):
        measure_table(SETTINGS, CONDITION, heads=[5])
    with pytest.raises(UserError, match="widths to measure are empty"):
        measure_table(SETTINGS, CONDITION, widths=[])
    with pytest.raises(UserError, match="repeats is 0"):
        measure_table(SETTINGS, CONDITION, repeats=0)
