"""GLUE by name and its submissions. A local folder of the hub repository's layout stands in for the network: the same
configurations, splits, columns and features; the code that loads it is the real one."""

from dataclasses import replace

import datasets
import numpy as np
import pytest

from elm_nni.data import tasks
from elm_nni.data.glue import GLUE_TASKS, load_submission_rows, write_submission
from elm_nni.data.tasks import TASKS, load_task
from elm_nni.errors import UserError

from .glue_files import COLUMNS, SIZES, label_of, write_glue


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return write_glue(tmp_path_factory.mktemp("glue"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def local(repository, cache, monkeypatch):
    """Loads a GLUE task by its name from the local folder."""

    def load(name):
        monkeypatch.setitem(tasks.TASKS, name, replace(TASKS[name], source=repository))
        return load_task(name, cache_dir=cache)

    return load


@pytest.mark.parametrize("name", GLUE_TASKS)
def test_columns_splits_and_labels(name, local):
    columns, classes = COLUMNS[name]
    spec = TASKS[name]
    test_split = "validation_matched" if name == "mnli" else "validation"
    assert (spec.source, spec.config, spec.test_split) == ("nyu-mll/glue", name, test_split)
    data = local(name)
    withheld, leaked = (1 if classes else 0), (1 if name == "mnli" else 0)
    assert len(data.test) == 31 - withheld
    assert len(data.validation) == 6
    assert len(data.train) == 61 - withheld - 6 - leaked
    assert data.label_names == tuple(classes or ())
    assert (data.metric, data.metrics) == (spec.metric, spec.reported)
    assert data.is_pair == (len(columns) == 2)
    for row in data.test:
        number = int(row["text"].split()[-1])
        assert row["text"] == f"{test_split} {columns[0]} {number}"
        assert not data.is_pair or row["text_pair"] == f"{test_split} {columns[1]} {number}"
        assert row["label"] == pytest.approx(label_of(number, classes))
    assert list(data.extra_tests) == (["mismatched"] if name == "mnli" else [])


def test_mnli_has_its_mismatched_rows_and_trains_on_none_of_them(local):
    data = local("mnli")
    rows = data.extra_tests["mismatched"]
    assert rows["text"][:] == [f"validation_mismatched premise {number}" for number in range(28)]
    assert rows["text_pair"][:] == [f"validation_mismatched hypothesis {number}" for number in range(28)]
    assert rows["label"][:] == [number % 3 for number in range(28)]
    assert not any("MISMATCHED" in text for part in (data.train, data.validation) for text in part["text"])


def test_metrics_of_the_benchmark():
    accuracy, both = ("accuracy",), ("f1_accuracy", "f1", "accuracy")
    expected = {"cola": ("matthews",), "mrpc": both, "qqp": both, "stsb": ("pearson_spearman", "pearson", "spearman")}
    found = {name: spec.reported for name, spec in GLUE_TASKS.items()}
    assert found == dict.fromkeys((name for name in COLUMNS if name != "ax"), accuracy) | expected
    assert {name: TASKS[name] for name in GLUE_TASKS} == GLUE_TASKS


FILES = {
    "cola": {"CoLA.tsv": "test"}, "sst2": {"SST-2.tsv": "test"}, "mrpc": {"MRPC.tsv": "test"},
    "qqp": {"QQP.tsv": "test"}, "stsb": {"STS-B.tsv": "test"}, "qnli": {"QNLI.tsv": "test"},
    "mnli": {"MNLI-m.tsv": "test_matched", "MNLI-mm.tsv": "test_mismatched", "AX.tsv": "test"},
    "rte": {"RTE.tsv": "test"}, "wnli": {"WNLI.tsv": "test"},
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_submission_rows_are_all_there_in_the_order_of_their_index(name, repository, cache):
    columns, _ = COLUMNS[name]
    found = load_submission_rows(name, source=repository, cache_dir=cache)
    assert list(found) == list(FILES[name])
    for file, split in FILES[name].items():
        expected = {
            column: [f"{split} {source} {number}" for number in range(SIZES[split])]
            for column, source in zip(("text", "text_pair"), columns)
        }
        expected["text"][1] = expected["text"][0]
        expected["text_pair" if len(columns) == 2 else "text"][2] = ""
        assert found[file][:] == expected


def test_submission_rows_need_their_index(tmp_path):
    def rows(**columns):
        folder = tmp_path / "-".join(columns)
        (folder / "rte").mkdir(parents=True)
        table = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [-1, -1]} | columns
        datasets.Dataset.from_dict(table).to_parquet(folder / "rte" / "test-0.parquet")
        (folder / "README.md").write_text(
            "---\nconfigs:\n- config_name: rte\n  data_files:\n  - split: test\n    path: rte/test-*\n---\n"
        )
        return load_submission_rows("rte", source=str(folder), cache_dir=tmp_path / "cache")

    with pytest.raises(UserError, match="configuration 'rte', split 'test' has no column 'idx'; its columns: sent"):
        rows(number=[0, 1])
    with pytest.raises(UserError, match="column 'idx' does not number the rows from 0 to 1"):
        rows(idx=[1, 2])
    with pytest.raises(UserError, match="task 'polarity' is not one of GLUE; known: cola, sst2"):
        load_submission_rows("polarity")


SUBMISSIONS = {
    "cola": ({"CoLA.tsv": [1, 0, 0]}, {"CoLA.tsv": b"index\tprediction\n0\t1\n1\t0\n2\t0\n"}),
    "sst2": ({"SST-2.tsv": [0, 1]}, {"SST-2.tsv": b"index\tprediction\n0\t0\n1\t1\n"}),
    "mrpc": ({"MRPC.tsv": [1]}, {"MRPC.tsv": b"index\tprediction\n0\t1\n"}),
    "qqp": ({"QQP.tsv": [0, 0, 1]}, {"QQP.tsv": b"index\tprediction\n0\t0\n1\t0\n2\t1\n"}),
    "stsb": (
        {"STS-B.tsv": np.array([2.71828, -0.4, 5.2, 0.0004, -0.0, 4.9996], dtype=np.float32)},
        {"STS-B.tsv": b"index\tprediction\n0\t2.718\n1\t0.000\n2\t5.000\n3\t0.000\n4\t0.000\n5\t5.000\n"},
    ),
    "mnli": (
        {"MNLI-m.tsv": [0, 1, 2], "MNLI-mm.tsv": [2, 0], "AX.tsv": [1]},
        {
            "MNLI-m.tsv": b"index\tprediction\n0\tentailment\n1\tneutral\n2\tcontradiction\n",
            "MNLI-mm.tsv": b"index\tprediction\n0\tcontradiction\n1\tentailment\n",
            "AX.tsv": b"index\tprediction\n0\tneutral\n",
        },
    ),
    "qnli": ({"QNLI.tsv": [1, 0]}, {"QNLI.tsv": b"index\tprediction\n0\tnot_entailment\n1\tentailment\n"}),
    "rte": ({"RTE.tsv": [0, 1]}, {"RTE.tsv": b"index\tprediction\n0\tentailment\n1\tnot_entailment\n"}),
    "wnli": ({"WNLI.tsv": [1, 0]}, {"WNLI.tsv": b"index\tprediction\n0\t1\n1\t0\n"}),
}


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_submission_files_byte_by_byte(name, tmp_path):
    predictions, expected = SUBMISSIONS[name]
    folder = tmp_path / "new" / "submission"
    paths = write_submission(folder, name, {file: np.asarray(found) for file, found in predictions.items()})
    assert paths == [folder / file for file in expected]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected


@pytest.mark.parametrize(
    ("name", "predictions", "message"),
    [
        ("mnli", {"MNLI-m.tsv": [0]}, "predictions must be of MNLI-m.tsv, MNLI-mm.tsv, AX.tsv, got MNLI-m.tsv"),
        ("rte", {"RTE.tsv": [0, 2]}, r"RTE.tsv must be class ids within 0..1"),
        ("rte", {"RTE.tsv": [0.0, 1.0]}, r"RTE.tsv must be class ids within 0..1"),
        ("rte", {"RTE.tsv": [[0.3, 0.7]]}, r"RTE.tsv must have a shape \(N,\), got \(1, 2\)"),
        ("rte", {"RTE.tsv": []}, r"RTE.tsv must have a shape \(N,\), got \(0,\)"),
        ("stsb", {"STS-B.tsv": [1.0, float("nan")]}, "STS-B.tsv are NaN or infinite"),
        ("imdb", {"IMDB.tsv": [1]}, "task 'imdb' is not one of GLUE"),
    ],
)
def test_bad_predictions_write_nothing(name, predictions, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_submission(tmp_path / "out", name, predictions)
    assert not (tmp_path / "out").exists()


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make folder"):
        write_submission(tmp_path / "file" / "out", "rte", {"RTE.tsv": [0]})
