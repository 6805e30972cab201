"""What the comparison is asked: which part of the method helps, against the spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quality.comparison import FULL
from quality.rows import MEAN, Difference, Row, best_uniform, differences
from quality.systems import BERT, BERT_RANDOM_TABLE, COMPUTE, INHERITED, RANDOM, RANDOM_INHERITED

_BEST = "the better uniform system"
# A question, the system that should be better, and what it is compared with.
QUESTIONS = (
    ("the whole method", FULL, _BEST),
    ("the whole method", FULL, RANDOM),
    ("the whole method, inherited weights", INHERITED, _BEST),
    ("the whole method, inherited weights", INHERITED, RANDOM),
    ("inherited weights", INHERITED, FULL),
    ("the search, both with inherited weights", INHERITED, RANDOM_INHERITED),
    ("evolution", FULL, "random search"),
    ("growth", FULL, "no growth"),
    ("head step", FULL, "no head step"),
    ("relational loss", FULL, "MSE features"),
    ("latency limit", FULL, "no latency limit"),
    ("as much compute for a plain model", FULL, COMPUTE),
    ("as much compute for a plain model", INHERITED, COMPUTE),
    ("more steps", COMPUTE, BERT),
    ("the teacher's token table as a start", BERT, BERT_RANDOM_TABLE),
    ("our blocks and embedding, with that table", _BEST, "stock BertConfig"),
    ("our blocks and embedding, random tables", BERT_RANDOM_TABLE, "stock BertConfig"),
    ("the whole method or transformers' GPT-2", FULL, "stock GPT2Config"),
    ("our blocks and embedding, random tables", _BEST, "stock GPT2Config"),
    ("a new model or a cut teacher", FULL, "cut teacher"),
    ("a new model or a cut teacher", FULL, "cut teacher (SVD table)"),
    ("a new model or the teacher in 8 bits", f"{FULL} (int8)", "fine-tuned teacher (int8)"),
    ("8 bits", f"{FULL} (int8)", FULL),
)


@dataclass(frozen=True)
class Finding:
    """An answer: a system minus another, and the tasks on which that is more than one deviation over seeds.

    Attributes:
        seeds: that both have.
        same: of these, seeds at which both are one model.
        better, worse: tasks, their mean not counted.
    """

    question: str
    system: str
    against: str
    seeds: int
    same: int
    mean: Difference
    better: tuple[str, ...]
    worse: tuple[str, ...]


def findings(rows: Sequence[Row]) -> list[Finding]:
    """The answers that rows of two systems and at least two seeds give."""
    names = {_BEST: best_uniform(rows)}
    for row in rows:
        # of several students a seed their mean, not the best
        names.setdefault(row.system.split(", mean of ")[0], row.system)
    found = []
    for question, system, against in QUESTIONS:
        ours, theirs = names.get(system), names.get(against)
        if ours is None or theirs is None:
            continue
        ones = {one.task: one for one in differences(rows, theirs) if one.system == ours}
        if MEAN in ones and ones[MEAN].seeds > 1:
            tasks = [one for task, one in sorted(ones.items()) if task != MEAN and one.deviation is not None]
            better = tuple(one.task for one in tasks if one.mean > (one.deviation or 0.0))
            worse = tuple(one.task for one in tasks if one.mean < -(one.deviation or 0.0))
            models = [{row.seed: row.models for row in rows if row.system == name} for name in (ours, theirs)]
            same = sum(bool(one) and models[1].get(seed) == one for seed, one in models[0].items())
            found.append(Finding(question, ours, theirs, ones[MEAN].seeds, same, ones[MEAN], better, worse))
    return found
