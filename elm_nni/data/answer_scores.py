"""Exact match and F1 of predicted answers, and the threshold above which a question is left unanswered.

Sources: Rajpurkar et al., arXiv 1606.05250, section 6.1; for questions without an answer Rajpurkar, Jia and Liang,
arXiv 1806.03822, and its scorer. Scores are shares from 0 to 1 where that scorer prints percent.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from elm_nni.data.answers import Answer
from elm_nni.data.squad import Question
from elm_nni.errors import UserError

_ARTICLES = re.compile(r"\b(?:the|an?)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case without ASCII punctuation, the articles a, an and the, and superfluous white space.

    Example:
        >>> normalise("The  U.S. Army!")
        'us army'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def _exact(prediction: str, answer: str) -> float:
    return float(normalise(prediction) == normalise(answer))


def _f1(prediction: str, answer: str) -> float:
    given, wanted = normalise(prediction).split(), normalise(answer).split()
    if not given or not wanted:
        return float(given == wanted)
    shared = (Counter(given) & Counter(wanted)).total()
    # the harmonic mean of shared / given and shared / wanted
    return 2 * shared / (len(given) + len(wanted))


def _best(score: Callable[[str, str], float], prediction: str, answers: Iterable[str]) -> float:
    # an answer of articles and punctuation alone cannot be told from none
    usable = [answer for answer in answers if normalise(answer)] or [""]
    return max(score(prediction, answer) for answer in usable)


def exact_match(prediction: str, answers: Iterable[str]) -> float:
    """1 where the normalised prediction is one of the normalised answers, otherwise 0.

    Args:
        prediction: the text given, "" for no answer.
        answers: texts that count as right; none where only "" does.

    Example:
        >>> exact_match("the Broncos", ["Denver Broncos", "Broncos"])
        1.0
    """
    return _best(_exact, prediction, answers)


def f1(prediction: str, answers: Iterable[str]) -> float:
    """F1 of the words shared with the best fitting answer, after normalisation.

    Where either side has no words, 1 if both have none, otherwise 0.

    Example:
        >>> f1("the Denver team", ["Denver Broncos", "Broncos"])
        0.5
    """
    return _best(_f1, prediction, answers)


_SCORES: dict[str, Callable[[str, Iterable[str]], float]] = {"exact": exact_match, "f1": f1}


def score_answers(predictions: Mapping[str, str], questions: Sequence[Question]) -> dict[str, float]:
    """Mean exact match and F1, as shares from 0 to 1, with the number of questions.

    Args:
        predictions: text by id of the question, "" for no answer; other ids do not count.
        questions: what is asked.

    Returns:
        ``exact``, ``f1`` and ``total``; where there are unanswerable questions also ``HasAns_exact``, ``HasAns_f1`` and
        ``HasAns_total`` (if any question has an answer), ``NoAns_exact``, ``NoAns_f1`` and ``NoAns_total``.

    Raises:
        UserError: a question has no prediction.
        ValueError: no questions.

    Example:
        >>> score_answers(predictions(answers), data.test)["f1"]  # doctest: +SKIP
        0.853
    """
    if not questions:
        raise ValueError("score_answers needs at least one question")
    missing = [question.id for question in questions if question.id not in predictions]
    if missing:
        raise UserError(f"{len(missing)} of {len(questions)} questions have no prediction; the first is '{missing[0]}'")
    values = np.asarray(
        [[score(predictions[question.id], question.answers) for score in _SCORES.values()] for question in questions]
    )
    is_impossible = np.asarray([question.is_impossible for question in questions])
    parts = {"": np.ones_like(is_impossible)}
    if is_impossible.any():
        parts |= {"HasAns_": ~is_impossible, "NoAns_": is_impossible}
    scores: dict[str, float] = {}
    for name, chosen in parts.items():
        if chosen.any():
            exact, mean_f1 = values[chosen].mean(0).tolist()
            scores |= {f"{name}exact": exact, f"{name}f1": mean_f1, f"{name}total": int(chosen.sum())}
    return scores


def best_null_threshold(
    answers: Sequence[Answer], questions: Sequence[Question], metric: Literal["f1", "exact"] = "f1"
) -> tuple[float, float]:
    """The threshold of the null odds with the best score, and that score; to be found on validation rows.

    The threshold is one of the null odds (or lies below all of them, where no answer at all is best), as in the scorer
    of SQuAD 2.0; of equally good ones it is the lowest. Where every question has an answer it is infinity.

    Args:
        answers: what :func:`~elm_nni.data.answers.decode` found, in the order of the questions.
        questions: what is asked.
        metric: "f1" or "exact".

    Raises:
        ValueError: unknown metric, no questions, or answers to others.

    Example:
        >>> threshold, _ = best_null_threshold(decode(windows, logits), windows.questions)  # doctest: +SKIP
    """
    if metric not in _SCORES:
        raise ValueError(f"metric must be one of {', '.join(_SCORES)}, got {metric!r}")
    if not questions or [answer.id for answer in answers] != [question.id for question in questions]:
        raise ValueError("answers must be those of the questions, at least one, in their order")
    score = _SCORES[metric]
    answered = np.asarray([score(answer.text, question.answers) for answer, question in zip(answers, questions)])
    if not any(question.is_impossible for question in questions):
        return math.inf, float(answered.mean())
    silent = np.asarray([score("", question.answers) for question in questions])
    odds = np.asarray([answer.null_odds for answer in answers])
    order = np.argsort(odds, kind="stable")
    # number k: the k questions of the lowest odds are answered; questions of equal odds are answered together
    totals = silent.sum() + np.concatenate([[0.0], np.cumsum((answered - silent)[order])])
    is_allowed = np.concatenate([[True], np.diff(odds[order]) > 0, [True]])
    best = int(np.where(is_allowed, totals, -np.inf).argmax())
    threshold = odds[order[best - 1]] if best else odds.min() - 1.0
    return float(threshold), float(totals[best] / len(questions))
