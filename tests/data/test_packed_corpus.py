import json
import pickle
import resource
import threading

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from elm_nni.data.batches import StepBatchSampler
from elm_nni.data.corpora import corpus_texts, load_corpus
from elm_nni.data.offline import read_sotu
from elm_nni.data.packing import PackedCorpus, pack_corpus, pack_source
from elm_nni.data.rows import Layout, pack_rows, tokenize_documents
from elm_nni.errors import UserError

T = 64


@pytest.fixture(scope="module")
def texts():
    return read_sotu()[:4]


def _pack(texts, tokenizer, folder, name="four speeches", **changes):
    settings = {"sequence_length": T, "folder": folder, "corpus_digest": name} | changes
    return pack_corpus(texts, tokenizer, **settings)


def test_holds_the_rows_of_the_packing(texts, tokenizer, tmp_path):
    packed = _pack(texts, tokenizer, tmp_path)
    rows = list(pack_rows(tokenize_documents(texts, tokenizer), Layout.of(tokenizer, T)))
    batch = packed.batch(range(len(packed)))
    assert len(packed) == len(rows)
    assert batch["input_ids"].tolist() == [row.input_ids_T.tolist() for row in rows]
    assert batch["document_ids"].tolist() == [row.document_ids_T.tolist() for row in rows]
    assert (batch["attention_mask"] == (batch["document_ids"] > 0)).all()
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    assert packed.num_tokens == int(batch["attention_mask"].sum())
    assert packed.manifest["dtypes"] == {"input_ids": "uint16", "document_ids": "uint8"}
    assert packed[-1]["input_ids"].tolist() == rows[-1].input_ids_T.tolist()
    with pytest.raises(IndexError, match=r"rows must lie within 0..\d+"):
        packed.batch([len(packed)])


def test_is_built_once_per_digest(texts, tokenizer, tmp_path):
    def unread():
        raise AssertionError("read again")

    first = _pack(texts, tokenizer, tmp_path)
    assert _pack(unread, tokenizer, tmp_path).folder == first.folder
    others = [
        _pack(texts, tokenizer, tmp_path, name="other"),
        _pack(texts, tokenizer, tmp_path, sequence_length=T + 1),
        _pack(texts, tokenizer, tmp_path, limit_tokens=100),
    ]
    assert len({each.folder for each in (first, *others)}) == 4


def test_a_damaged_corpus_is_built_again(texts, tokenizer, tmp_path):
    packed = _pack(texts, tokenizer, tmp_path)
    expected = packed.batch([0, 1])["input_ids"]
    (packed.folder / "input_ids.bin").write_bytes(b"short")
    with pytest.raises(UserError, match="is not a complete packed corpus .input_ids.bin has 5 bytes"):
        PackedCorpus(packed.folder)
    # what a killed run leaves behind
    scratch = tmp_path / f".{packed.folder.name}.tmp"
    scratch.mkdir()
    (scratch / "input_ids.bin").write_bytes(b"half")
    assert (_pack(texts, tokenizer, tmp_path).batch([0, 1])["input_ids"] == expected).all()
    assert not scratch.exists()


def test_two_builders_of_one_digest(texts, tokenizer, tmp_path):
    reads, results = [], []

    def read():
        reads.append(1)
        return texts

    threads = [
        threading.Thread(target=lambda: results.append(_pack(read, tokenizer, tmp_path).folder)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) == 1
    assert len(results) == 2


def test_limit_stops_reading(tokenizer, tmp_path):
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield "a short document about nothing at all " * 10

    packed = _pack(endless, tokenizer, tmp_path, limit_tokens=5000)
    assert 5000 <= packed.num_tokens < 5000 + T
    assert read < 600


def test_limit_takes_sources_in_proportion(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(["alpha " * 300] * 50))
    (tmp_path / "b.txt").write_text("\n".join(["beta " * 30] * 500))
    sources = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    packed = pack_source(sources, tokenizer, sequence_length=T, folder=tmp_path / "cache", limit_tokens=6000)
    ids = packed.batch(range(len(packed)))["input_ids"]
    alpha, beta = (int((ids == tokenizer.convert_tokens_to_ids(word)).sum()) for word in ("alpha", "beta"))
    # 90,000 against 75,000 characters, that is as many words
    assert alpha / (alpha + beta) == pytest.approx(0.5, abs=0.06)
    other = pack_source(sources, tokenizer, sequence_length=T, folder=tmp_path / "cache", limit_tokens=6000, seed=1)
    assert other.folder != packed.folder


def test_split_and_copies_in_workers(texts, tokenizer, tmp_path):
    packed = _pack(texts, tokenizer, tmp_path)
    train, held_out = packed.split(10)
    assert (len(train), len(held_out)) == (len(packed) - 10, 10)
    assert (held_out[0]["input_ids"] == packed[len(packed) - 10]["input_ids"]).all()
    copy = pickle.loads(pickle.dumps(held_out))
    assert len(pickle.dumps(held_out)) < 1000
    assert (copy.batch(range(10))["input_ids"] == held_out.batch(range(10))["input_ids"]).all()
    with pytest.raises(IndexError, match="within 0..9"):
        held_out.batch([10])
    with pytest.raises(UserError, match=rf"packs into {len(packed)} rows; {len(packed)} held-out rows"):
        packed.split(len(packed))


def test_with_a_loader_and_a_step_sampler(texts, tokenizer, tmp_path):
    packed = _pack(texts, tokenizer, tmp_path)
    sampler = StepBatchSampler(num_rows=len(packed), batch_size=8, seed=0, stage="supernet", num_steps=5)
    for number, batch in enumerate(DataLoader(packed, batch_sampler=sampler)):
        expected = packed.batch(sampler.batch(number))
        assert {name: tensor.tolist() for name, tensor in batch.items()} == {
            name: tensor.tolist() for name, tensor in expected.items()
        }


def test_unwritable_folder(texts, tokenizer, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="packed corpus cannot be written to .*file: (Not a directory|File exists)"):
        _pack(texts, tokenizer, tmp_path / "file")


def test_full_disk_leaves_nothing_behind(texts, tokenizer, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(UserError, match="packed corpus cannot be written to .*: File too large"):
            _pack(texts, tokenizer, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_no_text(tokenizer, tmp_path):
    with pytest.raises(UserError, match="the corpus has no text"):
        _pack(["", " "], tokenizer, tmp_path)
    with pytest.raises(ValueError, match="limit_tokens must be at least 1, got 0"):
        _pack(["a"], tokenizer, tmp_path, limit_tokens=0)


def test_manifest_names_the_content(texts, tokenizer, tmp_path):
    packed = _pack(texts, tokenizer, tmp_path)
    again = _pack(texts, tokenizer, tmp_path / "elsewhere")
    manifests = [json.loads((each.folder / "manifest.json").read_text()) for each in (packed, again)]
    assert manifests[0] == manifests[1]
    assert np.prod([manifests[0]["rows"], T]) * 2 == (packed.folder / "input_ids.bin").stat().st_size


def test_packaged_corpus(tokenizer, tmp_path):
    packed = pack_source("offline:sotu", tokenizer, sequence_length=128, folder=tmp_path, limit_tokens=20_000)
    assert packed.num_tokens / (len(packed) * 128) > 0.95
    first = next(corpus_texts(load_corpus("offline:sotu")))
    assert packed[0]["input_ids"].tolist() == tokenizer(first, truncation=True, max_length=128)["input_ids"]
