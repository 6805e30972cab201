import itertools
import math

import numpy as np
import pytest

from elm_nni.data.answer_scores import best_null_threshold, exact_match, f1, normalise, score_answers
from elm_nni.data.answers import Answer, Span, predictions
from elm_nni.data.squad import Question
from elm_nni.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  U.S.\tArmy!", "us army"),
        ("an a the", ""),
        ("Anthem theatre at Athena", "anthem theatre at athena"),
        ("a.n. the-end of the -end", "theend of end"),
        ("the_end", "theend"),
        ("THE Straße", "straße"),
        ("“the end”", "“ end”"),
        ("the–end", "–end"),
        ("ça a été", "ça été"),
        ("$5,000", "5000"),
        (" \n", ""),
        ("l'été", "lété"),
        ("été the", "été"),
    ],
)
def test_normalised_texts(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "overlap"),
    [
        ("Denver Broncos", ["denver broncos."], 1, 1),
        ("the Broncos", ["Denver Broncos"], 0, 2 / 3),
        ("the Denver team", ["Broncos", "Denver Broncos"], 0, 0.5),
        ("in May 2016", ["May", "May 2016"], 0, 0.8),
        ("Rome", ["Paris"], 0, 0),
        # a word counts as often as both have it
        ("no no no", ["no no yes"], 0, 2 / 3),
        ("yes", ["yes yes"], 0, 2 / 3),
        ("", [], 1, 1),
        ("May", [], 0, 0),
        # nothing but an article is as good as no answer
        ("the", [], 1, 1),
        ("", ["May"], 0, 0),
        ("the", ["May"], 0, 0),
        ("", ["a", "May"], 0, 0),
        ("", ["a"], 1, 1),
        ("4½ ", ["4½"], 1, 1),
        # composed and decomposed letters are not the same, as in the published scorer
        ("cafe\u0301", ["café"], 0, 0),
    ],
)
def test_scores_of_one_question(prediction, answers, exact, overlap):
    assert exact_match(prediction, answers) == exact
    assert f1(prediction, answers) == pytest.approx(overlap, abs=1e-12)


def _question(name, *answers):
    return Question(name, "context", "?", answers, (0,) * len(answers))


QUESTIONS = (
    _question("a", "Denver Broncos", "Broncos"),
    _question("b", "the end"),
    _question("c"),
    _question("d"),
    _question("e", "one two three four"),
)
GIVEN = {"a": "broncos", "b": "", "c": "", "d": "something", "e": "two three", "other": "x"}


def test_means_of_a_whole_set():
    scores = score_answers(GIVEN, QUESTIONS)
    assert scores == pytest.approx(
        {
            "exact": 2 / 5,
            "f1": (1 + 0 + 1 + 0 + 2 / 3) / 5,
            "total": 5,
            "HasAns_exact": 1 / 3,
            "HasAns_f1": (1 + 2 / 3) / 3,
            "HasAns_total": 3,
            "NoAns_exact": 1 / 2,
            "NoAns_f1": 1 / 2,
            "NoAns_total": 2,
        }
    )
    answerable = [question for question in QUESTIONS if question.answers]
    assert score_answers(GIVEN, answerable) == pytest.approx({"exact": 1 / 3, "f1": 5 / 9, "total": 3})
    nothing = score_answers(GIVEN, QUESTIONS[2:4])
    assert nothing == {f"{part}{name}": value for part in ("", "NoAns_") for name, value in
                       (("exact", 0.5), ("f1", 0.5), ("total", 2))}  # fmt: skip


def test_a_question_without_prediction():
    with pytest.raises(UserError, match="2 of 5 questions have no prediction; the first is 'b'"):
        score_answers({"a": "", "c": "", "e": ""}, QUESTIONS)
    with pytest.raises(ValueError, match="at least one question"):
        score_answers({}, ())


def _answer(name, text, odds):
    return Answer(name, (Span(text, 0, len(text), -odds, 0.0),) if text else (), (0.0, 0.0))


def _all_thresholds(answers, questions, metric):
    """Best score over thresholds below, between and above all null odds, scored from scratch."""
    odds = sorted({answer.null_odds for answer in answers})
    tried = [odds[0] - 1, *odds]
    return max(score_answers(predictions(answers, threshold), questions)[metric] for threshold in tried)


@pytest.mark.parametrize("metric", ["f1", "exact"])
def test_the_threshold_is_the_best_of_all(metric):
    rng = np.random.default_rng(0)
    found = set()
    for _ in range(120):
        num_questions = int(rng.integers(1, 9))
        questions = [
            _question(str(n), *[["one two"], [], [], ["the"], ["two", "one"]][rng.integers(5)])
            for n in range(num_questions)
        ]
        questions.append(_question("none"))
        # few different odds, so that many are equal
        answers = [
            _answer(q.id, str(rng.choice(["one", "one two", "the", "three"])), float(rng.integers(-2, 3)))
            for q in questions
        ]
        threshold, score = best_null_threshold(answers, questions, metric)
        assert score == pytest.approx(_all_thresholds(answers, questions, metric))
        assert score_answers(predictions(answers, threshold), questions)[metric] == pytest.approx(score)
        lower = [odds for odds in {answer.null_odds for answer in answers} if odds < threshold]
        for odds in lower:
            assert score_answers(predictions(answers, odds), questions)[metric] < score + 1e-12
        found.add(threshold)
    assert len(found) > 4


def test_thresholds_by_hand():
    questions = (_question("a", "one"), _question("b"), _question("c", "two"), _question("d"))
    answers = [
        _answer("a", "one", -3.5),
        _answer("b", "x", 1.0),
        _answer("c", "two words", 0.5),
        _answer("d", "y", 0.7),
    ]
    assert best_null_threshold(answers, questions) == (0.5, pytest.approx((1 + 1 + 2 / 3 + 1) / 4))
    # a half right answer is no exact one
    assert best_null_threshold(answers, questions, "exact") == (-3.5, 0.75)
    # never to answer is best
    assert best_null_threshold([_answer("b", "x", 1.0)], questions[1:2]) == (0.0, 1.0)
    assert best_null_threshold(answers[::2], questions[::2]) == (math.inf, pytest.approx(5 / 6))
    # an answer that is worse than none costs nothing where the question has one
    wrong = [_answer("a", "zero", -5.0), *answers[1:]]
    assert best_null_threshold(wrong, questions)[0] == 0.5


def test_bad_threshold_calls():
    answers = [_answer(question.id, "x", 0.0) for question in QUESTIONS]
    with pytest.raises(ValueError, match="metric must be one of exact, f1, got 'bleu'"):
        best_null_threshold(answers, QUESTIONS, "bleu")
    for some in (answers[:2], answers[::-1]):
        with pytest.raises(ValueError, match="answers must be those of the questions"):
            best_null_threshold(some, QUESTIONS)


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
    words = ["one", "two", "three"]
    texts = [" ".join(chosen) for n in (1, 2, 3) for chosen in itertools.product(words, repeat=n)]
    for given, wanted in itertools.product(texts, texts):
        left = wanted.split()
        shared = 0
        for word in given.split():
            if word in left:
                left.remove(word)
                shared += 1
        precision, recall = shared / len(given.split()), shared / len(wanted.split())
        expected = 2 * precision * recall / (precision + recall) if shared else 0.0
        assert f1(given, [wanted]) == pytest.approx(expected)
