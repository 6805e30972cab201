from itertools import islice

import datasets
import pytest
import torch
from torch.utils.data import DataLoader

from elm_nni.data.corpora import load_corpus
from elm_nni.data.packing import pack_corpus
from elm_nni.data.streaming import StreamingPacked
from elm_nni.errors import UserError

T, B = 32, 4


@pytest.fixture(scope="module")
def texts():
    return ["word " * (7 * number % 90) + str(number) if number % 5 else "" for number in range(60)]


@pytest.fixture
def corpus(texts):
    return datasets.Dataset.from_dict({"text": texts}).to_iterable_dataset()


def _stream(corpus, tokenizer, **options):
    return StreamingPacked(corpus, tokenizer, sequence_length=T, batch_size=B, **options)


def _take(stream, number):
    return [batch["input_ids"] for batch in islice(stream, number)]


def test_same_rows_as_on_disk_and_again_after_the_end(texts, corpus, tokenizer, tmp_path):
    packed = pack_corpus(texts, tokenizer, sequence_length=T, folder=tmp_path, corpus_digest="x")
    number = 2 * len(packed) // B + 2
    batches = list(islice(_stream(corpus, tokenizer), number))
    rows = [row % len(packed) for row in range(number * B)]
    expected = packed.batch(rows)
    for name, tensor in expected.items():
        assert (torch.cat([batch[name] for batch in batches]) == tensor).all()


def test_resume_by_step_and_by_position(corpus, tokenizer):
    stream = _stream(corpus, tokenizer)
    whole = _take(stream, 50)
    for step in (1, 7, 23, 49):
        by_step = _take(_stream(corpus, tokenizer, start_step=step), 50 - step)
        assert all((one == two).all() for one, two in zip(by_step, whole[step:], strict=True))
        position = stream.position_after(step - 1)
        resumed = _stream(corpus, tokenizer, start_step=step, start=position)
        assert all((one == two).all() for one, two in zip(_take(resumed, 50 - step), whole[step:], strict=True))
    assert stream.position_after(49).epoch > 0
    with pytest.raises(ValueError, match="step 50 has no known position; known steps: 0..49"):
        stream.position_after(50)


def test_position_skips_documents_without_tokenising(corpus, tokenizer):
    stream = _stream(corpus, tokenizer)
    _take(stream, 3)
    position = stream.position_after(2)
    assert position.document > 0
    untouched = corpus.map(
        lambda row, number: {"text": row["text"] if number >= position.document else None}, with_indices=True
    )
    full = _take(_stream(corpus, tokenizer, start_step=3, start=position), 4)
    assert all(
        (one == two).all()
        for one, two in zip(_take(_stream(untouched, tokenizer, start_step=3, start=position), 4), full, strict=True)
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_batches(corpus, tokenizer, workers):
    whole = _take(_stream(corpus, tokenizer), 10)
    loader = DataLoader(_stream(corpus, tokenizer, start_step=2), batch_size=None, num_workers=workers)
    loaded = [batch["input_ids"] for batch in islice(loader, 8)]
    assert all((one == two).all() for one, two in zip(loaded, whole[2:], strict=True))


def test_local_files_as_a_stream(tmp_path, tokenizer):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{name} {number}" for number in range(100)))
    corpus = load_corpus([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")], streaming=True)
    stream = _stream(corpus, tokenizer)
    whole = _take(stream, 8)
    assert tokenizer.decode(whole[0][0]).startswith("[CLS] a 0 [SEP] [CLS] b 0 [SEP] [CLS] a 1 [SEP]")
    resumed = _stream(corpus, tokenizer, start_step=5, start=stream.position_after(4))
    assert all((one == two).all() for one, two in zip(_take(resumed, 3), whole[5:], strict=True))


def test_empty_stream_stops(tokenizer):
    corpus = datasets.Dataset.from_dict({"text": ["", " "]}).to_iterable_dataset()
    with pytest.raises(UserError, match="the corpus has no text"):
        next(iter(_stream(corpus, tokenizer)))


def test_bad_settings(corpus, tokenizer):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        StreamingPacked(corpus, tokenizer, sequence_length=T, batch_size=0)
    with pytest.raises(ValueError, match="start_step must be at least 0, got -1"):
        _stream(corpus, tokenizer, start_step=-1)
