import datasets
import numpy as np
import pytest

from elm_nni.data import corpora
from elm_nni.data.corpora import CorpusSpec, corpus_digest, corpus_texts, load_corpus, proportional_order
from elm_nni.data.offline import read_sotu
from elm_nni.data.tasks import load_task
from elm_nni.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b", CorpusSpec("a/b")),
        ("a/b:train", CorpusSpec("a/b")),
        ("a/b:en", CorpusSpec("a/b", config="en")),
        ("a/b:en:test", CorpusSpec("a/b", config="en", split="test")),
        ("a/b:train[:10%]", CorpusSpec("a/b", split="train[:10%]")),
        ("a/b:en:train[:10%]", CorpusSpec("a/b", config="en", split="train[:10%]")),
        ("a/b::extra", CorpusSpec("a/b", split="extra")),
        ("texts/a.txt", CorpusSpec("texts/a.txt")),
        ("offline:demo", CorpusSpec("offline:demo")),
    ],
)
def test_parse(text, expected):
    assert CorpusSpec.parse(text) == expected


def test_bad_names():
    with pytest.raises(
        UserError, match="corpus 'offline:x' is unknown; known: offline:sotu, offline:imdb, offline:demo"
    ):
        CorpusSpec.parse("offline:x")
    with pytest.raises(UserError, match="a corpus needs a name"):
        CorpusSpec.parse(" ")
    with pytest.raises(UserError, match="no corpus given"):
        load_corpus([])
    with pytest.raises(ValueError, match="documents must be line or paragraph, got 'page'"):
        CorpusSpec("a.txt", documents="page")


def test_demo_is_sotu_and_imdb_train_and_no_row_of_another_split():
    demo = load_corpus("offline:demo")
    assert demo.column_names == ["text"]
    imdb = load_task("imdb")
    assert sorted(demo["text"][:]) == sorted([*read_sotu(), *imdb.train["text"][:]])
    unseen = {" ".join(text.split()).casefold() for part in (imdb.validation, imdb.test) for text in part["text"][:]}
    assert not unseen & {" ".join(text.split()).casefold() for text in demo["text"][:]}


def test_a_beginning_has_the_sources_in_proportion(tmp_path):
    (tmp_path / "long.txt").write_text("\n".join(f"long {'x' * 990} {number}" for number in range(100)))
    (tmp_path / "short.txt").write_text("\n".join(f"short {'y' * 40} {number}" for number in range(500)))
    paths = [str(tmp_path / "long.txt"), str(tmp_path / "short.txt")]
    mixed = load_corpus(paths, cache_dir=tmp_path / "cache")
    assert len(mixed) == 600
    share = 100_000 / 125_000
    so_far = {"long": 0, "short": 0}
    for text in mixed["text"]:
        so_far[text.split()[0]] += len(text)
        total = sum(so_far.values())
        assert abs(so_far["long"] - share * total) < 1100, "more than a document off"


def test_order_depends_on_the_seed_alone():
    lengths = [np.arange(1, 50), np.array([200, 0, 300])]
    first = proportional_order(lengths, seed=0)
    assert sorted(first.tolist()) == list(range(52))
    assert (first == proportional_order(lengths, seed=0)).all()
    assert (first != proportional_order(lengths, seed=1)).any()


@pytest.mark.parametrize("streaming", [False, True])
def test_column_is_renamed_others_dropped_and_gaps_kept_as_empty_text(tmp_path, streaming):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1, "body": "one"}\n{"id": 2, "body": null}\n{"id": 3, "body": "three"}\n')
    corpus = load_corpus(CorpusSpec(str(path), column="body"), streaming=streaming, cache_dir=tmp_path / "cache")
    assert sorted(corpus_texts(corpus)) == ["", "one", "three"]
    with pytest.raises(UserError, match="has no column 'text'; its columns: id, body"):
        load_corpus(str(path), streaming=streaming, cache_dir=tmp_path / "cache")


def test_numbers_become_text_and_lists_are_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": 12, "words": ["a"]}\n')
    assert list(corpus_texts(load_corpus(str(path), cache_dir=tmp_path / "cache"))) == ["12"]
    with pytest.raises(UserError, match="column 'words' holds .*, not text"):
        load_corpus(CorpusSpec(str(path), column="words"), cache_dir=tmp_path / "cache")


def test_streams(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{name}{number}" for number in range(3)))
    one = load_corpus(str(tmp_path / "a.txt"), streaming=True)
    assert isinstance(one, datasets.IterableDataset)
    assert list(corpus_texts(one)) == ["a0", "a1", "a2"]
    both = load_corpus([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")], streaming=True)
    assert list(corpus_texts(both)) == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert next(corpus_texts(load_corpus("offline:sotu", streaming=True))) == read_sotu()[0]


def test_hub_corpus_passes_its_settings_on(monkeypatch):
    def load_dataset(name, config, **options):
        assert (name, config) == ("a/b", "en")
        assert (options["split"], options["revision"], options["streaming"]) == ("train[:1%]", "abc", False)
        return datasets.Dataset.from_dict({"content": ["x"], "url": ["y"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    spec = CorpusSpec("a/b", column="content", config="en", split="train[:1%]", revision="abc")
    assert load_corpus(spec)[:] == {"text": ["x"]}


def test_digest_follows_the_content(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n")
    before = corpus_digest(str(path))
    (tmp_path / "b.txt").write_text("one\n")
    assert corpus_digest(str(tmp_path / "b.txt")) == before
    assert corpus_digest(CorpusSpec(str(path), documents="paragraph")) != before
    path.write_text("two\n")
    assert corpus_digest(str(path)) != before
    with pytest.raises(UserError, match="nothing.txt does not exist"):
        corpus_digest(str(tmp_path / "nothing.txt"))
    names = [*(f"offline:{name}" for name in corpora.OFFLINE_CORPORA), "a/b", "a/b:en", "a/b:test"]
    assert len({corpus_digest(name) for name in names}) == len(names)
