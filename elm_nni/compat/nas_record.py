"""The durable record of a NAS experiment: one line of JSON a finished evaluation, nothing pickled."""

from __future__ import annotations

import json
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elm_nni.digest import digest
from elm_nni.errors import UserError
from elm_nni.pipeline.store import append_json_line, read_json_lines


@dataclass
class Evaluation:
    """One finished evaluation.

    Attributes:
        number: its place in the record, from 0.
        digest: name of the sample.
        sample: the architecture as the strategy submitted it.
        status: ``trained`` or ``failed``.
        metrics: the final metric as the evaluator reported it, in a list; empty without one.
        intermediates: the reports before it.
        seconds: from the submission to the last event.
    """

    number: int
    digest: str
    sample: dict[str, Any]
    status: str = "trained"
    metrics: list[Any] = field(default_factory=list)
    intermediates: list[Any] = field(default_factory=list)
    seconds: float = 0.0


class EvaluationRecord:
    """Finished evaluations of one experiment, read from its file and appended to it.

    A line is on the disk before ``add`` returns. A later line of the same number replaces the earlier one: the metric
    comes first, the end of the evaluation after it. A torn last line, as a kill leaves it, is cut off.

    Raises:
        UserError: another line is damaged.

    Example:
        >>> record = EvaluationRecord(Path("evaluations.jsonl"))  # doctest: +SKIP
        >>> earlier = record.take({"layer0": "bert"})
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        kept: dict[int, Evaluation] = {}
        self._next = 0
        for line in read_json_lines(path):
            try:
                self._next = max(self._next, line["number"] + 1)
                if line.pop("withdrawn", False):
                    kept.pop(line["number"], None)
                else:
                    kept[line["number"]] = Evaluation(**line)
            except (KeyError, TypeError) as error:
                raise UserError(f"{path} has a line of another form: {error}") from error
        self.finished = list(kept.values())
        self._waiting: dict[str, deque[Evaluation]] = defaultdict(deque)
        for evaluation in self.finished:
            self._waiting[evaluation.digest].append(evaluation)

    @property
    def unanswered(self) -> list[Evaluation]:
        """Evaluations of earlier runs that this run has not asked for yet, oldest first."""
        waiting = [evaluation for queue in self._waiting.values() for evaluation in queue]
        return sorted(waiting, key=lambda evaluation: evaluation.number)

    @property
    def num_unanswered(self) -> int:
        """Their number."""
        return sum(map(len, self._waiting.values()))

    def take(self, sample: Mapping[str, Any]) -> Evaluation | None:
        """The earlier evaluation of a sample, each handed out once and the oldest first, or None.

        A strategy that evaluates an architecture several times so gets each result back.
        """
        queue = self._waiting.get(sample_digest(sample))
        return queue.popleft() if queue else None

    def new(self, sample: Mapping[str, Any]) -> Evaluation:
        """An evaluation that begins; it is not in the record before :meth:`add`."""
        evaluation = Evaluation(self._next, sample_digest(sample), dict(sample))
        self._next += 1
        return evaluation

    def add(self, evaluation: Evaluation) -> None:
        """Writes an evaluation with what is known of it.

        Raises:
            UserError: the disk is full or the folder is gone.
        """
        self._append(vars(evaluation))

    def withdraw(self, evaluation: Evaluation) -> None:
        """Takes an evaluation back: a resume makes it again."""
        self._append({"number": evaluation.number, "withdrawn": True})

    def adopt(self, evaluation: Evaluation) -> None:
        """Adds an evaluation of an earlier run that ended while nothing recorded."""
        self.add(evaluation)
        self.finished.append(evaluation)
        self._waiting[evaluation.digest].append(evaluation)

    def counts(self) -> Counter[str]:
        """How often each digest was evaluated in earlier runs."""
        return Counter(evaluation.digest for evaluation in self.finished)

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            append_json_line(self.path, line)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from error


def sample_digest(sample: Mapping[str, Any]) -> str:
    """Name of a sample in the record.

    Raises:
        UserError: a value has no form in JSON.
    """
    try:
        return digest(dict(sample))
    except (TypeError, ValueError) as error:
        raise UserError(f"the sample {dict(sample)} cannot be recorded: {error}") from error


def plain_metric(metric: Any) -> Any:
    """A reported metric in values that JSON has; scalars of numpy and torch become numbers.

    Raises:
        UserError: it holds something else.
    """
    try:
        return json.loads(json.dumps(metric, default=lambda value: value.item()))
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"the metric {metric!r} cannot be recorded: expected a number or a dict of numbers") from error
