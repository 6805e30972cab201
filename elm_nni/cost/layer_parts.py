"""The parts of a space that a latency table measures: layers, embedding, head, and a few whole models.

Shapes: B batch, T tokens, D hidden.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from elm_nni.cost.condition import TORCH_DTYPES, LatencyCondition
from elm_nni.cost.latency_table import EMBEDDING, HEAD, entry_key
from elm_nni.cost.parameters import Blocks, full_heads, space_config
from elm_nni.cost.runtimes import Part
from elm_nni.modeling.configuration_elm import ElmConfig
from elm_nni.modeling.encoder_elm import encode, visible
from elm_nni.modeling.heads_elm import pool
from elm_nni.modeling.modeling_elm import ElmForCausalLM, ElmForSequenceClassification
from elm_nni.search_spaces.architecture import SpaceSettings

# Whole models measured beside the layers, to find what a layer takes beyond its entry.
NUM_WHOLE_MODELS = 3
_LAYER_AXES = {"hidden": {0: "batch", 1: "length"}, "mask": {0: "batch", 2: "length", 3: "length"}}
_HEAD_AXES = {"hidden": {0: "batch", 1: "length"}, "attention_mask": {0: "batch", 1: "length"}}


class Model(nn.Module):
    """A model of transformers with tensors in and one tensor out, its first; of a causal one the last token's logits.

    Example:
        >>> Model(model)(input_ids_BT, attention_mask_BT).shape
        torch.Size([1, 2])
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        known = inspect.signature(model.forward).parameters
        self.options = {"logits_to_keep": 1} if "logits_to_keep" in known else {}

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **self.options)[0]


class SpaceParts:
    """Everything to time for the table of a space, with fresh weights from torch's generator.

    Args:
        settings: The space.
        condition: What the parts are made for.
        blocks: Name to block class.
        widths: Feed-forward widths, each with all heads.
        pruned: Head counts at the smallest width.

    ``parts`` holds layers by entry key, embedding, head, and whole models, whose layers ``models`` names.
    """

    def __init__(
        self,
        settings: SpaceSettings,
        condition: LatencyCondition,
        blocks: Blocks,
        widths: Sequence[int],
        pruned: Sequence[int],
    ):
        self.condition = condition
        self.blocks = blocks
        self.heads = full_heads(settings, blocks)
        # a causal model is timed as it begins to generate: all tokens, and logits of the last
        whole = ElmForCausalLM if settings.is_causal else ElmForSequenceClassification
        shell = whole(_one_layer_config(settings))
        self.config = shell.config
        self.shell = self._ready(shell)
        self.ids = model_inputs(condition, settings.vocab_size)
        mask_BT = self.ids["attention_mask"]
        dtype = TORCH_DTYPES[condition.dtype]
        hidden_BTD = torch.randn(*mask_BT.shape, settings.hidden_size, dtype=dtype, device=condition.device)
        mask = visible(mask_BT, mask_BT, is_causal=settings.is_causal)
        head_inputs = {"hidden": hidden_BTD, "attention_mask": mask_BT}
        self.parts: dict[str, Part] = {
            EMBEDDING: Part(_Embedding(self.shell), self.ids, group="ids"),
            HEAD: Part(
                _LastTokenHead(self.shell) if settings.is_causal else _Head(self.shell), head_inputs, _HEAD_AXES
            ),
        }
        for name, (num_heads, head_dim) in self.heads.items():
            sizes = [(width, num_heads) for width in widths] + [(min(widths), count) for count in pruned]
            for width, count in dict.fromkeys(sizes):
                layer = _Layer(self._block(name, width, count))
                inputs = {"hidden": hidden_BTD, "mask": mask}
                self.parts[entry_key(name, width, count, head_dim)] = Part(layer, inputs, _LAYER_AXES, group=name)
        self.models: dict[str, list[str]] = {}
        for index in range(NUM_WHOLE_MODELS):
            width = sorted(widths)[index * (len(widths) - 1) // (NUM_WHOLE_MODELS - 1)]
            self._add_model(f"model {index}", settings.num_layers, width, offset=index)

    def _add_model(self, label: str, num_layers: int, width: int, *, offset: int) -> None:
        names = list(self.blocks)
        chosen = [names[(offset + index) % len(names)] for index in range(num_layers)]
        # Layers of its own: in a model, no layer finds the weights of the one before in the cache.
        layers = nn.ModuleList(self._block(name, width, self.heads[name][0]) for name in chosen)
        model = copy.copy(self.shell)
        model._modules = {**self.shell._modules, "elm": copy.copy(self.shell.elm)}
        model.elm._modules = {**self.shell.elm._modules, "layers": layers}
        self.parts[label] = Part(Model(model), self.ids, group="ids")
        self.models[label] = [entry_key(name, width, *self.heads[name]) for name in chosen]

    def _block(self, name: str, width: int, num_heads: int) -> nn.Module:
        head_dim = self.heads[name][1]
        return self._ready(self.blocks[name](self.config, ffn_size=width, num_heads=num_heads, head_dim=head_dim))

    def _ready(self, module: nn.Module) -> Any:
        return module.to(self.condition.device, TORCH_DTYPES[self.condition.dtype]).eval()


def model_inputs(condition: LatencyCondition, vocab_size: int) -> dict[str, torch.Tensor]:
    """Random token ids and a mask without padding, ``(B, T)`` of the condition."""
    shape = (condition.batch_size, condition.sequence_length)
    input_ids_BT = torch.randint(vocab_size, shape).to(condition.device)
    return {"input_ids": input_ids_BT, "attention_mask": torch.ones_like(input_ids_BT)}


class _Layer(nn.Module):
    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.block(hidden, mask, None, 0)


class _Embedding(nn.Module):
    """Masks and trigram embedding; a graph drops the masks, which no layer reads here."""

    def __init__(self, shell: ElmForCausalLM | ElmForSequenceClassification):
        super().__init__()
        self.embeddings, self.config = shell.elm.embeddings, shell.config

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return encode(self.embeddings, nn.ModuleList(), self.config, input_ids, attention_mask).last_hidden_state


class _Head(nn.Module):
    def __init__(self, shell: ElmForSequenceClassification):
        super().__init__()
        self.classifier, self.pooling = shell.classifier, shell.config.classifier_pooling

    def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.classifier(pool(hidden, attention_mask, self.pooling))


class _LastTokenHead(nn.Module):
    def __init__(self, shell: ElmForCausalLM):
        super().__init__()
        self.lm_head = shell.lm_head

    def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits_B1V: torch.Tensor = self.lm_head(hidden[:, -1:])
        return logits_B1V


def _one_layer_config(settings: SpaceSettings) -> ElmConfig:
    config = copy.deepcopy(space_config(settings))
    config.layers = config.layers[:1]
    config.num_hidden_layers = 1
    return config
