"""Encoders of transformers as students: what they give, their size, their files, and a token table of low rank."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from quality.encoders import (
    FactorisedTable,
    StockEncoder,
    factorise_table,
    load_classifier,
    load_model,
    load_stock,
    save_classifier,
    stock_config,
)
from quality.stock import nearest_depth
from quality.trial import LeftOut
from torch import nn
from transformers import BertConfig, BertModel

from elm_nni.distillation.heads import mean_pool
from elm_nni.distillation.student import StudentDistiller
from elm_nni.distillation.teacher import Teacher
from elm_nni.search_spaces.architecture import preset_settings

SETTINGS = replace(preset_settings("nano"), vocab_size=100)


@pytest.fixture
def model() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20,
        max_position_embeddings=16,
    )  # fmt: skip
    return BertModel(config).eval()


def test_an_encoder_is_its_model_and_reads_packed_rows_document_by_document(model: BertModel) -> None:
    ids_BT = torch.tensor([[5, 6, 7, 8, 9, 0]])
    mask_BT = torch.tensor([[1, 1, 1, 1, 1, 0]])
    encoder = StockEncoder(model)
    whole_BTD = encoder(ids_BT, mask_BT)
    torch.testing.assert_close(whole_BTD, model(ids_BT, mask_BT).last_hidden_state)
    packed_BTD = encoder(ids_BT, mask_BT, document_ids=torch.tensor([[1, 1, 2, 2, 2, 0]]))
    torch.testing.assert_close(packed_BTD[:, :2], encoder(ids_BT[:, :2], mask_BT[:, :2]))
    torch.testing.assert_close(packed_BTD[:, 2:5], encoder(ids_BT[:, 2:5], mask_BT[:, 2:5]))


def test_every_weight_of_an_encoder_learns_from_the_features_of_a_teacher(model: BertModel) -> None:
    encoder, teacher = StockEncoder(model).train(), Teacher(BertModel(model.config))
    batch = {"input_ids": torch.randint(1, 50, (3, 8)), "attention_mask": torch.ones(3, 8, dtype=torch.long)}
    batch["document_ids"] = torch.tensor([1, 1, 1, 1, 2, 2, 2, 2]).expand(3, -1)
    distiller = StudentDistiller(encoder, teacher)
    _, features = distiller.record(lambda: encoder(**batch))
    assert [len(features.hidden), len(features.attention or ())] == [2, 2]
    distiller.feature_loss(features, batch).backward()
    silent = [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
    assert silent == []
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


@pytest.mark.parametrize("low_rank", [False, True])
def test_what_is_saved_gives_the_same_logits(low_rank: bool, model: BertModel, tmp_path: Path) -> None:
    if low_rank:
        factorise_table(model, 4)
    head = nn.Linear(12, 3)
    ids_BT, mask_BT = torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    encoder = StockEncoder(model).eval()
    with torch.no_grad():
        expected_BC = head(mean_pool(encoder(ids_BT, mask_BT), mask_BT))
    save_classifier(encoder, head, None, tmp_path)
    assert isinstance(load_model(tmp_path).get_input_embeddings(), FactorisedTable) == low_rank
    torch.testing.assert_close(load_classifier(tmp_path).logits(ids_BT, mask_BT), expected_BC)
    found = load_stock("x", {"a": tmp_path}, "cpu")
    torch.testing.assert_close(
        found.logits["a"]({"input_ids": ids_BT, "attention_mask": mask_BT}), expected_BC
    )
    table = 50 * 4 + 4 * 12 if low_rank else 50 * 12
    layer = 4 * (12 * 12 + 12) + 2 * 12 * 20 + 20 + 12 + 4 * 12
    assert found.params_outside_embeddings == 2 * layer
    assert found.params == 2 * layer + table + (16 + 2) * 12 + 2 * 12


@pytest.mark.parametrize("rank", [1, 5, 12])
def test_a_table_of_low_rank_is_the_best_one(rank: int, model: BertModel) -> None:
    table_VD = model.get_input_embeddings().weight.detach().clone()
    factorise_table(model, rank)
    table = model.get_input_embeddings()
    with torch.no_grad():
        found_VD = table(torch.arange(50))
    left_VD, singular_D, right_DD = torch.linalg.svd(table_VD.double(), full_matrices=False)
    best_VD = left_VD[:, :rank] * singular_D[:rank] @ right_DD[:rank]
    assert table.weight.shape == (50, rank)
    torch.testing.assert_close(found_VD.double(), best_VD, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("target", "layers"), [(2_000_000, 6), (900_000, 6), (500_000, 3), (150_000, 1)])
def test_a_stock_configuration_has_the_size(target: int, layers: int) -> None:
    config = stock_config(target, SETTINGS)
    model = BertModel(config, add_pooling_layer=False)
    outside = sum(parameter.numel() for parameter in model.encoder.parameters())
    # to half of the parameters of one unit of width in every layer
    assert abs(outside - target) <= layers * (2 * SETTINGS.hidden_size + 1) / 2
    assert config.num_hidden_layers == layers
    assert (config.hidden_size, config.num_attention_heads) == (SETTINGS.hidden_size, SETTINGS.num_heads)


def test_no_stock_configuration_is_smaller_than_a_layer_of_width_one() -> None:
    with pytest.raises(LeftOut, match="width 192 has 100000 parameters"):
        stock_config(100_000, SETTINGS)


def test_the_nearest_depth_and_times_that_could_not_be_measured() -> None:
    assert nearest_depth({"ours": 5.0, "1": 2.0, "2": 4.5, "3": 6.0})["layers"] == 2
    assert nearest_depth({"ours": 5.6, "1": 2.0, "2": None, "3": 6.0})["layers"] == 3
