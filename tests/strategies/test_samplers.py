"""Samplers by name: what is refused before a study exists, and CMA-ES among categories."""

import logging
import sys

import pytest

from elm_nni.errors import UserError
from elm_nni.strategies.architecture_study import ArchitectureStudy
from elm_nni.strategies.optuna_samplers import SAMPLERS, check_directions, checked_arguments
from elm_nni.strategies.study_settings import StudySettings

MIXED = {"kind": ["skip", "conv", "wide"], "width": [4, 8, 12, 16], "depth": [2, 4, 6, 8]}


@pytest.mark.parametrize(
    ("sampler", "package", "extra"), [("cmaes", "cmaes", "elm-nni[studies]"), ("gp", "torch", "torch")]
)
def test_a_missing_package_is_one_line_with_its_command(
    sampler: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as error:
        StudySettings(sampler=sampler)
    assert str(error.value) == f'sampler {sampler!r} needs the package {package}: pip install "{extra}"'
    assert checked_arguments("random", {}) == {}


def test_cmaes_is_refused_for_several_objectives_before_the_first_draw() -> None:
    with pytest.raises(UserError, match="sampler 'cmaes' takes one objective, got 2; several: tpe, .*nsgaii"):
        StudySettings(sampler="cmaes", directions={"default": "maximize", "params": "minimize"})
    for kind in SAMPLERS:
        check_directions(kind, 1)
        if kind != "cmaes":
            check_directions(kind, 3)


@pytest.mark.parametrize("labels", [("kind",), ("kind", "width", "depth")])
def test_cmaes_searches_among_categories_without_a_warning_a_label(
    labels: tuple[str, ...], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # optuna keeps its messages from the root logger
    monkeypatch.setattr(logging.getLogger("optuna"), "propagate", True)
    settings = StudySettings(sampler="cmaes", evaluations=12, max_tries=50)
    study = ArchitectureStudy({label: MIXED[label] for label in labels}, settings=settings)
    num_calls = 0
    while (candidate := study.ask()) is not None:
        num_calls += 1
        study.tell(candidate, float(candidate.sample.get("width", 0)))
    assert num_calls == (3 if labels == ("kind",) else 12)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_cmaes_warns_of_categories_if_told_to() -> None:
    assert checked_arguments("cmaes", {"warn_independent_sampling": True}) == {"warn_independent_sampling": True}
    assert checked_arguments("cmaes", {"sigma0": 0.5}) == {"sigma0": 0.5, "warn_independent_sampling": False}
