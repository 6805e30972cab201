import json
import math

import numpy as np
import pytest
import torch

from elm_nni.data.answer_scores import best_null_threshold, score_answers
from elm_nni.data.answers import Answer, Span, candidates, decode, predictions, write_predictions
from elm_nni.data.squad import Question
from elm_nni.data.windows import AnswerWindows
from elm_nni.errors import UserError

from .byte_level import byte_level_tokenizer

CONTEXT = "Snow fell in  May (2016). Rain – at 東京 – fell in  May too."


def _question(name="q", context=CONTEXT, *answers):
    return Question(name, context, "When?", answers, tuple(context.index(answer) for answer in answers))


@pytest.fixture(scope="module", params=["bert", "roberta", "gpt2"])
def any_tokenizer(request, tokenizer):
    if request.param == "bert":
        return tokenizer
    return byte_level_tokenizer([CONTEXT, "When?"], framed=request.param == "roberta")


def _tokens(windows, question, start, end):
    """First and last token of the context that share a character with [start, end), found one by one."""
    touched = [n for n, (a, b) in enumerate(windows.characters(question).tolist()) if a < end and b > start]
    return touched[0], touched[-1]


def _mark(logits, windows, window, start, end, value):
    """Lets one window favour the answer of these characters."""
    first, last = _tokens(windows, int(windows.question_N[window]), start, end)
    begin = windows.ends[window] - windows.lengths[window] + windows.place_N[window] - windows.first_N[window]
    logits[begin + first, 0] += value
    logits[begin + last, 1] += value


def _logits(windows):
    return np.zeros((int(windows.lengths.sum()), 2))


@pytest.mark.parametrize(
    ("start", "text"),
    [
        (0, "Snow"),
        (55, "too."),
        (14, "May"),
        (50, "May"),
        (0, "Snow fell in  May"),
        (37, "東京"),
        (18, "(2016)."),
        (26, "Rain – at"),
    ],
)
def test_texts_come_from_the_context_itself(any_tokenizer, start, text):
    start = CONTEXT.index(text, max(0, start - 3))
    windows = AnswerWindows([_question()], any_tokenizer, 128, 8, 8)
    logits = _logits(windows)
    _mark(logits, windows, 0, start, start + len(text), 5.0)
    (answer,) = decode(windows, torch.from_numpy(logits).float())
    assert answer.text == text
    best = answer.spans[0]
    assert CONTEXT[best.start : best.end].strip() == text
    assert best.start in (start, start - 1)
    assert (best.start_logit, best.end_logit, best.score) == (5.0, 5.0, 10.0)
    assert answer.null_odds == -10.0


def test_labels_given_back_as_logits_are_the_answers(any_tokenizer):
    context = " ".join(f"word{number}" for number in range(90))
    questions = [_question(str(n), context, f"word{n} word{n + 1}") for n in range(10, 88)]
    # no number twice, no answer longer than what windows share
    windows = AnswerWindows(questions, any_tokenizer, 128, 40, 8)
    assert len(windows) > len(questions)
    logits = _logits(windows)
    begins_N = windows.ends - windows.lengths
    for side in (0, 1):
        logits[begins_N + windows.labels[:, side].numpy(), side] = 1.0
    answers = decode(windows, logits)
    assert score_answers(predictions(answers, math.inf), questions)["exact"] == 1.0


def test_no_token_outside_the_context_is_an_answer(any_tokenizer):
    windows = AnswerWindows([_question(), _question("r")], any_tokenizer, 128, 8, 8)
    logits = _logits(windows)
    for window in (0, 1):
        begin = windows.ends[window] - windows.lengths[window]
        place, end = begin + windows.place_N[window], begin + windows.place_N[window] + windows.num_context_N[window]
        logits[begin:place] = 100.0
        logits[end : windows.ends[window]] = 100.0
    _mark(logits, windows, 1, 0, 4, 2.0)
    answer = decode(windows, logits)[1]
    assert (answer.text, answer.null, answer.null_odds) == ("Snow", (100.0, 100.0), 196.0)


def test_an_answer_ends_after_it_begins_and_is_not_too_long(any_tokenizer):
    windows = AnswerWindows([_question()], any_tokenizer, 128, 8, 8)
    begin = int(windows.place_N[0])
    count = int(windows.num_context_N[0])
    logits = _logits(windows)
    # the end stands before the start: either counts alone
    logits[begin + 9, 0] = logits[begin + 3, 1] = 4.0
    logits[begin + 7, 1] = 1.0
    (answer,) = decode(windows, logits, n_best=1000)
    assert answer.spans[0].score == 4.0
    assert all(span.start < span.end for span in answer.spans)
    logits = _logits(windows)
    logits[begin, 0] = logits[begin + count - 1, 1] = 4.0
    assert decode(windows, logits, max_answer_tokens=count)[0].text == CONTEXT
    assert decode(windows, logits, max_answer_tokens=count - 1)[0].spans[0].score == 4.0
    only = {span.start for span in decode(windows, logits, 10_000, 1)[0].spans}
    assert all(len(span.text.split()) == 1 for span in decode(windows, logits, 10_000, 1)[0].spans)
    assert len(only) > 5


def _oracle(windows, question, logits, most):
    """Every span of a question with its score and text, window by window and token by token, best first."""
    context, characters = windows.questions[question].context, windows.characters(question).tolist()
    around = {}
    for window in windows.windows_of(question):
        first, count = int(windows.first_N[window]), int(windows.num_context_N[window])
        for token in range(first, first + count):
            score = min(token - first, first + count - 1 - token) + 0.01 * count
            if token not in around or score > around[token][0] + 1e-9:
                around[token] = (score, window)
    found = []
    for window in windows.windows_of(question):
        first, count = int(windows.first_N[window]), int(windows.num_context_N[window])
        begin = int(windows.ends[window] - windows.lengths[window] + windows.place_N[window])
        for start in range(count):
            if around[first + start][1] != window:
                continue
            for end in range(start, min(count, start + most)):
                text = context[characters[first + start][0] : characters[first + end][1]].strip()
                found.append((logits[begin + start, 0] + logits[begin + end, 1], text))
    return sorted(found, key=lambda pair: -pair[0])


@pytest.mark.parametrize(("max_length", "stride", "most"), [(40, 14, 6), (34, 3, 30), (200, 20, 9)])
def test_decoding_is_the_search_of_all_spans(any_tokenizer, max_length, stride, most):
    questions = [_question("a"), _question("b", "Snow fell."), _question("c", CONTEXT * 2), _question("d", "May")]
    windows = AnswerWindows(questions, any_tokenizer, max_length, stride, 8)
    logits = np.random.default_rng(max_length).normal(size=(int(windows.ends[-1]), 2))
    answers = decode(windows, logits, n_best=12, max_answer_tokens=most)
    for number, answer in enumerate(answers):
        expected = {}
        for score, text in _oracle(windows, number, logits, most)[:12]:
            if text:
                expected.setdefault(text, score)
        assert [span.text for span in answer.spans] == list(expected)
        assert [span.score for span in answer.spans] == pytest.approx(list(expected.values()))
        begins = [int(windows.ends[window] - windows.lengths[window]) for window in windows.windows_of(number)]
        null = min(float(logits[begin].sum()) for begin in begins)
        assert answer.null_odds == pytest.approx(null - next(iter(expected.values())))
        assert answer.id == questions[number].id


def test_a_token_counts_where_it_has_most_context(tokenizer):
    context = " ".join(f"{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")
    windows = AnswerWindows([_question("q", context)], tokenizer, 21, 10, 2)
    # special tokens 3 and question 2 leave 16 letters: a to p, g to v, m to z
    assert list(zip(windows.first_N, windows.num_context_N)) == [(0, 16), (6, 16), (12, 14)]
    logits = _logits(windows)
    at = context.index("n")
    # n is the 14th letter: two letters to its right in the first window, seven to its left in the second
    _mark(logits, windows, 1, at, at + 1, 3.0)
    letter_a_N = windows.ends - windows.lengths + windows.place_N - windows.first_N
    logits[letter_a_N[[0, 2]] + 13, 0] = 9.0
    (answer,) = decode(windows, logits)
    assert answer.text == "n"
    assert (answer.spans[0].start_logit, answer.spans[0].end_logit) == (3.0, 3.0)


def test_the_null_score_is_that_of_the_least_sure_window(tokenizer):
    windows = AnswerWindows([_question("q", "snow " * 40), _question("r", "snow")], tokenizer, 24, 4, 2)
    begins_N = windows.ends - windows.lengths
    assert len(windows) == 4
    logits = _logits(windows)
    logits[begins_N] = [[2.0, 2.0], [5.0, -2.0], [9.0, 9.0], [1.0, 0.5]]
    first, second = decode(windows, logits)
    assert (first.null, first.null_odds) == ((5.0, -2.0), 3.0)
    assert (second.null, second.null_odds) == ((1.0, 0.5), 1.5)


def test_spans_of_one_text_are_one_candidate(tokenizer):
    windows = AnswerWindows([_question()], tokenizer, 128, 8, 8)
    logits = _logits(windows)
    later = CONTEXT.rindex("May")
    _mark(logits, windows, 0, CONTEXT.index("May"), CONTEXT.index("May") + 3, 4.0)
    _mark(logits, windows, 0, later, later + 3, 5.0)
    (answer,) = decode(windows, logits, n_best=6)
    texts = [span.text for span in answer.spans]
    assert texts.count("May") == 1
    assert (texts[0], answer.spans[0].start) == ("May", later)


def test_a_context_without_tokens_has_no_answer(tokenizer, tmp_path):
    windows = AnswerWindows([_question("a", "\u200b"), _question("b", "snow")], tokenizer, 64, 8, 8)
    answers = decode(windows, np.ones((int(windows.ends[-1]), 2)))
    assert (answers[0].text, answers[0].spans, answers[0].null_odds) == ("", (), 0.0)
    assert predictions(answers, math.inf) == {"a": "", "b": "snow"}
    assert candidates(answers[0], with_null=False) == [
        {"text": "", "probability": 1.0, "start_logit": 1.0, "end_logit": 1.0}
    ]


def test_the_threshold_works_both_ways():
    span = Span("May", 14, 17, 2.0, 1.0)
    answer = Answer("q", (span,), (2.5, 1.0))
    assert answer.null_odds == 0.5
    assert predictions([answer]) == {"q": ""}
    assert predictions([answer], 0.49) == {"q": ""}
    # not above the threshold: answered
    assert predictions([answer], 0.5) == {"q": "May"}
    assert predictions([answer], math.inf) == {"q": "May"}
    assert predictions([answer], -math.inf) == {"q": ""}
    threshold, score = best_null_threshold([answer], [_question("q", CONTEXT)])
    assert (threshold < 0.5, score) == (True, 1.0)


def test_files(tmp_path):
    spans = (Span("été", 0, 3, 2.0, 1.0), Span("May", 14, 17, 1.0, 1.0))
    answers = [Answer("q", spans, (2.0, 0.5)), Answer("r", spans[1:], (3.0, 0.0))]
    weights = np.exp([3.0, 2.5, 2.0])
    paths = write_predictions(tmp_path, answers, null_threshold=0.0)
    assert [path.name for path in paths] == ["predictions.json", "nbest_predictions.json", "null_odds.json"]
    given, best, odds = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
    assert given == {"q": "été", "r": ""}
    assert odds == {"q": -0.5, "r": 1.0}
    assert list(best) == ["q", "r"]
    assert [row["text"] for row in best["q"]] == ["été", "", "May"]
    assert [row["probability"] for row in best["q"]] == pytest.approx(weights / weights.sum())
    assert best["r"][0] == {"text": "", "start_logit": 3.0, "end_logit": 0.0, "probability": pytest.approx(0.7310586)}
    assert "été" in paths[0].read_text(encoding="utf-8")
    write_predictions(tmp_path, answers, math.inf)
    assert json.loads(paths[0].read_text(encoding="utf-8")) == {"q": "été", "r": "May"}
    always = json.loads(paths[1].read_text(encoding="utf-8"))
    assert [row["text"] for row in always["q"]] == ["été", "May"]
    assert sum(row["probability"] for row in always["q"]) == pytest.approx(1)
    with pytest.raises(UserError, match="cannot write .*nowhere"):
        write_predictions(tmp_path / "nowhere", answers)


def test_bad_calls(tokenizer):
    windows = AnswerWindows([_question("q", "snow")], tokenizer, 64, 8, 8)
    logits = _logits(windows)
    assert len(logits) == 6
    for wrong in (logits[:-1], logits[:, :1], logits[None]):
        with pytest.raises(ValueError, match=r"logits must have the shape \(6, 2\): tokens of all windows, 2; got"):
            decode(windows, wrong)
    with pytest.raises(ValueError, match="logits are NaN or infinite"):
        decode(windows, np.full_like(logits, np.nan))
    with pytest.raises(ValueError, match="n_best must be at least 1, got 0"):
        decode(windows, logits, n_best=0)
    with pytest.raises(ValueError, match="max_answer_tokens must be at least 1, got 0"):
        decode(windows, logits, max_answer_tokens=0)
