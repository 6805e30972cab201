"""What the page of a study shows beside its figures: boxes, tables, and which sections there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from elm_nni.report.study.importance import Importances, find_importances
from elm_nni.report.study.load import StudyData, StudyTrial
from elm_nni.report.study.markdown import sweep_cells, sweep_columns
from elm_nni.report.study.proxy import ProxyComparison, compare_proxy
from elm_nni.report.study.sweeps import ETA, TOP_K, Sweep, is_numeric, make_sweep
from elm_nni.report.study.text import (
    correlation_note,
    label,
    listed,
    proxy_sentence,
    shown,
    shown_coefficient,
    shown_params,
    shown_setting,
    times_sentence,
)
from elm_nni.report.text import UNKNOWN, duration

# Hundreds of rows would bury the page; the storage holds them all.
MAX_BEST, MAX_TRIALS = 12, 200
# Swept parameter to the name of its section and the title.
SWEEPS = {ETA: ("eta", "Eta sweep"), TOP_K: ("top_k", "Top-K sweep")}
_UNBROKEN_TO = "\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}"
_NO_REASON = "not recorded: the worker died, or see its log"


@dataclass(frozen=True)
class StudyFindings:
    """A study with everything that is computed from it."""

    study: StudyData
    importances: Importances
    sweeps: Mapping[str, Sweep]
    proxy: ProxyComparison | None

    @classmethod
    def of(cls, study: StudyData) -> StudyFindings:
        sweeps = {parameter: make_sweep(study, parameter) for parameter in SWEEPS if is_numeric(study, parameter)}
        return cls(study, find_importances(study), sweeps, compare_proxy(study))

    @property
    def others(self) -> list[str]:
        """Parameters that no sweep shows and that complete trials have."""
        names = sorted({name for trial in self.study.complete for name in trial.params})
        return [name for name in names if name not in self.sweeps]

    @property
    def has_others(self) -> bool:
        """Whether the study tunes anything that no sweep shows."""
        return bool(self.others) or any(name not in SWEEPS for name in self.study.distributions)


def facts(study: StudyData) -> list[tuple[str, str, str]]:
    """The boxes below the headline: the best trial's values, or the best of each objective, and the time spent."""
    seconds = [trial.seconds for trial in study.trials if trial.seconds is not None]
    spent = []
    if seconds:
        spent = [("wall time of all trials", duration(sum(seconds)), f"median {duration(median(seconds))}")]
    if not study.front:
        return spent
    if len(study.objectives) > 1:
        return [*(_best_of(study, name) for name in study.objectives), *spent]
    best = study.front[0]
    names = dict.fromkeys((*study.objectives, study.quality, "params", "latency_ms"))
    known = [name for name in names if name in best.values]
    values = [(label(name), shown(name, best.values[name]), _limit(study, name)) for name in known]
    heads = [("heads", str(sum(best.heads)), f"in {len(best.heads)} layers")] if best.heads else []
    return [*values, *heads, *spent]


def _best_of(study: StudyData, name: str) -> tuple[str, str, str]:
    best = max if study.objectives[name] == "maximize" else min
    return f"best {label(name)}", shown(name, best(trial.values[name] for trial in study.front)), "on the front"


def _limit(study: StudyData, name: str) -> str:
    return f"limit {shown(name, study.constraints[name])}" if name in study.constraints else ""


def best_table(study: StudyData) -> dict[str, Any]:
    """The front, or with one objective the best trials, at most ``MAX_BEST``."""
    if len(study.objectives) > 1:
        chosen = study.front
    else:
        costs = study.costs(study.feasible)[:, 0].tolist()
        chosen = [trial for _, trial in sorted(zip(costs, study.feasible), key=lambda row: (row[0], row[1].number))]
    columns, rows = _table(study, chosen[:MAX_BEST])
    return {"columns": columns, "rows": rows, "total": len(chosen)}


def _table(study: StudyData, trials: Sequence[StudyTrial]) -> tuple[list[str], list[list[str]]]:
    """Number, objectives, parameters, what else was measured, and heads of trials."""
    params = list(dict.fromkeys(name for trial in trials for name in trial.params))
    others = dict.fromkeys(name for trial in trials for name in trial.values if name not in study.objectives)
    has_heads = any(trial.heads for trial in trials)
    rows = [
        [str(trial.number), *(shown(name, trial.values.get(name)) for name in study.objectives),
         *(shown_setting(trial.params.get(name, UNKNOWN)) for name in params),
         *(shown(name, trial.values.get(name)) for name in others),
         *([str(sum(trial.heads)) if trial.heads else UNKNOWN] if has_heads else [])]
        for trial in trials
    ]  # fmt: skip
    columns = ["trial", *map(label, study.objectives), *params, *map(label, others), *(["heads"] if has_heads else [])]
    return columns, rows


def trial_table(study: StudyData) -> dict[str, Any]:
    """All trials by number, at most ``MAX_TRIALS``."""
    listed_trials = study.trials[:MAX_TRIALS]
    columns, rows = _table(study, listed_trials)
    more = [[trial.state, duration(trial.seconds), ", ".join(trial.broken) or "none"] for trial in listed_trials]
    limits = 3 if study.constraints else 2
    return {
        "columns": [*columns, *["state", "wall time", "limits broken"][:limits]],
        "rows": [[*row, *extra[:limits]] for row, extra in zip(rows, more)],
        "total": len(study.trials),
    }


def sweep_section(found: StudyFindings, parameter: str) -> dict[str, Any]:
    """The table of a sweep and what to say of it; without rows if no trial with the parameter is complete."""
    name, title = SWEEPS[parameter]
    sweep = found.sweeps.get(parameter)
    if sweep is None:
        return {"id": name, "title": title, "parameter": parameter, "rows": []}
    remark = "Several trials share a value: means are shown, with the range." if sweep.is_repeated else ""
    if sweep.varied:
        remark += f" They differ in {listed(sweep.varied)} too, so a range is not the noise of training alone."
    return {
        "id": name, "title": title, "parameter": parameter, "remark": remark, "full_heads": sweep.full_heads,
        "is_repeated": sweep.is_repeated, "columns": sweep_columns(sweep),
        # a range is not broken between its ends
        "rows": [[cell.replace(" to ", _UNBROKEN_TO) for cell in sweep_cells(sweep, row)] for row in sweep.rows],
        "num_trials": sum(row.num_trials for row in sweep.rows),
    }  # fmt: skip


def proxy_section(found: StudyFindings) -> dict[str, Any] | None:
    """Rank correlations and times of the cheap trials; ``None`` if there are none."""
    if found.proxy is None:
        return None
    rows = [
        [label(name), str(one.n), *map(shown_coefficient, (one.kendall, one.spearman)), correlation_note(one)]
        for name, one in found.proxy.correlations.items()
    ]
    sentence, times = proxy_sentence(found.study, found.proxy), times_sentence(found.proxy.times)
    return {"sentence": sentence, "rows": rows, "times": times}


def failed_rows(study: StudyData) -> list[tuple[int, str, str]]:
    """Number, reason and parameters of failed trials."""
    return [(trial.number, trial.reason or _NO_REASON, shown_params(trial.params))
            for trial in study.trials if trial.state == "failed"]  # fmt: skip


def section_links(
    found: StudyFindings, images: Mapping[str, bytes], sweeps: Sequence[Mapping[str, Any]], has_failed: bool
) -> list[tuple[str, str]]:
    """Name and title of each section of the page, in order."""
    several = len(found.study.objectives) > 1
    return [
        ("best", "Pareto front" if several else "Best trials"), ("history", "History"), ("importances", "Importances"),
        *((sweep["id"], sweep["title"]) for sweep in sweeps),
        *([("slices", "Other parameters" if sweeps else "Parameters")] if found.has_others else []),
        *([("reports", "On the way")] if "reports" in images else []),
        *([("proxy", "Proxy")] if found.study.proxy_name else []),
        *([("failed", "Failed trials")] if has_failed else []), ("trials", "All trials"),
    ]  # fmt: skip
