"""Labels of an architecture as parameters of an Optuna trial, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import Trial

from elm_nni.digest import digest
from elm_nni.errors import UserError
from elm_nni.strategies.evolution import Sample

Distribution = CategoricalDistribution | IntDistribution


class StudyLabels:
    """Draws samples through Optuna's trials.

    Rising whole numbers of even steps, such as widths, are drawn as ordered numbers, all else as categories; 0, 1, 2...
    are the names NNI gives to candidates in a list. Values that Optuna cannot store are drawn by a name of theirs.

    Args:
        space: label to its values; parents before the labels they lead to.
        canonical: maps a sample to its canonical form.

    Raises:
        ValueError: no labels, or one without values.
        UserError: a value has no form in JSON.
    """

    def __init__(self, space: Mapping[str, Sequence[Any]], canonical: Callable[[Sample], Sample]) -> None:
        empty = [label for label, values in space.items() if len(values) == 0]
        if empty or not space:
            raise ValueError(f"space must have values for every label, got none for {empty or 'the whole space'}")
        self.values = {label: list(values) for label, values in space.items()}
        self.distributions = {label: _distribution(label, values) for label, values in self.values.items()}
        self._defaults = {label: values[0] for label, values in self.values.items()}
        self._canonical = canonical

    @property
    def grid(self) -> dict[str, list[Any]]:
        """Label to all that Optuna can draw for it."""
        return {label: self._choices(label) for label in self.values}

    def draw(self, trial: Trial, *, only_counting: bool) -> Sample:
        """A value for every label; with ``only_counting`` those that the canonical form leaves out are not drawn."""
        sample = dict(self._defaults)
        for label, distribution in self.distributions.items():
            if not only_counting or self._counts(label, sample):
                drawn = trial._suggest(label, distribution)
                sample[label] = self.values[label][self._choices(label).index(drawn)]
        return sample

    def encode(self, sample: Sample, *, only_counting: bool) -> dict[str, Any]:
        """Parameters of the trial that :meth:`draw` would draw a sample with.

        Raises:
            ValueError: a value is not in the space.
        """
        whole = {label: sample.get(label, default) for label, default in self._defaults.items()}
        return {
            label: self._choices(label)[self.values[label].index(value)]
            for label, value in whole.items()
            if not only_counting or self._counts(label, whole)
        }

    def restore(self, sample: Sample) -> Sample:
        """The sample with the values of the space, after JSON has made lists of tuples."""
        return {label: self._restored(label, value) for label, value in sample.items()}

    def _restored(self, label: str, value: Any) -> Any:
        return next((own for own in self.values.get(label, ()) if digest(own) == digest(value)), value)

    def _counts(self, label: str, sample: Sample) -> bool:
        form = self._canonical(sample)
        return label in form or any(self._canonical({**sample, label: v}) != form for v in self.values[label])

    def _choices(self, label: str) -> list[Any]:
        distribution = self.distributions[label]
        if isinstance(distribution, CategoricalDistribution):
            return list(distribution.choices)
        return self.values[label]


def _distribution(label: str, values: Sequence[Any]) -> Distribution:
    steps = {after - before for before, after in zip(values, values[1:])} if _all_int(values) else set()
    if len(steps) == 1 and min(steps) > 0 and list(values) != list(range(len(values))):
        return IntDistribution(values[0], values[-1], step=min(steps))
    plain = all(value is None or isinstance(value, (str, int, float, bool)) for value in values)
    # 1, True and 1.0 are one value to Optuna
    if plain and len(set(values)) == len(values):
        return CategoricalDistribution(values)
    try:
        digest(list(values))
    except (TypeError, ValueError) as error:
        raise UserError(f"label {label!r} has values that cannot be stored: {error}") from error
    return CategoricalDistribution([f"{index}: {value!r}" for index, value in enumerate(values)])


def _all_int(values: Sequence[Any]) -> bool:
    return len(values) > 1 and all(type(value) is int for value in values)
