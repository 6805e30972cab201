"""What multi-trial strategies need of an NNI model space: choices, a canonical form, and frozen models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nni.mutable import Categorical, Mutable, MutableAnnotation, MutableSymbol
from nni.nas.space import ExecutableModelSpace, RawFormatModelSpace, SimplifiedModelSpace

from elm_nni.strategies.evolution import Limit, Sample


class SearchedSpace:
    """Any NNI model space of categorical mutables, some labels of which may be fixed.

    Args:
        model_space: in either of NNI's formats.
        fixed: label to value, for labels that are not searched.
        canonical: sample to its canonical form. None takes the space's own ``canonical`` method; for a space without
            one every label counts.

    Attributes:
        choices: label to values, of the labels that are searched.
        defaults: a value for every label.

    Raises:
        ValueError: the space has other mutables than categorical ones, or not a fixed label or value.
    """

    def __init__(
        self,
        model_space: ExecutableModelSpace,
        *,
        fixed: Mapping[str, Any],
        canonical: Callable[[Sample], Sample] | None,
    ) -> None:
        mutables = model_space.simplify()
        choices = _choices(mutables)
        for label, value in fixed.items():
            if label not in choices or value not in choices[label]:
                allowed = f"one of {choices[label]}" if label in choices else f"a label out of {', '.join(choices)}"
                raise ValueError(f"fixed has {label!r}: {value!r}, must be {allowed}")
        self.model_space, self.fixed = model_space, dict(fixed)
        self.choices = {label: values for label, values in choices.items() if label not in fixed}
        self.defaults = {label: values[0] for label, values in choices.items()} | self.fixed
        self._ruled = any(isinstance(mutable, MutableAnnotation) for mutable in mutables.values())
        self._canonical = canonical or _canonical_of_space(model_space)
        evaluator = model_space.evaluator
        # a space knows nothing of choices that its evaluator holds
        self._others = list(evaluator.simplify()) if isinstance(evaluator, Mutable) else []

    @property
    def rules(self) -> dict[str, Limit]:
        """The space's own rules as a limit, so that a sample they refuse is counted beside the others."""
        return {"space": Limit(self._broken_rules, 0.5)} if self._ruled else {}

    def canonical(self, sample: Sample) -> Sample:
        """The canonical form, fixed labels included."""
        whole = {**sample, **self.fixed}
        return {**self._canonical(whole), **{label: whole[label] for label in self._others if label in whole}}

    def model(self, sample: Sample) -> ExecutableModelSpace:
        """The frozen model; a format that asks for labels of candidates not chosen gets some value for them."""
        if self.model_space.check_contains(sample) is not None:
            sample = self.defaults | sample
        return self.model_space.freeze(sample)

    def _broken_rules(self, sample: Sample) -> float:
        return float(self.model_space.check_contains(self.defaults | sample) is not None)


def _choices(mutables: Mapping[str, Mutable]) -> dict[str, list[Any]]:
    choices = {}
    for label, mutable in mutables.items():
        if isinstance(mutable, Categorical):
            choices[label] = list(mutable.values)
        elif isinstance(mutable, MutableSymbol):
            raise ValueError(f"label {label!r} is {type(mutable).__name__}, must be Categorical")
    return choices


def _canonical_of_space(model_space: ExecutableModelSpace) -> Callable[[Sample], Sample]:
    space: Any = None
    if isinstance(model_space, RawFormatModelSpace):
        space = model_space.model_space
    elif isinstance(model_space, SimplifiedModelSpace) and hasattr(model_space.model.trace_symbol, "canonical"):
        # this format keeps only the class and its arguments
        space = model_space.model.trace_copy().get(traceable=False)
    return getattr(space, "canonical", dict)
