"""What is compared: the base configuration, the systems and how many seeds each gets, read from one YAML file."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elm_nni.errors import UserError
from elm_nni.files import read_settings
from elm_nni.pipeline.config import Config, load_config

FULL = "full ELM"


@dataclass(frozen=True)
class Comparison:
    """Systems over seeds on one recipe.

    Attributes:
        systems: name to its number of seeds, from 0; ``full ELM`` gives the size of the others, so it has most.
        base: a preset, or a configuration file beside the YAML file.
        changes: dotted keys of the configuration that hold for every system.
        random_architectures: how many are drawn for each seed.
        teacher_lr: learning rate of the teacher and of its first layers, whose weights are trained ones.
    """

    systems: Mapping[str, int]
    base: str = "nano"
    changes: Mapping[str, Any] = field(default_factory=dict)
    random_architectures: int = 5
    teacher_lr: float = 1e-4

    @property
    def num_seeds(self) -> int:
        return self.systems[FULL]

    def names(self, seed: int) -> list[str]:
        """Systems of a seed, ``full ELM`` first."""
        return [FULL, *(name for name, seeds in self.systems.items() if seed < seeds and name != FULL)]

    def config(self, seed: int, changes: Mapping[str, Any] | None = None) -> Config:
        """The configuration of a seed, with the changes of a system.

        Raises:
            UserError: a key or value that does not exist, or weights for all systems that only the winner of a search
                could inherit.
        """
        changes = changes or {}
        config = load_config(self.base, {**self.changes, "seed": seed, **changes})
        if config.retrain.init != "scratch" and "retrain.init" not in changes:
            raise UserError(
                f"retrain.init: {config.retrain.init!r} is not allowed; it must be scratch, as most systems have no "
                "supernet to inherit from"
            )
        return config


def load_comparison(path: Path, known: Iterable[str]) -> Comparison:
    """Reads the YAML file.

    Args:
        path: of the file.
        known: names of systems.

    Raises:
        UserError: naming the key, its value and what is allowed.

    Example::

        load_comparison(Path("benchmarks/quality/nano.yaml"), SYSTEMS).num_seeds
    """
    content = read_settings(path)
    _refuse_unknown(f"{path}: unknown key", content, [*Comparison.__dataclass_fields__])
    systems = content.get("systems")
    if not isinstance(systems, dict) or FULL not in systems:
        raise UserError(f"{path}: systems: {systems!r} is not allowed; it must name systems and seeds, {FULL!r} too")
    _refuse_unknown(f"{path}: unknown system", systems, list(known))
    for name, seeds in systems.items():
        if not _is_count(seeds) or seeds > systems[FULL]:
            raise UserError(
                f"{path}: systems.{name}: {seeds!r} seeds are not allowed; it must be from 1 to those of {FULL}"
            )
    if not isinstance(content.get("changes", {}), dict):
        raise UserError(f"{path}: changes: {content['changes']!r} is not allowed; it must be dotted keys and values")
    if not _is_count(content.get("random_architectures", 1)):
        raise UserError(f"{path}: random_architectures: {content['random_architectures']!r} is not allowed; at least 1")
    content["teacher_lr"] = _rate(path, content.get("teacher_lr", Comparison.teacher_lr))
    base = path.parent / str(content.get("base", Comparison.base))
    if base.is_file():
        content["base"] = str(base)
    comparison = Comparison(**content)
    comparison.config(0)
    return comparison


def _rate(path: Path, given: Any) -> float:
    try:
        # YAML reads 1e-4 as a text
        rate = float(given)
    except (TypeError, ValueError):
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise UserError(f"{path}: teacher_lr: {given!r} is not allowed; it must be a number > 0")
    return rate


def _refuse_unknown(what: str, names: Iterable[Any], known: list[str]) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
            raise UserError(f"{what} {name}{hint}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
