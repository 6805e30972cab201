"""A tiny space, and a home folder for NNI that is not the user's."""

from pathlib import Path

import pytest
import torch
from nni.runtime.log import silence_stdout

from elm_nni.search_spaces import ElmSpace

TINY = {
    "num_layers": 2,
    "hidden_size": 24,
    "num_heads": 4,
    "bottleneck_size": 8,
    "ffn_start": 8,
    "ffn_step": 8,
    "ffn_max": 24,
    "embedding_size": 8,
    "vocab_size": 50,
    "max_position_embeddings": 16,
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NNI_CONFIG_DIR", str(tmp_path / "nni"))
    # NNI would log to the stream that was standard output when it was imported
    silence_stdout()
    return tmp_path


@pytest.fixture
def tiny() -> dict[str, int]:
    return dict(TINY)


@pytest.fixture
def space() -> ElmSpace:
    torch.manual_seed(0)
    return ElmSpace(**TINY)
