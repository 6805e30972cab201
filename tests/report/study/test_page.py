"""The page of a study and its Markdown: complete, safe against hostile names, honest about what is missing."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution

from elm_nni.errors import UserError
from elm_nni.report import study_tables, write_report, write_study_report
from elm_nni.report.study.headline import study_headline
from elm_nni.report.study.load import StudyData, load_study
from elm_nni.report.study.markdown import markdown_table
from elm_nni.report.study.page import FIGURE_NAMES, render_study
from elm_nni.report.study.sections import StudyFindings, best_table, sweep_section, trial_table

from ..test_page import Page
from .studies import (
    ETAS,
    MODES,
    eta_quality,
    eta_trial,
    heads_left,
    trial_of,
    write_eta_study,
    write_many_study,
    write_pruned_study,
    write_study,
)


class StudyPage(Page):
    """As a page of a run, with places where a long name may be broken."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "wbr":
            super().handle_starttag(tag, attrs)

    @property
    def words(self) -> str:
        return " ".join("".join(self.pieces).split())


@pytest.fixture(scope="module")
def eta_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_eta_study(tmp_path_factory.mktemp("eta"))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> StudyData:
    return load_study(write_many_study(tmp_path_factory.mktemp("many")))


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> StudyData:
    return load_study(write_pruned_study(tmp_path_factory.mktemp("pruned")))


def words_of(study: StudyData) -> str:
    """The page without its figures."""
    return StudyPage(render_study(StudyFindings.of(study), {})).words


def test_page_of_a_sweep(eta_folder: Path) -> None:
    first = write_study_report(eta_folder).read_bytes()
    page = StudyPage(first.decode())
    sections = ["best", "history", "importances", "eta", "slices", "proxy", "trials"]
    figures = {"history", "eta_heads", "eta_values", "slices", "proxy"}
    assert [name for name in page.ids if not name.startswith("figure-")] == sections
    assert page.anchors == [f"#{name}" for name in sections]
    assert {name.removeprefix("figure-") for name in page.ids if name.startswith("figure-")} == figures
    assert {path.stem for path in (eta_folder / "plots").iterdir()} == figures <= set(FIGURE_NAMES)
    assert len(page.loads) == len(figures)
    assert all(load.startswith("data:image/png") for load in page.loads)
    assert "script" not in page.tags
    best = eta_quality(0.99, "fuse")
    assert f"Best of 9 complete trials: validation {best:.4f} with prune.eta 0.99, prune.mode fuse." in page.words
    assert "10 trials: 9 complete, 0 pruned, 0 failed, 1 running." in page.words
    assert "Importances are not estimated: 9 complete trials; at least 10 are needed." in page.words
    assert "Study eta-proxy has 5 cheap trials, 5 complete. 5 settings of the parameters have both" in page.words
    assert "Median wall time: 13.0 s for a proxy trial (of 5), 2 min 15 s for a full one (of 8)" in page.words
    (eta_folder / "plots/front.png").write_bytes(b"of an earlier report")
    assert write_study_report(eta_folder).read_bytes() == first
    assert not (eta_folder / "plots/front.png").exists()


def test_tables_of_a_sweep(eta_folder: Path) -> None:
    lines = study_tables(eta_folder).splitlines()
    assert lines[0] == "| prune.eta | prune.mode | trials | validation | heads | parameters | latency (ms) | " \
        "heads of each layer |"
    grid = [(rate, mode) for mode in MODES[::-1] for rate in ETAS]
    for line, (rate, mode) in zip(lines[2:10], grid):
        heads, quality = heads_left(rate, mode), f"{eta_quality(rate, mode):.4f}"
        repeated = (rate, mode) == (0.7, "remove")
        values = [f"{rate:g}", mode, "2" if repeated else "1", "0.7300 (0.7200 to 0.7400)" if repeated else quality,
                  str(sum(heads)), f"{4_000_000 + 10_000 * sum(heads):,}", f"{2 + sum(heads) / 20:.2f}",
                  " ".join(map(str, heads))]
        assert line == f"| {' | '.join(values)} |"
    text = "\n".join(lines[10:])
    assert "| validation | 5 | 0.53 [" in text
    assert "only 5 pairs: the interval is too narrow |" in text
    assert "| 0.8 | fuse | 0.7300 | 0.6730 |" in text
    assert "8 of these full and 0 of these proxy trials built that step too." in text


def test_tables_need_no_plots(eta_folder: Path) -> None:
    code = f"import sys; from elm_nni.report import study_tables; study_tables({str(eta_folder)!r}); " \
        "assert not {'matplotlib', 'jinja2', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_many_objectives(many: StudyData) -> None:
    words = words_of(many)
    num_front = len(many.front)
    assert (f"{num_front} of 24 complete trials are on the Pareto front of high validation, low parameters and low "
            "latency (ms).") in words
    assert "✗27 trials: 24 complete, 0 pruned, 3 failed." in words
    kept = sum(not trial.broken for trial in many.complete)
    assert f"✓Limit latency (ms) ≤ 5.50: kept by {kept} of 24 complete trials." in words
    smallest = min(many.front, key=lambda trial: trial.values["params"])
    assert f"Best parameters: {smallest.values['params']:,.0f} (trial {smallest.number}, " in words
    assert "These importances are weak: they rest on 24 complete trials." in words
    assert "limits.params: 18 is too low" in words
    assert "not recorded: the worker died, or see its log" in words
    assert "Study many-proxy has no trial yet." in words
    assert "All 24 complete trials, those that break a limit too." in words
    assert "They differ in distillation.features, " in words
    assert [row[0] for row in best_table(many)["rows"]] == [str(trial.number) for trial in many.front][:12]
    assert "Study many-proxy does not exist" in words_of(replace(many, proxy_trials=None))


def test_a_study_with_a_pruner(pruned: StudyData, tmp_path: Path) -> None:
    words = words_of(pruned)
    best = min((t for t in pruned.complete if not t.broken), key=lambda t: (t.values["loss"], t.number))
    assert f"Best of 9 complete trials: loss {best.values['loss']:.4f} with growth.top_k " in words
    assert "12 trials: 9 complete, 3 pruned, 0 failed." in words
    values = [float(row[1]) for row in best_table(pruned)["rows"]]
    assert values == sorted(values)
    assert len(values) == sum(not trial.broken for trial in pruned.complete)
    page = StudyPage(write_study_report(pruned.folder).read_text(encoding="utf-8"))
    assert "3 of 12 trials were pruned." in page.words
    assert "figure-reports" in page.ids
    assert "Proxy" not in page.words


def test_equal_trials_are_told(tmp_path: Path) -> None:
    trials = [eta_trial(rate, "fuse", 0.7) for rate in ETAS]
    study = load_study(write_study(tmp_path, "x", {"validation": "maximize"}, trials))
    texts = [statement.text for statement in study_headline(study).statements]
    assert ("Equally good: trial 1 (prune.eta 0.8, prune.mode fuse), trial 2 (prune.eta 0.9, prune.mode fuse) and "
            "trial 3 (prune.eta 0.99, prune.mode fuse).") in texts


def test_nothing_is_complete(many: StudyData, tmp_path: Path) -> None:
    running = tuple(replace(trial, state="running") for trial in many.trials)
    words = words_of(replace(many, trials=running))
    for sentence in (
        "No trial of this study is complete yet.", "27 trials: 0 complete, 0 pruned, 0 failed, 27 running.",
        "There is nothing to compare", "There is no history", "Importances are not estimated: 0 complete trials",
        "There is no sweep: no trial with prune.eta is complete.", "There is nothing to draw",
    ):  # fmt: skip
        assert sentence in words, sentence
    empty = write_study(tmp_path, "x", {"validation": "maximize"}, [])
    words = StudyPage(write_study_report(empty).read_text(encoding="utf-8")).words
    assert "0 trials: 0 complete" in words
    assert "The study has no trial yet." in words
    assert study_tables(empty) == "Study x has no complete trial of a swept parameter and no proxy.\n"


def test_no_trial_keeps_the_limits(many: StudyData) -> None:
    words = words_of(replace(many, trials=tuple(replace(t, broken=("latency_ms",)) for t in many.trials)))
    assert "None of 24 complete trials keeps the limits." in words
    assert "✗Limit latency (ms) ≤ 5.50: kept by 0 of 24 complete trials." in words
    assert "No complete trial keeps the limits, so none is the best." in words


def test_long_tables_are_cut_and_say_so(many: StudyData) -> None:
    trials = tuple(replace(many.complete[0], number=i) for i in range(300))
    study = replace(many, trials=trials)
    assert (len(trial_table(study)["rows"]), trial_table(study)["total"]) == (200, 300)
    assert len(best_table(study)["rows"]) == 12
    words = words_of(study)
    assert "300 trials, the first 200 of them" in words
    assert "300 of 300 complete trials are on the front; 12 are listed." in words


def test_ranges_are_not_broken(many: StudyData) -> None:
    rows = sweep_section(StudyFindings.of(many), "prune.eta")["rows"]
    assert any("\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}" in cell for row in rows for cell in row)
    assert not any(" to " in cell for row in rows for cell in row)


def test_hostile_strings_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'><img src=http://evil.example/x onerror=alert(2)>{{ 7*7 }}$\\frac{"
    space: dict[str, BaseDistribution] = {evil: CategoricalDistribution((evil, "b"))}
    trials = [trial_of({evil: evil}, space, [0.5], measured={evil: 3, "architecture": {"layer0": evil}}),
              trial_of({evil: "b"}, space, [0.4], measured={"stages_built": [evil]})]
    folder = write_study(tmp_path, evil, {evil: "maximize"}, trials, trials, {evil: 0.45})
    page = StudyPage(write_study_report(folder).read_text(encoding="utf-8"))
    assert set(page.tags).isdisjoint({"script"})
    assert all(load.startswith("data:image/png") for load in page.loads)
    assert evil in "".join(page.pieces)
    assert study_tables(folder)


def test_a_cell_stays_one_cell() -> None:
    assert markdown_table(["a|b", "c"], [["1\n2", "3"]]) == "| a\\|b | c |\n|---|---|\n| 1 2 | 3 |"


def test_what_cannot_be_written_or_read(eta_folder: Path, tmp_path: Path) -> None:
    for name in ("study.db", "study.json"):
        (tmp_path / name).write_bytes((eta_folder / name).read_bytes())
    (tmp_path / "plots").write_text("a file in the way")
    with pytest.raises(UserError, match="cannot write the report"):
        write_study_report(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        write_study_report(tmp_path / "gone")
    with pytest.raises(UserError, match="nothing to report"):
        write_report(tmp_path)
