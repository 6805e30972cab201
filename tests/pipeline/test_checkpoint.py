"""Checkpoints: exact round trip, nothing unpickled, damage noticed."""

import json

import pytest
import torch

from elm_nni.errors import UserError
from elm_nni.pipeline.checkpoint import is_complete, latest, load_tree, save_tree

TREE = {
    "epoch": 3,
    "rate": 0.1 + 0.2,
    "none": None,
    "weights": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([True, False])},
    "optimizer": {"state": {0: {"step": torch.tensor(4.0)}, 1: {"betas": (0.9, 0.999)}}, "order": [1, "x", [2.5]]},
    "half": torch.ones(3, dtype=torch.bfloat16),
}


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def test_round_trip_is_exact(tmp_path):
    save_tree(TREE, tmp_path / "step-1")
    assert equal(load_tree(tmp_path / "step-1"), TREE)


def test_tensors_that_share_memory_are_stored(tmp_path):
    base = torch.arange(4.0)
    save_tree({"all": base, "part": base[:2]}, tmp_path / "step-1")
    assert torch.equal(load_tree(tmp_path / "step-1")["part"], base[:2])


def test_an_object_is_refused_and_nothing_is_left_behind(tmp_path):
    with pytest.raises(TypeError, match="object"):
        save_tree({"x": object()}, tmp_path / "step-1")
    assert not (tmp_path / "step-1").exists()


@pytest.mark.parametrize("name", ["tensors.safetensors", "tree.json", "manifest.json"])
def test_damage_is_noticed_and_the_checkpoint_before_is_used(name, tmp_path):
    save_tree(TREE, tmp_path / "step-5")
    save_tree(TREE, tmp_path / "step-10")
    file = tmp_path / "step-10" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert not is_complete(tmp_path / "step-10")
    with pytest.raises(UserError, match="step-10"):
        load_tree(tmp_path / "step-10")
    assert latest(tmp_path) == tmp_path / "step-5"


def test_an_unfinished_folder_is_no_checkpoint(tmp_path):
    assert latest(tmp_path) is None
    (tmp_path / "step-7.partial").mkdir()
    (tmp_path / "step-3").mkdir()
    assert latest(tmp_path) is None


def test_files_hold_no_pickle(tmp_path):
    save_tree(TREE, tmp_path / "step-1")
    assert sorted(path.name for path in (tmp_path / "step-1").iterdir()) == [
        "manifest.json", "tensors.safetensors", "tree.json",
    ]  # fmt: skip
    json.loads((tmp_path / "step-1" / "tree.json").read_text())
