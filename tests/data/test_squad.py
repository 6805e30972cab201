import json
import logging

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from elm_nni.data import squad
from elm_nni.data.squad import (
    Question,
    limit_questions,
    load_questions,
    read_questions,
    split_search_questions,
)
from elm_nni.errors import UserError

CONTEXT = "Snow fell in May. Snow fell again in June."


def _qa(name="q1", answers=(("May", 13),), **more):
    found = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": name, "question": "When?", "answers": found} | more


def _article(qas, context=CONTEXT, title="Snow"):
    return {"title": title, "paragraphs": [{"context": context, "qas": qas}]}


def _write(path, articles):
    path.write_text(json.dumps({"version": "1.1", "data": articles}), encoding="utf-8")
    return str(path)


def _articles(num_contexts, per_context=2, titles=1, start=0):
    """Contexts of two sentences, each with a few questions whose answers are the context's number."""
    articles = []
    for number in range(start, start + num_contexts):
        context = f"Number  {number} is here. Nothing else."
        qas = [_qa(f"q{number}-{which}", [(str(number), 8)]) for which in range(per_context)]
        articles.append(_article(qas, context, f"title {number % titles}"))
    return articles


def test_the_nested_form(tmp_path):
    impossible = _qa("q2", (), is_impossible=True, plausible_answers=[{"text": "June", "answer_start": 37}])
    several = _qa("q3", (("June", 37), ("in June", 34)), is_impossible=False)
    path = _write(tmp_path / "a.json", [_article([_qa(), impossible]), _article([several], title="Rain")])
    assert read_questions(path) == (
        Question("q1", CONTEXT, "When?", ("May",), (13,), "Snow"),
        Question("q2", CONTEXT, "When?", (), (), "Snow"),
        Question("q3", CONTEXT, "When?", ("June", "in June"), (37, 34), "Rain"),
    )
    assert [question.is_impossible for question in read_questions(path)] == [False, True, False]
    assert [question.span for question in read_questions(path)] == [(13, 16), None, (37, 41)]


FLAT = {
    "id": ["q1", "q2"],
    "title": ["Snow", "Snow"],
    "context": [CONTEXT, CONTEXT],
    "question": ["When?", "Who?"],
    "answers": [{"text": ["May", "in May"], "answer_start": [13, 10]}, {"text": [], "answer_start": []}],
}
EXPECTED = (
    Question("q1", CONTEXT, "When?", ("May", "in May"), (13, 10), "Snow"),
    Question("q2", CONTEXT, "Who?", (), (), "Snow"),
)


def test_the_flat_forms(tmp_path):
    lines = [dict(zip(FLAT, row)) for row in zip(*FLAT.values())]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert read_questions(str(tmp_path / "a.jsonl"), cache_dir=tmp_path / "cache") == EXPECTED
    pyarrow.parquet.write_table(pyarrow.table(FLAT), tmp_path / "a.parquet")
    assert read_questions(str(tmp_path / "a.parquet"), cache_dir=tmp_path / "cache") == EXPECTED
    for line in lines:
        answers = line.pop("answers")
        line["answers"] = [{"text": t, "answer_start": s} for t, s in zip(answers["text"], answers["answer_start"])]
        del line["title"]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, lines)))
    untitled = tuple(Question(q.id, q.context, q.question, q.answers, q.starts) for q in EXPECTED)
    assert read_questions(str(tmp_path / "b.jsonl"), cache_dir=tmp_path / "cache") == untitled


def test_a_hub_data_set_by_name_and_its_splits(tmp_path, monkeypatch):
    asked = []

    def load(name, config, *, split, **_):
        asked.append((name, config, split))
        start, count = (0, 100) if split == "train" else (95, 10)
        table = {column: [] for column in FLAT}
        for article in _articles(count, titles=1000, start=start):
            for qa in article["paragraphs"][0]["qas"]:
                answers = {"text": [qa["answers"][0]["text"]], "answer_start": [8]}
                values = (qa["id"], article["title"], article["paragraphs"][0]["context"], qa["question"], answers)
                for column, value in zip(FLAT, values):
                    table[column].append(value)
        return datasets.Dataset.from_dict(table)

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = load_questions("squad")
    assert asked == [("rajpurkar/squad", None, "train"), ("rajpurkar/squad", None, "validation")]
    assert [q.id for q in data.test] == [f"q{number}-{which}" for number in range(95, 105) for which in (0, 1)]
    # contexts 95 to 99 are in the test as well
    assert (len(data.train), len(data.validation)) == (170, 20)
    assert not data.has_unanswerable
    load_questions("squad_v2", test_split=None)
    assert asked[2:] == [("rajpurkar/squad_v2", None, "train")]


@pytest.mark.parametrize(
    ("articles", "message"),
    [
        ([{"title": "a"}], r"a.json: data\[0\] has no key 'paragraphs'; found: title"),
        (
            [_article([{"question": "?", "answers": []}])],
            r"paragraphs\[0\].qas\[0\] has no key 'id'; found: question, a",
        ),
        ([_article([{"id": "x", "answers": []}])], "question 'x' has no key 'question'"),
        ([_article([{"id": "x", "question": "?"}])], "question 'x' has no key 'answers'; found: id, question"),
        ([_article([_qa(answers=())], context=None)], "'context' must be str, got NoneType"),
        ([_article([_qa(answers=())], context=" ")], "question 'q1' has no text in its context"),
        ([_article([_qa(answers=(("May", "13"),))])], "question 'q1': 'answer_start' must be int, got str"),
        ([_article([_qa(answers=(("May", 42),))])], r"question 'q1' has answer_start 42; it must lie within 0..41"),
        ([_article([_qa(answers=(("May", -1),))])], r"question 'q1' has answer_start -1; it must"),
        ([_article([_qa(answers=(("", 3),))])], "question 'q1' has an answer without text"),
        ([_article([_qa(is_impossible=True)])], "question 'q1' has is_impossible true but 1 answers"),
        ([_article([_qa(answers=(), is_impossible=False)])], "question 'q1' has is_impossible false but 0 answers"),
        ([_article([_qa(), _qa()])], "a.json: question id 'q1' occurs twice"),
        ({}, "a.json: 'data' must be list, got dict"),
    ],
)
def test_bad_nested_files(tmp_path, articles, message):
    with pytest.raises(UserError, match=message) as caught:
        read_questions(_write(tmp_path / "a.json", articles))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_questions(tmp_path):
    (tmp_path / "rows.json").write_text('{"id": 1}\n{"id": 2}\n')
    with pytest.raises(UserError, match=r"rows.json is not JSON: .*; rows, one a line, belong in a .jsonl"):
        read_questions(str(tmp_path / "rows.json"))
    with pytest.raises(UserError, match="file .*none.json does not exist"):
        read_questions(str(tmp_path / "none.json"))
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": "a", "context": "b", "question": "c"}))
    with pytest.raises(UserError, match="a.jsonl has no column 'answers'; its columns: id, context, question"):
        read_questions(str(tmp_path / "a.jsonl"), cache_dir=tmp_path / "cache")
    uneven = {"id": "a", "context": "b", "question": "c", "answers": {"text": ["b"], "answer_start": []}}
    (tmp_path / "b.jsonl").write_text(json.dumps(uneven))
    with pytest.raises(UserError, match="b.jsonl: row 0: question 'a' has 1 answers but 0 answer_start"):
        read_questions(str(tmp_path / "b.jsonl"), cache_dir=tmp_path / "cache")


def _contexts(questions):
    return {" ".join(question.context.split()).casefold() for question in questions}


def _assert_apart(data):
    parts = [_contexts(part) for part in (data.train, data.validation, data.test)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]


def test_one_file_is_cut_by_context(tmp_path):
    path = _write(tmp_path / "a.json", _articles(50))
    data = load_questions(path)
    assert (len(data.train), len(data.validation), len(data.test)) == (80, 10, 10)
    _assert_apart(data)
    assert len(_contexts(data.test)) == 5
    assert load_questions(path) == data
    assert set(load_questions(path, seed=1).test) != set(data.test)


def test_many_articles_stay_whole(tmp_path):
    data = load_questions(_write(tmp_path / "a.json", _articles(100, titles=25)))
    titles = [{question.title for question in part} for part in (data.train, data.validation, data.test)]
    assert list(map(len, titles)) == [21, 2, 2]
    assert not titles[0] & titles[1]
    assert not titles[2] & (titles[0] | titles[1])
    # one text in two articles is no reason to learn it and be asked about it
    doubled = _articles(100, titles=25) + [
        _article([_qa(f"again {number}", ())], f"number {number} is HERE. nothing else.", "another")
        for number in range(100)
    ]
    _assert_apart(load_questions(_write(tmp_path / "b.json", doubled)))


def test_a_test_file_stays_whole_and_its_contexts_leave_train(tmp_path):
    train = _write(tmp_path / "train.json", _articles(50))
    test = _write(tmp_path / "test.json", _articles(10, start=45))
    data = load_questions(train, test_source=test)
    assert data.test == read_questions(test)
    assert (len(data.train), len(data.validation)) == (80, 10)
    _assert_apart(data)


def test_answers_that_do_not_stand_there_leave_train_with_one_warning(tmp_path, caplog):
    train, test = _articles(50), _articles(10, start=50)
    for article in train + test:
        article["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"] = 7
    # the second answer stands where it should, which is enough
    train[0]["paragraphs"][0]["qas"][0]["answers"].append({"text": "Number", "answer_start": 0})
    paths = _write(tmp_path / "a.json", train), _write(tmp_path / "b.json", test)
    with caplog.at_level(logging.WARNING):
        data = load_questions(paths[0], test_source=paths[1])
    kept = {q.id for q in data.train}
    assert kept == {q.id for q in data.train if q.id.endswith("-1") or q.id == "q0-0"}
    assert len(data.validation) == 10
    assert len(data.test) == 20
    lost = 90 - len(data.train)
    assert lost >= 44
    (record,) = caplog.records
    assert f"{lost} questions left out of training, as no answer stands at its answer_start" in record.getMessage()
    assert "the first is 'q" in record.getMessage()


def test_too_little(tmp_path):
    with pytest.raises(UserError, match="a.json has 8 questions; give at least 10"):
        load_questions(_write(tmp_path / "a.json", _articles(4)))
    for num_contexts in (1, 2):
        with pytest.raises(UserError, match="too few different contexts for train, validation and test"):
            load_questions(_write(tmp_path / "a.json", _articles(num_contexts, per_context=20)))
    data = load_questions(_write(tmp_path / "a.json", _articles(3, per_context=20)))
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 20, 20)


def test_the_search_part_and_the_limit(tmp_path):
    questions = read_questions(_write(tmp_path / "a.json", _articles(50, per_context=3)))
    rest, part = split_search_questions(questions, size=20)
    assert (len(rest), len(part)) == (132, 18)
    assert not _contexts(rest) & _contexts(part)
    assert split_search_questions(questions, size=20) == (rest, part)
    assert split_search_questions(questions, size=20, seed=1)[1] != part
    assert len(split_search_questions(questions)[1]) == 30
    some = limit_questions(questions, 40)
    assert list(some) == [question for question in questions if question in set(some)]
    assert len(some) == 40
    assert set(limit_questions(questions, 10)) < set(some)
    assert limit_questions(questions, 1000) == questions
    for function, unit in ((split_search_questions, "question"), (limit_questions, "row")):
        with pytest.raises(ValueError, match=f"must be at least 1 {unit}, got 0"):
            function(questions, 0)


def test_at_most_so_many_questions_become_validation(tmp_path, monkeypatch):
    monkeypatch.setattr(squad, "MAX_CARVED_VALIDATION", 4)
    data = load_questions(_write(tmp_path / "a.json", _articles(50)))
    assert (len(data.train), len(data.validation), len(data.test)) == (86, 4, 10)
