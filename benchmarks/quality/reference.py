"""A classifier that is no network, for scale: TF-IDF with logistic regression on the training rows of the systems.

It reads texts whole, as its users would let it; the systems read ``max_length`` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from elm_nni.data.metrics import compute_metric
from elm_nni.digest import digest
from elm_nni.pipeline.context import Task
from elm_nni.pipeline.evaluate_stage import TFIDF, takes_tfidf, tfidf_classes
from elm_nni.pipeline.store import append_json_line, read_json_lines
from quality.records import Records
from quality.rows import with_mean

FILE = "tfidf.jsonl"


@dataclass(frozen=True)
class Reference:
    """What TF-IDF scores with a seed: task to its main metric, and their mean."""

    seed: int
    scores: dict[str, float]
    system: str = TFIDF


def references(records: Records, seeds: Sequence[int], *, test: bool) -> list[Reference]:
    """One for each seed, kept in a file of the records; none where a task has no classes, or pairs of texts.

    Args:
        records: give the tasks of a seed.
        seeds: of the comparison.
        test: score the test rows; otherwise the validation rows.
    """
    split, found = "test" if test else "validation", []
    known = {line["key"]: line["scores"] for line in read_json_lines(records.folder / FILE)}
    for seed in seeds:
        key = digest({"config": records.comparison.config(seed).to_dict(), "split": split})
        if key not in known:
            tasks = records.trial(seed).run().context.tasks
            if not all(takes_tfidf(task) for task in tasks.values()):
                return []
            known[key] = {name: _score(task, split) for name, task in sorted(tasks.items())}
            append_json_line(records.folder / FILE, {"key": key, "seed": seed, "split": split, "scores": known[key]})
        found.append(Reference(seed, with_mean(known[key])))
    return found


def _score(task: Task, split: str) -> float:
    labels = getattr(task.data, split)["label"][:]
    return compute_metric(task.data.metric, tfidf_classes(task, split), labels)
