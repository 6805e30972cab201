"""Questions about a text with their answers (SQuAD 1.1 and 2.0): reading, checking, and fixed splits.

Sources: Rajpurkar et al., arXiv 1606.05250 (1.1), and Rajpurkar, Jia and Liang, arXiv 1806.03822 (2.0).
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from elm_nni.data.sources import check_utf8, is_local, load_file, load_hub, require_columns
from elm_nni.data.splits import MAX_CARVED_VALIDATION, drawn_rows
from elm_nni.digest import derive_seed
from elm_nni.errors import UserError, first_line
from elm_nni.files import local_path

_logger = logging.getLogger(__name__)

# name of a task -> repository on the hub; the hub keeps the test rows of SQuAD to itself, so its validation is the test
SQUAD: dict[str, str] = {"squad": "rajpurkar/squad", "squad_v2": "rajpurkar/squad_v2"}
_MIN_QUESTIONS = 10
# With fewer articles than this a part of them says too little, and whole contexts are drawn instead.
_MIN_ARTICLES = 20
_COLUMNS = ("id", "context", "question", "answers")


@dataclass(frozen=True)
class Question:
    """A question about a context, and what people answered.

    Attributes:
        id: name of the question, one of a kind within its file.
        context: the text in which the answer stands.
        question: what is asked.
        answers: texts of the answers; none where the context does not tell.
        starts: first character of each answer in the context.
        title: article of the context; "" where the source does not say.

    Example:
        >>> Question("q1", "Snow fell in May.", "When?", ("May",), (13,)).span
        (13, 16)
    """

    id: str
    context: str
    question: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]
    title: str = ""

    @property
    def is_impossible(self) -> bool:
        """Whether the context does not answer the question."""
        return not self.answers

    @property
    def span(self) -> tuple[int, int] | None:
        """Characters [start, end) of the first answer that stands where its source says; None where none does."""
        for answer, start in zip(self.answers, self.starts):
            if self.context.startswith(answer, start):
                return start, start + len(answer)
        return None


@dataclass(frozen=True)
class QuestionData:
    """The splits of a question answering task; no context is in two of them."""

    train: tuple[Question, ...]
    validation: tuple[Question, ...]
    test: tuple[Question, ...]

    @property
    def has_unanswerable(self) -> bool:
        """Whether a model of this data has to learn when not to answer, by the questions of train."""
        return any(question.is_impossible for question in self.train)


def _value(fields: Any, key: str, kinds: type | tuple[type, ...], where: str) -> Any:
    if not isinstance(fields, dict) or key not in fields:
        names = ", ".join(fields) if isinstance(fields, dict) else type(fields).__name__
        raise UserError(f"{where} has no key '{key}'; found: {names or 'nothing'}")
    if not isinstance(fields[key], kinds) or isinstance(fields[key], bool):
        wanted = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
        raise UserError(f"{where}: '{key}' must be {wanted}, got {type(fields[key]).__name__}")
    return fields[key]


def _answer_pairs(answers: Any, where: str) -> list[tuple[str, int]]:
    # the hub has one dict of lists, SQuAD's own files a list of dicts
    if isinstance(answers, dict):
        texts, starts = _value(answers, "text", list, where), _value(answers, "answer_start", list, where)
        if len(texts) != len(starts):
            raise UserError(f"{where} has {len(texts)} answers but {len(starts)} answer_start")
        answers = [{"text": text, "answer_start": start} for text, start in zip(texts, starts)]
    return [(_value(answer, "text", str, where), _value(answer, "answer_start", int, where)) for answer in answers]


def _question(fields: dict[str, Any], context: str, title: str, where: str) -> Question:
    name = str(_value(fields, "id", (str, int), where))
    here = f"{where}: question '{name}'"
    answers = _answer_pairs(_value(fields, "answers", (list, dict), here), here)
    if not context.strip():
        raise UserError(f"{here} has no text in its context")
    for text, start in answers:
        if not text.strip():
            raise UserError(f"{here} has an answer without text; a question without an answer has an empty list")
        if not 0 <= start < len(context):
            raise UserError(f"{here} has answer_start {start}; it must lie within 0..{len(context) - 1}, its context")
    told = fields.get("is_impossible")
    if told is not None and bool(told) != (not answers):
        raise UserError(f"{here} has is_impossible {json.dumps(told)} but {len(answers)} answers")
    texts, starts = tuple(text for text, _ in answers), tuple(start for _, start in answers)
    return Question(name, context, _value(fields, "question", str, here), texts, starts, title)


def _nested_questions(path: Path) -> Iterator[Question]:
    if not path.is_file():
        raise UserError(f"file {path} does not exist")
    check_utf8(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {first_line(error)}; rows, one a line, belong in a .jsonl") from error
    for number, article in enumerate(_value(content, "data", list, str(path))):
        where = f"{path}: data[{number}]"
        for place, paragraph in enumerate(_value(article, "paragraphs", list, where)):
            here = f"{where}.paragraphs[{place}]"
            context = _value(paragraph, "context", str, here)
            for which, fields in enumerate(_value(paragraph, "qas", list, here)):
                yield _question(fields, context, str(article.get("title") or ""), f"{here}.qas[{which}]")


def _flat_questions(rows: Any, source: str) -> Iterator[Question]:
    require_columns(rows, _COLUMNS, source)
    if not isinstance(rows, datasets.Dataset):
        raise TypeError("a task is loaded whole, but a stream came back")
    more = [name for name in ("title", "is_impossible") if name in rows.column_names]
    names = (*_COLUMNS, *more)
    for number, values in enumerate(zip(*(rows[name][:] for name in names))):
        fields, where = dict(zip(names, values)), f"{source}: row {number}"
        yield _question(fields, _value(fields, "context", str, where), str(fields.get("title") or ""), where)


def read_questions(
    source: str, *, config: str | None = None, split: str = "train", cache_dir: Path | None = None
) -> tuple[Question, ...]:
    """Questions of a file or of one split of a hub data set, checked, in their order.

    Args:
        source: a .json file laid out like those of SQuAD (data, paragraphs, qas); a .jsonl or .parquet file, a folder
            or a hub data set with columns ``id``, ``context``, ``question``, ``answers`` (``text`` and
            ``answer_start``) and perhaps ``title``; or a name of ``SQUAD``.
        config: configuration of a hub data set.
        split: split of a hub data set; files have one only.
        cache_dir: folder for what ``datasets`` keeps; by default its own.

    Raises:
        UserError: the source cannot be read, a key is missing or of another type, an id occurs twice, a context or an
            answer has no text, ``answer_start`` lies outside the context, or ``is_impossible`` and the answers differ.

    Example:
        >>> read_questions("dev-v1.1.json")[0].answers  # doctest: +SKIP
        ('Denver Broncos', 'Denver Broncos', 'Denver Broncos')
    """
    source = SQUAD.get(source, source)
    if not is_local(source):
        found = _flat_questions(load_hub(source, config=config, split=split, cache_dir=cache_dir), source)
    elif local_path(source).suffix.lower() == ".json":
        found = _nested_questions(local_path(source))
    else:
        found = _flat_questions(load_file(local_path(source), cache_dir=cache_dir), source)
    questions: dict[str, Question] = {}
    for question in found:
        if question.id in questions:
            raise UserError(f"{source}: question id '{question.id}' occurs twice")
        questions[question.id] = question
    return tuple(questions.values())


def _context_key(question: Question) -> str:
    return " ".join(question.context.split()).casefold()


def _without(questions: Sequence[Question], others: Sequence[Question]) -> tuple[Question, ...]:
    known = {_context_key(question) for question in others}
    return tuple(question for question in questions if _context_key(question) not in known)


def _carve(
    questions: Sequence[Question], most: int, generator: np.random.Generator
) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """The rest and a drawn part of whole articles (of contexts where there are few): ``most`` questions or fewer.

    Where each article alone has more than ``most``, the part is the smallest.
    """
    by_article = len({question.title for question in questions if question.title}) >= _MIN_ARTICLES
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(by_article and question.title or _context_key(question), []).append(question)
    members = list(groups.values())
    part: list[Question] = []
    for number in generator.permutation(len(members)).tolist():
        if len(part) + len(members[number]) <= most:
            part += members[number]
    part = part or min(members, key=len, default=[])
    chosen = {question.id for question in part}
    rest = [question for question in questions if question.id not in chosen]
    return _without(rest, part), tuple(question for question in questions if question.id in chosen)


def _trainable(questions: tuple[Question, ...], source: str) -> tuple[Question, ...]:
    lost = [question.id for question in questions if question.answers and question.span is None]
    if lost:
        _logger.warning(
            "%s: %d questions left out of training, as no answer stands at its answer_start; the first is '%s'",
            source,
            len(lost),
            lost[0],
        )
    left_out = set(lost)
    return tuple(question for question in questions if question.id not in left_out)


def load_questions(
    source: str,
    seed: int = 0,
    *,
    test_source: str | None = None,
    config: str | None = None,
    train_split: str = "train",
    test_split: str | None = "validation",
    cache_dir: Path | None = None,
) -> QuestionData:
    """Loads questions with splits that depend on (the rows, ``seed``) alone.

    A test file or a hub split of its own stays whole; a tenth of train (at most 2,000 questions) becomes validation.
    One source without a test is cut 80/10/10. Validation and test are cut as whole articles, as SQuAD's own were, or
    as whole contexts where fewer than 20 articles are named; no context (case and white space apart) is in two splits.
    Questions of which no answer stands at its ``answer_start`` are left out of train with one warning; the other splits
    keep them, as the score compares texts.

    Args:
        source: what :func:`read_questions` takes.
        seed: fixes the splits.
        test_source: a further file or data set to test on.
        config: configuration of a hub data set.
        train_split: hub split to train on.
        test_split: hub split to test on; None cuts the test from train. Files have no splits.
        cache_dir: folder for what ``datasets`` keeps; by default its own.

    Raises:
        UserError: as :func:`read_questions`, fewer than ten questions, or too few contexts for three splits.

    Example:
        >>> data = load_questions("squad_v2")  # doctest: +SKIP
        >>> len(data.test), data.has_unanswerable  # doctest: +SKIP
        (11873, True)
    """
    pool = read_questions(source, config=config, split=train_split, cache_dir=cache_dir)
    if len(pool) < _MIN_QUESTIONS:
        raise UserError(f"{source} has {len(pool)} questions; give at least {_MIN_QUESTIONS}")
    generator = np.random.default_rng(derive_seed(seed, "question-split"))
    tenth = len(pool) // 10
    if test_source is not None:
        test = read_questions(test_source, config=config, split=test_split or train_split, cache_dir=cache_dir)
    elif is_local(source) or test_split is None:
        pool, test = _carve(pool, tenth, generator)
    else:
        test = read_questions(source, config=config, split=test_split, cache_dir=cache_dir)
    train, validation = _carve(_without(pool, test), min(tenth, MAX_CARVED_VALIDATION), generator)
    train = _trainable(train, source)
    if not train or not validation or not test:
        raise UserError(f"{source} has too few different contexts for train, validation and test")
    _logger.info("%s: %d train, %d validation, %d test questions", source, len(train), len(validation), len(test))
    return QuestionData(train, validation, test)


def split_search_questions(
    train: Sequence[Question], size: int = 512, seed: int = 0
) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """Cuts a fixed part from train on which a search compares candidates, so that validation stays unseen.

    Whole articles or contexts are drawn, as for validation; at most a fifth of train is taken.

    Returns:
        The rest of train and the part of about ``min(size, questions // 5)`` questions, never more unless the smallest
        article or context is larger.

    Raises:
        ValueError: ``size`` is not positive.

    Example:
        >>> rest, part = split_search_questions(load_questions("squad").train)  # doctest: +SKIP
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 question, got {size}")
    generator = np.random.default_rng(derive_seed(seed, "search-validation"))
    return _carve(train, min(size, len(train) // 5), generator)


def limit_questions(train: Sequence[Question], most: int, seed: int = 0) -> tuple[Question, ...]:
    """At most so many questions, drawn by the seed; more questions hold those of fewer, and the order stays.

    Raises:
        ValueError: ``most`` is not positive.

    Example:
        >>> len(limit_questions(load_questions("squad").train, 1000))  # doctest: +SKIP
        1000
    """
    return tuple(train[number] for number in drawn_rows(len(train), most, seed))
