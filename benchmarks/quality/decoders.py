"""GPT-2 of transformers as a student: trained, saved and loaded like ours.

Shape suffixes: B batch, T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from elm_nni.distillation.language import LanguageTeacher, OwnHead
from elm_nni.distillation.packing import block_diagonal_mask, document_positions
from elm_nni.distillation.teacher import Teacher
from elm_nni.pipeline.evaluate_stage import System, teacher_system
from elm_nni.search_spaces.architecture import SpaceSettings
from quality.encoders import StudentSizes
from quality.sizes import config_of_size


class _TableHead(nn.Module):
    """Logits by the token table of the body, as GPT-2 has it; no parameters of its own."""

    def __init__(self, tokens: nn.Embedding) -> None:
        super().__init__()
        object.__setattr__(self, "tokens", tokens)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., D) to logits (..., V)."""
        table: nn.Embedding = object.__getattribute__(self, "tokens")
        return functional.linear(hidden, table.weight)


class StockDecoder(nn.Module):
    """GPT-2 with the parts that distillation and task training read.

    The output of an attention block is no module's in GPT-2: it is what the second norm of a layer reads, so an
    identity named ``attention`` stands before that norm.

    Args:
        model: trained in place.
    """

    model: Any

    def __init__(self, model: GPT2LMHeadModel) -> None:
        super().__init__()
        body, config = model.transformer, model.config
        self.config = StudentSizes(config.n_embd, config.n_embd, "last", config.resid_pdrop, config.initializer_range)
        for layer in body.h:
            layer.ln_2 = nn.Sequential(OrderedDict(attention=nn.Identity(), norm=layer.ln_2))
        # what they give together is the output of the dropout after them
        self.tokens, self.positions, self.embeddings = body.wte, body.wpe, body.drop
        self.layers, self.norm = body.h, body.ln_f
        # not registered: its parts are, and a checkpoint needs them once
        object.__setattr__(self, "model", model)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Last hidden states (B, T, D); with ``document_ids`` (B, T) those of each document on its own."""
        inputs: dict[str, Any] = {"attention_mask": attention_mask}
        if document_ids is not None:
            documents_BT = document_ids.masked_fill(attention_mask == 0, 0)
            mask_B1TT = block_diagonal_mask(documents_BT, self.tokens.weight.dtype)
            later_TT = torch.ones(mask_B1TT.shape[-2:], dtype=torch.bool, device=mask_B1TT.device).triu(1)
            inputs["attention_mask"] = mask_B1TT.masked_fill(later_TT, torch.finfo(mask_B1TT.dtype).min)
            inputs["position_ids"] = document_positions(documents_BT)
        hidden_BTD: Tensor = self.model.transformer(input_ids=input_ids, use_cache=False, **inputs)[0]
        return hidden_BTD

    def new_lm_head(self) -> nn.Module:
        """The token table once more."""
        return _TableHead(self.tokens)

    def plain(self) -> GPT2LMHeadModel:
        """The model of transformers as it was, with the trained weights."""
        for layer in self.layers:
            if isinstance(layer.ln_2, nn.Sequential):
                layer.ln_2 = layer.ln_2.get_submodule("norm")
        model: GPT2LMHeadModel = self.model
        return model


def gpt2_config(target: int, settings: SpaceSettings, end: int | None) -> GPT2Config:
    """GPT-2 of the space's width and heads, see ``config_of_size``; the last norm counts, ``end`` ends a text."""
    return config_of_size(target, settings, lambda layers, width: _config(layers, width, settings, end), _size)


def _config(num_layers: int, width: int, settings: SpaceSettings, end: int | None) -> GPT2Config:
    return GPT2Config(
        vocab_size=settings.vocab_size, n_positions=settings.max_position_embeddings, n_embd=settings.hidden_size,
        n_layer=num_layers, n_head=settings.num_heads, n_inner=width, resid_pdrop=settings.dropout,
        embd_pdrop=settings.dropout, attn_pdrop=settings.dropout, bos_token_id=end, eos_token_id=end,
        pad_token_id=settings.pad_token_id,
    )  # fmt: skip


def _size(config: GPT2Config) -> int:
    with torch.device("meta"):
        model = GPT2Model(config)
    inside = sum(parameter.numel() for part in (model.wte, model.wpe) for parameter in part.parameters())
    return sum(parameter.numel() for parameter in model.parameters()) - inside


def save_decoder(decoder: StockDecoder, head: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Writes model and tokenizer; the head is in the model."""
    decoder.plain().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_decoders(name: str, folders: Mapping[str, Path], device: str) -> System:
    """The decoders of all tasks as a system that can be scored and timed."""
    found = {
        task: LanguageTeacher(Teacher.load(folder), OwnHead.load(str(folder), "AutoModelForCausalLM"))
        for task, folder in folders.items()
    }
    system = teacher_system(name, dict(found), device)
    model = next(iter(found.values())).teacher.model
    # tokens and positions, whatever a family of models calls them
    inside = sum(part.weight.numel() for part in model.modules() if isinstance(part, nn.Embedding))
    return replace(system, params_outside_embeddings=model.num_parameters() - inside)
