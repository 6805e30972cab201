"""What a search through an Optuna study looks for, how, and where it is kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning

from elm_nni.errors import UserError
from elm_nni.strategies.evolution import Limit, Sample
from elm_nni.strategies.optuna_samplers import check_directions, checked_arguments, sampler_class, sampler_kind

Measure = Callable[[Sample], float]

_ABOUT = "elm_nni_search"


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """What a search looks for, how, and where it is kept.

    Attributes:
        sampler: ``nsgaii``, ``nsgaiii``, ``tpe``, ``gp``, ``random``, ``grid``, ``bruteforce``, ``qmc``, ``cmaes``, or
            a sampler of Optuna.
        sampler_args: arguments of a sampler given by name, such as ``{"population_size": 20}``.
        directions: metric to ``maximize`` or ``minimize``, in the order of the objectives. A metric is taken from
            ``objectives``, from the cost of a limit of its name, or from the evaluation's result.
        limits: name to :class:`~elm_nni.strategies.evolution.Limit`. Architectures over a limit are not evaluated;
            the sampler hears by how much they are.
        objectives: name to a measure of the canonical sample.
        evaluations: architectures evaluated in all, by all workers, before and after a resume; failed ones count.
        storage: database URL, such as ``sqlite:///search.db``; None keeps the study in memory.
        study_name: searches of one name in one storage go on with each other, or work side by side.
        seed: of a sampler given by name; with the number of this start it decides the draws.
        max_tries: draws without anything new after which the search ends.
        grace: seconds without a sign of life after which another worker's evaluation is taken over.

    Raises:
        ValueError: naming the setting, its value and what is allowed.
    """

    sampler: str | optuna.samplers.BaseSampler = "nsgaii"
    sampler_args: Mapping[str, Any] | None = None
    directions: Mapping[str, str] = field(default_factory=lambda: {"default": "maximize"})
    limits: Mapping[str, Limit] = field(default_factory=dict)
    objectives: Mapping[str, Measure] = field(default_factory=dict)
    evaluations: int = 100
    storage: str | None = None
    study_name: str = "search"
    seed: int = 0
    max_tries: int = 500
    grace: float = 60.0

    @property
    def sampler_class(self) -> type[optuna.samplers.BaseSampler]:
        """Class of the sampler."""
        named: type[optuna.samplers.BaseSampler]
        if isinstance(self.sampler, str):
            named = sampler_class(sampler_kind(self.sampler))
            return named
        return type(self.sampler)

    def __post_init__(self) -> None:
        if isinstance(self.sampler, str):
            checked_arguments(sampler_kind(self.sampler), self.sampler_args or {})
        elif not isinstance(self.sampler, optuna.samplers.BaseSampler):
            raise ValueError(f"sampler is {self.sampler!r}; it must be a name or a sampler of Optuna")
        elif self.sampler_args:
            raise ValueError(f"sampler_args is {self.sampler_args!r}; a sampler that is made takes none")
        if not self.directions:
            raise ValueError("directions is empty; it must name a metric to maximize or minimize")
        if isinstance(self.sampler, str):
            check_directions(sampler_kind(self.sampler), len(self.directions))
        for name, direction in self.directions.items():
            if direction not in ("maximize", "minimize"):
                raise ValueError(f"directions has {name!r}: {direction!r}; allowed: maximize, minimize")
        for name, measure in self.objectives.items():
            if name not in self.directions:
                raise ValueError(f"objectives has {name!r}; it must be in directions: {', '.join(self.directions)}")
            if not callable(measure):
                raise ValueError(f"objectives has {name!r}: {measure!r}; it must be callable")
        for name, limit in self.limits.items():
            if not isinstance(limit, Limit):
                raise ValueError(f"limits has {name!r}: {limit!r}; it must be a Limit")
        for name in ("evaluations", "max_tries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be >= 1")
        if not self.grace > 0:
            raise ValueError(f"grace is {self.grace!r}; it must be above 0 seconds")


def check_study(study: optuna.Study, settings: StudySettings, *, space: str, tree: bool) -> None:
    """Describes a new study by what is searched, or refuses one that searches something else.

    Args:
        space: digest of labels and values.
        tree: whether labels that do not count are left out of its trials.

    Raises:
        UserError: naming the study and the difference.
    """
    about: dict[str, Any] = {"directions": dict(settings.directions), "space": space, "tree": tree}
    known: Any = study.user_attrs.get(_ABOUT)
    name = f"study {settings.study_name!r}"
    directions = [direction.name.lower() for direction in study.directions]
    if directions != list(settings.directions.values()):
        raise UserError(f"{name} has the directions {', '.join(directions)}: choose another study_name")
    if known is None:
        with warnings.catch_warnings():
            # Optuna calls names of objectives experimental
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(list(settings.directions))
        study.set_user_attr(_ABOUT, about)
    elif list(known["directions"].items()) != list(about["directions"].items()):
        raise UserError(f"{name} has the objectives {', '.join(known['directions'])}: choose another study_name")
    elif known["space"] != space:
        raise UserError(f"{name} searches another space: choose another study_name")
    elif known["tree"] != tree:
        raise UserError(f"{name} cannot go on from or to sampler 'bruteforce': choose another study_name")
