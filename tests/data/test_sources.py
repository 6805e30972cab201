import logging

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from elm_nni.data import sources
from elm_nni.data.sources import check_utf8, is_local, load_file, load_hub, require_columns
from elm_nni.errors import UserError


def _write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "\ufeffone\ntwo ä\n\nthree\n", ["one", "two ä", "", "three"]),
        ("a.jsonl", '{"text": "one"}\n{"text": "two\\nlines"}\n', ["one", "two\nlines"]),
        ("a.csv", 'text,n\n"one, and",1\nNone,2\n', ["one, and", "None"]),
    ],
)
def test_text_formats(tmp_path, name, content, expected, streaming):
    rows = load_file(_write(tmp_path / name, content), streaming=streaming, cache_dir=tmp_path / "cache")
    assert [row["text"] for row in rows] == expected


def test_paragraphs(tmp_path):
    path = _write(tmp_path / "a.txt", "one\ntwo\n\nthree\n")
    rows = load_file(path, paragraphs=True, cache_dir=tmp_path / "cache")
    assert [text.strip() for text in rows["text"]] == ["one\ntwo", "three"]


def test_parquet(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"]}), tmp_path / "a.parquet")
    assert list(load_file(tmp_path / "a.parquet", cache_dir=tmp_path / "cache")["text"]) == ["a", "b"]


def test_a_changed_file_is_read_again(tmp_path):
    path = _write(tmp_path / "a.txt", "one\n")
    assert len(load_file(path, cache_dir=tmp_path / "cache")) == 1
    _write(path, "one\ntwo\n")
    assert len(load_file(path, cache_dir=tmp_path / "cache")) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", r"a.txt is empty"),
        ("a.txt", "\ufeff \n\t\n", r"a.txt is empty"),
        ("a.csv", "text,label\n", r"a.csv has no rows"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', r"a.jsonl cannot be loaded: JSON parse error"),
        ("a.parquet", "", r"a.parquet is empty"),
        ("a.parquet", "not parquet", r"a.parquet cannot be loaded: Parquet"),
        ("a.doc", "words", r"a.doc: files of kind '.doc' are not known; known: .txt, .jsonl"),
    ],
)
def test_bad_files(tmp_path, name, content, message, capfd, caplog, monkeypatch):
    # datasets keeps its lines from the handlers of others
    monkeypatch.setattr(logging.getLogger("datasets"), "propagate", True)
    with pytest.raises(UserError, match=message) as caught:
        load_file(_write(tmp_path / name, content), cache_dir=tmp_path / "cache")
    assert "\n" not in str(caught.value)
    # datasets says nothing of its own beside it
    assert capfd.readouterr().err == ""
    assert not [one for one in caplog.records if one.name.startswith("datasets")]
    assert datasets.logging.get_verbosity() < datasets.logging.ERROR


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="file .*nothing.txt does not exist"):
        load_file(tmp_path / "nothing.txt")


def test_a_data_set_with_a_script_of_its_own(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "old.py").write_text("raise SystemExit\n")
    with pytest.raises(UserError, match="data set '.*old', configuration 'a', split 'train' is loaded by a script of"):
        load_hub(str(tmp_path / "old"), config="a", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("chunk", [3, 4, 5, 1 << 20])
@pytest.mark.parametrize(
    ("content", "offset"),
    [
        ("grün ".encode() + b"\xe4rger", 6),
        (b"abc\xff", 3),
        ("straße €".encode()[:-1], 8),
        (b"\x80", 0),
    ],
)
def test_not_utf8_names_the_offset_whatever_the_chunks(tmp_path, monkeypatch, chunk, content, offset):
    monkeypatch.setattr(sources, "_CHUNK_BYTES", chunk)
    with pytest.raises(UserError, match=rf"a.txt is not UTF-8: byte 0x{content[offset]:02x} at offset {offset};"):
        check_utf8(_write(tmp_path / "a.txt", content))


def test_utf8_across_chunks_passes(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_CHUNK_BYTES", 1)
    check_utf8(_write(tmp_path / "a.txt", "€ä"))


def test_columns_are_listed(tmp_path):
    rows = load_file(_write(tmp_path / "a.csv", "review,stars\na,1\n"), cache_dir=tmp_path / "cache")
    with pytest.raises(UserError, match="a.csv has no column 'text'; its columns: review, stars"):
        require_columns(rows, ("text",), "a.csv")


@pytest.mark.parametrize("source", ["a.csv", "no/such.jsonl", "./x", "/abs/file", "~/x", "a/b/c"])
def test_local_names(source):
    assert is_local(source)


@pytest.mark.parametrize("source", ["imdb", "nyu-mll/glue", "wikimedia/wikipedia:20231101.en"])
def test_hub_names(source):
    assert not is_local(source)


def test_hub_out_of_reach(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach 'a/b' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"data set 'a/b', configuration 'c', split 'train': the hub cannot be reached"):
        load_hub("a/b", config="c")


def test_folder_laid_out_like_a_hub_data_set(tmp_path):
    (tmp_path / "set" / "data").mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "set" / "data" / "train-0.parquet")
    rows = load_hub(str(tmp_path / "set"), cache_dir=tmp_path / "cache")
    assert list(rows["text"]) == ["a"]
    with pytest.raises(UserError, match="split 'dev' cannot be loaded: Unknown split"):
        load_hub(str(tmp_path / "set"), split="dev", cache_dir=tmp_path / "cache")
