"""Search strategies. ``evolution``, ``growth`` and ``architecture_study`` import without NNI and without Lightning."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elm_nni.strategies.architecture_study import ArchitectureStudy
    from elm_nni.strategies.constrained_evolution import ConstrainedEvolution
    from elm_nni.strategies.distil_evaluator import DistilEvaluator
    from elm_nni.strategies.evolution import Constraints, Evolution, Individual, Limit
    from elm_nni.strategies.growth import Growable, GrowthEvent, GrowthRecord, PcaGrowth
    from elm_nni.strategies.growth_callback import GrowthCallback
    from elm_nni.strategies.growth_scores import GrowthScore
    from elm_nni.strategies.head_pruning import CkaHeadPruner, HeadPlan, load_pruned, save_pruned
    from elm_nni.strategies.one_shot import ElmOneShot, set_path, to_supernet
    from elm_nni.strategies.optuna_search import OptunaSearch
    from elm_nni.strategies.relational_kd import RelationalKD
    from elm_nni.strategies.study_settings import StudySettings
    from elm_nni.strategies.supernet_fitness import SupernetFitness

_MODULES = {
    "architecture_study": ("ArchitectureStudy",),
    "constrained_evolution": ("ConstrainedEvolution",),
    "distil_evaluator": ("DistilEvaluator",),
    "evolution": ("Constraints", "Evolution", "Individual", "Limit"),
    "growth": ("Growable", "GrowthEvent", "GrowthRecord", "PcaGrowth"),
    "growth_callback": ("GrowthCallback",),
    "growth_scores": ("GrowthScore",),
    "head_pruning": ("CkaHeadPruner", "HeadPlan", "load_pruned", "save_pruned"),
    "one_shot": ("ElmOneShot", "set_path", "to_supernet"),
    "optuna_search": ("OptunaSearch",),
    "relational_kd": ("RelationalKD",),
    "study_settings": ("StudySettings",),
    "supernet_fitness": ("SupernetFitness",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "ArchitectureStudy",
    "CkaHeadPruner",
    "ConstrainedEvolution",
    "Constraints",
    "DistilEvaluator",
    "ElmOneShot",
    "Evolution",
    "Growable",
    "GrowthCallback",
    "GrowthEvent",
    "GrowthRecord",
    "GrowthScore",
    "HeadPlan",
    "Individual",
    "Limit",
    "OptunaSearch",
    "PcaGrowth",
    "RelationalKD",
    "StudySettings",
    "SupernetFitness",
    "load_pruned",
    "save_pruned",
    "set_path",
    "to_supernet",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
