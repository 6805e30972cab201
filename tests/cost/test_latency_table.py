"""What a table predicts, against sums done by hand; what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from elm_nni.cost.condition import LatencyCondition
from elm_nni.cost.latency_table import LatencyTable, cheapest, space_fields
from elm_nni.errors import UserError
from elm_nni.search_spaces import SpaceSettings

SETTINGS = SpaceSettings(
    num_layers=2, hidden_size=24, num_heads=4, bottleneck_size=8, ffn_start=6, ffn_step=6, ffn_max=18
)
CONDITION = LatencyCondition(sequence_length=64)
# Exact binary fractions, so that sums are exact.
ENTRIES = {
    "embedding": (0.5, 0.0),
    "head": (0.25, 0.0),
    "bert|6|4|6": (2.0, 0.1),
    "bert|18|4|6": (4.0, 0.1),
    "bert|6|1|6": (0.5, 0.1),
    "mobile|6|4|2": (1.0, 0.1),
    "mobile|12|4|2": (0.75, 0.1),
    "mobile|18|4|2": (3.0, 0.1),
    "mobile|6|2|2": (0.5, 0.1),
}


def table(**changes: Any) -> LatencyTable:
    values: dict[str, Any] = {"condition": CONDITION, "space": space_fields(SETTINGS), "entries": ENTRIES}
    return LatencyTable(**{**values, "overhead_ms": 0.125, **changes})


def layer(block: str, ffn: int, heads: int, head_dim: int) -> dict[str, Any]:
    return {"block": block, "ffn_size": ffn, "num_heads": heads, "head_dim": head_dim}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (layer("bert", 6, 4, 6), 2.0),
        (layer("bert", 18, 4, 6), 4.0),
        # Half-way between two widths, on and off the grid.
        (layer("bert", 12, 4, 6), 3.0),
        (layer("bert", 9, 4, 6), 2.5),
        # A missing head saves (2.0 - 0.5) / 3.
        (layer("bert", 18, 3, 6), 3.5),
        (layer("bert", 12, 1, 6), 1.5),
        # Two fused heads have the channels of four.
        (layer("bert", 6, 2, 12), 2.0),
        # Measured 1.0 at width 6 and 0.75 at width 12: their mean at both.
        (layer("mobile", 6, 4, 2), 0.875),
        (layer("mobile", 12, 4, 2), 0.875),
        (layer("mobile", 18, 4, 2), 3.0),
    ],
)
def test_a_layer(asked: dict[str, Any], expected: float) -> None:
    assert table().predict_layer(asked) == expected + 0.125


def test_a_model_is_the_sum_of_its_parts() -> None:
    sample = {
        "layer0": "bert", "layer0_bert_ffn": 12, "layer0_bert_heads": 4, "layer0_bert_head_dim": 6,
        "layer1": "mobile", "layer1_mobile_ffn": 18, "layer1_mobile_heads": 3, "layer1_mobile_head_dim": 2,
    }  # fmt: skip
    expected = 0.5 + (3.0 + 0.125) + (3.0 - 0.25 + 0.125)
    assert table().predict(sample, head=False) == expected
    assert table().predict(sample) == expected + 0.25


def test_monotone_in_width_and_heads_whatever_was_measured() -> None:
    noisy = {f"bert|{width}|4|6": (value, 0.0) for width, value in zip(range(6, 42, 6), [3.0, 2.0, 5.0, 1.0, 4.0, 2.5])}
    noisy |= {"bert|6|1|6": (2.5, 0.0), "bert|6|2|6": (1.5, 0.0), "bert|6|3|6": (4.0, 0.0)}
    made = table(entries={"embedding": (0.5, 0.0), "head": (0.25, 0.0), **noisy})
    widths = [made.predict_layer(layer("bert", width, 4, 6)) for width in range(6, 37)]
    heads = [made.predict_layer(layer("bert", 6, count, 6)) for count in range(1, 5)]
    assert widths == sorted(widths)
    assert heads == sorted(heads)
    assert made.entries["bert|12|4|6"] == (2.0, 0.0)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (layer("bert", 5, 4, 6), "no bert width of 5; it has 6 to 18"),
        (layer("bert", 19, 4, 6), "no bert width of 19"),
        (layer("mobile", 6, 1, 2), "no mobile head count of 1; it has 2 to 4"),
        (layer("bert", 6, 5, 6), "no bert head count of 5"),
        (layer("bert_kv", 6, 4, 6), "no block 'bert_kv'; it has bert, mobile"),
    ],
)
def test_outside_of_what_was_measured(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        table().predict_layer(asked)


def test_saved_and_loaded(tmp_path: Path) -> None:
    made = table(notes={"repeats": 3})
    made.save(tmp_path / "table.json")
    loaded = LatencyTable.load(tmp_path / "table.json")
    assert loaded == made
    assert loaded.digest == made.digest
    assert loaded.digest != table(overhead_ms=0.25).digest
    others = [{"threads": 2}, {"runtime": "compile"}, {"runtime": "onnx"}, {"runtime": "onnx-int8"}, {"dtype": "bf16"}]
    names = {table(notes={"repeats": 3}, condition=replace(CONDITION, **changes)).digest for changes in others}
    assert len({loaded.digest, *names}) == 6


def test_another_condition_or_space_is_refused() -> None:
    table().require(CONDITION, SETTINGS)
    table().require(CONDITION, replace(SETTINGS, num_layers=9, vocab_size=7))
    both = r"\(eager fp32, cpu, 2 threads.*\(eager fp32, cpu, 1 thread, batch 1, 64 tokens\)"
    with pytest.raises(UserError, match=both):
        table().require(replace(CONDITION, threads=2))
    with pytest.raises(UserError, match=r"for \(onnx fp32, .* measured for \(eager fp32, "):
        table().require(replace(CONDITION, runtime="onnx"))
    with pytest.raises(UserError, match=r"for \(eager bf16, .* measured for \(eager fp32, "):
        table().require(replace(CONDITION, dtype="bf16"))
    with pytest.raises(UserError, match="hidden_size = 24, but the space has 48"):
        table().require(CONDITION, replace(SETTINGS, hidden_size=48))


def test_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    with pytest.raises(UserError, match="cannot read"):
        LatencyTable.load(path)
    path.write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        LatencyTable.load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not JSON"):
        LatencyTable.load(path)
    for foreign in ("[1]", '{"format": "other"}'):
        path.write_text(foreign)
        with pytest.raises(UserError, match="no latency table"):
            LatencyTable.load(path)
    table().save(path)
    content = json.loads(path.read_text())
    for key, message in (("entries", "broken"), ("condition", "broken"), ("digest", "broken"), ("space", "broken")):
        path.write_text(json.dumps({name: value for name, value in content.items() if name != key}))
        with pytest.raises(UserError, match=message):
            LatencyTable.load(path)
    content["entries"]["head"] = [0.3, 0.0]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="was changed"):
        LatencyTable.load(path)
    with pytest.raises(UserError, match="cannot write"):
        table().save(tmp_path / "missing" / "table.json")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"head": None}, "no entry 'head'"),
        ({"bert|6|4|6": (-1.0, 0.0)}, "median above 0"),
        ({"bert|6|4|6": (float("nan"), 0.0)}, "median above 0"),
        ({"bert|6|4": (1.0, 0.0)}, "has no meaning"),
        ({"bert|6|x|6": (1.0, 0.0)}, "has no meaning"),
        ({"bert|12|4|12": (1.0, 0.0)}, "head_dim 6 and 12"),
        ({"bert|18|2|6": (1.0, 0.0)}, "head counts of bert at one width"),
    ],
)
def test_entries_that_make_no_table(changed: dict[str, Any], message: str) -> None:
    entries = {key: value for key, value in {**ENTRIES, **changed}.items() if value is not None}
    with pytest.raises(UserError, match=message):
        table(entries=entries)
    with pytest.raises(UserError, match="has no layers"):
        table(entries={"embedding": (0.5, 0.0), "head": (0.25, 0.0)})


def test_cheapest_against_brute_force() -> None:
    entries = dict(ENTRIES)
    for block in ("bert_qv", "bert_kv", "mobile_qv", "mobile_kv"):
        head_dim = 6 if block.startswith("bert") else 2
        entries |= {f"{block}|6|4|{head_dim}": (3.0, 0.0), f"{block}|18|4|{head_dim}": (3.0, 0.0)}
    made = table(entries=entries)
    architecture, milliseconds = cheapest(made, SETTINGS)
    assert [architecture["layer0"], architecture["layer1"]] == ["mobile", "mobile"]
    assert milliseconds == 0.5 + 2 * (0.875 + 0.125) + 0.25
    # Where bert is narrow and mobile wide, bert is the faster one.
    widths = {f"layer{i}_{block}": 18 for i in range(2) for block in made.curves} | {"layer1_bert": 6}
    architecture, milliseconds = cheapest(made, SETTINGS, widths)
    assert architecture["layer1"] == "bert"
    assert architecture["layer1_bert_ffn"] == 6
    assert milliseconds == 0.5 + (3.0 + 0.125) + (2.0 + 0.125) + 0.25
