"""The record of evaluations: what is in it after kills, damage and values that JSON does not have."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from elm_nni.compat.nas_record import EvaluationRecord, plain_metric
from elm_nni.errors import UserError


def write(path: Path, *samples: dict) -> None:
    record = EvaluationRecord(path)
    for place, sample in enumerate(samples):
        evaluation = record.new(sample)
        evaluation.metrics = [place]
        record.add(evaluation)


def test_each_evaluation_of_a_sample_is_answered_once_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.jsonl"
    write(path, {"x": 1}, {"x": 2}, {"x": 1})
    record = EvaluationRecord(path)
    assert record.num_unanswered == len(record.unanswered) == 3
    assert [record.take({"x": 1}).metrics, record.take({"x": 1}).metrics] == [[0], [2]]
    assert record.take({"x": 1}) is None
    assert record.take({"x": 3}) is None
    assert [evaluation.sample for evaluation in record.unanswered] == [{"x": 2}]
    # the order of labels is no part of a sample
    write(path, {"a": 1, "b": 2})
    assert EvaluationRecord(path).take({"b": 2, "a": 1}).metrics == [0]


def test_the_end_replaces_the_metric_and_withdrawn_ones_are_gone(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.jsonl"
    record = EvaluationRecord(path)
    first, second = record.new({"x": 1}), record.new({"x": 2})
    first.metrics = [0.5]
    record.add(first)
    first.status = "failed"
    record.add(first)
    record.add(second)
    record.withdraw(second)
    (found,) = EvaluationRecord(path).finished
    assert (found.number, found.sample, found.status, found.metrics) == (0, {"x": 1}, "failed", [0.5])
    # a number is not used again
    assert EvaluationRecord(path).new({"x": 3}).number == 2


def test_a_torn_last_line_is_cut_off_and_the_next_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.jsonl"
    write(path, {"x": 1}, {"x": 2})
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines(keepends=True)[-1])):
        path.write_bytes(whole[:-cut])
        assert [evaluation.sample for evaluation in EvaluationRecord(path).finished] == [{"x": 1}]
        write(path, {"x": 2})
        assert [evaluation.sample for evaluation in EvaluationRecord(path).finished] == [{"x": 1}, {"x": 2}]


@pytest.mark.parametrize("line", ['{"number": 7}', '{"number": 7, "other": 1}', "[]", '{"digest": "x"}'])
def test_a_line_of_another_form_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "evaluations.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(UserError, match=r"evaluations.jsonl has a line of another form"):
        EvaluationRecord(path)
    assert path.read_text() == line + "\n"


def test_metrics_become_plain_numbers() -> None:
    metric = {"default": np.float32(0.5), "loss": torch.tensor(2.0), "steps": 3}
    assert json.dumps(plain_metric(metric)) == '{"default": 0.5, "loss": 2.0, "steps": 3}'
    assert np.isnan(plain_metric(float("nan")))
    for wrong in (object(), {"default": torch.zeros(2)}, {1j}):
        with pytest.raises(UserError, match="cannot be recorded"):
            plain_metric(wrong)


def test_samples_without_a_json_form_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be recorded"):
        EvaluationRecord(tmp_path / "evaluations.jsonl").new({"x": object()})
