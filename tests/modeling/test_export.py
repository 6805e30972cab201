"""A saved folder loads where this package does not exist."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from transformers import GenerationMixin
from transformers.dynamic_module_utils import get_relative_import_files

from elm_nni.modeling import (
    BLOCKS,
    BertBlock,
    ElmConfig,
    ElmForCausalLM,
    ElmForMaskedLM,
    ElmForQuestionAnswering,
    ElmForSentenceEmbedding,
    ElmForSequenceClassification,
    ElmForTokenClassification,
    ElmModel,
    modeling_elm,
    save_with_code,
)
from elm_nni.modeling.export import CODE_FILES
from tests.modeling.conftest import randomised, small_config

# Runs in a fresh interpreter in which importing elm_nni fails, as in an environment that lacks it.
LOADER = """
import sys
from pathlib import Path

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("elm_nni", "nni", "pytorch_lightning"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
import torch, transformers

work = Path(sys.argv[1])
task = torch.load(work / "task.pt")
results = {}
for name, case in task["cases"].items():
    model = getattr(transformers, case["auto_class"]).from_pretrained(work / name, trust_remote_code=True)
    found = results[name] = {
        "class": f"{type(model).__module__}.{type(model).__name__}",
        "problem_type": model.config.problem_type,
        "loss": None if case["labels"] is None else model(**task["inputs"], labels=case["labels"]).loss,
        "outputs": dict(model(**task["inputs"])),
    }
    if name in task["generation"]:
        assert model.lm_head.decoder.weight is model.elm.embeddings.tokens.weight
        inputs, settings = task["inputs"], task["generation"][name]
        found["generated"] = [model.generate(**inputs, **one) for one in settings]
    if name in task["saved_again"]:
        model.save_pretrained(work / f"{name}-again")
        found["again"] = {}
        for auto_class in (case["auto_class"], "AutoModelForMaskedLM", "AutoModelForTokenClassification"):
            again = getattr(transformers, auto_class).from_pretrained(work / f"{name}-again", trust_remote_code=True)
            found["again"][auto_class] = (type(again).__name__, dict(again(**task["inputs"])))
assert not any(name.split(".")[0] == "elm_nni" for name in sys.modules)
torch.save(results, work / "results.pt")
"""


class Case(NamedTuple):
    """A model to save, what loads it, and labels for its loss."""

    auto_class: str
    model_class: type
    settings: dict[str, Any]
    labels: torch.Tensor | None = None


CASES = {
    "body": Case("AutoModel", ElmModel, {}),
    "causal": Case("AutoModelForCausalLM", ElmForCausalLM, {"is_causal": True, "eos_token_id": 59}),
    "masked": Case("AutoModelForMaskedLM", ElmForMaskedLM, {}),
    "single": Case(
        "AutoModelForSequenceClassification", ElmForSequenceClassification, {"num_labels": 3}, torch.tensor([2, 0])
    ),
    "multi": Case(
        "AutoModelForSequenceClassification",
        ElmForSequenceClassification,
        {"num_labels": 3, "problem_type": "multi_label_classification"},
        # Integers, which without the problem type would be taken for something else.
        torch.tensor([[1, 0, 1], [0, 0, 1]]),
    ),
    "regression": Case(
        "AutoModelForSequenceClassification",
        ElmForSequenceClassification,
        {"num_labels": 1, "problem_type": "regression", "classifier_pooling": "mean"},
        torch.tensor([0.5, -1.0]),
    ),
    "tokens": Case(
        "AutoModelForTokenClassification",
        ElmForTokenClassification,
        {"num_labels": 3},
        torch.tensor([[-100, -100, 2, 0], [1, -100, 0, 2]]),
    ),
    "answers": Case("AutoModelForQuestionAnswering", ElmForQuestionAnswering, {}),
    "embeddings": Case(
        "AutoModel", ElmForSentenceEmbedding, {"classifier_pooling": "mean", "sentence_embedding_size": 6}
    ),
}
INPUTS = {
    "input_ids": torch.tensor([[0, 0, 7, 8], [9, 3, 2, 1]]),
    "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]),
}
GENERATION = [{"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0, "num_beams": beams} for beams in (1, 3)]
SAVED_AGAIN = ("masked", "embeddings")


class Loaded(NamedTuple):
    """The models that were saved, and what they gave where this package does not exist."""

    models: dict[str, nn.Module]
    results: dict[str, dict[str, Any]]
    folder: Path


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp("exported")
    models = {name: randomised(case.model_class(small_config(**case.settings))) for name, case in CASES.items()}
    for name, model in models.items():
        save_with_code(model, folder / name)
    task = {
        "cases": {name: {"auto_class": case.auto_class, "labels": case.labels} for name, case in CASES.items()},
        "inputs": INPUTS,
        "generation": {"causal": GENERATION},
        "saved_again": SAVED_AGAIN,
    }
    torch.save(task, folder / "task.pt")
    done = subprocess.run(
        [sys.executable, "-c", LOADER, str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
        check=False,
        env={**os.environ, "HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return Loaded(models, torch.load(folder / "results.pt"), folder)


def assert_same_outputs(found: dict[str, torch.Tensor], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", CASES)
def test_folder_loads_without_this_package(name: str, loaded: Loaded) -> None:
    model, result, case = loaded.models[name], loaded.results[name], CASES[name]
    assert result["class"].startswith("transformers_modules.")
    assert result["class"].endswith(f".{case.model_class.__name__}")
    assert result["problem_type"] == case.settings.get("problem_type")
    assert_same_outputs(result["outputs"], dict(model(**INPUTS)))
    if case.labels is not None:
        torch.testing.assert_close(result["loss"], model(**INPUTS, labels=case.labels).loss, rtol=0, atol=1e-6)


def test_a_loaded_folder_generates_without_this_package(loaded: Loaded) -> None:
    model: GenerationMixin = loaded.models["causal"]
    for settings, generated in zip(GENERATION, loaded.results["causal"]["generated"], strict=True):
        assert torch.equal(generated, model.generate(**INPUTS, **settings))


@pytest.mark.parametrize("name", SAVED_AGAIN)
def test_a_loaded_model_is_saved_with_all_code(name: str, loaded: Loaded) -> None:
    """As after further training without this package: the folder still serves every Auto class."""
    again, case = loaded.results[name]["again"], CASES[name]
    assert sorted(file.name for file in (loaded.folder / f"{name}-again").glob("*.py")) == sorted(CODE_FILES)
    kind, outputs = again[case.auto_class]
    assert kind == case.model_class.__name__
    assert_same_outputs(outputs, dict(loaded.models[name](**INPUTS)))
    assert again["AutoModelForTokenClassification"][0] == "ElmForTokenClassification"


def test_the_code_files_are_those_that_the_models_import() -> None:
    entry = modeling_elm.__file__
    assert sorted(CODE_FILES) == sorted({Path(file).name for file in [entry, *get_relative_import_files(entry)]})


def test_model_and_configuration_stay_as_they_are(make_config, tmp_path: Path) -> None:
    model = ElmForSequenceClassification(make_config())
    save_with_code(model, tmp_path / "coded")
    assert not hasattr(model.config, "auto_map")
    model.save_pretrained(tmp_path / "plain")
    assert "auto_map" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert not list((tmp_path / "plain").glob("*.py"))
    loaded = ElmForSequenceClassification.from_pretrained(tmp_path / "coded")
    assert isinstance(loaded.config, ElmConfig)
    assert loaded.config == model.config


def test_a_block_from_elsewhere_cannot_be_saved(make_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class MyBlock(BertBlock):
        pass

    monkeypatch.setitem(BLOCKS, "mine", MyBlock)
    layer = {"block": "mine", "ffn_size": 4, "num_heads": 1, "head_dim": 4}
    model: nn.Module = ElmForSequenceClassification(make_config(layers=[layer]))
    with pytest.raises(ValueError, match="layer 0 is 'mine' from .*, whose code cannot be saved"):
        save_with_code(model, tmp_path)
    assert not list(tmp_path.iterdir())
