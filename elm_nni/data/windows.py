"""Questions with their contexts as overlapping windows of tokens, for models that mark where an answer begins and ends.

Source of windows and of the rule of the most context: Devlin et al., arXiv 1810.04805, section 4.2, and the program
``run_squad`` published with it. There the stride is the step from window to window; here, as in transformers, it is
what consecutive windows share.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from elm_nni.data.squad import Question
from elm_nni.errors import UserError

# Shape suffixes: B batch, T tokens, N windows, Q questions, C tokens of a context, W windows of a question.

_TOKENISE_TEXTS = 256


@dataclass(frozen=True)
class _Tokens:
    """Token ids and characters [start, end) of many texts, one after the other; text i ends at ``ends[i]``."""

    ids: NDArray[np.int32]
    characters: NDArray[np.int32]
    ends: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def slice_of(self, text: int) -> slice:
        return slice(int(self.ends[text] - self.lengths[text]), int(self.ends[text]))


def _tokenise(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, most: int | None = None) -> _Tokens:
    ids: list[NDArray[np.int32]] = []
    characters: list[NDArray[np.int32]] = []
    for start in range(0, len(texts), _TOKENISE_TEXTS):
        encoded = tokenizer(
            list(texts[start : start + _TOKENISE_TEXTS]),
            add_special_tokens=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        ids += [np.asarray(row[:most], np.int32) for row in encoded["input_ids"]]
        characters += [np.asarray(row[:most], np.int32).reshape(-1, 2) for row in encoded["offset_mapping"]]
    lengths = np.asarray([len(row) for row in ids], np.int64)
    return _Tokens(np.concatenate(ids), np.concatenate(characters), np.cumsum(lengths), lengths)


@dataclass(frozen=True)
class _Frame:
    """Special tokens before the question, between, and after the context, and the token types of all five parts."""

    prefix: NDArray[np.int32]
    middle: NDArray[np.int32]
    suffix: NDArray[np.int32]
    types: tuple[tuple[int, ...], ...] | None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "_Frame":
        if not tokenizer.is_fast:
            raise UserError(
                f"{type(tokenizer).__name__} does not tell which characters a token stands for; "
                f"question answering needs a fast tokenizer"
            )
        pair = tokenizer("a", "a")
        parts = pair.sequence_ids(0)
        if 0 not in parts or 1 not in parts:
            raise UserError("the tokenizer makes no token of the letter a; question answering needs one that does")
        ends = (parts.index(0), _last(parts, 0) + 1, parts.index(1), _last(parts, 1) + 1, len(parts))
        begins = (0, *ends[:-1])
        ids = np.asarray(pair["input_ids"], np.int32)
        types = None
        if "token_type_ids" in pair:
            types = tuple(tuple(pair["token_type_ids"][begin:end]) for begin, end in zip(begins, ends))
            # a text may have any number of tokens, all of one type
            types = (types[0], types[1][:1], types[2], types[3][:1], types[4])
        return cls(ids[: ends[0]], ids[ends[1] : ends[2]], ids[ends[3] :], types)

    @property
    def size(self) -> int:
        return len(self.prefix) + len(self.middle) + len(self.suffix)


def _last(values: Sequence[int | None], wanted: int) -> int:
    return len(values) - 1 - list(reversed(values)).index(wanted)


class AnswerWindows:
    """Windows of questions: the question, then a stretch of its context, in the tokenizer's own form of a pair.

    A context that does not fit is cut into windows that share ``stride`` tokens, in the order of the questions. A batch
    is padded on the right; ``token_type_ids`` are there where the tokenizer has them. The first token of a window, CLS
    for BERT, stands for "no answer here", whatever the tokenizer puts there.

    Attributes:
        questions: the questions.
        lengths: (N,) tokens of each window.
        ends: (N,) their running sum.
        labels: (N, 2) first and last token of the question's first answer, as places in the window; (0, 0) where the
            window does not hold all of it.
        question_N: (N,) number of each window's question.
        place_N: (N,) place in the window of its first token of the context.
        first_N: (N,) number of that token in the context.
        num_context_N: (N,) tokens of the context in the window.

    Args:
        questions: at least one.
        tokenizer: a fast tokenizer of transformers.
        max_length: tokens of a window at most, special tokens counted.
        stride: tokens that consecutive windows of one context share.
        max_query_length: tokens that a question is cut to.
        multiple_of: a batch is padded to the next multiple of this many tokens (8 suits GPUs), at most ``max_length``.

    Raises:
        UserError: the tokenizer is not fast, or puts nothing before a question without tokens.
        ValueError: no questions, a number below its least value, or a stride that leaves no room to go on.

    Example:
        >>> windows = AnswerWindows(data.validation, tokenizer)  # doctest: +SKIP
        >>> windows.batch([0, 1])["labels"]  # doctest: +SKIP
        tensor([[0, 0], [57, 58]])
    """

    def __init__(
        self,
        questions: Iterable[Question],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int = 384,
        stride: int = 128,
        max_query_length: int = 64,
        *,
        multiple_of: int = 1,
    ) -> None:
        self.questions = tuple(questions)
        self._frame = _Frame.of(tokenizer)
        for name, value, least in (
            ("number of questions", len(self.questions), 1),
            ("stride", stride, 0),
            ("max_query_length", max_query_length, 1),
            ("multiple_of", multiple_of, 1),
            ("max_length", max_length, self._frame.size + max_query_length + stride + 1),
        ):
            if value < least:
                sum_of = "special tokens + max_query_length + stride + 1, " if name == "max_length" else ""
                raise ValueError(f"{name} must be at least {sum_of}{least}, got {value}")
        self.max_length, self.multiple_of = max_length, multiple_of
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        # several questions ask about one context, which is tokenised once
        numbers = {context: number for number, context in enumerate(dict.fromkeys(q.context for q in self.questions))}
        self._context_Q = np.asarray([numbers[question.context] for question in self.questions])
        self._contexts = _tokenise(list(numbers), tokenizer)
        self._queries = _tokenise(
            [question.question.strip() for question in self.questions], tokenizer, max_query_length
        )
        self._cut(stride)
        self.labels = torch.from_numpy(self._labels())

    def _cut(self, stride: int) -> None:
        query_Q, context_Q = self._queries.lengths, self._contexts.lengths[self._context_Q]
        room_Q = self.max_length - self._frame.size - query_Q
        step_Q = room_Q - stride
        windows_Q = 1 + np.maximum(0, -(-(context_Q - room_Q) // step_Q))
        self._ends_Q = np.cumsum(windows_Q)
        self.question_N = np.repeat(np.arange(len(windows_Q)), windows_Q)
        which_N = np.arange(len(self.question_N)) - (self._ends_Q - windows_Q)[self.question_N]
        self.first_N = which_N * step_Q[self.question_N]
        self.num_context_N = np.minimum(room_Q[self.question_N], context_Q[self.question_N] - self.first_N)
        self.place_N = len(self._frame.prefix) + query_Q[self.question_N] + len(self._frame.middle)
        self.lengths = self.place_N + self.num_context_N + len(self._frame.suffix)
        self.ends = np.cumsum(self.lengths)
        if (self.place_N == 0).any():
            question = self.questions[int(self.question_N[np.argmin(self.place_N)])]
            raise UserError(f"question '{question.id}' has no tokens, and this tokenizer puts nothing before it")

    def _labels(self) -> NDArray[np.int64]:
        tokens_Q2 = np.asarray([self._answer_tokens(number) for number in range(len(self.questions))])
        first_N, last_N = tokens_Q2[self.question_N].T
        is_whole_N = (first_N >= self.first_N) & (last_N < self.first_N + self.num_context_N) & (first_N <= last_N)
        shift_N = self.place_N - self.first_N
        return np.where(is_whole_N[:, None], np.stack([first_N + shift_N, last_N + shift_N], 1), 0)

    def _answer_tokens(self, number: int) -> tuple[int, int]:
        """First and last token of the context that share a character with the answer; (-1, -1) without an answer."""
        span = self.questions[number].span
        if span is None:
            return -1, -1
        characters_C2 = self.characters(number)
        first = np.searchsorted(characters_C2[:, 1], span[0], side="right")
        last = np.searchsorted(characters_C2[:, 0], span[1], side="left") - 1
        return int(first), int(last)

    def characters(self, question: int) -> NDArray[np.int32]:
        """(C, 2) characters [start, end) in the context of each of its tokens, uncut."""
        return self._contexts.characters[self._contexts.slice_of(int(self._context_Q[question]))]

    def windows_of(self, question: int) -> range:
        """Numbers of the windows of one question."""
        start = int(self._ends_Q[question - 1]) if question else 0
        return range(start, int(self._ends_Q[question]))

    def most_context(self, question: int) -> NDArray[np.int64]:
        """(C,) number of the window in which each token of the context has most context around it.

        That is the smaller of the tokens of context to its left and to its right, plus a hundredth of the window's
        tokens of context; the first of equal windows.
        """
        windows = self.windows_of(question)
        first_W1 = self.first_N[windows.start : windows.stop, None]
        num_W1 = self.num_context_N[windows.start : windows.stop, None]
        left_WC = np.arange(len(self.characters(question))) - first_W1
        right_WC = num_W1 - 1 - left_WC
        around_WC = np.minimum(left_WC, right_WC)
        score_WC = np.where(around_WC >= 0, 100 * around_WC + num_W1, -1)
        return windows.start + score_WC.argmax(0)

    def __len__(self) -> int:
        return len(self.lengths)

    def _parts(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        question = int(self.question_N[index])
        start = self._contexts.slice_of(int(self._context_Q[question])).start + int(self.first_N[index])
        return (
            self._queries.ids[self._queries.slice_of(question)],
            self._contexts.ids[start : start + int(self.num_context_N[index])],
        )

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """The padded batch of some windows.

        Returns:
            ``input_ids``, ``attention_mask`` and where the tokenizer has them ``token_type_ids``, int64 (B, T);
            ``labels`` int64 (B, 2).
        """
        frame, longest = self._frame, int(self.lengths[list(indices)].max())
        width = max(longest, min(-(-longest // self.multiple_of) * self.multiple_of, self.max_length))
        input_ids_BT = np.full((len(indices), width), self.pad_id, dtype=np.int64)
        types_BT = np.zeros_like(input_ids_BT)
        for row, index in enumerate(indices):
            query, context = self._parts(index)
            length = self.lengths[index]
            input_ids_BT[row, :length] = np.concatenate([frame.prefix, query, frame.middle, context, frame.suffix])
            if frame.types is not None:
                before, of_query, between, of_context, after = frame.types
                types_BT[row, :length] = (
                    *before, *of_query * len(query), *between, *of_context * len(context), *after
                )  # fmt: skip
        mask_BT = np.arange(width) < self.lengths[list(indices)][:, None]
        batch = {"input_ids": torch.from_numpy(input_ids_BT), "attention_mask": torch.from_numpy(mask_BT).long()}
        if frame.types is not None:
            batch["token_type_ids"] = torch.from_numpy(types_BT)
        return batch | {"labels": self.labels[list(indices)]}
