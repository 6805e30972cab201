"""Answers from a model's scores of where they begin and end: decoding, the choice not to answer, prediction files.

Source: Devlin et al., arXiv 1810.04805, sections 4.2 and 4.3, and the files of its program ``run_squad``.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from elm_nni.data.windows import AnswerWindows
from elm_nni.files import write_text

# Shape suffixes: F tokens of all windows, N windows, C tokens of a context, M tokens of the longest answer.


@dataclass(frozen=True)
class Span:
    """A possible answer: its text, characters [start, end) in the context, logits of its first and last token."""

    text: str
    start: int
    end: int
    start_logit: float
    end_logit: float

    @property
    def score(self) -> float:
        """Sum of the two logits."""
        return self.start_logit + self.end_logit


@dataclass(frozen=True)
class Answer:
    """What a model says to one question.

    Attributes:
        id: the question's.
        spans: possible answers of different texts, best first; none where the context has no tokens.
        null: start and end logit of "no answer", from the window that is least sure of it.
    """

    id: str
    spans: tuple[Span, ...]
    null: tuple[float, float]

    @property
    def text(self) -> str:
        """The best answer that is one; "" where there is no span at all."""
        return self.spans[0].text if self.spans else ""

    @property
    def null_odds(self) -> float:
        """Score of "no answer" less the best span's: above a threshold the question counts as unanswerable."""
        return sum(self.null) - self.spans[0].score if self.spans else 0.0


def _checked(windows: AnswerWindows, logits: ArrayLike) -> NDArray[np.float64]:
    logits_F2 = np.asarray(logits, dtype=np.float64)
    wanted = (int(windows.ends[-1]), 2)
    if logits_F2.shape != wanted:
        raise ValueError(f"logits must have the shape {wanted}: tokens of all windows, 2; got {logits_F2.shape}")
    if not np.isfinite(logits_F2).all():
        raise ValueError("logits are NaN or infinite")
    return logits_F2


def _best_places(scores: NDArray[np.float64], n_best: int) -> NDArray[np.int64]:
    """Places of the largest finite scores, largest first; of equal ones the earlier."""
    places = np.arange(len(scores))
    if len(scores) > n_best:
        places = np.flatnonzero(scores >= np.partition(scores, -n_best)[-n_best])
    places = places[np.isfinite(scores[places])]
    return places[np.argsort(-scores[places], kind="stable")][:n_best]


class _Decoder:
    def __init__(self, windows: AnswerWindows, logits_F2: NDArray[np.float64], n_best: int, most_tokens: int) -> None:
        self._windows, self._logits_F2 = windows, logits_F2
        self._n_best, self._most_tokens = n_best, most_tokens
        begins_N = windows.ends - windows.lengths
        self._null_N2 = logits_F2[begins_N]
        self._context_N = begins_N + windows.place_N

    def answer(self, question: int) -> Answer:
        numbers = self._windows.windows_of(question)
        null_W2 = self._null_N2[numbers.start : numbers.stop]
        start_logit, end_logit = null_W2[null_W2.sum(1).argmin()].tolist()
        return Answer(self._windows.questions[question].id, self._spans(question), (start_logit, end_logit))

    def _spans(self, question: int) -> tuple[Span, ...]:
        # an answer begins in the window in which its first token has most context, and ends in the same
        windows, window_C = self._windows, self._windows.most_context(question)
        start_C = self._context_N[window_C] + np.arange(len(window_C)) - windows.first_N[window_C]
        limit_C = self._context_N[window_C] + windows.num_context_N[window_C]
        end_CM = start_C[:, None] + np.arange(self._most_tokens)
        is_inside_CM = end_CM < limit_C[:, None]
        end_logits_CM = self._logits_F2[:, 1][np.where(is_inside_CM, end_CM, 0)]
        scores_CM = np.where(is_inside_CM, self._logits_F2[start_C, 0][:, None] + end_logits_CM, -np.inf)
        context, characters_C2 = windows.questions[question].context, windows.characters(question)
        found: dict[str, Span] = {}
        for place in _best_places(scores_CM.ravel(), self._n_best).tolist():
            first, more = divmod(place, self._most_tokens)
            start, end = int(characters_C2[first, 0]), int(characters_C2[first + more, 1])
            text = context[start:end].strip()
            at = int(start_C[first])
            logits = float(self._logits_F2[at, 0]), float(self._logits_F2[at + more, 1])
            if text:
                found.setdefault(text, Span(text, start, end, *logits))
        return tuple(found.values())


def decode(
    windows: AnswerWindows, logits: ArrayLike, n_best: int = 20, max_answer_tokens: int = 30
) -> tuple[Answer, ...]:
    """The best answers to each question, in the order of the questions.

    All spans of up to ``max_answer_tokens`` tokens are compared, not only those between the best starts and ends.
    A span counts in the window in which its first token has most context. Texts are cut from the context itself and
    stripped of white space; of several spans with one text the best stays.

    Args:
        windows: the windows that the model saw.
        logits: (F, 2) start and end logits of the tokens of all windows, without padding, in the order of the windows.
        n_best: spans that are kept; of different texts there may be fewer.
        max_answer_tokens: tokens of an answer at most.

    Raises:
        ValueError: ``logits`` of another shape, NaN or infinite, or a number below 1.

    Example:
        >>> decode(windows, logits)[0].text  # doctest: +SKIP
        'Denver Broncos'
    """
    for name, value in (("n_best", n_best), ("max_answer_tokens", max_answer_tokens)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    decoder = _Decoder(windows, _checked(windows, logits), n_best, max_answer_tokens)
    return tuple(decoder.answer(question) for question in range(len(windows.questions)))


def predictions(answers: Iterable[Answer], null_threshold: float = 0.0) -> dict[str, str]:
    """The text given to each question, "" where its null odds exceed the threshold.

    Args:
        answers: what :func:`decode` found.
        null_threshold: infinity answers always, as SQuAD 1.1 wants.

    Example:
        >>> predictions(decode(windows, logits), null_threshold=math.inf)  # doctest: +SKIP
        {'56be4db0acb8001400a502ec': 'Denver Broncos'}
    """
    return {answer.id: "" if answer.null_odds > null_threshold else answer.text for answer in answers}


def candidates(answer: Answer, *, with_null: bool = True) -> list[dict[str, Any]]:
    """The spans of an answer, and "" for no answer, as rows of the n-best file, best first.

    ``probability`` is the softmax of the scores of these rows; without any row there is one of the text "".

    Example:
        >>> candidates(answer)[0]["text"]  # doctest: +SKIP
        'Denver Broncos'
    """
    found = [(span.text, span.start_logit, span.end_logit) for span in answer.spans]
    if with_null or not found:
        found.append(("", *answer.null))
    found.sort(key=lambda row: -(row[1] + row[2]))
    scores = np.asarray([start + end for _, start, end in found])
    weights = np.exp(scores - scores.max())
    return [
        {"text": text, "probability": float(weight), "start_logit": start, "end_logit": end}
        for (text, start, end), weight in zip(found, weights / weights.sum())
    ]


def write_predictions(folder: Path, answers: Iterable[Answer], null_threshold: float = 0.0) -> tuple[Path, Path, Path]:
    """Writes predictions.json, nbest_predictions.json and null_odds.json, as the scorers of SQuAD read them.

    The first has the text of each question by id, the second a list of candidates, the third the null odds. Existing
    files are replaced, each as a whole. With an infinite threshold the candidates are answers only.

    Raises:
        UserError: the folder is missing or cannot be written.

    Example:
        >>> write_predictions(Path("runs/qa"), answers, null_threshold=-1.2)  # doctest: +SKIP
    """
    answers = tuple(answers)
    with_null = null_threshold < math.inf
    contents: tuple[tuple[str, dict[str, Any]], ...] = (
        ("predictions.json", predictions(answers, null_threshold)),
        ("nbest_predictions.json", {answer.id: candidates(answer, with_null=with_null) for answer in answers}),
        ("null_odds.json", {answer.id: answer.null_odds for answer in answers}),
    )
    for name, content in contents:
        write_text(folder / name, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    first, second, third = (folder / name for name, _ in contents)
    return first, second, third
