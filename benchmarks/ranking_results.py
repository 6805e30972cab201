"""Rank correlations of inherited and stand-alone scores: tables and a figure.

Shape suffixes: N architectures, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from ranking_runs import LOSSES

from elm_nni.analysis.ranking import Coefficient, RankCorrelation, rank_correlation
from elm_nni.report.style import BLUE, GREEN, INK, ORANGE, PURPLE, SKY, VERMILION, new_figure, styled

RESAMPLES = 2000
_COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, INK)
_MARKERS = "os^Dv"


@dataclass(frozen=True)
class Scored:
    """An architecture with both scores.

    Attributes:
        seed: of the run.
        loss: feature loss of supernet and training.
        blocks: of the layers, in order.
        architecture: canonical, at the widths of the supernet.
        params: number of parameters.
        latency_ms: predicted.
        inherited: mean over the search's tasks on search rows, with the supernet's weights.
        standalone: task to score on validation rows, trained from its own first weights.
        mean_standalone: over the search's tasks.
    """

    seed: int
    loss: str
    blocks: list[str]
    architecture: Mapping[str, Any]
    params: int
    latency_ms: float
    inherited: float
    standalone: Mapping[str, float]
    mean_standalone: float


def scores(scored: Sequence[Scored], seed: int, loss: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Inherited and stand-alone scores, each (N,)."""
    pairs = [(one.inherited, one.mean_standalone) for one in scored if (one.seed, one.loss) == (seed, loss)]
    inherited_N, standalone_N = np.array(pairs, dtype=np.float64).T
    return inherited_N, standalone_N


# Seed and loss to the coefficients.
Correlations = Mapping[tuple[int, str], RankCorrelation]


def correlations(scored: Sequence[Scored]) -> Correlations:
    """Seed and loss to the coefficients."""
    keys = dict.fromkeys((one.seed, one.loss) for one in scored)
    return {key: rank_correlation(*scores(scored, *key), seed=0, resamples=RESAMPLES) for key in keys}


def correlation_table(scored: Sequence[Scored], found: Correlations) -> list[str]:
    """Markdown: a row for each seed and loss, and the mean over seeds."""
    lines = [
        "| loss | seed | architectures | Kendall's tau | Spearman's rho | inherited: min to max | "
        "stand-alone: min to max | stand-alone: mean ± deviation |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for loss in LOSSES:
        own = {seed: one for (seed, of), one in found.items() if of == loss}
        for seed, one in own.items():
            inherited_N, standalone_N = scores(scored, seed, loss)
            lines.append(
                f"| {loss} | {seed} | {one.n} | {_interval(one.kendall)} | {_interval(one.spearman)} | "
                f"{_range(inherited_N)} | {_range(standalone_N)} | "
                f"{standalone_N.mean():.4f} ± {standalone_N.std(ddof=1):.4f} |"
            )
        if len(own) > 1:
            taus = [one.kendall.value for one in own.values() if one.kendall]
            rhos = [one.spearman.value for one in own.values() if one.spearman]
            lines.append(f"| {loss} | mean of {len(own)} | | {_spread(taus)} | {_spread(rhos)} | | | |")
    reasons = [f"{loss}, seed {seed}: {one.reason}" for (seed, loss), one in found.items() if one.reason]
    return [*lines, *(f"\nNo coefficient for {reason}." for reason in reasons)]


def choice_table(scored: Sequence[Scored], found: Correlations) -> list[str]:
    """Markdown: what choosing by inherited score gains in stand-alone score, and what the best choice would gain.

    Both against the mean of the architectures of a seed and loss, which is what a random choice gains; of several with
    the highest inherited score, their mean.
    """
    lines = [
        "| loss | seed | highest inherited score: its stand-alone score - mean | highest stand-alone score - mean |",
        "|---|---:|---:|---:|",
    ]
    for loss in LOSSES:
        gains = []
        for seed in (seed for seed, of in found if of == loss):
            inherited_N, standalone_N = scores(scored, seed, loss)
            chosen = standalone_N[inherited_N == inherited_N.max()].mean()
            gains.append((chosen - standalone_N.mean(), standalone_N.max() - standalone_N.mean()))
            lines.append(f"| {loss} | {seed} | {gains[-1][0]:+.4f} | {gains[-1][1]:+.4f} |")
        if len(gains) > 1:
            of_choice, of_best = zip(*gains)
            means = " | ".join(_spread(values, "+.4f") for values in (of_choice, of_best))
            lines.append(f"| {loss} | mean of {len(gains)} | {means} |")
    return lines


def tau_difference(scored: Sequence[Scored], seed: int) -> Coefficient | None:
    """Kendall's tau under the relational loss less that under MSE, None where one of them is not defined.

    The interval is the 95 % percentile bootstrap over architectures, the same ones for both losses; resamples without
    a coefficient are left out.
    """
    both = [[_signs(side_N) for side_N in scores(scored, seed, loss)] for loss in LOSSES]
    num = len(both[0][0])
    value = _tau_difference(both, np.arange(num))
    if np.isnan(value):
        return None
    drawn_RN = np.random.default_rng(0).integers(num, size=(RESAMPLES, num))
    low, high = np.nanpercentile([_tau_difference(both, drawn_N) for drawn_N in drawn_RN], (2.5, 97.5))
    return Coefficient(value, float(low), float(high))


def _signs(values_N: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sign(values_N[:, None] - values_N)


def _tau_difference(both: Sequence[Sequence[NDArray[np.float64]]], drawn_N: NDArray[np.int64]) -> float:
    """Of tau-b; thousands of calls of scipy would take longer than all else that is computed here."""
    places = np.ix_(drawn_N, drawn_N)
    taus = []
    for a_NN, b_NN in ((signs[0][places], signs[1][places]) for signs in both):
        scale = np.sqrt((a_NN**2).sum() * (b_NN**2).sum())
        taus.append((a_NN * b_NN).sum() / scale if scale else np.nan)
    return float(taus[0] - taus[1])


def difference_table(scored: Sequence[Scored]) -> list[str]:
    """Markdown: relational less MSE, a row for each seed; scores of those whose supernets gave them one size."""
    seeds = dict.fromkeys(one.seed for one in scored)
    lines = [
        "| seed | tau, relational - mse | architectures of one size under both | stand-alone, relational - mse |",
        "|---:|---:|---:|---:|",
    ]
    for seed in seeds:
        apart_N = of_one_size(scored, seed)
        tau = _interval(tau_difference(scored, seed), "+")
        cell = f"{apart_N.mean():+.4f} ± {apart_N.std(ddof=1):.4f}" if len(apart_N) > 1 else "not defined"
        lines.append(f"| {seed} | {tau} | {len(apart_N)} | {cell} |")
    return lines


def of_one_size(scored: Sequence[Scored], seed: int) -> NDArray[np.float64]:
    """Stand-alone scores, relational less MSE, of the blocks that have the same parameters under both, (N,)."""
    relational, mse = ([one for one in scored if (one.seed, one.loss) == (seed, loss)] for loss in LOSSES)
    pairs = [(a, b) for a, b in zip(relational, mse, strict=True) if a.params == b.params]
    return np.array([a.mean_standalone - b.mean_standalone for a, b in pairs], dtype=np.float64)


def architecture_table(scored: Sequence[Scored]) -> list[str]:
    """Markdown: a row for each architecture, both scores under each loss."""
    rows: dict[tuple[int, tuple[str, ...]], dict[str, Scored]] = {}
    for one in scored:
        rows.setdefault((one.seed, tuple(one.blocks)), {})[one.loss] = one
    lines = [
        f"| seed | blocks | {' | '.join(f'{loss}: params | ms | inherited | stand-alone' for loss in LOSSES)} |",
        f"|---:|---|{'---:|' * (4 * len(LOSSES))}",
    ]
    for (seed, blocks), by_loss in rows.items():
        cells = [
            f"{one.params:,} | {one.latency_ms:.3f} | {one.inherited:.4f} | {one.mean_standalone:.4f}"
            for one in (by_loss[loss] for loss in LOSSES)
        ]
        lines.append(f"| {seed} | {', '.join(blocks)} | {' | '.join(cells)} |")
    return lines


def _interval(one: Coefficient | None, sign: str = "") -> str:
    return "not defined" if one is None else f"{one.value:{sign}.3f} [{one.low:{sign}.3f}, {one.high:{sign}.3f}]"


def _range(values_N: NDArray[np.float64]) -> str:
    return f"{values_N.min():.4f} to {values_N.max():.4f}"


def _spread(values: Sequence[float], form: str = ".3f") -> str:
    if len(values) < 2:
        return "not defined"
    return f"{np.mean(values):{form}} ± {np.std(values, ddof=1):{form.removeprefix('+')}}"


@styled
def plot(scored: Sequence[Scored], found: Correlations, metric: str) -> Figure:
    """Stand-alone against inherited scores, a panel for each loss and a mark for each seed."""
    figure = new_figure(9.6, 4.9)
    panels = figure.subplots(1, len(LOSSES), sharex=True, sharey=True)
    for axes, loss in zip(panels, LOSSES):
        _scatter(axes, scored, {seed: one for (seed, of), one in found.items() if of == loss}, loss)
        axes.set_xlabel("inherited from the supernet, search rows")
    panels[0].set_ylabel("trained on its own, validation rows")
    figure.suptitle(metric, fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    if len(handles) > 1:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(handles), 8))
    return figure


def _scatter(axes: Axes, scored: Sequence[Scored], found: Mapping[int, RankCorrelation], loss: str) -> None:
    for number, seed in enumerate(found):
        colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        axes.plot(
            *scores(scored, seed, loss), color=colour, marker=marker, linestyle="none", markersize=5.5, alpha=0.8,
            label=f"seed {seed}",
        )  # fmt: skip
    taus = [one.kendall for one in found.values() if one.kendall]
    if len(found) == 1 and taus:
        words = f"tau {_interval(taus[0])}"
    else:
        words = f"mean tau {np.mean([one.value for one in taus]):.3f}" if taus else "tau not defined"
    axes.set_title(f"{loss}: {words}")
    axes.grid(True)
