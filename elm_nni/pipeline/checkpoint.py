"""Lightning checkpoints as safetensors and JSON: nothing is unpickled, and a torn write is noticed."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import CheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from elm_nni.digest import file_digest
from elm_nni.errors import UserError

logger = logging.getLogger(__name__)

_TENSORS, _TREE, _MANIFEST = "tensors.safetensors", "tree.json", "manifest.json"


def save_tree(tree: Any, folder: Path) -> None:
    """Writes nested dictionaries, lists, plain values and tensors as a folder, atomically.

    Raises:
        UserError: the folder cannot be written (no space, read-only).
        TypeError: a value that is neither a tensor nor plain.
    """
    tensors: dict[str, torch.Tensor] = {}
    plain = _encode(tree, tensors)
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(tensors, partial / _TENSORS)
        (partial / _TREE).write_text(json.dumps(plain), encoding="utf-8")
        digests = {name: file_digest(partial / name) for name in (_TENSORS, _TREE)}
        (partial / _MANIFEST).write_text(json.dumps(digests), encoding="utf-8")
        for name in (_TENSORS, _TREE, _MANIFEST):
            _sync(partial / name)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise UserError(f"cannot write {folder}: {error}") from error


def load_tree(folder: Path) -> Any:
    """Reads what :func:`save_tree` wrote.

    Raises:
        UserError: a file is missing or differs from its recorded SHA-256.
    """
    if not is_complete(folder):
        raise UserError(f"checkpoint {folder} is incomplete or damaged; remove it to start from the one before")
    plain = json.loads((folder / _TREE).read_text(encoding="utf-8"))
    return _decode(plain, load_file(folder / _TENSORS))


def is_complete(folder: Path) -> bool:
    """Whether every file of a checkpoint is there and has its recorded SHA-256."""
    try:
        digests = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return all(file_digest(folder / name) == digest for name, digest in digests.items())
    except (OSError, ValueError):
        return False


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    steps = [path for path in folder.glob("step-*") if path.name[5:].isdigit()]
    for path in sorted(steps, key=lambda path: int(path.name[5:]), reverse=True):
        if is_complete(path):
            return path
        logger.warning("checkpoint %s is incomplete and is passed over", path)
    return None


class TreeCheckpointIO(CheckpointIO):
    """Lightning's checkpoints through :func:`save_tree` and :func:`load_tree`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save_tree(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return load_tree(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        shutil.rmtree(path, ignore_errors=True)


class EpochCheckpoint(Checkpoint):
    """Saves at the end of every Lightning epoch (a chunk of steps) and keeps the newest one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        target = self.folder / f"step-{trainer.global_step}"
        trainer.save_checkpoint(target)
        for path in self.folder.glob("step-*"):
            if path != target:
                shutil.rmtree(path, ignore_errors=True)


def _encode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        # clones: safetensors refuses tensors that share memory
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"__tensor__": name}
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("__") for key in value):
            return {key: _encode(item, tensors) for key, item in value.items()}
        return {"__items__": [[_encode(key, tensors), _encode(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_encode(item, tensors) for item in value]
        return {"__tuple__": items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise TypeError(f"a checkpoint holds tensors and plain values only, got {type(value).__name__}")


def _decode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "__tensor__" in value:
        return tensors[value["__tensor__"]]
    if "__tuple__" in value:
        return tuple(_decode(item, tensors) for item in value["__tuple__"])
    if "__items__" in value:
        return {_decode(key, tensors): _decode(item, tensors) for key, item in value["__items__"]}
    return {key: _decode(item, tensors) for key, item in value.items()}


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
