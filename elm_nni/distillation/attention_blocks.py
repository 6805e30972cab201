"""Where models of transformers show the output of a layer's attention block, after the residual connection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class _Rule:
    """A layer that has ``marker`` (and not ``absent``) shows its attention block at ``path``."""

    marker: str
    path: str
    is_input: bool = False
    absent: str | None = None


# Post-norm layers show it as an output; pre-norm layers add the residual in place, and the tensor first
# appears as the input of the next norm. Order matters: the first rule that fits is taken.
_RULES = (
    _Rule("attention.output.LayerNorm", "attention.output"),  # BERT, RoBERTa, ELECTRA, DeBERTa, MobileBERT
    _Rule("attention.attn", "attention"),  # MPNet
    _Rule("sa_layer_norm", "sa_layer_norm"),  # DistilBERT
    _Rule("layer.0.SelfAttention", "layer.0"),  # T5 encoder
    _Rule("ln_2", "ln_2", is_input=True),  # GPT-2, GPT-Neo
    _Rule("mlp_norm", "mlp_norm", is_input=True),  # ModernBERT
    _Rule("pre_feedforward_layernorm", "pre_feedforward_layernorm", is_input=True),  # Gemma 2 and later
    _Rule(
        "post_attention_layernorm", "post_attention_layernorm", is_input=True, absent="post_feedforward_layernorm"
    ),  # Llama, Mistral, Qwen, Phi-3
)


@dataclass(frozen=True)
class AttentionPaths:
    """Dotted path of the module of each layer, and whether its input or its output is the tensor."""

    paths: list[str]
    is_input: bool


def find_layers(model: nn.Module, num_layers: int) -> str | None:
    """Dotted path of the ``ModuleList`` of ``num_layers`` layers, the outermost; None if there is none."""
    lists = {path: module for path, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    found = [path for path, layers in lists.items() if len(layers) == num_layers]
    return min(found, key=lambda path: path.count("."), default=None)


def find_attention_blocks(model: nn.Module, config: Any, num_layers: int) -> AttentionPaths | None:
    """The attention blocks of all layers, or None where no module clearly shows them."""
    layers_path = find_layers(model, num_layers)
    if layers_path is None or getattr(config, "use_parallel_residual", False):
        return None
    layers = model.get_submodule(layers_path)
    inside: list[set[str | None]] = [{path for path, _ in layer.named_modules()} for layer in layers.children()]
    for rule in _RULES:
        if all(rule.marker in paths and rule.absent not in paths for paths in inside):
            return AttentionPaths([f"{layers_path}.{i}.{rule.path}" for i in range(num_layers)], rule.is_input)
    return None
