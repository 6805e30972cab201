"""The exported file against PyTorch, and its script where torch cannot be imported."""

from __future__ import annotations

import copy
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tokenizers import Tokenizer

from elm_nni.errors import UserError
from elm_nni.export import onnx as export_module
from elm_nni.export.onnx import OnnxReport, export_onnx, measure_onnx
from elm_nni.modeling import ElmForCausalLM, ElmForSequenceClassification, ElmModel

from .tiny import LABELS, VOCAB_SIZE, printed, run_without_torch, tiny_config, tiny_tokenizer


@dataclass(frozen=True)
class Exported:
    model: ElmForSequenceClassification
    source: Path
    report: OnnxReport


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    source = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = ElmForSequenceClassification(tiny_config("mean")).eval()
    model.save_pretrained(source)
    tiny_tokenizer().save_pretrained(source)
    return Exported(model, source, export_onnx(source, tmp_path_factory.mktemp("onnx") / "out", int8=True))


def run_session(path: Path, input_ids: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"input_ids": input_ids.numpy(), "attention_mask": mask.numpy()})[0]


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (5, 40)])
@pytest.mark.parametrize("left", [False, True])
def test_agrees_with_pytorch_for_shapes_that_the_export_did_not_check(
    exported: Exported, shape: tuple[int, int], left: bool
) -> None:
    input_ids = torch.randint(VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(input_ids)
    mask[-1, 1:] = 0
    mask = mask.flip(1) if left else mask
    with torch.inference_mode():
        expected = exported.model(input_ids, attention_mask=mask).logits.numpy()
    np.testing.assert_allclose(run_session(exported.report.path, input_ids, mask), expected, atol=1e-5)
    assert exported.report.difference < 1e-5


def test_padding_changes_nothing(exported: Exported) -> None:
    ids = torch.tensor([[2, 9, 7, 10, 5, 3]])
    padded = torch.nn.functional.pad(ids, (0, 5))
    alone = run_session(exported.report.path, ids, torch.ones_like(ids))
    np.testing.assert_allclose(run_session(exported.report.path, padded, (padded != 0).long()), alone, atol=1e-5)


def test_int8_is_smaller_and_its_difference_is_reported(exported: Exported) -> None:
    report = exported.report
    assert report.int8_path is not None
    assert report.int8_difference is not None
    assert report.int8_size_bytes == report.int8_path.stat().st_size
    # The token table, 4000 x 64 floats, takes a quarter in int8.
    assert report.size_bytes - report.int8_path.stat().st_size > 0.7 * 4 * VOCAB_SIZE * 64
    weights = [one for one in onnx.load(report.int8_path).graph.initializer if one.name.endswith("_quantized")]
    assert {one.data_type for one in weights} == {onnx.TensorProto.UINT8}
    # Logits reach 2; signed weights differ by 0.6 on a processor without VNNI, where their sums saturate.
    assert 1e-6 < report.int8_difference < 0.1


def test_the_script_runs_without_torch_and_gives_the_logits_of_pytorch(exported: Exported) -> None:
    folder = exported.report.path.parent
    texts = ["The film was good", "bad", "a long film\tthe film was bad"]
    # Once with the int8 file, which is what was asked for, once with the exact one.
    assert exported.report.script == folder / "infer.py"
    script = folder / "infer-fp32.py"
    script.write_text((folder / "infer.py").read_text().replace("model-int8.onnx", "model.onnx"))
    tokenizer = Tokenizer.from_file(str(exported.source / "tokenizer.json"))
    for path, tolerance in ((script, 1e-5), (folder / "infer.py", 0.5)):
        lines = printed(path, *texts)
        assert [line["text"] for line in lines] == texts
        for line, text in zip(lines, texts, strict=True):
            ids = tokenizer.encode(*text.split("\t")).ids
            with torch.inference_mode():
                expected = exported.model(torch.tensor([ids])).logits[0]
            np.testing.assert_allclose(line["logits"], expected.numpy(), atol=tolerance)
            assert line["label"] == LABELS[int(np.argmax(line["logits"]))]


def test_the_blocker_of_the_script_test_blocks(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import torch")
    done = run_without_torch(script)
    assert done.returncode != 0
    assert "torch is blocked" in done.stderr


def test_base_model_with_token_types(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ElmModel(tiny_config("cls")).eval()
    model.save_pretrained(tmp_path / "base")
    report = export_onnx(tmp_path / "base", tmp_path / "out", token_types=True)
    assert report.script is None
    assert report.int8_path is None
    assert sorted(item.name for item in (tmp_path / "out").iterdir()) == ["model.onnx"]
    session = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    ids = torch.tensor([[5, 6, 7, 8]])
    segments = torch.tensor([[0, 0, 1, 1]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": segments}
    with torch.inference_mode():
        expected = model(**inputs).last_hidden_state.numpy()
        without = model(ids).last_hidden_state.numpy()
    (found,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - without).max() > 1e-2


def test_a_file_that_differs_is_refused_and_not_left(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of one model beside the weights of another, a hair away."""
    other = copy.deepcopy(exported.model)
    other.classifier.bias.data += 0.01
    other.save_pretrained(tmp_path / "other")
    file = exported.report.path
    monkeypatch.setattr(export_module, "_write", lambda model, path, types: shutil.copyfile(file, path))
    with pytest.raises(UserError, match="differs from PyTorch by 0.01"):
        export_onnx(tmp_path / "other", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    assert export_onnx(tmp_path / "other", tmp_path / "out", tolerance=0.02).difference == pytest.approx(0.01, abs=1e-4)


def test_measured(exported: Exported) -> None:
    median_ms, iqr_ms = measure_onnx(exported.report.path, batch_size=2, sequence_length=32, repeats=5)
    assert median_ms > 0
    assert iqr_ms >= 0
    with pytest.raises(UserError, match="at most 40"):
        measure_onnx(exported.report.path, sequence_length=41)
    with pytest.raises(UserError, match="threads is 0"):
        measure_onnx(exported.report.path, threads=0)
    with pytest.raises(UserError, match="cannot load"):
        measure_onnx(exported.source / "tokenizer.json")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_names_the_command(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as error:
        export_onnx(exported.source, tmp_path / "out")
    assert package in str(error.value)
    assert 'pip install "elm-nni[onnx]"' in str(error.value)


def test_folders_that_hold_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        export_onnx(tmp_path / "missing", tmp_path / "out")
    ElmForCausalLM(tiny_config("cls", is_causal=True)).save_pretrained(tmp_path / "causal")
    with pytest.raises(UserError, match="holds ElmForCausalLM; .* the files have no cache"):
        export_onnx(tmp_path / "causal", tmp_path / "out")


def test_an_output_that_cannot_be_written(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        export_onnx(exported.source, tmp_path / "file")
