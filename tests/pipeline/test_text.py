"""Text of several sources, and text that is packed as it is needed: its batches, and rows that are held out."""

import pytest
import torch
import yaml

from elm_nni.errors import UserError
from elm_nni.pipeline.checks import check_inputs
from elm_nni.pipeline.config import load_config
from elm_nni.pipeline.context import Context
from elm_nni.pipeline.store import StageStore
from elm_nni.pipeline.supernet_stage import text_batches

from .conftest import settings


@pytest.fixture
def streamed(own, tmp_path):
    values = settings(own)
    return context_of({**values, "data": {**values["data"], "streaming": True}}, tmp_path)


def context_of(values, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return Context(load_config(str(path)), StageStore(tmp_path / "store"), lambda event, **values: None)


def rows_of(batches):
    return {tuple(row.tolist()) for batch in batches for row in batch["input_ids"]}


def test_any_step_is_the_same_alone_and_in_order(streamed):
    training = streamed.config.retrain.pretrain
    in_order = text_batches(streamed, training, "pretrain")
    batches = [in_order(step) for step in range(5)]
    alone = text_batches(streamed, training, "pretrain")(3)
    for name, tensor in batches[3].items():
        assert torch.equal(tensor, alone[name]), name
    assert batches[0]["input_ids"].shape == (training.batch_size, streamed.config.data.sequence_length)


def test_held_out_rows_are_not_trained_on_in_the_first_pass(streamed):
    _, held_out = streamed.corpus
    assert len(held_out) == streamed.config.data.holdout_rows
    batch_of = text_batches(streamed, streamed.config.retrain.pretrain, "pretrain")
    trained = rows_of([batch_of(step) for step in range(5)])
    assert not trained & rows_of([held_out.batch(list(range(len(held_out))))])


@pytest.mark.parametrize("streaming", [False, True])
def test_several_sources_are_mixed(own, tmp_path, streaming):
    words = {"a": "film great", "b": "42 warm"}
    for name, text in words.items():
        (tmp_path / f"{name}.txt").write_text(f"{text}\n" * 300, encoding="utf-8")
    values = settings(own)
    sources = [str(tmp_path / f"{name}.txt") for name in words]
    values["data"] = {**values["data"], "corpus": sources, "streaming": streaming}
    context = context_of(values, tmp_path)
    for packed in context.corpus:
        ids = packed.batch(list(range(len(packed))))["input_ids"].flatten().tolist()
        counts = [ids.count(context.tokenizer(text)["input_ids"][1]) for text in words.values()]
        assert min(counts) > 0
        assert counts == pytest.approx([sum(counts) / 2] * 2, rel=0.1)


def test_the_order_of_the_text_may_have_a_seed_of_its_own(own, tmp_path):
    def held_out(seed, text_seed):
        values = settings(own)
        values = {**values, "seed": seed, "data": {**values["data"], "seed": text_seed}}
        return context_of(values, tmp_path).corpus[1].batch([0])["input_ids"].tolist()

    assert held_out(1, None) == held_out(0, 1) != held_out(0, None)


def test_text_that_holds_another_seeds_test_rows_is_refused(own, tmp_path):
    values = {**settings(own), "tasks": ["imdb"]}
    for corpus in ("offline:demo", "offline:imdb"):
        context = context_of({**values, "data": {"corpus": ["offline:sotu", corpus], "seed": 1}}, tmp_path)
        with pytest.raises(UserError, match="data.seed: 1 is not allowed with task imdb"):
            check_inputs(context)


def test_one_source_is_a_list_of_one():
    assert load_config("nano", {"data.corpus": "a.txt"}) == load_config("nano", {"data.corpus": ["a.txt"]})


def test_streaming_and_a_limit_exclude_each_other():
    with pytest.raises(UserError, match="data.streaming"):
        load_config("nano", {"data.streaming": True})
