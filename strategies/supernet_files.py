"""The files of a trained supernet, and frozen models that take their weights out of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from elm_nni.errors import UserError

WEIGHTS, HEADS = "supernet.safetensors", "heads.safetensors"


def head_key(task: str) -> str:
    """The name of a task's head among the weights."""
    return f"task_{task}"


def inherit_weights(model: nn.Module, sample: Mapping[str, Any], folder: Path) -> None:
    """Gives a frozen model of an ``ElmSpace`` the weights that ``sample`` has in a supernet's folder.

    Of each weight the first units are taken, and only what the architecture uses is read.

    Raises:
        UserError: the file is missing, or is of another space.

    Example::

        model = space.freeze(sample)
        inherit_weights(model, sample, Path("runs/nano/supernet_tasks"))
    """
    file, state = folder / WEIGHTS, {}
    try:
        with safe_open(file, framework="pt") as tensors:
            for name, value in model.state_dict().items():
                part, _, rest = name.partition(".")
                name_in_supernet = name
                if part == "layers":
                    index, _, rest = rest.partition(".")
                    name_in_supernet = f"layers.{index}.{sample[f'layer{index}']}.{rest}"
                state[name] = tensors.get_slice(name_in_supernet)[tuple(slice(size) for size in value.shape)]
        model.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file} does not hold the supernet of this space: {reason}") from error


def load_head(task: str, folder: Path) -> nn.Linear:
    """The linear head of a task in a supernet's folder.

    Raises:
        UserError: the file is missing or has no such head.
    """
    file, key = folder / HEADS, head_key(task)
    try:
        tensors = load_file(file)
        weight_CD, bias_C = tensors[f"{key}.weight"], tensors[f"{key}.bias"]
    except (OSError, KeyError, SafetensorError) as error:
        raise UserError(f"{file} has no head for task {task!r}") from error
    head = nn.Linear(weight_CD.shape[1], weight_CD.shape[0])
    head.load_state_dict({"weight": weight_CD, "bias": bias_C})
    return head
