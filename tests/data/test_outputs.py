"""Outputs of batches sorted by length come back in the order of the rows, without padding."""

import numpy as np
import pytest
import torch
from torch import Tensor

from elm_nni.data.outputs import RowBatches, SomeRows, outputs_of_rows

LENGTHS = [3, 1, 4, 2, 4, 1, 5]


class Rows:
    """Row r has the token ids 10 r + 1, 10 r + 2, ..., padded with 0; labels a row or a token."""

    def __init__(self, per_token: bool) -> None:
        self.lengths = np.asarray(LENGTHS)
        ids = [10 * row + 1 + torch.arange(length) for row, length in enumerate(LENGTHS)]
        self.ids = ids
        self.labels = torch.cat(ids) if per_token else torch.arange(len(ids))

    def __len__(self) -> int:
        return len(LENGTHS)

    def batch(self, indices: list[int]) -> dict[str, Tensor]:
        ids_BT = torch.nn.utils.rnn.pad_sequence([self.ids[index] for index in indices], batch_first=True)
        return {"input_ids": ids_BT, "attention_mask": (ids_BT > 0).long()}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elm_nni.data.outputs.EVALUATION_BATCH", 3)


@pytest.mark.parametrize("keep", [False, True])
def test_outputs_of_rows_are_in_their_order(keep: bool) -> None:
    batches = RowBatches(Rows(per_token=False), "mine", keep=keep)
    found_NC = batches.outputs(lambda batch: batch["input_ids"][:, :1].half())
    assert found_NC.tolist() == [[10 * row + 1] for row in range(len(LENGTHS))]
    assert found_NC.dtype == torch.float32
    assert {batch["task"] for batch in batches} == {"mine"}
    assert (list(batches)[0]["input_ids"] is list(batches)[0]["input_ids"]) is keep


def test_outputs_of_tokens_are_in_the_order_of_the_rows_without_padding() -> None:
    rows = Rows(per_token=True)
    found = RowBatches(rows, "mine").outputs(lambda batch: batch["input_ids"].unsqueeze(-1).double())
    assert found.squeeze(-1).tolist() == rows.labels.tolist()
    assert found.dtype == torch.float64


def test_order_names_the_rows_as_the_batches_have_them() -> None:
    batches = RowBatches(Rows(per_token=False), "mine")
    firsts = torch.cat([batch["input_ids"][:, 0] for batch in batches])
    assert ((firsts - 1) // 10).tolist() == batches.order.tolist()
    # longest first
    assert [LENGTHS[row] for row in batches.order.tolist()] == sorted(LENGTHS, reverse=True)


def test_outputs_of_some_rows() -> None:
    rows = Rows(per_token=True)
    assert outputs_of_rows(torch.arange(7), rows, [4, 0]).tolist() == [4, 0]
    padded_BT = outputs_of_rows(rows.labels, rows, [3, 0, 1])
    assert padded_BT.tolist() == [[31, 32, 0], [1, 2, 3], [11, 0, 0]]
    with pytest.raises(ValueError, match="6 values: must be one for each of 7 rows or 20 tokens"):
        outputs_of_rows(torch.zeros(6), rows, [0])


@pytest.mark.parametrize(("per_token", "labels"), [(False, [5, 2]), (True, [51, 21, 22, 23, 24])])
def test_some_rows_are_a_split_of_their_own(per_token: bool, labels: list[int]) -> None:
    some = SomeRows(Rows(per_token), [5, 2])
    assert len(some) == 2
    assert some.lengths.tolist() == [1, 4]
    assert some.labels.tolist() == labels
    assert some.batch([1, 0])["input_ids"][:, 0].tolist() == [21, 51]
