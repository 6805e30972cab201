"""What the scripts print, where torch cannot be imported, against PyTorch, transformers and our own decoding."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast, pipeline

from elm_nni.data.answers import decode
from elm_nni.data.squad import Question
from elm_nni.data.windows import AnswerWindows
from elm_nni.export.onnx import export_onnx
from elm_nni.modeling import (
    ElmForMaskedLM,
    ElmForQuestionAnswering,
    ElmForSentenceEmbedding,
    ElmForSequenceClassification,
    ElmForTokenClassification,
    ElmPreTrainedModel,
)
from elm_nni.pipeline.evaluate_stage import System, onnx_system
from tests.data.byte_level import byte_level_tokenizer

from .tiny import printed, run_without_torch, tiny_config, tiny_tokenizer

TEXTS = ["the film was goodly", "Bad", "a long film was long", "films xyz good"]


def write_exported(model: ElmPreTrainedModel, folder: Path, **options: Any) -> Path:
    """The script of a model, whose folder is that of the script without ``onnx``."""
    model.eval().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    script = export_onnx(folder, folder / "onnx", **options).script
    assert script is not None
    return script


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> tuple[ElmForTokenClassification, Path]:
    torch.manual_seed(0)
    model = ElmForTokenClassification(tiny_config("cls"))
    return model, write_exported(model, tmp_path_factory.mktemp("tags"))


def expected_tags(
    model: ElmPreTrainedModel, tokenizer: PreTrainedTokenizerFast, words: list[str], length: int
) -> list[str | None]:
    encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=length, return_tensors="pt")
    with torch.inference_mode():
        classes = model(encoded["input_ids"]).logits[0].argmax(-1).tolist()
    numbers = encoded.word_ids(0)
    return [
        model.config.id2label[classes[numbers.index(word)]] if word in numbers else None for word in range(len(words))
    ]


def test_tags_are_those_of_the_first_piece_of_each_word(tagger: tuple[ElmForTokenClassification, Path]) -> None:
    model, script = tagger
    texts = [*TEXTS, " ".join(["goodly film"] * 30), ""]
    lines = printed(script, *texts)
    assert [line["words"] for line in lines] == [text.split() for text in texts]
    expected = [expected_tags(model, tiny_tokenizer(), text.split(), 40) for text in texts[:-1]]
    assert [line["tags"] for line in lines] == [*expected, []]
    # the first and not the last piece of a word, and nothing for a word that is cut off
    assert len({tag for tags in expected for tag in tags}) > 2
    assert expected[-1][-1] is None


def test_words_have_the_blank_before_them_that_the_tokenizer_marks_them_by(
    tagger: tuple[ElmForTokenClassification, Path], tmp_path: Path
) -> None:
    model, script = tagger
    tokenizer = byte_level_tokenizer(TEXTS * 5, framed=True)
    shutil.copytree(script.parent, tmp_path / "onnx")
    tokenizer.backend_tokenizer.save(str(tmp_path / "onnx" / "tokenizer.json"))
    (line,) = printed(tmp_path / "onnx" / "infer.py", TEXTS[2])
    first, *rest = TEXTS[2].split()
    marked = [first, *(f" {word}" for word in rest)]
    assert line["tags"] == expected_tags(model, tokenizer, marked, 40)
    assert line["tags"] != expected_tags(model, tokenizer, [first, *rest], 40)


@pytest.fixture(scope="module")
def answerer(tmp_path_factory: pytest.TempPathFactory) -> tuple[ElmForQuestionAnswering, Path]:
    torch.manual_seed(0)
    model = ElmForQuestionAnswering(tiny_config("cls"))
    return model, write_exported(model, tmp_path_factory.mktemp("answers"), token_types=True, max_length=36)


def question_of(text: str, context: str) -> Question:
    return Question(text, context, text, (), ())


def flat_logits(model: ElmPreTrainedModel, windows: AnswerWindows) -> np.ndarray:
    rows = []
    for index in range(len(windows)):
        batch = windows.batch([index])
        with torch.inference_mode():
            found = model(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
        rows.append(torch.stack([found.start_logits[0], found.end_logits[0]], dim=-1).numpy())
    return np.concatenate(rows)


def test_answers_are_those_of_our_own_decoding(answerer: tuple[ElmForQuestionAnswering, Path]) -> None:
    model, script = answerer
    asked = ["the film was", "was the long film", "  good "]
    # the last question is cut to a quarter of the window
    asked.append("the film was long " * 5)
    contexts = ["the film was goodly and long a film", "A bad  film", "good films the long film was bad"]
    pairs = [(question, context) for question in asked for context in contexts]
    tokenizer = AutoTokenizer.from_pretrained(script.parent.parent)
    windows = AnswerWindows([question_of(*pair) for pair in pairs], tokenizer, 36, stride=12, max_query_length=9)
    assert len(windows) == len(pairs)
    answers = decode(windows, flat_logits(model, windows))
    lines = printed(script, *("\t".join(pair) for pair in pairs))
    assert [line["question"] for line in lines] == [question for question, _ in pairs]
    assert [line["answer"] for line in lines] == [answer.text for answer in answers]
    assert [line["score"] for line in lines] == pytest.approx([answer.spans[0].score for answer in answers], abs=1e-4)
    assert [line["no_answer"] for line in lines] == pytest.approx([sum(answer.null) for answer in answers], abs=1e-4)
    assert len({line["answer"] for line in lines}) > 3


def test_a_long_context_is_read_in_windows(answerer: tuple[ElmForQuestionAnswering, Path]) -> None:
    """Against every span of every window, by hand."""
    model, script = answerer
    words = np.random.default_rng(0).choice(["film", "good", "bad", "long", "films", "a", "was"], 90)
    question, context = "the film", " ".join(words)
    encoded = tiny_tokenizer()(
        question, context, truncation="only_second", max_length=36, stride=12, return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )  # fmt: skip
    assert len(encoded["input_ids"]) > 3
    spans, nulls = {}, []
    for window, ids in enumerate(encoded["input_ids"]):
        with torch.inference_mode():
            types = torch.tensor([encoded["token_type_ids"][window]])
            found = model(torch.tensor([ids]), token_type_ids=types)
        start_T, end_T = found.start_logits[0].tolist(), found.end_logits[0].tolist()
        nulls.append(start_T[0] + end_T[0])
        inside = [place for place, part in enumerate(encoded.sequence_ids(window)) if part == 1]
        for first in inside:
            for last in (place for place in inside if first <= place < first + 30):
                begin, end = encoded["offset_mapping"][window][first][0], encoded["offset_mapping"][window][last][1]
                spans[start_T[first] + end_T[last]] = context[begin:end]
    (line,) = printed(script, f"{question}\t{context}")
    assert line["answer"] == spans[max(spans)]
    assert line["score"] == pytest.approx(max(spans), abs=1e-4)
    assert line["no_answer"] == pytest.approx(min(nulls), abs=1e-4)


def test_without_a_context_there_is_no_answer(answerer: tuple[ElmForQuestionAnswering, Path]) -> None:
    (line,) = printed(answerer[1], "the film was\t")
    assert line["answer"] == ""
    assert "score" not in line
    done = run_without_torch(answerer[1], "the film was")
    assert done.returncode == 1
    assert done.stderr == "no tab in 'the film was': write a question, a tab and its context\n"


def test_an_answer_has_at_most_thirty_tokens(answerer: tuple[ElmForQuestionAnswering, Path], tmp_path: Path) -> None:
    """The same with the limit at one token."""
    model, script = answerer
    shutil.copytree(script.parent, tmp_path / "onnx")
    short = tmp_path / "onnx" / "infer.py"
    assert "MOST_TOKENS = 30\n" in short.read_text()
    short.write_text(short.read_text().replace("MOST_TOKENS = 30", "MOST_TOKENS = 1"))
    contexts = ["the film was goodly and long a film", "good films was bad", "bad film was a long good film"]
    windows = AnswerWindows(
        [question_of("the film was", context) for context in contexts],
        AutoTokenizer.from_pretrained(script.parent.parent), 36, 12, 9,
    )  # fmt: skip
    logits, given = flat_logits(model, windows), [f"the film was\t{context}" for context in contexts]
    limited, free = ([one.text for one in decode(windows, logits, max_answer_tokens=most)] for most in (1, 30))
    assert [[line["answer"] for line in printed(one, *given)] for one in (short, script)] == [limited, free]
    assert limited != free


def test_vectors_and_their_cosine(tmp_path: Path) -> None:
    model = ElmForSentenceEmbedding(tiny_config("mean", sentence_embedding_size=6, normalize_embeddings=False))
    script = write_exported(model, tmp_path)
    vectors = []
    for text in TEXTS[:2]:
        with torch.inference_mode():
            vectors.append(model(tiny_tokenizer()(text, return_tensors="pt")["input_ids"]).sentence_embeddings[0])
    *lines, last = printed(script, *TEXTS[:2])
    np.testing.assert_allclose([line["embedding"] for line in lines], torch.stack(vectors), atol=1e-5)
    assert [line["text"] for line in lines] == TEXTS[:2]
    assert last == {"cosine": pytest.approx(float(torch.cosine_similarity(*vectors, dim=0)), abs=1e-5)}
    assert [list(line) for line in printed(script, *TEXTS)] == [["text", "embedding"]] * len(TEXTS)


def test_hidden_tokens(tmp_path: Path) -> None:
    """The five best tokens, their probabilities, and the logits of packed rows without ``document_ids`` in the file."""
    model = ElmForMaskedLM(tiny_config("cls", vocab_size=len(tiny_tokenizer())))
    script = write_exported(model, tmp_path)
    fill = pipeline("fill-mask", model=model, tokenizer=AutoTokenizer.from_pretrained(tmp_path), top_k=5, device="cpu")
    text = "the [MASK] was goodly and [MASK]"
    none, line = printed(script, "no mask", text)
    assert none["masks"] == []
    expected = fill(text)
    assert [[name for name, _ in mask] for mask in line["masks"]] == [
        [one["token_str"] for one in mask] for mask in expected
    ]
    np.testing.assert_allclose(
        [[share for _, share in mask] for mask in line["masks"]],
        [[one["score"] for one in mask] for mask in expected], atol=1e-5,
    )  # fmt: skip
    documents = torch.tensor([[1, 1, 1, 2, 2, 3, 0, 0], [1, 1, 1, 1, 1, 1, 1, 2]])
    ids = torch.randint(5, len(tiny_tokenizer()), documents.shape)
    batch = {"input_ids": ids, "attention_mask": (documents > 0).long(), "document_ids": documents}
    system = onnx_system("file", {"text": script.with_name("model.onnx")}, System("", {}), threads=1)
    with torch.inference_mode():
        logits = model(**batch).logits
        packed_as_one = model(ids, attention_mask=batch["attention_mask"]).logits
    found, valid = system.logits["text"](batch), documents > 0
    torch.testing.assert_close(found[valid], logits[valid], atol=1e-5, rtol=0)
    assert (packed_as_one - logits)[valid].abs().max() > 1e-2
    # a tokenizer without a mask token can hide none
    file = tmp_path / "tokenizer_config.json"
    file.write_text(file.read_text().replace('"mask_token"', '"other_token"'))
    assert export_onnx(tmp_path, tmp_path / "maskless").script is None


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_several_labels_and_values(problem: str, tmp_path: Path) -> None:
    sizes = {"num_labels": 1, "id2label": None} if problem == "regression" else {}
    model = ElmForSequenceClassification(tiny_config("mean", problem_type=problem, **sizes))
    lines = printed(write_exported(model, tmp_path), *TEXTS)
    for line, text in zip(lines, TEXTS, strict=True):
        with torch.inference_mode():
            logits = model(tiny_tokenizer()(text, return_tensors="pt")["input_ids"]).logits[0]
        if problem == "regression":
            assert line["value"] == pytest.approx(float(logits), abs=1e-5)
        else:
            assert line["labels"] == [model.config.id2label[place] for place in range(3) if logits[place] > 0]
    if problem != "regression":
        assert len({len(line["labels"]) for line in lines}) > 1


def test_without_texts_a_script_tells_its_use(tagger: tuple[ElmForTokenClassification, Path]) -> None:
    done = run_without_torch(tagger[1])
    assert done.returncode == 1
    assert done.stderr.startswith("Tag words: python infer.py")
