import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from elm_nni.data.batches import BucketBatchSampler, StepBatchSampler, TaskRows, sorted_batches


def _steps(**changes):
    settings = {"num_rows": 10, "batch_size": 4, "seed": 0, "stage": "supernet", "num_steps": 25}
    return StepBatchSampler(**settings | changes)


def test_every_pass_has_each_row_once():
    rows = np.concatenate(list(_steps()))
    passes = rows.reshape(10, 10)
    assert (np.sort(passes, axis=1) == np.arange(10)).all()
    assert len({tuple(one) for one in passes.tolist()}) > 1


def test_a_step_needs_no_step_before_it():
    whole = list(_steps())
    assert len(whole) == len(_steps()) == 25
    for step in (0, 1, 13, 25):
        resumed = _steps(start_step=step)
        assert list(resumed) == whole[step:]
        assert len(resumed) == 25 - step
    assert _steps().batch(17) == whole[17]
    assert list(_steps(seed=1)) != whole
    assert list(_steps(stage="retrain")) != whole


def test_batches_larger_than_the_data():
    assert sorted(_steps(num_rows=3, batch_size=6, num_steps=1).batch(0)) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_rows": 0}, "num_rows must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_steps": -1}, "num_steps must be at least 0, got -1"),
        ({"start_step": 26}, r"start_step must lie within 0..25, got 26"),
    ],
)
def test_bad_step_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        _steps(**changes)


LENGTHS = np.random.default_rng(0).integers(5, 100, 203)


def test_buckets_hold_each_row_once_a_pass_and_pad_little():
    sampler = BucketBatchSampler(LENGTHS, 8, 0, "task", pool_batches=8, num_steps=52)
    batches = list(sampler)
    assert sampler.steps_per_epoch == 26
    for start in (0, 26):
        assert sorted(row for batch in batches[start : start + 26] for row in batch) == list(range(203))
    assert batches[:26] != batches[26:]

    def padding(some):
        return sum(LENGTHS[batch].max() * len(batch) for batch in some) / LENGTHS.sum() - 1

    shuffled = np.array_split(np.random.default_rng(1).permutation(203), 26)
    assert padding(batches[:26]) < 0.4 * padding(shuffled)
    longest = [LENGTHS[batch].max() for batch in batches[:26]]
    assert longest != sorted(longest), "batches must not come in order of their length"


def test_buckets_resume_anywhere():
    whole = list(BucketBatchSampler(LENGTHS, 8, 0, "task", num_steps=60))
    for step in (1, 26, 40, 60):
        assert list(BucketBatchSampler(LENGTHS, 8, 0, "task", num_steps=60, start_step=step)) == whole[step:]
    assert BucketBatchSampler(LENGTHS, 8, 0, "task", num_steps=60).batch(33) == whole[33]
    assert list(BucketBatchSampler(LENGTHS, 8, 1, "task", num_steps=60)) != whole
    with pytest.raises(ValueError, match=r"start_step must lie within 0..60, got 61"):
        BucketBatchSampler(LENGTHS, 8, 0, "task", num_steps=60, start_step=61)
    with pytest.raises(ValueError, match="number of rows must be at least 1, got 0"):
        BucketBatchSampler([], 8, 0, "task")


def test_sorted_batches():
    batches = sorted_batches(LENGTHS, 16)
    rows = [row for batch in batches for row in batch]
    assert sorted(rows) == list(range(203))
    assert (np.diff(LENGTHS[rows]) <= 0).all()


TEXTS = ["a film", "not a good film at all , and far too long", "good"]


def test_rows_are_what_the_tokenizer_gives(tokenizer):
    rows = TaskRows(datasets.Dataset.from_dict({"text": TEXTS, "label": [0, 1, 1]}), tokenizer, max_length=8)
    oracle = tokenizer(TEXTS, padding=True, truncation=True, max_length=8, return_tensors="pt")
    batch = rows.batch([0, 1, 2])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert (batch["input_ids"] == oracle["input_ids"]).all()
    assert (batch["attention_mask"] == oracle["attention_mask"]).all()
    assert batch["labels"].tolist() == [0, 1, 1]
    assert batch["labels"].dtype == torch.int64
    assert rows.lengths.tolist() == oracle["attention_mask"].sum(1).tolist()


def test_pairs_have_token_types_and_regression_float_labels(tokenizer):
    columns = {"text": TEXTS, "text_pair": TEXTS[::-1], "label": [0.5, 1.0, 2.5]}
    rows = TaskRows(datasets.Dataset.from_dict(columns), tokenizer, max_length=12)
    batch = rows.batch([2, 0, 1])
    order = [2, 0, 1]
    oracle = tokenizer(
        [columns["text"][row] for row in order],
        [columns["text_pair"][row] for row in order],
        padding=True,
        truncation=True,
        max_length=12,
        return_tensors="pt",
    )
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert (batch[name] == oracle[name]).all()
    assert batch["labels"].tolist() == [2.5, 0.5, 1.0]
    assert batch["labels"].dtype == torch.float32


def test_width_is_the_longest_or_the_next_multiple(tokenizer):
    data = datasets.Dataset.from_dict({"text": TEXTS, "label": [0, 1, 1]})
    assert TaskRows(data, tokenizer, max_length=30).batch([0, 2])["input_ids"].shape == (2, 4)
    assert TaskRows(data, tokenizer, max_length=30, multiple_of=8).batch([0, 2])["input_ids"].shape == (2, 8)
    assert TaskRows(data, tokenizer, max_length=10, multiple_of=8).batch([1])["input_ids"].shape == (1, 10)
    with pytest.raises(ValueError, match="max_length must be at least 8, got 4"):
        TaskRows(data, tokenizer, max_length=4)


def test_with_a_loader(tokenizer):
    data = datasets.Dataset.from_dict({"text": TEXTS * 5, "label": list(range(15))})
    rows = TaskRows(data, tokenizer, max_length=32)
    sampler = BucketBatchSampler(rows.lengths, batch_size=4, seed=0, stage="task", pool_batches=2)
    batches = list(DataLoader(rows, batch_sampler=sampler, collate_fn=rows.collate))
    assert sorted(label for batch in batches for label in batch["labels"].tolist()) == list(range(15))
    for batch, indices in zip(batches, sampler, strict=True):
        assert batch["labels"].tolist() == indices
        assert batch["attention_mask"].sum(1).tolist() == rows.lengths[indices].tolist()
