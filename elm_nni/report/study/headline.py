"""What a study amounts to, in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from statistics import median

import numpy as np

from elm_nni.report.headline import Headline, Statement
from elm_nni.report.study.load import StudyData, StudyTrial, sign
from elm_nni.report.study.text import label, listed, plural, shown, shown_params

# A grid of settings that give one architecture has many equal trials.
MAX_EQUAL = 6


def study_headline(study: StudyData) -> Headline:
    """The result of the study in a sentence, and what belongs to it."""
    return Headline(_title(study), (*_counts(study), *_limits(study), *_best(study)))


def _title(study: StudyData) -> str:
    if not study.complete:
        return "No trial of this study is complete yet."
    front = study.front
    if not front:
        return f"None of {plural(len(study.complete), 'complete trial')} keeps the limits."
    if len(study.objectives) > 1:
        named = [f"{'high' if mode == 'maximize' else 'low'} {label(name)}" for name, mode in study.objectives.items()]
        return (f"{len(front)} of {plural(len(study.complete), 'complete trial')} "
                f"{'is' if len(front) == 1 else 'are'} on the Pareto front of {listed(named)}.")  # fmt: skip
    name, best = next(iter(study.objectives)), front[0]
    return (f"Best of {plural(len(study.complete), 'complete trial')}: {label(name)} {shown(name, best.values[name])} "
            f"with {shown_params(best.params)}.")  # fmt: skip


def _counts(study: StudyData) -> Iterator[Statement]:
    states = Counter(trial.state for trial in study.trials)
    always = [f"{states[state]} {state}" for state in ("complete", "pruned", "failed")]
    still = [f"{states[state]} {state}" for state in ("running", "waiting") if states[state]]
    yield Statement("bad" if states["failed"] else "plain",
                    f"{plural(len(study.trials), 'trial')}: {', '.join(always + still)}.")  # fmt: skip


def _limits(study: StudyData) -> Iterator[Statement]:
    for name, limit in study.constraints.items():
        if study.complete:
            kept = sum(name not in trial.broken for trial in study.complete)
            yield Statement("good" if kept else "bad", f"Limit {label(name)} ≤ {shown(name, limit)}: kept by {kept} of "
                            f"{plural(len(study.complete), 'complete trial')}.")  # fmt: skip


def _best(study: StudyData) -> Iterator[Statement]:
    front = study.front
    if not front:
        return
    if len(study.objectives) > 1:
        for name, mode in study.objectives.items():
            best = front[int(np.argmin([sign(mode) * trial.values[name] for trial in front]))]
            yield Statement("plain", f"Best {label(name)}: {shown(name, best.values[name])} (trial {best.number}, "
                            f"{shown_params(best.params)}).")  # fmt: skip
        return
    name, first = next(iter(study.objectives)), front[0]
    yield Statement("plain", f"Trial {first.number} measured {_measured(first)}.")
    if len(front) > 1:
        equal = [f"trial {trial.number} ({shown_params(trial.params)})" for trial in front[1 : MAX_EQUAL + 1]]
        more = [f"{len(front) - 1 - MAX_EQUAL} more"] if len(front) - 1 > MAX_EQUAL else []
        yield Statement("plain", f"Equally good: {listed(equal + more)}.")
    if len(study.feasible) > 1:
        numbers = [trial.values[name] for trial in study.feasible]
        kept = " that keep the limits" if study.constraints else ""
        yield Statement("plain", f"Over the {len(numbers)} complete trials{kept}, {label(name)} goes from "
                        f"{shown(name, min(numbers))} to {shown(name, max(numbers))}; its median is "
                        f"{shown(name, median(numbers))}.")  # fmt: skip


def _measured(trial: StudyTrial) -> str:
    values = [f"{label(name)} {shown(name, value)}" for name, value in trial.values.items()]
    return listed([*values, *([f"{sum(trial.heads)} heads"] if trial.heads else [])])
