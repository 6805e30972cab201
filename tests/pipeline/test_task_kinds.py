"""Whole runs of each kind of task: what is exported scores what was reported, with transformers alone."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizerFast,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    pipeline,
)

from elm_nni.data.answer_scores import best_null_threshold, score_answers
from elm_nni.data.answers import decode, predictions
from elm_nni.data.pairs import retrieval_scores
from elm_nni.errors import UserError
from elm_nni.pipeline.config import Config
from elm_nni.pipeline.conversion import build
from elm_nni.pipeline.evaluate_stage import elm_system
from elm_nni.pipeline.plan import make_plan
from elm_nni.pipeline.runner import Run
from elm_nni.pipeline.store import StageStore
from elm_nni.pipeline.validation import validate
from tests.export.tiny import printed

from .conftest import BAD, GOOD, PLAIN, settings

Finished = Callable[..., tuple[Run, dict[str, Any], Path]]

FILES = {"onnx": True, "int8": True}


def int8_scores(results: dict[str, Any], task: str) -> dict[str, float]:
    """The metrics of the int8 file."""
    return next(row for row in results["systems"] if row["name"] == "ELM int8 ONNX")["metrics"][task]


def exact_script(folder: Path) -> Path:
    """The exported script, made to take the file that has not lost any bits."""
    script = folder / "onnx" / "infer.py"
    assert "MODEL = 'model-int8.onnx'" in script.read_text()
    script.write_text(script.read_text().replace("model-int8.onnx", "model.onnx"))
    return script


@pytest.fixture
def finished(own: Path, tmp_path: Path) -> Finished:
    """Runs the small configuration with changes; gives the run, its results and the folder of the model."""

    def run(**changes: Any) -> tuple[Run, dict[str, Any], Path]:
        values = {**settings(own), **changes}
        values["limits"] = {"max_params_outside_embeddings": 60000}
        values["supernet"] = {**values["supernet"], "probe_rows": 16}
        validate(build(Config, values))
        one = Run(build(Config, values), StageStore(tmp_path / "store"), tmp_path / "run")
        results = one.all()
        # everything is found again, and nothing is different
        again = Run(build(Config, values), StageStore(tmp_path / "store"), tmp_path / "run")
        assert again.all() == results
        assert not again.trained
        return one, results, tmp_path / "run" / "model"

    return run


def sentence(rng: np.random.Generator, words: list[str], size: int) -> list[str]:
    return [str(word) for word in rng.choice(words, size=size)]


def test_several_labels(finished: Finished, own: Path, tmp_path: Path) -> None:
    rng, file = np.random.default_rng(0), tmp_path / "labels.jsonl"
    with file.open("w", encoding="utf-8") as out:
        for number in range(400):
            good, bad = bool(rng.integers(2)), bool(rng.integers(2))
            words = sentence(rng, PLAIN, 6) + sentence(rng, GOOD, 2 * good) + sentence(rng, BAD, 2 * bad)
            labels = ["praise"] * good + ["blame"] * bad
            out.write(json.dumps({"text": " ".join([*words, str(number)]), "label": labels}) + "\n")
    task = {"name": "moods", "source": str(file), "kind": "multi_label", "max_length": 16}
    run, results, folder = finished(tasks=[task])
    reported = results["tasks"]["moods"]
    assert reported["kind"] == "multi_label"
    assert sorted(reported["metrics"]) == ["f1_macro", "f1_micro", "subset_accuracy"]
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.problem_type == "multi_label_classification"
    assert model.config.id2label == {0: "blame", 1: "praise"}
    test = run.context.tasks["moods"].data.test
    with torch.no_grad():
        encoded = tokenizer(list(test["text"]), padding=True, truncation=True, max_length=16, return_tensors="pt")
        predicted = model(encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits > 0
    given = torch.tensor([[label in row for label in (0, 1)] for row in test["label"]])
    assert reported["metrics"]["subset_accuracy"] == pytest.approx(float((predicted == given).all(1).float().mean()))
    teacher = next(row for row in results["systems"] if row["name"].startswith("teacher"))
    # a teacher of random weights still knows its tokens apart
    assert teacher["tasks"]["moods"] > 0.7


def test_classes_of_tokens(finished: Finished, tmp_path: Path) -> None:
    rng, lines = np.random.default_rng(0), []
    for _ in range(300):
        for word in sentence(rng, GOOD + BAD + PLAIN, 6):
            lines.append(f"{word} {'B-good' if word in GOOD else 'B-bad' if word in BAD else 'O'}")
        lines.append("")
    file = tmp_path / "tags.conll"
    file.write_text("\n".join(lines), encoding="utf-8")
    task = {"name": "tags", "source": str(file), "max_length": 16}
    run, results, folder = finished(tasks=[task], export=FILES)
    reported = results["tasks"]["tags"]
    assert (reported["kind"], reported["metric"]) == ("token_classification", "entity_f1")
    model = AutoModelForTokenClassification.from_pretrained(folder)
    assert sorted(model.config.label2id) == ["B-bad", "B-good", "O"]
    rows = run.context.test_rows("tags")
    right = counted = 0
    for index in range(len(rows)):
        batch = rows.batch([index])
        with torch.no_grad():
            found = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.argmax(-1)
        keep = batch["labels"] != -100
        right, counted = right + int((found == batch["labels"])[keep].sum()), counted + int(keep.sum())
    assert reported["metrics"]["token_accuracy"] == pytest.approx(right / counted)
    teacher = next(row for row in results["systems"] if row["name"].startswith("teacher"))
    assert teacher["metrics"]["tags"]["token_accuracy"] > 0.9
    assert int8_scores(results, "tags")["token_accuracy"] == pytest.approx(right / counted, abs=0.05)
    tag = pipeline("token-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(folder), device="cpu")
    texts = ["the film was great and dull", "a cold scene"]
    lines = printed(exact_script(folder), *texts)
    # each word is one token; the pipeline leaves out O
    assert [
        [(word, tag) for word, tag in zip(line["words"], line["tags"]) if tag != "O"] for line in lines
    ] == [[(one["word"], one["entity"]) for one in tag(text)] for text in texts]  # fmt: skip


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """A SQuAD 2.0 file: which word follows "was"; every fifth question is about a film that is not there."""
    rng, paragraphs = np.random.default_rng(0), []
    for number in range(60):
        context, qas = "", []
        for index, noun in enumerate(("film", "plot", "story")):
            answer = sentence(rng, GOOD + BAD, 1)[0]
            context += f"the {noun} was "
            start = len(context)
            context += f"{answer} and "
            qas.append({
                "id": f"{number}-{index}", "question": f"the {noun} was", "is_impossible": False,
                "answers": [{"text": answer, "answer_start": start}],
            })  # fmt: skip
        missing = {"id": f"{number}-x", "question": "the scene was", "is_impossible": True, "answers": []}
        filler = " ".join(sentence(rng, PLAIN, 12))
        paragraphs.append({"context": f"{context} quite {number} {filler}", "qas": [*qas, missing]})
    data = [{"title": f"title {number % 30}", "paragraphs": [one]} for number, one in enumerate(paragraphs)]
    file = tmp_path / "questions.json"
    file.write_text(json.dumps({"version": "v2.0", "data": data}), encoding="utf-8")
    return file


def test_answers(finished: Finished, own: Path, questions: Path) -> None:
    task = {"name": "answers", "source": str(questions), "kind": "question_answering", "max_length": 24}
    teacher = {**settings(own)["teacher"], "head": "finetune", "finetune_epochs": 1}
    run, results, folder = finished(tasks=[task], teacher=teacher, export=FILES)
    reported = results["tasks"]["answers"]
    assert reported["metric"] == "f1"
    assert {"exact", "f1", "HasAns_f1", "NoAns_f1"} <= set(reported["metrics"])
    assert not any(row["name"] == "teacher half depth" for row in results["systems"])
    model, rows = AutoModelForQuestionAnswering.from_pretrained(folder), run.context.test_rows("answers")
    # windows overlap: there are more of them than questions
    assert len(rows) > len(rows.questions)

    def outputs(rows: Any) -> torch.Tensor:
        found = []
        for index in range(len(rows)):
            batch = rows.batch([index])
            with torch.no_grad():
                one = model(batch["input_ids"], batch["attention_mask"], batch.get("token_type_ids"))
            found.append(torch.stack([one.start_logits[0], one.end_logits[0]], dim=-1))
        return torch.cat(found)

    # test rows are scored with the threshold of the validation rows
    validation = run.context.tasks["answers"].validation
    answers = decode(validation, outputs(validation).numpy())
    threshold, best = best_null_threshold(answers, validation.questions, "f1")
    assert best > score_answers(predictions(answers, math.inf), validation.questions)["f1"]
    scores = score_answers(predictions(decode(rows, outputs(rows).numpy()), threshold), rows.questions)
    assert reported["metrics"] == pytest.approx({name: scores[name] for name in reported["metrics"]}, abs=1e-6)
    assert reported["n"] == len(rows.questions)
    # rows that all have an answer have no scores by answerable and not
    task = run.context.tasks["answers"]
    answered = task.data.windows([one for one in rows.questions if not one.is_impossible], run.context.tokenizer)
    assert set(task.scores(outputs(answered), answered)) == {"exact", "f1"}
    assert int8_scores(results, "answers")["f1"] == pytest.approx(reported["metrics"]["f1"], abs=0.1)
    # contexts of one window, where `predict` and the script look at the same spans
    data = run.context.tasks["answers"].data
    short = [replace(question, context=question.context[:40], starts=(), answers=()) for question in rows.questions]
    windows = data.windows(short, run.context.tokenizer)
    assert len(windows) == len(short)
    system = elm_system("ours", {"answers": folder}, "cpu")
    answers = decode(windows, run.context.tasks["answers"].outputs(system.logits["answers"], windows).numpy())
    lines = printed(exact_script(folder), *(f"{question.question}\t{question.context}" for question in short))
    assert [line["answer"] for line in lines] == [answer.text for answer in answers]
    odds = [line["no_answer"] - line["score"] for line in lines]
    assert odds == pytest.approx([answer.null_odds for answer in answers], abs=1e-4)


def test_a_linear_head_cannot_teach_answers(finished: Finished, questions: Path) -> None:
    task = {"name": "answers", "source": str(questions), "kind": "question_answering", "max_length": 24}
    with pytest.raises(UserError, match="teacher.head: linear is not allowed with task answers; it must be finetune"):
        finished(tasks=[task])


def test_sentence_embeddings(finished: Finished, own: Path, tmp_path: Path) -> None:
    rng, file = np.random.default_rng(0), tmp_path / "pairs.jsonl"
    with file.open("w", encoding="utf-8") as out:
        for number in range(300):
            words = sentence(rng, GOOD + BAD + PLAIN, 7)
            pair = {"query": " ".join(words[:5]), "document": " ".join([*words[::-1], str(number)])}
            out.write(json.dumps(pair) + "\n")
    task = {
        "name": "found", "source": str(file), "kind": "sentence_embedding", "text": "query", "text_pair": "document",
        "max_length": 16,
    }  # fmt: skip
    space = {**settings(own)["space"], "pooling": "mean"}
    run, results, folder = finished(tasks=[task], space=space, export=FILES)
    reported = results["tasks"]["found"]
    assert sorted(reported["metrics"]) == ["mrr", "recall_at_1", "recall_at_10"]
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    test = run.context.tasks["found"].data.test
    assert reported["n"] == len(test)
    vectors = []
    for texts in zip(*test):
        encoded = tokenizer(list(texts), padding=True, truncation=True, max_length=16, return_tensors="pt")
        with torch.no_grad():
            found = model(encoded["input_ids"], attention_mask=encoded["attention_mask"]).sentence_embeddings
        vectors.append(found.numpy())
    # the teacher's space, on the sphere
    assert vectors[0].shape[1] == 32
    np.testing.assert_allclose(np.linalg.norm(vectors[0], axis=1), 1, rtol=1e-5)
    assert retrieval_scores(*vectors) == pytest.approx(reported["metrics"])
    assert int8_scores(results, "found")["recall_at_10"] == pytest.approx(reported["metrics"]["recall_at_10"], abs=0.1)
    *lines, last = printed(exact_script(folder), *test[0])
    np.testing.assert_allclose([line["embedding"] for line in lines], [vectors[0][0], vectors[1][0]], atol=1e-5)
    assert last["cosine"] == pytest.approx(float(vectors[0][0] @ vectors[1][0]), abs=1e-5)
    teacher = next(line for line in results["systems"] if line["name"].startswith("teacher"))
    by_chance = sum(1 / rank for rank in range(1, len(test) + 1)) / len(test)
    assert teacher["tasks"]["found"] > 2 * by_chance


# --- language modelling ---

@pytest.fixture(scope="module")
def causal_teacher(own: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of two layers with a vocabulary of whole words."""
    folder = tmp_path_factory.mktemp("gpt2")
    vocabulary = {word: number for number, word in enumerate(["<end>", "<unk>", *GOOD, *BAD, *PLAIN])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<end>", eos_token="<end>", pad_token="<end>"
    ).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=len(vocabulary), n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
        )
        GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def causal(own: Path, teacher: Path, **distillation: Any) -> dict[str, Any]:
    return {
        "space": {**settings(own)["space"], "preset": "elm-causal-nano"},
        "teacher": {"name": str(teacher), "precision": "fp32"}, "tasks": ["text"],
        "data": {**settings(own)["data"], "holdout_rows": 24},
        "distillation": {"objective": "distill+clm", **distillation},
    }  # fmt: skip


def test_next_tokens(finished: Finished, own: Path, causal_teacher: Path) -> None:
    run, results, folder = finished(**causal(own, causal_teacher))
    reported = results["tasks"]["text"]
    assert (reported["kind"], reported["n"]) == ("causal_lm", 8)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    # the likelihood, counted by hand: each document of a row by itself
    packed, total, counted = run.context.corpus[1], 0.0, 0
    for row in range(16, 24):
        batch = packed.batch([row])
        documents = batch["document_ids"][0]
        for number in range(1, int(documents.max()) + 1):
            ids = batch["input_ids"][0][documents == number][None]
            with torch.no_grad():
                logits = model(ids).logits[0, :-1].log_softmax(-1)
            total += float(logits.gather(1, ids[0, 1:, None]).sum())
            counted += ids.shape[1] - 1
    assert reported["value"] == pytest.approx(total / counted, rel=1e-5)
    assert reported["metrics"]["perplexity"] == pytest.approx(math.exp(-total / counted), rel=1e-5)
    characters = run.context.test_rows("text").num_bytes
    assert reported["metrics"]["bits_per_byte"] == pytest.approx(-total / math.log(2) / characters, rel=1e-5)
    # the teacher has a row of its own, with its own head
    teacher = next(line for line in results["systems"] if line["name"].startswith("teacher"))
    assert "its own head" in teacher["note"]
    assert model.config.eos_token_id == tokenizer.eos_token_id == 0
    prompts = tokenizer(["the film was", "a"], return_tensors="pt", padding=True, padding_side="left")
    made = model.generate(**prompts, max_new_tokens=5, do_sample=False)
    assert made.shape == (2, prompts["input_ids"].shape[1] + 5)
    assert tokenizer.decode(made[0], skip_special_tokens=True).startswith("the film was")


def test_a_model_that_generates_has_no_onnx_file(finished: Finished, own: Path, causal_teacher: Path) -> None:
    with pytest.raises(UserError, match="export.onnx: true is not allowed with task text; .* causal_lm, .* a cache"):
        finished(**causal(own, causal_teacher), export={"onnx": True})


@pytest.mark.parametrize("asks", [{"tasks": ["text"]}, {"distillation": {"objective": "clm"}}])
def test_a_teacher_that_reads_ahead_cannot_teach_next_tokens(
    finished: Finished, own: Path, causal_teacher: Path, asks: dict[str, Any]
) -> None:
    changes = {**causal(own, own / "teacher", objective="distill"), "tasks": settings(own)["tasks"], **asks}
    changes["teacher"] = {**changes["teacher"], "lm_head": "refit"}
    with pytest.raises(UserError, match="teacher.name: .* must be a causal model, since this one reads the tokens"):
        finished(**changes)


def test_text_is_learnt(finished: Finished, own: Path, causal_teacher: Path, tmp_path: Path) -> None:
    """Text of one repeated sentence is predicted well, by the objective of the text alone."""
    file = tmp_path / "same.txt"
    file.write_text("\n".join(["the film was very warm and the plot was quite dull"] * 400), encoding="utf-8")
    changes = causal(own, causal_teacher, objective="clm", lambda_feature=0.0)
    changes["data"]["corpus"] = str(file)
    training = {"steps": 60, "batch_size": 8, "lr": 1e-2, "checkpoint_every": 30}
    _, results, _ = finished(**changes, retrain={"pretrain": training, "finetune": training})
    # ten of eleven words follow from those before
    assert results["tasks"]["text"]["metrics"]["perplexity"] < 1.6
    assert results["systems"][0]["tasks"]["text"] > results["systems"][-1]["tasks"]["text"]


def test_hidden_tokens_with_a_fitted_head_and_a_trimmed_vocabulary(finished: Finished, own: Path) -> None:
    teacher = {**settings(own)["teacher"], "lm_head": "refit", "lm_head_steps": 20}
    run, results, folder = finished(
        tasks=["text"], teacher=teacher, data={**settings(own)["data"], "holdout_rows": 24},
        distillation={"objective": "distill+mlm"}, vocabulary={"trim": True, "min_count": 1}, export=FILES,
    )  # fmt: skip
    reported, kept = results["tasks"]["text"], results["vocabulary"]
    assert reported["kind"] == "masked_lm"
    assert kept["of"] == 27
    assert kept["coverage"] == 1.0
    teacher_row = next(line for line in results["systems"] if line["name"].startswith("teacher"))
    assert "fitted language-model head" in teacher_row["note"]
    plan = {line.split("  ")[0]: line.split()[-1] for line in make_plan(run.config, run.context.store)}
    assert plan["supernet"] == plan["teacher"] == "cached"
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer) == kept["tokens"]
    rows, total, counted = run.context.test_rows("text"), 0.0, 0
    for row in range(len(rows)):
        batch = rows.batch([row])
        with torch.no_grad():
            logits = model(
                batch["input_ids"], attention_mask=batch["attention_mask"], document_ids=batch["document_ids"]
            ).logits.log_softmax(-1)
        keep = batch["labels"] != -100
        total += float(logits[keep].gather(1, batch["labels"][keep][:, None]).sum())
        counted += int(keep.sum())
    assert reported["value"] == pytest.approx(total / counted, rel=1e-5)
    # documents of a row are not mixed; the model is too young to tell that, so a unit test of the file does
    assert int8_scores(results, "text")["log_likelihood"] == pytest.approx(total / counted, rel=0.02)
    fill = pipeline("fill-mask", model=model, tokenizer=tokenizer, top_k=5, device="cpu")
    text = "the film was [MASK]"
    (line,) = printed(exact_script(folder), text)
    assert [name for name, _ in line["masks"][0]] == [one["token_str"] for one in fill(text)]


def test_a_smaller_vocabulary_serves_tasks_too(finished: Finished, own: Path, tmp_path: Path) -> None:
    letters = [chr(ord("a") + place) for place in range(26)] + [str(digit) for digit in range(10)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "neverseen", *GOOD, "unused", *BAD, *PLAIN]
    # "a" is a word too
    words += [*(one for one in letters if one not in words), *(f"##{one}" for one in letters)]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    full = BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(tmp_path / "teacher")
    full.save_pretrained(tmp_path / "teacher")
    teacher = {"name": str(tmp_path / "teacher"), "precision": "fp32", "head": "finetune", "finetune_epochs": 1}
    run, results, folder = finished(teacher=teacher, vocabulary={"trim": True})
    assert results["vocabulary"] == {"tokens": len(words) - 2, "of": len(words), "coverage": 1.0}
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer) == len(words) - 2
    # the teacher reads the same tokens, by its own ids
    text = "the film was great and 42 warm"
    ids = torch.tensor(tokenizer(text)["input_ids"])
    expected = full(text)["input_ids"]
    assert ids.tolist() != expected
    assert run.context.teacher.model_ids(ids).tolist() == expected
    assert run.context.teacher_in("bf16").model_ids(ids).tolist() == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distillation": {"objective": "clm"}}, "objective: clm is not allowed; the space is not causal"),
        ({"tasks": ["text"]}, "no language-model head"),
        ({"tasks": [{"name": "mine", "source": "x.csv", "test_source": "y.csv"}]}, "it belongs to question_answering"),
        ({"vocabulary": {"trim": True, "max_size": 3}}, "max_size"),
        ({"tasks": [{"name": "headlines", "metric": "f1"}]}, "metrics of sentence_embedding are fixed"),
        ({"tasks": ["text"], "data": {"holdout_rows": 2}}, "holdout_rows: 2 is not allowed with task text"),
    ],
)
def test_what_cannot_be_is_said(finished: Finished, own: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        finished(**{**changes, "data": {**settings(own)["data"], "holdout_rows": 24, **changes.get("data", {})}})
