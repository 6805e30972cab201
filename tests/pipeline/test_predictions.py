"""The prediction files of a run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from elm_nni.cli import app
from elm_nni.data.answer_scores import score_answers
from elm_nni.data.glue import load_submission_rows
from elm_nni.data.tasks import TASKS
from elm_nni.errors import UserError
from elm_nni.pipeline.config import Config
from elm_nni.pipeline.conversion import build
from elm_nni.pipeline.predictions import write_run_predictions
from elm_nni.pipeline.runner import Run
from elm_nni.pipeline.store import StageStore

from ..data.glue_files import write_glue
from .conftest import settings
from .test_task_kinds import questions  # noqa: F401 (a fixture)


@pytest.fixture
def glue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """MNLI comes from a local folder."""
    source = write_glue(tmp_path / "glue")
    monkeypatch.setitem(TASKS, "mnli", replace(TASKS["mnli"], source=source, max_length=16))
    return source


def small(own: Path, **changes: object) -> Config:
    limits = {"limits": {"max_params_outside_embeddings": 60000}}
    return build(Config, {**settings(own), **limits, **changes})


def test_a_submission_to_glue(own: Path, glue: str, tmp_path: Path) -> None:
    run = Run(small(own, tasks=["mnli"]), StageStore(tmp_path / "store"), tmp_path / "run")
    results = run.all()
    # both sets of test rows are scored
    assert sorted(results["tasks"]["mnli"]["metrics"]) == ["accuracy", "mismatched accuracy"]
    runner = CliRunner()
    out = tmp_path / "submission"
    given = ["predict", str(tmp_path / "run"), "--out", str(out), "--store", str(tmp_path / "store")]
    answer = runner.invoke(app, given)
    assert answer.exit_code == 0, answer.output
    named = [line.rsplit("/", 1)[-1] for line in answer.output.splitlines()[-3:]]
    assert named == ["MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"]
    folder = tmp_path / "run" / "model"
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for file, rows in load_submission_rows("mnli", source=glue).items():
        lines = (out / file).read_text(encoding="utf-8").splitlines()
        assert lines[0] == "index\tprediction"
        for index, row in enumerate(rows):
            encoded = tokenizer(row["text"], row["text_pair"], truncation=True, max_length=16, return_tensors="pt")
            with torch.no_grad():
                best = int(model(**encoded).logits.argmax())
            assert lines[index + 1] == f"{index}\t{model.config.id2label[best]}"
        assert len(lines) == len(rows) + 1


def test_answers_to_questions(own: Path, questions: Path, tmp_path: Path) -> None:  # noqa: F811
    task = {"name": "answers", "source": str(questions), "kind": "question_answering", "max_length": 24}
    teacher = {**settings(own)["teacher"], "head": "finetune", "finetune_epochs": 1}
    run = Run(small(own, tasks=[task], teacher=teacher), StageStore(tmp_path / "store"), tmp_path / "run")
    files = write_run_predictions(run, tmp_path / "out")
    assert [file.name for file in files] == ["predictions.json", "nbest_predictions.json", "null_odds.json"]
    test = run.context.tasks["answers"].data.questions.test
    found = json.loads((tmp_path / "out" / "answers" / "predictions.json").read_text(encoding="utf-8"))
    assert sorted(found) == sorted(question.id for question in test)
    assert all(not text or text in question.context for question in test for text in [found[question.id]])
    # the files score what the table of the run says
    task = json.loads((run.evaluate().folder / "evaluation.json").read_text(encoding="utf-8"))["tasks"]["answers"]
    assert score_answers(found, test)["f1"] == pytest.approx(task["value"])


def test_other_tasks_have_no_such_files(own: Path, tmp_path: Path) -> None:
    run = Run(small(own), StageStore(tmp_path / "store"), tmp_path / "run")
    with pytest.raises(UserError, match="tasks: reviews have no prediction files"):
        write_run_predictions(run, tmp_path / "out")
