"""What grew under each signal, and how good it is: numbers of a seed, tables and a figure.

Shape suffixes: S seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from common import table
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from quality.document import difference_table, quality_table
from quality.rows import MEAN, RESAMPLES, Difference, differences

from elm_nni.report.growth_files import parse_cell
from elm_nni.report.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILION, new_figure, styled
from elm_nni.search_spaces.architecture import SpaceSettings, cell_name, chosen_blocks

PCA, NO_GROWTH = "pca", "no growth"
INHERITED = "inherited"
_COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, INK)


@dataclass(frozen=True)
class Outcome:
    """What one system came to with one seed.

    Attributes:
        system: a signal, or ``no growth``.
        widths: cell to its width after the growth.
        mean_parameters: of a uniformly drawn architecture at these widths.
        events: how often a cell grew by one step.
        shared: percent of the growth that pca has too, see :func:`shared_growth`; None where nothing grew.
        block_widths: block to its mean width over layers.
        drawn: blocks of the layers of every drawn architecture, the same for all systems of a seed.
        inherited: their scores with the supernet's weights on search rows.
        found: what the search found, after the head step.
        found_size: its parameters outside the embeddings.
        trained: task to the score on validation rows of what was found, at the size of pca's; empty where left out.
        architecture: that was trained.
        size: its parameters outside the embeddings.
        reason: why it was left out.
        under_size: the search was made again with the size of pca's as a limit.
    """

    system: str
    seed: int
    widths: Mapping[str, int]
    mean_parameters: float
    events: int
    shared: float | None
    block_widths: Mapping[str, float]
    drawn: list[list[str]]
    inherited: list[float]
    found: Mapping[str, Any]
    found_size: int
    trained: Mapping[str, float]
    architecture: Mapping[str, Any] | None = None
    size: int | None = None
    reason: str | None = None
    under_size: bool = False

    @property
    def mean_inherited(self) -> float:
        """Over the drawn architectures."""
        return float(np.mean(self.inherited))

    @property
    def mean_trained(self) -> float | None:
        """Over the tasks; None where left out."""
        return float(np.mean(list(self.trained.values()))) if self.trained else None


@dataclass(frozen=True)
class Scores:
    """A system and seed with scores by name, as the tables of the quality comparison read them."""

    system: str
    seed: int
    scores: dict[str, float]


def growth_steps(widths: Mapping[str, int], settings: SpaceSettings) -> dict[str, int]:
    """Cell to the number of steps from the first width of the space to its own."""
    return {cell: (width - settings.ffn_start) // settings.ffn_step for cell, width in widths.items()}


def shared_growth(own: Mapping[str, int], reference: Mapping[str, int]) -> float | None:
    """Percent of a system's growth steps that the reference has in the same cell; None where nothing grew.

    A cell counts the smaller of the two numbers of steps.

    Args:
        own: cell to its number of steps.
        reference: the same of the reference.

    Example:
        >>> shared_growth({"layer0_bert": 3, "layer1_bert": 1}, {"layer0_bert": 1, "layer1_bert": 2})
        50.0
    """
    steps = sum(own.values())
    return 100.0 * sum(min(number, reference[cell]) for cell, number in own.items()) / steps if steps else None


def mean_block_widths(widths: Mapping[str, int]) -> dict[str, float]:
    """Block to the mean width of its cells over layers."""
    found: dict[str, list[int]] = {}
    for cell, width in widths.items():
        parsed = parse_cell(cell)
        assert parsed is not None
        found.setdefault(parsed[1], []).append(width)
    return {block: float(np.mean(of_block)) for block, of_block in found.items()}


def inherited_scores(outcomes: Sequence[Outcome]) -> list[Scores]:
    """The mean inherited score of every system and seed."""
    return [Scores(one.system, one.seed, {INHERITED: one.mean_inherited}) for one in outcomes]


def trained_scores(outcomes: Sequence[Outcome]) -> list[Scores]:
    """The trained scores of every system and seed that has them, by task, and their mean."""
    return [
        Scores(one.system, one.seed, {**one.trained, MEAN: one.mean_trained})
        for one in outcomes
        if one.mean_trained is not None
    ]


def score_differences(outcomes: Sequence[Outcome]) -> dict[str, list[Difference]]:
    """Every system minus pca over the seeds: ``inherited`` and ``trained``."""
    return {
        INHERITED: differences(inherited_scores(outcomes), PCA),
        "trained": differences(trained_scores(outcomes), PCA),
    }


def result_tables(outcomes: Sequence[Outcome]) -> list[str]:
    """All tables, as Markdown."""
    apart = score_differences(outcomes)
    words = (
        f"System minus {PCA}, seed by seed: mean ± standard deviation [95 % bootstrap interval over seeds, "
        f"{RESAMPLES:,} resamples], seeds higher and lower. Intervals of few seeds are too narrow."
    )
    return [
        "## What grew", "", *growth_table(outcomes), "",
        "## Supernets: mean inherited score, search rows", "", *quality_table(inherited_scores(outcomes)), "",
        words, "", *difference_table(apart[INHERITED]), "",
        "## Found by the search, trained alone at one size, validation rows", "",
        *quality_table(trained_scores(outcomes)), "",
        *([words, "", *difference_table(apart["trained"]), ""] if apart["trained"] else []),
        "## Each seed", "", *seed_table(outcomes),
    ]  # fmt: skip


def growth_table(outcomes: Sequence[Outcome]) -> list[str]:
    """A row for each system: mean and standard deviation over seeds."""
    blocks = list(outcomes[0].block_widths)
    head = ["system", "seeds", "growth steps", "mean parameters", f"steps shared with {PCA}"]
    body = []
    for name, ones in by_system(outcomes).items():
        shared = [one.shared for one in ones if one.shared is not None]
        cells = [
            _spread([one.events for one in ones], ".1f"), _spread([one.mean_parameters for one in ones], ",.0f"),
            f"{_spread(shared, '.1f')} %" if shared else "",
            *(_spread([one.block_widths[block] for one in ones], ".1f") for block in blocks),
        ]  # fmt: skip
        body.append([name, str(len(ones)), *cells])
    return table([*head, *(f"mean width of {block}" for block in blocks)], body)


def seed_table(outcomes: Sequence[Outcome]) -> list[str]:
    """A row for each seed and system."""
    head = [
        "seed", "system", "growth steps", "mean parameters", f"steps shared with {PCA}", "inherited",
        "found: parameters outside the embeddings", "trained: parameters outside the embeddings", "trained",
        "found: block and width of each layer",
    ]  # fmt: skip
    body = [
        [
            str(one.seed), one.system, str(one.events), f"{one.mean_parameters:,.0f}",
            "" if one.shared is None else f"{one.shared:.1f} %", f"{one.mean_inherited:.4f}",
            f"{one.found_size:,}{' *' if one.under_size else ''}",
            "left out" if one.size is None else f"{one.size:,}",
            "left out" if one.mean_trained is None else f"{one.mean_trained:.4f}", ", ".join(_layers(one.found)),
        ]
        for one in sorted(outcomes, key=lambda one: one.seed)
    ]  # fmt: skip
    return table(head, body)


def _layers(architecture: Mapping[str, Any]) -> list[str]:
    blocks = enumerate(chosen_blocks(architecture))
    return [f"{block} {architecture[f'{cell_name(layer, block)}_ffn']}" for layer, block in blocks]


def by_system(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """System to its outcomes, by seed."""
    names = dict.fromkeys(one.system for one in outcomes)
    return {name: [one for one in outcomes if one.system == name] for name in names}


@styled
def plot(outcomes: Sequence[Outcome], metric: str) -> Figure:
    """Mean inherited and trained score of every system: a point for each seed, a line at their mean."""
    systems = by_system(outcomes)
    figure = new_figure(9.6, 1.9 + 0.42 * len(systems))
    left, right = figure.subplots(1, 2, sharey=True)
    _panel(left, systems, lambda one: one.mean_inherited)
    left.set_title("inherited: mean of the same blocks")
    left.set_xlabel("with the supernet's weights, search rows")
    _panel(right, systems, lambda one: one.mean_trained)
    right.set_title("found by the search, trained alone")
    right.set_xlabel("mean of tasks, validation rows")
    left.set_yticks(range(len(systems)), list(systems))
    left.invert_yaxis()
    figure.suptitle(metric, fontsize=10)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=8)
    return figure


def _panel(axes: Axes, systems: Mapping[str, Sequence[Outcome]], value: Callable[[Outcome], float | None]) -> None:
    seeds = sorted({one.seed for ones in systems.values() for one in ones})
    # points of equal score stay apart
    offsets = np.linspace(-0.2, 0.2, len(seeds)) if len(seeds) > 1 else [0.0]
    for number, (seed, offset) in enumerate(zip(seeds, offsets)):
        points = [
            (found, height + offset)
            for height, ones in enumerate(systems.values())
            for one in ones
            if one.seed == seed and (found := value(one)) is not None
        ]
        colour = _COLOURS[number % len(_COLOURS)]
        axes.plot(*zip(*points), "o", color=colour, markersize=5.5, alpha=0.8, zorder=3, label=f"seed {seed}")
    for height, (name, ones) in enumerate(systems.items()):
        values = [found for one in ones if (found := value(one)) is not None]
        if values:
            axes.plot([np.mean(values)] * 2, [height - 0.34, height + 0.34], color=INK)
        if name == PCA:
            axes.axvline(float(np.mean(values)), color=INK, linewidth=0.8, linestyle=":")
        if len(values) < len(ones):
            axes.text(
                0.99, height + 0.36, f"{len(values)} of {len(ones)} seeds", transform=axes.get_yaxis_transform(),
                ha="right", va="bottom", fontsize=8, color=GREY,
            )  # fmt: skip
    axes.grid(True, axis="x")


def _spread(values: Sequence[float], form: str) -> str:
    deviation = f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else ""
    return f"{np.mean(values):{form}}{deviation}"
