"""Question answering as a task of the pipeline: its splits, its metrics and its windows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from elm_nni.data.squad import Question, QuestionData
from elm_nni.data.windows import AnswerWindows


@dataclass(frozen=True)
class QuestionTask:
    """What a question answering task says of itself, as ``TaskData`` does of others; texts are pairs."""

    name: str
    questions: QuestionData
    max_length: int = 384
    kind: Literal["question_answering"] = "question_answering"
    metric: str = "f1"
    label_names: tuple[str, ...] = ()
    num_labels: int = 2
    is_pair: bool = True

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric to report, the main one first."""
        by_answer = ("HasAns_exact", "HasAns_f1", "NoAns_exact", "NoAns_f1")
        return ("f1", "exact", *(by_answer if self.questions.has_unanswerable else ()))

    def windows(self, questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase) -> AnswerWindows:
        """Windows of the task's length; they share a third of it, and a question takes a quarter at most.

        Example:
            >>> QuestionTask("squad", data).windows(data.test, tokenizer)  # doctest: +SKIP
        """
        length = self.max_length
        return AnswerWindows(questions, tokenizer, length, stride=length // 3, max_query_length=min(64, length // 4))
