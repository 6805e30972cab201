"""A saved folder loads where this package does not exist."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from elm_nni.modeling import BLOCKS, BertBlock, ElmConfig, ElmForCausalLM, ElmForSequenceClassification, save_with_code

# Runs in a fresh interpreter in which importing elm_nni fails, as in an environment that lacks it.
LOADER = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("elm_nni", "nni", "pytorch_lightning"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
import torch, transformers
model = getattr(transformers, sys.argv[1]).from_pretrained(sys.argv[2], trust_remote_code=True)
ids = torch.tensor(json.loads(sys.argv[3]))
result = {"class": type(model).__module__, "logits": model(ids).logits.tolist(), "tokens": None}
if sys.argv[1] == "AutoModelForCausalLM":
    result["tokens"] = model.generate(ids, max_new_tokens=4, do_sample=False).tolist()
    assert model.lm_head.decoder.weight is model.elm.embeddings.tokens.weight
assert not any(name.split(".")[0] == "elm_nni" for name in sys.modules)
print(json.dumps(result))
"""
IDS = [[5, 6, 7, 8], [9, 3, 2, 1]]


@pytest.mark.parametrize(
    ("auto_class", "model_class"),
    [
        ("AutoModelForSequenceClassification", ElmForSequenceClassification),
        ("AutoModelForCausalLM", ElmForCausalLM),
    ],
)
def test_folder_loads_without_this_package(
    auto_class: str, model_class: type, make_config, randomise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = randomise(model_class(make_config(is_causal=model_class is ElmForCausalLM, num_labels=3)))
    folder = tmp_path / "model"
    save_with_code(model, folder)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = subprocess.run(
        [sys.executable, "-c", LOADER, auto_class, str(folder), json.dumps(IDS)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["class"].startswith("transformers_modules.")
    torch.testing.assert_close(torch.tensor(result["logits"]), model(torch.tensor(IDS)).logits, rtol=0, atol=1e-6)
    if model_class is ElmForCausalLM:
        assert result["tokens"] == model.generate(torch.tensor(IDS), max_new_tokens=4, do_sample=False).tolist()


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
