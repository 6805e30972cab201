"""Tasks with several labels a row and tasks of words and tags, from files and from folders laid out like the hub's."""

import json
import logging

import datasets
import pytest

from elm_nni.data.tasks import TaskSpec, find_task, limit_rows, load_task, split_search_validation, task_from_file
from elm_nni.errors import UserError

PARTS = ("train", "validation", "test")
NAMES = ("art", "politics", "sport")


def _labels(number):
    return [name for place, name in enumerate(NAMES) if number >> place & 1]


def _write_lines(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def _several(path, **changes):
    return TaskSpec(**{"name": "a", "source": str(path), "kind": "multi_label", "metric": "f1_micro"} | changes)


def _tagged(path, **changes):
    given = {"name": "a", "source": str(path), "kind": "token_classification", "metric": "entity_f1"}
    return TaskSpec(**given | changes)


def _check_several(data):
    assert (data.kind, data.label_names, data.num_labels) == ("multi_label", NAMES, 3)
    assert [len(getattr(data, part)) for part in PARTS] == [40, 5, 5]
    for part in PARTS:
        for row in getattr(data, part):
            assert [data.label_names[label] for label in row["label"]] == _labels(int(row["text"].split()[1]))


def test_lists_of_labels(tmp_path):
    rows = [{"text": f"text {number}", "label": _labels(number)[::-1] * 2} for number in range(50)]
    rows[0]["label"] = []
    source = _write_lines(tmp_path / "a.jsonl", [*rows, {"text": "left out", "label": None}])
    _check_several(load_task(_several(source), cache_dir=tmp_path / "cache"))


def test_labels_in_one_text(tmp_path):
    lines = [f"text {number},{' | '.join(_labels(number))}" for number in range(50)]
    (tmp_path / "a.csv").write_text("\n".join(["review,topics", *lines]) + "\n")
    spec = task_from_file(str(tmp_path / "a.csv"), "text=review,label=topics", kind="multi_label")
    data = load_task(spec, cache_dir=tmp_path / "cache")
    assert data.metrics == ("f1_micro", "f1_macro", "subset_accuracy")
    _check_several(data)


def _hub_folder(folder, rows, names, text):
    features = datasets.Features({"text": text, "label": datasets.List(datasets.ClassLabel(names=list(names)))})
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "train-0.parquet")
    return folder


def test_features_name_the_labels_and_withheld_ones_are_left_out(tmp_path):
    names = ("unused", *NAMES)
    rows = [
        {"text": f"text {number}", "label": [names.index(name) for name in _labels(number)]} for number in range(50)
    ]
    source = _hub_folder(tmp_path, [*rows, {"text": "x", "label": [-1]}], names, datasets.Value("string"))
    data = load_task(_several(source), cache_dir=tmp_path / "cache")
    assert (data.label_names, data.num_labels) == (names, 4)
    assert sum(len(getattr(data, part)) for part in PARTS) == 50
    assert data.train.features["label"] == datasets.List(datasets.ClassLabel(names=list(names)))
    for row in data.train:
        assert [names[label] for label in row["label"]] == _labels(int(row["text"].split()[1]))


def test_given_names_fix_the_order_of_the_labels(tmp_path):
    rows = [{"text": f"text {number}", "label": _labels(number)} for number in range(50)]
    source = _write_lines(tmp_path / "a.jsonl", rows)
    data = load_task(_several(source, label_names=NAMES[::-1]), cache_dir=tmp_path / "cache")
    for row in data.train:
        assert [2 - label for label in row["label"]][::-1] == [NAMES.index(n) for n in _labels(int(row["text"][5:]))]
    with pytest.raises(UserError, match="task 'a': label 'sport' is not one of art, politics"):
        load_task(_several(source, label_names=NAMES[:2]), cache_dir=tmp_path / "cache")


def _sentence(number):
    words = [f"word{number}", "EU", "visits", "New", "York", f"number{number % 3}"]
    tags = ["O", "B-ORG", "O", "B-LOC", "I-LOC", "O"]
    first = 1 if number % 5 == 0 else 0
    return words[first:], tags[first:]


TAGS = ("B-LOC", "B-ORG", "I-LOC", "O")


def _check_tagged(data, num_rows=50):
    assert (data.kind, data.label_names, data.num_labels, data.is_pair) == ("token_classification", TAGS, 4, False)
    assert data.metrics == ("entity_f1", "token_accuracy")
    sentences = {tuple(words): tags for words, tags in map(_sentence, range(num_rows))}
    for part in PARTS:
        for row in getattr(data, part):
            assert [data.label_names[label] for label in row["label"]] == sentences[tuple(row["text"])]


def test_words_and_tags(tmp_path, caplog):
    rows = [dict(zip(("words", "ner"), _sentence(number))) for number in range(50)]
    source = _write_lines(tmp_path / "a.jsonl", [*rows, {"words": [], "ner": []}, {"words": ["x"], "ner": None}])
    spec = task_from_file(source, "text=words,label=ner", kind="token_classification")
    with caplog.at_level(logging.WARNING):
        data = load_task(spec, cache_dir=tmp_path / "cache")
    _check_tagged(data)
    assert "2 rows without text or label left out" in caplog.text
    assert "entity_f1 counts" not in caplog.text
    # every fifth sentence has no number of its own: each of these three is in one split
    texts = [{tuple(words) for words in getattr(data, part)["text"]} for part in PARTS]
    assert not texts[0] & (texts[1] | texts[2])
    assert not texts[1] & texts[2]
    rest, search = split_search_validation(data.train, 5)
    assert len(search) == 5
    assert not {tuple(words) for words in rest["text"]} & {tuple(words) for words in search["text"]}
    assert len(limit_rows(data.train, 4)) == 4


def test_tags_of_features(tmp_path):
    rows = [{"text": words, "label": [TAGS.index(tag) for tag in tags]} for words, tags in map(_sentence, range(50))]
    source = _hub_folder(tmp_path, rows, TAGS, datasets.List(datasets.Value("string")))
    _check_tagged(load_task(_tagged(source), cache_dir=tmp_path / "cache"))


def test_given_names_are_those_of_lists_of_ids(tmp_path):
    names = TAGS[::-1]
    rows = [{"text": words, "label": [names.index(tag) for tag in tags]} for words, tags in map(_sentence, range(50))]
    data = load_task(_tagged(_write_lines(tmp_path / "a.jsonl", rows), label_names=names), cache_dir=tmp_path / "cache")
    sentences = {tuple(words): tags for words, tags in map(_sentence, range(50))}
    assert data.label_names == names
    for row in data.train:
        assert [names[label] for label in row["label"]] == sentences[tuple(row["text"])]


def test_conll_files(tmp_path):
    sentences = ["\n".join(f"{word} NN x {tag}" for word, tag in zip(*_sentence(number))) for number in range(50)]
    tabs = sentences[1].replace(" ", "\t").replace("New", "New old")
    text = "\n\n".join(["\ufeff-DOCSTART- -X- O O", *sentences[:3], "", *sentences[3:], tabs]) + "\n"
    (tmp_path / "a.conll").write_text(text.replace("\n", "\r\n"), encoding="utf-8", newline="")
    assert find_task(str(tmp_path / "a.conll")).kind == "token_classification"
    data = load_task(str(tmp_path / "a.conll"), cache_dir=tmp_path / "cache")
    found = [words for part in PARTS for words in getattr(data, part)["text"]]
    assert sum("New old" in words for words in found) == 1
    expected = {tuple(_sentence(number)[0]) for number in range(50)}
    assert {tuple(words) for words in found if "New old" not in words} == expected
    tags = {tuple(words): tags for words, tags in map(_sentence, range(50))}
    for row in data.train.filter(lambda row: "New old" not in row["text"]):
        assert [data.label_names[label] for label in row["label"]] == tags[tuple(row["text"])]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("EU B-ORG\nword\n", "a.conll, line 2: 'word' has no tag; write a word, white space and its tag"),
        ("\n \n", "a.conll is empty"),
        (None, "a.conll does not exist"),
    ],
)
def test_bad_conll_files(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.conll").write_text(content)
    with pytest.raises(UserError, match=message):
        load_task(str(tmp_path / "a.conll"))


def test_tags_without_prefixes_are_told(tmp_path, caplog):
    rows = [{"text": [f"w{number}", "x"], "label": ["NOUN", "VERB"]} for number in range(20)]
    source = _write_lines(tmp_path / "a.jsonl", rows)
    with caplog.at_level(logging.WARNING):
        load_task(_tagged(source), cache_dir=tmp_path / "cache")
    assert "task 'a': its tags have no prefix B- or I-, so entity_f1 counts every token by itself" in caplog.text


@pytest.mark.parametrize(
    ("spec", "text", "label", "message"),
    [
        (_tagged, ["a", "b"], ["O"], "task 'a': row 0 has 2 words in column 'text', but 1 tags in column 'label'"),
        (_tagged, "a b", ["O", "O"], "column 'text' must hold lists of words"),
        (_tagged, ["a", "b"], "O", "column 'label' must hold lists of tags"),
        (_tagged, ["a", "b"], ["O", "O"], "has one tag only in column 'label' of .*a.jsonl: 'O'; give at least two"),
        (_several, "a", ["x", "y"], "has one set of labels only in column 'label' of .*a.jsonl: 'x|y'; give"),
        (_several, "a", [], "has one set of labels only in column 'label'"),
        (_several, "a", 0.5, "one set of labels only .*: '0.5'"),
        (
            lambda path: TaskSpec(name="a", source=path),
            "a",
            ["x"],
            "column 'label' holds lists; set kind=multi_label or",
        ),
    ],
)
def test_unusable_rows(tmp_path, spec, text, label, message):
    source = _write_lines(tmp_path / "a.jsonl", [{"text": text, "label": label}] * 12)
    with pytest.raises(UserError, match=message.replace("|", r"\|")):
        load_task(spec(source), cache_dir=tmp_path / "cache")


def test_lists_and_texts_of_labels_may_be_mixed(tmp_path):
    lines = [{"text": f"text {n}", "label": ["a", "b"] if n % 2 else "a"} for n in range(40)]
    file = tmp_path / "mixed.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    data = load_task(task_from_file(str(file), "text=text,label=label", kind="multi_label"), 0)
    assert data.label_names == ("a", "b")
    assert {tuple(row) for row in data.test["label"]} == {(0,), (0, 1)}
