"""The headline says what the numbers say, losses first of all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from elm_nni.report.headline import build_headline, find_system, kept_share, speed_up
from elm_nni.report.load import Latency, Results, System, load_run

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
    assert "loses" not in title


def test_a_loss_stands_in_the_title(results: Results) -> None:
    lost = with_system(results, "TF-IDF + logistic regression", tasks={"polarity": 0.80})
    assert build_headline(lost).title.endswith(", but loses to TF-IDF + logistic regression.")
    text = "Loses to TF-IDF + logistic regression on polarity: accuracy 0.7843 against 0.8000."
    assert [(s.tone, s.text) for s in build_headline(lost).statements if "Loses" in s.text] == [("bad", text)]


def test_several_losses_are_all_named(results: Results) -> None:
    lost = with_system(with_system(results, "uniform bert", tasks={"polarity": 0.9}), "teacher half depth",
                       tasks={"polarity": 0.9})
    assert build_headline(lost).title.endswith(", but loses to uniform bert and teacher half depth.")


def test_own_variant_and_teacher_are_no_rivals(results: Results) -> None:
    better = with_system(results, "ELM int8 ONNX", tasks={"polarity": 0.99})
    assert "loses" not in build_headline(better).title


def test_a_tie_is_no_win(results: Results) -> None:
    tied = with_system(results, "uniform bert", tasks={"polarity": 0.7843})
    assert tones(tied, "Ties with uniform bert") == ["plain"]


@pytest.mark.parametrize(
    ("low", "high", "tone", "word"),
    [(0.001, 0.03, "good", "gain"), (-0.01, 0.03, "plain", "not told apart from zero"), (-0.03, -0.001, "bad", "loss"),
     (0.0, 0.03, "plain", "not told apart")],
)
def test_interval(results: Results, low: float, high: float, tone: str, word: str) -> None:
    assert results.comparison is not None
    changed = replace(results, comparison=replace(results.comparison, low=low, high=high))
    assert [s.tone for s in build_headline(changed).statements if "bootstrap" in s.text and word in s.text] == [tone]


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
    return System("any", tasks, None, None, None, None, "", "")


def test_share_is_the_mean_over_common_tasks() -> None:
    assert kept_share(system(a=0.4, b=0.9, c=1.0), system(a=0.8, b=0.9)) == pytest.approx(0.75)
    assert kept_share(system(a=0.4), system(b=0.8)) is None
    assert kept_share(system(a=0.4), system(a=-0.1)) is None
    assert kept_share(system(a=0.4), None) is None
