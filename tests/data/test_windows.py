from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from elm_nni.data.squad import Question
from elm_nni.data.windows import AnswerWindows
from elm_nni.errors import UserError

from .byte_level import byte_level_tokenizer

WORDS = "the river café rose in may and 東京 fell again while naïve towns waited for 3.5 metres of snow"
LONG = " ".join(np.random.default_rng(0).choice(WORDS.split(), 130))
QUESTIONS = (
    Question("long", LONG, "When did the river rise?", (), ()),
    Question("short", "Snow fell in May.", "When?", ("May",), (13,)),
    Question("same", LONG, "Which towns were waiting for the snow, and why, and for how many metres?", (), ()),
)


@pytest.fixture(scope="module", params=["bert", "roberta", "gpt2"])
def any_tokenizer(request, tokenizer):
    if request.param == "bert":
        return tokenizer
    return byte_level_tokenizer([LONG, "Snow fell in May. When?"], framed=request.param == "roberta")


def _asked(*answers, context="Snow fell in May. Rain fell in May too.", question="When?", name="q"):
    """A question whose answers are given as (text, start)."""
    return Question(name, context, question, tuple(text for text, _ in answers), tuple(start for _, start in answers))


def _flat_windows(tokenizer, questions, **settings):
    """The windows by the tokenizer's own means: truncation of the second text with overflow."""
    encoded = tokenizer(
        [question.question for question in questions],
        [question.context for question in questions],
        truncation="only_second",
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        **settings,
    )
    return encoded, encoded["overflow_to_sample_mapping"]


@pytest.mark.parametrize(("max_length", "stride"), [(64, 16), (48, 0), (90, 50), (4000, 128)])
def test_windows_are_those_of_the_tokenizer(any_tokenizer, max_length, stride):
    windows = AnswerWindows(QUESTIONS[:2], any_tokenizer, max_length, stride, max_query_length=16)
    oracle, question_of = _flat_windows(any_tokenizer, QUESTIONS[:2], max_length=max_length, stride=stride)
    assert windows.question_N.tolist() == question_of
    assert len(windows) == len(windows.lengths) == len(question_of)
    assert (len(windows) > 4) == (max_length < 4000)
    batch = windows.batch(range(len(windows)))
    assert ("token_type_ids" in batch) == ("token_type_ids" in oracle)
    for number, ids in enumerate(oracle["input_ids"]):
        length = windows.lengths[number]
        assert batch["input_ids"][number, :length].tolist() == ids
        assert batch["input_ids"][number, length:].tolist() == [windows.pad_id] * (batch["input_ids"].shape[1] - length)
        assert batch["attention_mask"][number].sum() == length == batch["attention_mask"][number, :length].sum()
        if "token_type_ids" in oracle:
            assert batch["token_type_ids"][number, :length].tolist() == oracle["token_type_ids"][number]
        place, first, count = (
            int(values[number]) for values in (windows.place_N, windows.first_N, windows.num_context_N)
        )
        assert oracle.sequence_ids(number)[place : place + count] == [1] * count
        assert oracle.sequence_ids(number).count(1) == count
        characters = windows.characters(question_of[number])[first : first + count].tolist()
        assert [tuple(pair) for pair in characters] == oracle["offset_mapping"][number][place : place + count]
    assert windows.ends.tolist() == np.cumsum(list(map(len, oracle["input_ids"]))).tolist()
    assert [list(windows.windows_of(q)) for q in (0, 1)] == [
        [number for number, question in enumerate(question_of) if question == q] for q in (0, 1)
    ]


def test_a_long_question_is_cut_and_leaves_the_context_whole(any_tokenizer):
    short = AnswerWindows(QUESTIONS, any_tokenizer, 64, 16, max_query_length=5)
    query = any_tokenizer(QUESTIONS[2].question, add_special_tokens=False)["input_ids"]
    assert len(query) > 5
    context = any_tokenizer(LONG, add_special_tokens=False)["input_ids"]
    seen = {}
    for number in short.windows_of(2):
        row = short.batch([number])["input_ids"][0].tolist()
        place = short.place_N[number]
        start = row.index(query[0])
        assert row[start : start + 5] == query[:5]
        assert query[5] not in row[start + 5 : place]
        for token in range(short.num_context_N[number]):
            seen.setdefault(int(short.first_N[number]) + token, row[place + token])
    assert [seen[token] for token in range(len(context))] == context


@pytest.mark.parametrize(
    ("answer", "start"), [("Snow", 0), ("May", 13), ("too.", 35), ("Rain fell in May", 18), ("fell in", 23), (".", 38)]
)
def test_labels_hold_the_answer_where_it_stands(any_tokenizer, answer, start):
    question = _asked((answer, start))
    windows = AnswerWindows([question], any_tokenizer, 64, 16, 16)
    assert windows.labels.dtype == torch.int64
    assert windows.labels.shape == (1, 2)
    first, last = (windows.labels[0].numpy() - windows.place_N[0]).tolist()
    characters = windows.characters(0)
    text = question.context[characters[first, 0] : characters[last, 1]]
    assert text.strip() == answer
    # "May" and "fell in" occur twice
    assert characters[first, 0] in (start, start - 1)
    assert (windows.batch([0])["labels"] == windows.labels).all()


def test_the_tokens_that_touch_an_answer_within_words(tokenizer):
    windows = AnswerWindows([_asked(("no", 1)), _asked(("w fell i", 3))], tokenizer, 64, 16, 16)
    words = [(first - windows.place_N[0], last - windows.place_N[0]) for first, last in windows.labels.tolist()]
    assert words == [(0, 0), (0, 2)]


def test_the_first_answer_that_stands_there_counts(any_tokenizer):
    windows = AnswerWindows([_asked(("Rain", 0), ("May", 31), ("Snow", 0))], any_tokenizer, 64, 16, 16)
    oracle = AnswerWindows([_asked(("May", 31))], any_tokenizer, 64, 16, 16)
    assert windows.labels.tolist() == oracle.labels.tolist() != [[0, 0]]
    nowhere = AnswerWindows([_asked(("Rain", 0)), _asked()], any_tokenizer, 64, 16, 16)
    assert nowhere.labels.tolist() == [[0, 0], [0, 0]]


def test_bytes_of_one_character_belong_together():
    tokenizer = byte_level_tokenizer(["abc"], framed=False)
    question = _asked(("東京", 3), context="In 東京 it rained.")
    windows = AnswerWindows([question], tokenizer, 64, 4, 16)
    first, last = (windows.labels[0].numpy() - windows.place_N[0]).tolist()
    # each of these characters is three bytes, and no pair of bytes has been merged
    assert (first, last) == (3, 8)


def test_an_answer_cut_by_a_window_is_no_answer_in_it(any_tokenizer):
    # the same word all over: only the place tells which is meant
    context = "snow " * 60 + "may snow " + "snow " * 60
    question = _asked(("may snow", 300), context=context, question="snow")
    counts = set()
    for max_length in range(44, 72):
        windows = AnswerWindows([question], any_tokenizer, max_length, 12, 4)
        tokens = [number for number, (_, end) in enumerate(windows.characters(0)) if end > 300]
        last = max(number for number, (start, _) in enumerate(windows.characters(0)) if start < 308)
        held = 0
        for number in range(len(windows)):
            begin, end = windows.first_N[number], windows.first_N[number] + windows.num_context_N[number]
            place = int(windows.place_N[number] - begin)
            is_whole = begin <= tokens[0] and last < end
            expected = [tokens[0] + place, last + place] if is_whole else [0, 0]
            assert windows.labels[number].tolist() == expected
            held += is_whole
        counts.add(held)
    assert counts == {1, 2}
    too_long = _asked((context[5:400], 5), context=context, question="snow")
    assert not AnswerWindows([too_long], any_tokenizer, 40, 12, 4).labels.any()


def _oracle_most_context(windows, question):
    """Token by token, as the rule is told."""
    best = []
    for token in range(len(windows.characters(question))):
        scores = {}
        for number in windows.windows_of(question):
            left = token - windows.first_N[number]
            right = windows.num_context_N[number] - 1 - left
            if left >= 0 and right >= 0:
                scores[number] = min(left, right) + 0.01 * windows.num_context_N[number]
        best.append(max(scores, key=lambda number: (round(scores[number], 6), -number)))
    return best


# in the last case a token counts in a far longer window although it has a little less around it there
@pytest.mark.parametrize(("max_length", "stride", "times"), [(64, 0, 1), (64, 7, 1), (64, 33, 1), (520, 100, 5)])
def test_the_window_with_most_context(any_tokenizer, max_length, stride, times):
    questions = [replace(question, context=question.context * times) for question in QUESTIONS]
    windows = AnswerWindows(questions, any_tokenizer, max_length, stride, max_query_length=10)
    for question in (0, 2) if times > 1 else (0, 1, 2):
        best = windows.most_context(question).tolist()
        assert best == _oracle_most_context(windows, question)
        assert set(best) == set(windows.windows_of(question))
        assert best == sorted(best)


def test_widths_and_lengths(tokenizer):
    windows = AnswerWindows(QUESTIONS, tokenizer, 60, 16, 10, multiple_of=8)
    assert windows.lengths.max() == 60
    assert windows.batch([0])["input_ids"].shape == (1, 60)
    (short,) = windows.windows_of(1)
    assert windows.lengths[short] == 10
    assert windows.batch([short])["input_ids"].shape == (1, 16)


def test_a_context_without_tokens_has_one_window(tokenizer):
    windows = AnswerWindows([_asked(context="\u200b", name="a"), QUESTIONS[1]], tokenizer, 64, 16, 16)
    assert windows.num_context_N.tolist() == [0, 5]
    assert windows.batch([0])["input_ids"].tolist() == [[101, 2043, 1029, 102, 102]]
    assert windows.most_context(0).tolist() == []


def test_bad_settings(tokenizer):
    with pytest.raises(ValueError, match="number of questions must be at least 1, got 0"):
        AnswerWindows([], tokenizer)
    message = r"max_length must be at least special tokens \+ max_query_length \+ stride \+ 1, 196, got 195"
    with pytest.raises(ValueError, match=message):
        AnswerWindows(QUESTIONS, tokenizer, 195)
    assert len(AnswerWindows([_asked(context=LONG * 2)], tokenizer, 196)) > 1
    with pytest.raises(ValueError, match="stride must be at least 0, got -1"):
        AnswerWindows(QUESTIONS, tokenizer, stride=-1)


def test_tokenizers_that_will_not_do(tokenizer):
    class Slow(PreTrainedTokenizerFast):
        is_fast = False

    with pytest.raises(UserError, match="Slow does not tell which characters a token stands for; .* a fast tokenizer"):
        AnswerWindows(QUESTIONS, Slow(tokenizer_object=tokenizer.backend_tokenizer))
    empty = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(UserError, match="the tokenizer makes no token of the letter a"):
        AnswerWindows(QUESTIONS, empty)
    bare = byte_level_tokenizer([LONG], framed=False)
    with pytest.raises(UserError, match="question 'q' has no tokens, and this tokenizer puts nothing before it"):
        AnswerWindows([QUESTIONS[0], _asked(question=" ")], bare)
    blank = AnswerWindows([QUESTIONS[0], _asked(question=" ")], tokenizer)
    assert blank.place_N[1] == 2
