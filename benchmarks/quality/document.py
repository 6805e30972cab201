"""Tables as Markdown, the same as JSON, and one figure."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
from common import table
from matplotlib.figure import Figure

from elm_nni.pipeline.evaluate_stage import TFIDF
from elm_nni.pipeline.runner import device_name
from elm_nni.pipeline.store import versions
from elm_nni.report.style import BLUE, GREY, INK, new_figure, styled
from quality.comparison import FULL
from quality.findings import Finding, findings
from quality.reference import Reference
from quality.rows import MEAN, RESAMPLES, Difference, Row, Scored, best_uniform, differences, mean_of
from quality.systems import SYSTEMS

Line = dict[str, Any]
AnyScored = TypeVar("AnyScored", bound=Scored)


@dataclass(frozen=True)
class Results:
    """Everything that is printed.

    Attributes:
        split: ``validation`` or ``test``.
        tasks: name to its metric and number of rows, by seed.
        left_out: lines of systems and seeds without students.
        references: scores of TF-IDF, by seed.
    """

    command: str
    device: str
    split: str
    condition: str
    tasks: dict[str, dict[str, Any]]
    rows: list[Row]
    left_out: list[Line]
    references: Sequence[Reference] = ()

    @property
    def differences(self) -> list[Difference]:
        """To full ELM, and to the best uniform system."""
        return [one for name in (FULL, best_uniform(self.rows)) for one in differences(self.rows, name)]

    def to_dict(self) -> dict[str, Any]:
        return {
            **_header(self), "split": self.split, "condition": self.condition, "tasks": self.tasks,
            "best_uniform": best_uniform(self.rows), "rows": [asdict(row) for row in self.rows],
            "findings": [asdict(one) for one in findings(self.rows)],
            "differences": [asdict(one) for one in self.differences], "left_out": self.left_out,
            "references": [asdict(one) for one in self.references],
        }  # fmt: skip


def make_results(
    command: str, trained: Sequence[Line], rows: list[Row], measured: Mapping[str, Line],
    tested: Mapping[str, Line] | None, references: Sequence[Reference] = (),
) -> Results:  # fmt: skip
    """Results of rows; number of rows of a task as its splits have it, the smallest and largest of the seeds."""
    with_students = [line for line in trained if line["students"]]
    counts: dict[str, list[int]] = {}
    for line in with_students:
        for one in line["students"]:
            found = tested[one["key"]]["rows"] if tested else {n: task["rows"] for n, task in line["tasks"].items()}
            for name, number in found.items():
                counts.setdefault(name, []).append(number)
    metrics = {name: task["metric"] for line in with_students for name, task in line["tasks"].items()}
    conditions = dict.fromkeys(
        measured[one["key"]]["condition"] for line in with_students for one in line["students"]
    )
    return Results(
        command, device_name("cpu"), "validation" if tested is None else "test", "; ".join(filter(None, conditions)),
        {name: {"metric": metrics[name], "rows": sorted({min(n), max(n)})} for name, n in sorted(counts.items())}, rows,
        [{key: line[key] for key in ("system", "seed", "reason")} for line in trained if not line["students"]],
        references,
    )  # fmt: skip


def document(results: Results) -> list[str]:
    """Lines of Markdown."""
    header = _header(results)
    best = best_uniform(results.rows)
    seeds = len({row.seed for row in results.rows})
    tasks = ", ".join(
        f"{name} ({task['metric']}, {' to '.join(f'{n:,}' for n in task['rows'])} rows)"
        for name, task in results.tasks.items()
    )
    lines = [
        f"{header['date']}, {header['device']}, {', '.join(f'{k} {v}' for k, v in header['versions'].items())}",
        "",
        f"`{header['command']}`",
        "",
        f"- Scores are of the {results.split} rows: {tasks}. {_about_split(results.split)}",
        f"- Seeds 0 to {seeds - 1}, or as many of the first as a system has; a seed sets splits, weights and batches. "
        "± is the standard deviation over seeds.",
        f"- Systems of one size have the parameters outside the embeddings of {FULL}'s winner of the same seed within "
        "2 %. All have the same teacher, data, losses and steps where a note says nothing else.",
        f"- Milliseconds: median, all systems of a seed timed side by side, {results.condition}. Seconds: wall time of "
        "all stages that a system needs, also of those that it shares.",
        *(f"- {name}: {SYSTEMS[name].note}." for name in _names(results.rows)),
        *(f"- Left out: {one['system']}, seed {one['seed']}: {one['reason']}." for one in results.left_out),
    ]
    if found := findings(results.rows):
        lines += ["", "What helps, by how much, against the spread over seeds:", "", *findings_table(found)]
    for title, rows in _groups(results.rows).items():
        lines += ["", title, "", *quality_table(rows), *_all_metrics(rows), "", *cost_table(rows)]
    if results.references:
        full = [row for row in results.rows if row.system == FULL]
        lines += [
            "",
            f"For scale, without a network, {TFIDF} on the same training rows. It reads texts whole, the systems as "
            "many tokens of them as the tasks' max_length says:",
            "",
            *quality_table(results.references), "",
            *difference_table(differences([*full, *results.references], FULL), first=f"less {FULL}"),
        ]  # fmt: skip
    for against in dict.fromkeys(one.against for one in results.differences):
        chosen = f", the better uniform system by {MEAN} on validation rows" if against == best else ""
        lines += [
            "",
            f"System minus {against}{chosen}, seed by seed: mean ± standard deviation [95 % bootstrap interval over "
            f"seeds, {RESAMPLES:,} resamples], seeds higher and lower. Intervals of few seeds are too narrow.",
            "",
            *difference_table([one for one in results.differences if one.against == against]),
        ]
    return [
        *lines, "", *each_seed(results.rows), "", "The models of one size, each with the systems that it is:", "",
        *layers_table(results.rows),
    ]  # fmt: skip


def quality_table(rows: Sequence[Scored]) -> list[str]:
    """A row for each system: mean and standard deviation over seeds."""
    tasks = shown_tasks(rows[0].scores)
    body = [
        [name, str(len(ones)), *(spread([row.scores[task] for row in ones]) for task in tasks)]
        for name, ones in _by_system(rows).items()
    ]
    return table(["system", "seeds", *tasks], body)


def metrics_table(rows: Sequence[Row], task: str) -> list[str]:
    """A row for each system, a column for each metric of the task: mean and standard deviation over seeds."""
    names = list(rows[0].metrics[task])
    body = [
        [system, str(len(ones)), *(spread([row.metrics[task][name] for row in ones]) for name in names)]
        for system, ones in _by_system(rows).items()
    ]
    return table(["system", "seeds", *names], body)


def cost_table(rows: Sequence[Row]) -> list[str]:
    """A row for each system: means over seeds."""
    body = [
        [
            name, *(f"{mean_of(ones, part):,.0f}" for part in ("params", "params_outside_embeddings")),
            f"{mean_of(ones, 'megabytes'):.1f}", _milliseconds(mean_of(ones, "latency_ms")),
            f"{mean_of(ones, 'seconds'):,.0f}", " ".join(str(len(row.layers)) for row in ones if row.layers),
        ]
        for name, ones in _by_system(rows).items()
    ]  # fmt: skip
    columns = ["system", "parameters", "outside the embeddings", "MB", "ms", "seconds of compute", "layers, by seed"]
    return table(columns, body)


def layers_table(rows: Sequence[Row]) -> list[str]:
    """A row for each seed and different model: its layers and size, and all systems that it is."""
    found: dict[tuple[int, tuple[str, ...]], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.seed):
        if row.layers and not _is_free(row.system):
            found.setdefault((row.seed, row.layers), []).append(row)
    body = [
        [str(seed), ", ".join(row.system for row in ones), "; ".join(_counted(layers)),
         f"{ones[0].params_outside_embeddings:,.0f}"]
        for (seed, layers), ones in found.items()
    ]  # fmt: skip
    return table(["seed", "systems", "layers: block, width, heads", "outside the embeddings"], body)


def _counted(layers: Sequence[str]) -> Iterator[str]:
    for layer, ones in groupby(layers):
        number = len(list(ones))
        yield layer if number == 1 else f"{number} x {layer}"


def difference_table(found: Sequence[Difference], first: str = "system") -> list[str]:
    """A row for each system, a column for each task; ``first`` is the title of the names."""
    tasks = shown_tasks(dict.fromkeys(one.task for one in found))
    body = []
    for name in dict.fromkeys(one.system for one in found):
        ones = {one.task: one for one in found if one.system == name}
        body.append([name, str(ones[tasks[0]].seeds), *(_difference_cell(ones[task]) for task in tasks)])
    return table([first, "seeds", *tasks], body)


def findings_table(found: Sequence[Finding]) -> list[str]:
    """A row for each answer: the mean over tasks, and the tasks that tell the two apart."""
    body = [
        [one.question, f"{one.system} - {one.against}", _seeds_cell(one), _difference_cell(one.mean),
         ", ".join(one.better) or "none", ", ".join(one.worse) or "none"]
        for one in found
    ]  # fmt: skip
    columns = ["question", "difference", "seeds", MEAN, "higher by over one deviation", "lower by over one deviation"]
    return table(columns, body)


def each_seed(rows: Sequence[Row]) -> list[str]:
    """A row for each system, its mean of tasks at each seed."""
    seeds = sorted({row.seed for row in rows})
    body = []
    for name, ones in _by_system(rows).items():
        values = {row.seed: f"{row.scores[MEAN]:.4f}" for row in ones}
        body.append([name, *(values.get(seed, "") for seed in seeds)])
    return table([MEAN, *(f"seed {seed}" for seed in seeds)], body)


def shown_tasks(scores: Iterable[str]) -> list[str]:
    """The tasks and, of more than one, their mean."""
    names = list(scores)
    return names if len(names) > 2 else names[:1]


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation; of one value there is none.

    Example:
        >>> spread([0.5, 0.7])
        '0.6000 ± 0.1414'
    """
    return f"{np.mean(values):.4f}" + (f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else "")


@styled
def plot(results: Results) -> Figure:
    """Quality of each system in a panel for each task and their mean: a point for each seed, a line at their mean.

    Systems of a size of their own stand below a rule.
    """
    systems, tasks = _by_system(results.rows), shown_tasks(results.rows[0].scores)
    free = [name for name in systems if _is_free(name)]
    figure = new_figure(3.2 + 2.6 * len(tasks), 1.0 + 0.36 * len(systems))
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        for height, (name, ones) in enumerate(systems.items()):
            values = [row.scores[task] for row in ones]
            colour = BLUE if name == FULL else GREY
            axes.plot(values, [height] * len(values), "o", color=colour, alpha=0.6, markersize=5, linestyle="none")
            axes.plot([np.mean(values)] * 2, [height - 0.32, height + 0.32], color=colour if name == FULL else INK)
        if free:
            axes.axhline(len(systems) - len(free) - 0.5, color=GREY, linewidth=0.8)
        axes.axvline(np.mean([row.scores[task] for row in systems[FULL]]), color=BLUE, linewidth=0.8, linestyle=":")
        metric = results.tasks[task]["metric"] if task in results.tasks else "mean"
        axes.set_title(task)
        axes.set_xlabel(f"{metric}, {results.split} rows")
        axes.grid(True, axis="x")
    panels[0].set_yticks(range(len(systems)), list(systems))
    panels[0].invert_yaxis()
    return figure


def _all_metrics(rows: Sequence[Row]) -> Iterator[str]:
    """The tables of the tasks that report several."""
    for task, found in rows[0].metrics.items():
        if len(found) > 1:
            yield from ("", f"All metrics of {task}:", "", *metrics_table(rows, task))


def _header(results: Results) -> dict[str, Any]:
    return {
        "date": str(datetime.date.today()), "device": results.device, "versions": versions(),
        "command": results.command,
    }  # fmt: skip


def _about_split(split: str) -> str:
    if split == "test":
        return "They were read after everything was trained and are not used to choose anything."
    return (
        "Test rows were not read; the option --test reads them. The best random architecture and the better uniform "
        "system are chosen on these same rows, which flatters them."
    )


def _names(rows: Sequence[Row]) -> list[str]:
    """The systems that the rows are of."""
    shown = {row.system for row in rows}
    return [name for name in SYSTEMS if any(one == name or one.startswith(f"{name}, ") for one in shown)]


def _groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Title to rows: the systems of one size, and those of their own, with full ELM again."""
    free = [row for row in rows if _is_free(row.system)]
    groups = {"Systems of one size:": [row for row in rows if row not in free]}
    if free:
        groups["Systems of a size of their own:"] = [row for row in rows if row.system == FULL] + free
    return groups


def _is_free(name: str) -> bool:
    """Whether a row's system has a size of its own."""
    return name in SYSTEMS and not SYSTEMS[name].sized


def _by_system(rows: Sequence[AnyScored]) -> dict[str, list[AnyScored]]:
    names = dict.fromkeys(row.system for row in rows)
    return {name: [row for row in rows if row.system == name] for name in names}


def _milliseconds(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"


def _seeds_cell(one: Finding) -> str:
    return f"{one.seeds}; at {one.same} both are one model" if one.same else str(one.seeds)


def _difference_cell(one: Difference) -> str:
    deviation = "" if one.deviation is None else f" ± {one.deviation:.4f}"
    return f"{one.mean:+.4f}{deviation} [{one.low:+.4f}, {one.high:+.4f}], {one.higher} and {one.lower}"
