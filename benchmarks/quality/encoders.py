"""BERT-like encoders of transformers as students: trained, saved and loaded like ours, with a token table of low rank.

Shape suffixes: B batch, T tokens, D hidden, V vocabulary, E table size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, BertConfig, BertModel

from elm_nni.distillation.heads import LinearHead, TeacherClassifier
from elm_nni.distillation.packing import block_diagonal_mask, document_positions
from elm_nni.distillation.table import svd_token_table
from elm_nni.distillation.teacher import Teacher
from elm_nni.pipeline.evaluate_stage import System, teacher_system
from elm_nni.search_spaces.architecture import SpaceSettings
from quality.sizes import config_of_size

HEAD, WEIGHTS = "head.safetensors", "model.safetensors"
# in the configuration of a model whose token table has low rank
_TABLE_SIZE = "token_table_size"


class FactorisedTable(nn.Embedding):
    """A token table (V, E) and a projection to the width of the model, in place of a table (V, D)."""

    def __init__(self, vocab_size: int, size: int, width: int, padding_idx: int | None) -> None:
        super().__init__(vocab_size, size, padding_idx=padding_idx)
        self.projection = nn.Linear(size, width, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden_BTD: Tensor = self.projection(super().forward(input_ids))
        return hidden_BTD


def factorise_table(model: Any, size: int) -> None:
    """Replaces the token table by its best approximation of rank ``size`` (truncated SVD), in place."""
    old = model.get_input_embeddings()
    table_VD = old.weight.detach()
    table_VE = svd_token_table(table_VD, size, target_std=None)
    new = FactorisedTable(len(table_VE), size, table_VD.shape[1], old.padding_idx)
    with torch.no_grad():
        new.weight.copy_(table_VE)
        new.projection.weight.copy_(torch.linalg.lstsq(table_VE, table_VD).solution.T)
    model.set_input_embeddings(new)
    setattr(model.config, _TABLE_SIZE, size)


@dataclass(frozen=True)
class StudentSizes:
    """What training reads of a student's configuration."""

    hidden_size: int
    bottleneck_size: int
    classifier_pooling: str
    hidden_dropout_prob: float
    initializer_range: float


class StockEncoder(nn.Module):
    """A BERT-like encoder with the parts that distillation and task training read; the mean of its tokens is pooled.

    Args:
        model: ``BertModel``, or another encoder of its layout; trained in place.
    """

    model: Any

    def __init__(self, model: Any) -> None:
        super().__init__()
        model.requires_grad_(True)
        # nothing reads it
        model.pooler = None
        width, config = model.config.hidden_size, model.config
        self.config = StudentSizes(width, width, "mean", config.hidden_dropout_prob, config.initializer_range)
        self.embeddings, self.layers = model.embeddings, model.encoder.layer
        # not registered: its parts are, and a checkpoint needs them once
        object.__setattr__(self, "model", model)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Last hidden states (B, T, D); with ``document_ids`` (B, T) those of each document on its own."""
        inputs: dict[str, Any] = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        if document_ids is not None:
            documents_BT = document_ids.masked_fill(attention_mask == 0, 0)
            inputs["attention_mask"] = block_diagonal_mask(documents_BT, self.model.dtype)
            inputs["position_ids"] = document_positions(documents_BT)
        hidden_BTD: Tensor = self.model(input_ids=input_ids, **inputs)[0]
        return hidden_BTD


def stock_config(target: int, settings: SpaceSettings) -> BertConfig:
    """BERT of the space's width and heads, see ``config_of_size``."""
    return config_of_size(target, settings, lambda layers, width: _bert_config(layers, width, settings), _size)


def _bert_config(num_layers: int, width: int, settings: SpaceSettings) -> BertConfig:
    return BertConfig(
        vocab_size=settings.vocab_size, hidden_size=settings.hidden_size, num_hidden_layers=num_layers,
        num_attention_heads=settings.num_heads, intermediate_size=width, hidden_dropout_prob=settings.dropout,
        attention_probs_dropout_prob=settings.dropout, pad_token_id=settings.pad_token_id,
        max_position_embeddings=settings.max_position_embeddings,
    )  # fmt: skip


def _size(config: BertConfig) -> int:
    with torch.device("meta"):
        model = BertModel(config, add_pooling_layer=False)
    return sum(parameter.numel() for parameter in model.encoder.parameters())


def save_classifier(encoder: StockEncoder, head: nn.Linear, tokenizer: Any, folder: Path) -> None:
    """Writes encoder, tokenizer and head."""
    Teacher(encoder.model, tokenizer=tokenizer).save(folder)
    LinearHead(head.weight.detach().cpu(), head.bias.detach().cpu()).save(folder / HEAD)


def load_classifier(folder: Path) -> TeacherClassifier:
    """What :func:`save_classifier` wrote."""
    return TeacherClassifier(Teacher(load_model(folder)), LinearHead.load(folder / HEAD))


def load_model(folder: Path) -> Any:
    """The encoder, its token table of low rank or not."""
    config = AutoConfig.from_pretrained(folder)
    size = getattr(config, _TABLE_SIZE, None)
    if size is None:
        return AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False)
    model = AutoModel.from_config(config, add_pooling_layer=False)
    old = model.get_input_embeddings()
    model.set_input_embeddings(FactorisedTable(config.vocab_size, size, config.hidden_size, old.padding_idx))
    model.load_state_dict(load_file(folder / WEIGHTS))
    return model


def load_stock(name: str, folders: Mapping[str, Path], device: str) -> System:
    """The encoders of all tasks as a system that can be scored and timed."""
    return teacher_system(name, {task: load_classifier(folder) for task, folder in folders.items()}, device)
