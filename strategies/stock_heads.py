"""Attention heads of stock transformers models (BERT, RoBERTa, DistilBERT, GPT-2): found, taken out, saved and loaded.

transformers 5 has no head pruning of its own. What is set here is what the attention classes of 5.23 read when they
run: the projections, the number of heads, the width of a head, the width of all heads and the scale of the scores.

Shape suffixes: D hidden, H heads, K head_dim, C = H * K channels of all heads.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from elm_nni.errors import UserError
from elm_nni.files import write_text
from elm_nni.search_spaces.architecture import cell_name, layer_label
from elm_nni.strategies.head_plan import HeadPlan

MAP_FILE = "head_map.json"
# transformers puts it into the names of weight files, so that a stock class finds none and says so
_VARIANT = "pruned"
_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


@dataclass(frozen=True)
class Layout:
    """Where an attention class keeps its projections, and the attributes that its forward reads.

    Args:
        projections: names of the input projections; a single one holds query, key and value one after another.
        output: path of the output projection, with ``{path}`` of the attention module or ``{parent}`` of its parent.
        num_heads, head_dim: names of the attributes H and K.
        width: name of the attribute C, if the class has one.
    """

    projections: tuple[str, ...]
    output: str
    num_heads: str
    head_dim: str
    width: str | None = None

    def output_path(self, path: str) -> str:
        """The path of the output projection of the attention module at ``path``."""
        return self.output.format(path=path, parent=path.rpartition(".")[0])


_BERT = Layout(
    ("query", "key", "value"), "{parent}.output.dense", "num_attention_heads", "attention_head_size", "all_head_size"
)
LAYOUTS = {
    "BertSelfAttention": _BERT,
    "RobertaSelfAttention": _BERT,
    "DistilBertSelfAttention": Layout(("q_lin", "k_lin", "v_lin"), "{path}.out_lin", "n_heads", "attention_head_size"),
    "GPT2Attention": Layout(("c_attn",), "{path}.c_proj", "num_heads", "head_dim", "split_size"),
}


class StockHeads:
    """The self-attention heads of the one stock model in a module.

    Args:
        model: a model of transformers, or any module that holds one.

    Raises:
        UserError: attention of an unknown class or replaced projections (adapters, quantised layers), or not exactly
            one model of transformers with attention.
    """

    def __init__(self, model: nn.Module) -> None:
        self.encoder = _owner(model)
        self.paths = [path for path, module in self.encoder.named_modules() if _layout(module)]
        if unknown := _unknown_attention(self.encoder):
            raise UserError(_refusal(self.encoder, unknown))
        for path in self.paths:
            _check(self.encoder, path)
        accepted = inspect.signature(self.encoder.forward).parameters
        self.input_names = tuple(name for name in _INPUTS if name in accepted)
        # nothing is generated, so keys and values need not be kept
        self.settings = {"use_cache": False} if "use_cache" in accepted else {}

    @property
    def architecture(self) -> dict[str, Any]:
        """Class, heads and head_dim of each layer's attention, under the labels of any other architecture."""
        found: dict[str, Any] = {}
        for index, path in enumerate(self.paths):
            attention = self.encoder.get_submodule(path)
            cell = cell_name(index, type(attention).__name__)
            num_heads, head_dim = _sizes(attention)
            found |= {
                layer_label(index): type(attention).__name__,
                f"{cell}_heads": num_heads,
                f"{cell}_head_dim": head_dim,
            }
        return dict(sorted(found.items()))

    @property
    def outputs(self) -> list[str]:
        """Paths in ``encoder`` of the output projections, whose input is the heads' context."""
        return [_layout_of(self.encoder.get_submodule(path)).output_path(path) for path in self.paths]

    def prune(self, plan: HeadPlan) -> None:
        """Give the encoder the heads of ``plan.architecture``, in place."""
        for path, layer in zip(self.paths, plan.layers):
            if layer.after == layer.before:
                continue
            kept = layer.kept if plan.mode == "remove" else range(layer.before)
            channels = torch.arange(layer.before * layer.head_dim_before).view(layer.before, -1)[list(kept)].flatten()
            _resize(self.encoder, path, channels, layer.after, layer.head_dim_after)


def save_stock(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Write the weights by ``save_pretrained``, as the variant "pruned", and the heads of each layer beside them.

    Raises:
        UserError: as :class:`StockHeads`, or ``model`` itself is not a model of a class of transformers.
    """
    heads = StockHeads(model)
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel) or getattr(transformers, name, None) is not type(model):
        inside = type(heads.encoder).__name__
        raise UserError(f"{name} is not a class of transformers; save the {inside} inside it, and the rest yourself")
    layers = {
        path: dict(zip(("num_heads", "head_dim"), _sizes(module)))
        for path, module in model.named_modules()
        if _layout(module)
    }
    model.save_pretrained(folder, variant=_VARIANT)
    write_text(Path(folder) / MAP_FILE, json.dumps({"class": name, "layers": layers}, indent=1) + "\n")


def load_stock(folder: str | os.PathLike[str]) -> PreTrainedModel:
    """What :func:`save_stock` wrote, in evaluation mode.

    Raises:
        UserError: the head map is damaged, or does not fit the folder's ``config.json`` or weights.
    """
    path = Path(folder) / MAP_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        stock = getattr(transformers, values["class"])
        layers = {name: (int(one["num_heads"]), int(one["head_dim"])) for name, one in values["layers"].items()}
        if not issubclass(stock, PreTrainedModel):
            raise ValueError(f"{stock.__name__} is not a model")
        model = _with_heads(stock, layers).from_pretrained(Path(folder), variant=_VARIANT, local_files_only=True)
    except (AttributeError, KeyError, TypeError, ValueError, OSError, RuntimeError, SafetensorError) as error:
        reason = next(iter(str(error).splitlines()), repr(error))
        raise UserError(f"cannot load the pruned model in {folder}: {reason}; save it again by save_pruned") from error
    model.__class__ = stock
    return model.eval()


def _with_heads(stock: type[PreTrainedModel], layers: Mapping[str, tuple[int, int]]) -> type[PreTrainedModel]:
    """A class that builds ``stock`` with these heads, so that ``from_pretrained`` finds weights of the right shapes."""

    def build(self: PreTrainedModel, config: Any, *args: Any, **kwargs: Any) -> None:
        stock.__init__(self, config, *args, **kwargs)
        for path, (num_heads, head_dim) in layers.items():
            _resize(self, path, torch.arange(num_heads * head_dim), num_heads, head_dim)

    # transformers looks things up by these names
    names = {"__module__": stock.__module__, "__qualname__": stock.__qualname__}
    return type(stock.__name__, (stock,), {"__init__": build, **names})


def _resize(model: nn.Module, path: str, channels: Tensor, num_heads: int, head_dim: int) -> None:
    """Keep these channels of the attention module at ``path``, as ``num_heads`` heads of ``head_dim``, in place."""
    attention: Any = model.get_submodule(path)
    layout, (heads_before, head_dim_before) = _layout_of(attention), _sizes(attention)
    width = heads_before * head_dim_before
    if len(channels) != num_heads * head_dim or len(channels) > width:
        raise ValueError(f"{path}: {num_heads} heads of {head_dim} do not fit {width} channels")
    if len(channels) < width:
        parts = 3 // len(layout.projections)
        rows = torch.cat([channels + part * width for part in range(parts)])
        for name in layout.projections:
            _take(attention.get_submodule(name), rows, of_output=True)
        _take(model.get_submodule(layout.output_path(path)), channels, of_output=False)
    setattr(attention, layout.num_heads, num_heads)
    if layout.width is not None:
        setattr(attention, layout.width, len(channels))
    if head_dim != head_dim_before:
        setattr(attention, layout.head_dim, head_dim)
        attention.scaling = _scaling(attention, head_dim)


def _take(linear: Any, channels: Tensor, *, of_output: bool) -> None:
    """Keep these channels of a linear layer's output or input, in place."""
    transposed = isinstance(linear, Conv1D)
    channels = channels.to(linear.weight.device)
    weight = linear.weight.detach().index_select(int(of_output == transposed), channels)
    linear.weight = nn.Parameter(weight, requires_grad=linear.weight.requires_grad)
    if of_output and linear.bias is not None:
        bias = linear.bias.detach().index_select(0, channels)
        linear.bias = nn.Parameter(bias, requires_grad=linear.bias.requires_grad)
    size = ("nf" if of_output else "nx") if transposed else ("out_features" if of_output else "in_features")
    setattr(linear, size, len(channels))


def _scaling(attention: Any, head_dim: int) -> float:
    """What the class multiplies scores by; the two switches are GPT-2's."""
    scaling = head_dim**-0.5 if getattr(attention, "scale_attn_weights", True) else 1.0
    if getattr(attention, "scale_attn_by_inverse_layer_idx", False):
        scaling /= attention.layer_idx + 1
    return scaling


def _sizes(attention: nn.Module) -> tuple[int, int]:
    layout = _layout_of(attention)
    return int(getattr(attention, layout.num_heads)), int(getattr(attention, layout.head_dim))


def _layout(module: nn.Module) -> Layout | None:
    """The layout of a self-attention of a known class; a subclass may compute otherwise, so it counts as unknown."""
    if not type(module).__module__.startswith("transformers.") or getattr(module, "is_cross_attention", False):
        return None
    return LAYOUTS.get(type(module).__name__)


def _layout_of(module: nn.Module) -> Layout:
    layout = _layout(module)
    if layout is None:
        raise ValueError(f"{type(module).__name__}: must be one of {', '.join(LAYOUTS)}")
    return layout


def _owner(model: nn.Module) -> PreTrainedModel:
    """The innermost model of transformers around the known attention modules."""
    modules = dict(model.named_modules())
    owners: dict[int, PreTrainedModel] = {}
    known = [path for path, module in modules.items() if _layout(module)]
    for path in known:
        around = [modules[name] for name in _prefixes(path) if isinstance(modules[name], PreTrainedModel)]
        if around:
            owners[id(around[-1])] = around[-1]
    if not known:
        raise UserError(_refusal(model, _unknown_attention(model)))
    if len(owners) != 1:
        raise UserError(
            f"{type(model).__name__} holds {len(owners)} models of transformers with attention heads; it must hold one"
        )
    return next(iter(owners.values()))


def _prefixes(path: str) -> Iterator[str]:
    """Every path above a dotted path, outermost (the empty one) first."""
    parts = path.split(".")
    for length in range(len(parts)):
        yield ".".join(parts[:length])


def _unknown_attention(model: nn.Module) -> list[str]:
    """Classes of the innermost modules that are called an attention and are none that we know, sorted."""
    found = set()
    for module in model.modules():
        first, *inside = (_is_attention(one) for one in module.modules())
        if first and not any(inside) and not _layout(module):
            cross = " for cross-attention" if getattr(module, "is_cross_attention", False) else ""
            found.add(f"{type(module).__module__}.{type(module).__qualname__}{cross}")
    return sorted(found)


def _is_attention(module: nn.Module) -> bool:
    return any("Attention" in one.__name__ for one in type(module).__mro__)


def _check(model: nn.Module, path: str) -> None:
    """Refuse other versions of a class, and layers that adapters or quantisation have replaced."""
    attention = model.get_submodule(path)
    layout = _layout_of(attention)
    read = (layout.num_heads, layout.head_dim, layout.width, "scaling")
    if missing := [name for name in read if name and not hasattr(attention, name)]:
        raise UserError(
            f"{type(attention).__name__} of transformers {transformers.__version__} has no {missing[0]}; "
            "heads can be given up with transformers 5.23"
        )
    names = [f"{path}.{name}" for name in layout.projections]
    for name in [*names, layout.output_path(path)]:
        if type(model.get_submodule(name)) not in (nn.Linear, Conv1D):
            found = type(model.get_submodule(name)).__name__
            raise UserError(f"{name} is of class {found}; it must be a plain Linear or Conv1D to give up heads")


def _refusal(model: nn.Module, unknown: Sequence[str]) -> str:
    found = f"attention of class {', '.join(unknown)}" if unknown else "no attention heads"
    return (
        f"{type(model).__name__} holds {found}; it must hold one ElmModel, or one model of transformers "
        f"with the attention classes {', '.join(LAYOUTS)}"
    )
