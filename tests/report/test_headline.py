"""The headline says what the numbers say, losses first of all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from elm_nni.report.headline import build_headline, find_system, kept_share, speed_up
from elm_nni.report.load import load_run
from elm_nni.report.result_files import Latency, Results, System

from .conftest import NANO, write_sample_run


@pytest.fixture
def results(tmp_path: Path) -> Results:
    run = load_run(write_sample_run(tmp_path, NANO))
    assert run.results is not None
    return run.results


def with_system(results: Results, name: str, **changes: object) -> Results:
    systems = tuple(replace(s, **changes) if s.name == name else s for s in results.systems)  # type: ignore[arg-type]
    return replace(results, systems=systems)


def tones(results: Results, word: str) -> list[str]:
    return [s.tone for s in build_headline(results).statements if word in s.text]


def test_kept_share_and_speed_up(results: Results) -> None:
    title = build_headline(results).title
    assert f"{100 * 0.7843 / 0.7995:.1f} %" in title
    assert f"{11.84 / 3.21:.2f}×" in title
    assert "behind" not in title


def with_interval(results: Results, name: str, low: float, high: float) -> Results:
    changed = tuple(replace(one, difference=(low + high) / 2, low=low, high=high) if one.against == name else one
                    for one in results.comparisons)
    return replace(results, comparisons=changed)


def test_an_interval_below_zero_stands_in_the_title(results: Results) -> None:
    behind = with_interval(results, "uniform bert", -0.04, -0.01)
    assert build_headline(behind).title.endswith(", but is behind uniform bert.")
    several = with_interval(behind, "teacher half depth", -0.04, -0.01)
    assert build_headline(several).title.endswith(", but is behind uniform bert and teacher half depth.")


def test_a_lower_number_without_an_interval_below_zero_is_no_loss(results: Results) -> None:
    lower = with_system(results, "uniform bert", tasks={"polarity": 0.7900})
    assert "behind" not in build_headline(lower).title
    assert tones(lower, "uniform bert") == ["plain"]


def test_own_variant_and_teacher_are_no_rivals(results: Results) -> None:
    better = with_system(results, "ELM int8 ONNX", tasks={"polarity": 0.99})
    assert "int8" not in "".join(s.text for s in build_headline(better).statements)
    assert "behind" not in build_headline(with_interval(results, "teacher + head", -0.04, -0.01)).title


@pytest.mark.parametrize(
    ("low", "high", "tone", "words", "zero"),
    [(0.001, 0.03, "good", "Ahead of", "excludes"), (-0.01, 0.03, "plain", "Not told apart from", "includes"),
     (-0.03, -0.001, "bad", "Behind", "excludes"), (0.0, 0.03, "plain", "Not told apart from", "includes"),
     (-0.03, 0.0, "plain", "Not told apart from", "includes"), (0.0, 0.0, "plain", "Not told apart from", "includes")],
)
def test_the_interval_decides_the_verdict(
    results: Results, low: float, high: float, tone: str, words: str, zero: str
) -> None:
    changed = with_interval(results, "uniform bert", low, high)
    text = (f"{words} uniform bert on polarity: accuracy 0.7843 against 0.7796; difference in accuracy "
            f"{(low + high) / 2:+.4f}, 95 % paired bootstrap interval [{low:+.4f}, {high:+.4f}] {zero} zero.")
    assert [(s.tone, s.text) for s in build_headline(changed).statements if "uniform" in s.text] == [(tone, text)]


def test_few_rows_are_told(results: Results) -> None:
    assert tones(results, "rows to score") == []
    task = results.tasks["polarity"]
    for rows, expected in ((100, []), (25, ["bad"])):
        few = replace(results, tasks={"polarity": replace(task, num_examples=rows)})
        assert tones(few, "polarity has 25 rows to score: scores of so few (one row is 4.0 %) can be luck.") == expected


def test_without_an_interval_the_numbers_stand_without_a_verdict(results: Results) -> None:
    bare = replace(results, comparisons=())
    text = "Beside uniform bert on polarity: accuracy 0.7843 against 0.7796; the difference has no interval."
    assert [(s.tone, s.text) for s in build_headline(bare).statements if "uniform" in s.text] == [("plain", text)]
    assert not [s for s in build_headline(bare).statements if "teacher + head" in s.text]
    # One task of two is known.
    both = with_system(with_system(results, "ELM (ours)", tasks={"polarity": 0.7, "other": 0.6}), "uniform bert",
                       tasks={"polarity": 0.7, "other": 0.5})
    assert tones(both, "Beside uniform bert on other: score 0.6000 against 0.5000") == ["plain"]
    assert tones(both, "Beside uniform bert on polarity") == []


def test_an_interval_against_a_system_that_has_no_row_is_told(results: Results) -> None:
    gone = replace(results, systems=results.systems[:1])
    assert tones(gone, "Ahead of teacher half depth on polarity: difference in accuracy +0.0223") == ["good"]


def test_limits_met_and_missed(results: Results) -> None:
    assert tones(results, "within the limit") == ["good", "good"]
    missed = replace(results, param_budget=results.params - 1, latency=replace(results.latency, limit=3.2))
    assert tones(missed, "over the limit") == ["bad", "bad"]
    assert tones(replace(results, param_budget=results.params), "Parameters") == ["good"]


def test_a_limit_without_a_latency_is_not_met(results: Results) -> None:
    unknown = replace(results, latency=Latency(None, None, 4.0, ""))
    assert tones(unknown, "No latency is known") == ["bad"]
    predicted = replace(results, latency=Latency(3.0, None, 4.0, ""))
    assert tones(predicted, "Predicted latency: 3.00 ms, within the limit") == ["good"]


def test_no_speed_up_across_conditions(results: Results) -> None:
    other = with_system(results, "teacher + head", condition="onnx, gpu")
    assert "speed" not in build_headline(other).title
    assert speed_up(other.systems[0], find_system(other, "teacher + head")) is None


def test_without_teacher_or_ours(results: Results) -> None:
    alone = replace(results, systems=tuple(s for s in results.systems if s.name == "ELM (ours)"))
    assert "no share of a teacher is known" in build_headline(alone).title
    assert "not compared" in build_headline(replace(results, systems=())).title


def system(**tasks: float) -> System:
    return System("any", tasks, {}, None, None, None, None, "", "")


def test_share_is_the_mean_over_common_tasks() -> None:
    assert kept_share(system(a=0.4, b=0.9, c=1.0), system(a=0.8, b=0.9)) == pytest.approx(0.75)
    assert kept_share(system(a=0.4), system(b=0.8)) is None
    assert kept_share(system(a=0.4), system(a=-0.1)) is None
    assert kept_share(system(a=0.4), None) is None
