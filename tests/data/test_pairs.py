"""Pairs of queries and documents: their splits, their rows and the scores of retrieval."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from elm_nni.data.offline import teacher_folder
from elm_nni.data.pairs import PairRows, load_pairs, retrieval_scores, split_search_pairs
from elm_nni.errors import UserError


def write(folder: Path, pairs: list[tuple[str, str]]) -> Path:
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps({"q": q, "d": d}) + "\n" for q, d in pairs), encoding="utf-8")
    return file


def test_headlines_find_their_articles() -> None:
    parts = load_pairs("headlines")
    train, validation, test = parts
    # 2,225 articles less those whose headline or body occurs before
    assert sum(map(len, parts)) == len({query for part in parts for query, _ in part}) == 2060
    assert (len(validation), len(test)) == (206, 206)
    assert load_pairs("headlines") == parts
    assert load_pairs("headlines", seed=1)[2] != test
    queries = [{query.casefold() for query, _ in part} for part in parts]
    documents = [{" ".join(document.split()).casefold() for _, document in part} for part in parts]
    for sides in (queries, documents):
        for first, second in combinations(sides, 2):
            assert not first & second
    assert all(query and document for part in parts for query, document in part)


def test_a_text_with_two_answers_keeps_its_first(tmp_path: Path) -> None:
    pairs = [(f"query {n}", f"document {n}") for n in range(30)]
    pairs += [("QUERY  3", "another"), ("other", "Document 4"), ("", "nothing"), ("lonely", " ")]
    parts = load_pairs(str(write(tmp_path, pairs)), text="q", text_pair="d")
    assert sorted(pair for part in parts for pair in part) == sorted(pairs[:30])


def test_too_few_pairs_stop(tmp_path: Path) -> None:
    file = write(tmp_path, [("same", f"document {n}") for n in range(40)])
    with pytest.raises(UserError, match="has 1 different pairs of 40; give at least 20"):
        load_pairs(str(file), text="q", text_pair="d")
    with pytest.raises(UserError, match="'query'"):
        load_pairs(str(file), text="query", text_pair="d")


def test_only_texts_of_pairs_that_stay_leave_others_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    some = [(f"query {n}", f"document {n}") for n in range(40)]
    # the second goes, and its document is still free for the third; so is that of the empty query
    more = [("a", "b"), ("a", "c"), ("d", "c"), ("", "e"), ("f", "e")]
    parts = load_pairs(str(write(tmp_path, some + more)), text="q", text_pair="d")
    assert {pair for part in parts for pair in part} == {*some, ("a", "b"), ("d", "c"), ("f", "e")}
    assert "2 of 45 pairs are left out" in caplog.text


def test_the_search_part_is_cut_from_training() -> None:
    train = [(f"query {n}", f"document {n}") for n in range(100)]
    rest, search = split_search_pairs(train, 12, seed=0)
    assert len(search) == 12
    assert sorted(rest + search) == sorted(train)


def test_rows_are_queries_and_then_documents() -> None:
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder())
    rows = PairRows([("a film", "the film was long"), ("a plot", "thin")], tokenizer, 16)
    assert (len(rows), rows.num_pairs) == (4, 2)
    expected = [tokenizer(text)["input_ids"] for text in ("a film", "a plot", "the film was long", "thin")]
    assert rows.lengths.tolist() == [len(ids) for ids in expected]
    assert rows.batch([2])["input_ids"][0].tolist() == expected[2]


def test_retrieval_scores_by_hand() -> None:
    queries = np.eye(4)[:3]
    documents = np.array([[0.9, 0.1, 0, 0], [0, 0.5, 0, 0.9], [0.8, 0.7, 0.6, 0]])
    # query 0 finds its document first; query 1 finds the third before its own; query 2 its own first
    assert retrieval_scores(queries, documents) == {
        "mrr": pytest.approx((1 + 1 / 2 + 1) / 3), "recall_at_1": pytest.approx(2 / 3), "recall_at_10": 1.0,
    }  # fmt: skip
    # lengths do not matter, and vectors that are all alike are no success
    assert retrieval_scores(7 * queries, documents / 3) == retrieval_scores(queries, documents)
    assert retrieval_scores(np.ones((5, 2)), np.ones((5, 2)))["recall_at_1"] == 0
    with pytest.raises(ValueError, match=r"one shape \(P, E\)"):
        retrieval_scores(np.eye(2), np.eye(3))
