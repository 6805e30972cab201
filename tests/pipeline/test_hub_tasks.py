"""Tasks of hub data sets by configuration and splits. Local folders of a repository's layout stand in for the network:
the code that loads them is the real one."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest

from elm_nni.digest import digest
from elm_nni.errors import UserError
from elm_nni.pipeline.config import TaskConfig, load_config
from elm_nni.pipeline.context import Context, Task, task_identity
from elm_nni.pipeline.store import StageStore

from ..data.hub_files import write_hub

# in the order of the original, which is not the sorted one
TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")
TOPICS = ("World", "Sports", "Business", "Sci/Tech")
STRING = datasets.Value("string")

Prepared = Callable[..., Task]


@pytest.fixture
def prepared(config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """The one task of the small configuration, with given keys."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def prepare(**keys: Any) -> Task:
        config = load_config(str(config_file), {"tasks": [{"name": "mine", "max_length": 16, **keys}]})
        return Context(config, StageStore(tmp_path / "store"), lambda *_, **__: None).tasks["mine"]

    return prepare


def texts(task: Task, *parts: str) -> set[str]:
    data: Any = task.data
    rows = [row["text"] for part in parts for row in getattr(data, part)]
    return {row if isinstance(row, str) else " ".join(row) for row in rows}


def tagged(split: str, size: int) -> datasets.Dataset:
    tags = [[number % 7, (number + 3) % 7] for number in range(size)]
    columns = {"tokens": [[split, f"word{number}"] for number in range(size)], "ner_tags": tags}
    features = datasets.Features({
        "tokens": datasets.Sequence(STRING), "ner_tags": datasets.Sequence(datasets.ClassLabel(names=list(TAGS))),
    })  # fmt: skip
    return datasets.Dataset.from_dict(columns, features=features)


def test_words_and_tags_keep_their_names_and_their_splits(prepared: Prepared, tmp_path: Path) -> None:
    sizes = {"train": 50, "validation": 20, "test": 15}
    source = write_hub(tmp_path / "hub", {
        "conll2003": {split: tagged(split, size) for split, size in sizes.items()},
        "other": {split: tagged(f"other-{split}", size) for split, size in sizes.items()},
    })  # fmt: skip
    keys = {"source": source, "config": "conll2003", "kind": "token_classification", "text": "tokens"}
    task = prepared(**keys, label="ner_tags", test_split="test")
    assert task.data.label_names == TAGS
    assert task.data.test["text"] == [["test", f"word{number}"] for number in range(15)]
    assert task.data.test["label"] == [[number % 7, (number + 3) % 7] for number in range(15)]
    assert texts(task, "train", "validation") <= {f"train word{number}" for number in range(50)}
    carved = prepared(**keys, label="ner_tags", train_split="validation")
    assert {len(text) for text in (texts(carved, "validation"), texts(carved, "test"))} == {2}
    assert {text.split()[0] for text in texts(carved, "train", "validation", "test")} == {"validation"}
    other = prepared(**{**keys, "config": "other"}, label="ner_tags", test_split="test")
    assert {text.split()[0] for text in texts(other, "test")} == {"other-test"}


def classes(split: str, size: int, names: Sequence[str] | None, columns: Sequence[str] = ("text",)) -> datasets.Dataset:
    label = datasets.Value("int64") if names is None else datasets.ClassLabel(names=list(names))
    values: dict[str, Any] = {column: [f"{split} {column} {number}" for number in range(size)] for column in columns}
    features = datasets.Features({**dict.fromkeys(columns, STRING), "label": label})
    return datasets.Dataset.from_dict({**values, "label": [n % 3 for n in range(size)]}, features=features)


def test_classes_keep_the_names_of_their_features(prepared: Prepared, tmp_path: Path) -> None:
    source = write_hub(tmp_path / "hub", {
        "default": {"train": classes("train", 80, TOPICS), "test": classes("test", 13, TOPICS)}
    })  # fmt: skip
    task = prepared(source=source, test_split="test")
    assert (task.data.label_names, task.num_outputs) == (TOPICS, 4)
    assert task.data.test["text"] == [f"test text {number}" for number in range(13)]
    assert task.data.test["label"] == [number % 3 for number in range(13)]
    assert len(task.make_test()) == 13
    part = prepared(source=source, train_split="train[:50%]", test_split="train[50%:]")
    assert texts(part, "test") == {f"train text {number}" for number in range(40, 80)}
    reordered = prepared(source=source, test_split="test", label_names=list(TOPICS[::-1]))
    assert reordered.data.test["label"] == [3 - number % 3 for number in range(13)]


def test_pairs_of_texts_are_tested_on_a_split_of_their_own(prepared: Prepared, tmp_path: Path) -> None:
    columns, names = ("premise", "hypothesis"), ("entailment", "neutral", "contradiction")
    sizes = {"train": 60, "validation_matched": 9, "validation_mismatched": 9}
    source = write_hub(
        tmp_path / "hub", {"default": {split: classes(split, size, names, columns) for split, size in sizes.items()}}
    )
    task = prepared(source=source, text="premise", text_pair="hypothesis", test_split="validation_matched")
    assert task.data.label_names == names
    assert task.data.test["text_pair"] == [f"validation_matched hypothesis {number}" for number in range(9)]
    assert texts(task, "train", "validation") <= {f"train premise {number}" for number in range(60)}


def test_names_of_ids_without_features(prepared: Prepared, tmp_path: Path) -> None:
    source = write_hub(tmp_path / "hub", {"default": {"train": classes("train", 60, None)}})
    assert prepared(source=source).data.label_names == ("0", "1", "2")
    task = prepared(source=source, label_names=["low", "high", "mid"])
    assert task.data.label_names == ("low", "high", "mid")
    assert all(row["label"] == int(row["text"].split()[-1]) % 3 for row in task.data.test)


def asked(split: str, size: int) -> datasets.Dataset:
    rows = [
        {
            "id": f"{split}-{number}", "question": "what?", "context": f"{split} {number} was warm",
            "answers": {"text": ["warm"], "answer_start": [len(f"{split} {number} was ")]},
        }
        for number in range(size)
    ]  # fmt: skip
    return datasets.Dataset.from_list(rows)


def test_questions_of_a_configuration_and_its_splits(prepared: Prepared, tmp_path: Path) -> None:
    splits = {"train": asked("train", 40), "test": asked("test", 6), "dev": asked("dev", 30)}
    source = write_hub(tmp_path / "hub", {"german": splits, "other": {"train": asked("other", 40)}})
    keys = {"source": source, "kind": "question_answering", "max_length": 32}
    questions = prepared(**keys, config="german", test_split="test").data.questions
    assert [one.id for one in questions.test] == [f"test-{number}" for number in range(6)]
    assert {one.id.split("-")[0] for one in questions.train + questions.validation} == {"train"}
    questions = prepared(**keys, config="german", train_split="dev", test_split="test").data.questions
    assert {one.id.split("-")[0] for one in questions.train + questions.validation} == {"dev"}
    with pytest.raises(UserError, match="configuration 'other', split 'validation' cannot be loaded"):
        prepared(**keys, config="other")


def matched(split: str, size: int) -> datasets.Dataset:
    columns = {side: [f"{split} {side} {number}" for number in range(size)] for side in ("anchor", "positive")}
    return datasets.Dataset.from_dict(columns)


def test_embedding_pairs_of_a_configuration_and_its_splits(prepared: Prepared, tmp_path: Path) -> None:
    train, test = matched("train", 50), matched("test", 7)
    # one side of a pair of the test, and its first pair once more
    leaked = {"anchor": ["TEST anchor 3", "lone"], "positive": ["another", "test  positive 4"]}
    train = datasets.concatenate_datasets([train, datasets.Dataset.from_dict(leaked), test.select([0])])
    test = datasets.concatenate_datasets([test, test.select([0])])
    source = write_hub(tmp_path / "hub", {"pair": {"train": train, "test": test, "dev": matched("dev", 30)}})
    keys = {"source": source, "kind": "sentence_embedding", "text": "anchor", "text_pair": "positive", "config": "pair"}
    task = prepared(**keys, test_split="test")
    data: Any = task.data
    assert data.test == tuple((f"test anchor {number}", f"test positive {number}") for number in range(7))
    found = sorted((*data.validation, *data.train, *search_pairs(task)))
    assert found == sorted((f"train anchor {number}", f"train positive {number}") for number in range(50))
    assert len(data.validation) == 5
    data = prepared(**keys, train_split="dev").data
    assert {query.split()[0] for query, _ in (*data.train, *data.validation, *data.test)} == {"dev"}
    assert (len(data.validation), len(data.test)) == (3, 3)


def search_pairs(task: Task) -> list[tuple[str, str]]:
    """The pairs that the search has, out of what is left of the training split."""
    data, rows = task.data, task.search
    known = {number for part in (data.train, data.validation) for number in (int(q.split()[-1]) for q, _ in part)}
    missing = [number for number in range(50) if number not in known]
    assert len(rows) == 2 * len(missing)
    return [(f"train anchor {number}", f"train positive {number}") for number in missing]


HUB = "user/set"
UNLESS = "must be null unless source is a hub data set or a folder laid out like one, and source is"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "cola", "config": "sst2"}, f"tasks.cola.config: 'sst2' is not allowed; it {UNLESS} null"),
        ({"name": "squad", "test_split": "test"}, f"tasks.squad.test_split: 'test' is not allowed; it {UNLESS} null"),
        ({"source": "a.csv", "config": "de"}, f"tasks.mine.config: 'de' is not allowed; it {UNLESS} 'a.csv'"),
        ({"source": "a.csv", "train_split": "x"}, f"tasks.mine.train_split: 'x' is not allowed; it {UNLESS} 'a.csv'"),
        ({"source": "a.csv", "test_split": "x"}, f"tasks.mine.test_split: 'x' is not allowed; it {UNLESS} 'a.csv'"),
        ({"source": "tags.conll", "test_split": "test"}, f"{UNLESS} 'tags.conll'"),
        ({"source": "offline:imdb", "test_split": "test"}, f"{UNLESS} 'offline:imdb'"),
        ({"source": "headlines", "kind": "sentence_embedding", "config": "a"}, f"{UNLESS} 'headlines'"),
        (
            {"source": HUB, "kind": "question_answering", "test_source": "dev.json", "test_split": "test"},
            "tasks.mine.test_split: 'test' is not allowed; it must be null unless test_source is a hub data set",
        ),
        (
            {"name": "squad", "kind": "question_answering", "test_source": HUB, "config": "de"},
            f"tasks.squad.config: 'de' is not allowed; it {UNLESS} null",
        ),
        ({"name": "text", "source": HUB, "config": "de"}, "tasks.text.config: 'de' is not allowed; the task text has"),
        ({"source": HUB, "test_split": "train"}, "test_split: 'train' is not allowed; train and test must be differ"),
        (
            {"source": HUB, "kind": "question_answering", "train_split": "validation"},
            "train_split: 'validation' is not allowed; train and test must be different splits",
        ),
        (
            {"source": HUB, "kind": "regression", "label_names": ["a", "b"]},
            r"tasks.mine.label_names: \['a', 'b'\] is not allowed; it must be null unless there is a source and",
        ),
        ({"name": "polarity", "label_names": ["a", "b"]}, "must be null unless there is a source and kind is one of"),
    ],
)
def test_a_key_without_effect_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config("nano", {"tasks": [{"name": "mine", **keys}]})
    assert "\n" not in str(caught.value)


def test_questions_may_mix_a_file_and_a_hub_data_set() -> None:
    task = {"name": "mine", "kind": "question_answering", "source": "train.json", "test_source": HUB}
    [loaded] = load_config("nano", {"tasks": [{**task, "config": "de", "test_split": "train"}]}).tasks
    assert (loaded.config, loaded.test_split) == ("de", "train")


def test_keys_that_are_not_given_leave_the_digest_of_a_task_as_it_was() -> None:
    given = {"text": "a", "text_pair": "b", "label": "c", "metric": "pearson", "max_length": 64, "limit_rows": 100}
    earlier = {
        "e7d5ac4dfa87afd4": TaskConfig(),
        "e1e0de14af072343": TaskConfig(name="mine", source=HUB, kind="regression", **given),
        "58f019a5d372c3ca": TaskConfig(name="q", source="user/q", kind="question_answering", test_source="user/t"),
    }
    for known, task in earlier.items():
        assert digest(task_identity(task)) == known


def test_every_part_of_a_hub_data_set_has_a_digest_of_its_own() -> None:
    tasks = [TaskConfig(name="mine", source=HUB, **keys) for keys in (
        {}, {"config": "a"}, {"train_split": "a"}, {"test_split": "a"}, {"test_split": "b"},
        {"label_names": ("a", "b")}, {"label_names": ("b", "a")},
    )]  # fmt: skip
    assert len({digest(task_identity(task)) for task in tasks}) == len(tasks)
