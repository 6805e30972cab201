"""What NNI's web page shows: its words, the points of its charts and the lines of its parallel coordinates."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest

from .browser import Browser

OVERVIEW = """
(() => {
    const text = (selector, root = document) => root.querySelector(selector).innerText.trim();
    const others = [...document.querySelectorAll(".trialCount .trial-status-style")];
    return {
        status: text(".status-text"),
        best: text(".bestMetric .focus-text"),
        counts: Object.fromEntries([
            ["Succeeded", Number(text(".succeed-trials-number"))],
            ...others.map(label => [label.innerText.trim(), Number(label.nextElementSibling.innerText)]),
        ]),
        progress: text(".complete-tirals") + text(".complete-tirals + span"),
        top: [...document.querySelectorAll("#succTable .ms-DetailsRow")].map(
            row => [".No", ".id", ".size16", ".metric"].map(cell => text(cell, row))
        ),
    };
})()
"""
REFRESH = "[...document.querySelectorAll('button')].find(button => button.innerText.trim() == 'Refresh')"
TAB = "[...document.querySelectorAll('[role=tab]')].find(tab => tab.innerText.trim().endsWith('{name}'))"
# the chart hangs on the React component that owns its element
SERIES = """
(element => {
    let node = element[Object.keys(element).find(key => /^__react(Fiber|InternalInstance)/.test(key))];
    while (!node.stateNode?.getEchartsInstance) node = node.return;
    const lines = node.stateNode.getEchartsInstance().getOption().series;
    return Object.fromEntries(lines.map(line => [line.name, line.data]));
})(document.querySelector("%s .echarts-for-react"))
"""
# d3 puts ticks half a pixel lower
AXES = """
[...document.querySelectorAll(".parcoords svg g.dimension")].map(axis => ({
    name: axis.querySelector("text.label").textContent,
    x: axis.transform.baseVal.consolidate().matrix.e,
    ticks: [...axis.querySelectorAll(".tick")].map(
        tick => [tick.textContent, tick.transform.baseVal.consolidate().matrix.f - 0.5]
    ),
}))
"""
KEYS = "[...document.querySelectorAll('.ms-Dropdown-item')].map(key => key.innerText.trim())"
LINES = "document.querySelector('.parcoords canvas.foreground').lines"


@dataclass(frozen=True)
class Overview:
    """Words and numbers of the overview.

    Attributes:
        counts: state, as the page calls it, to the number of trials.
        progress: trials that were started and their limit, such as ``"3/7"``.
        top: number, id, status and metric of the best trials, the best first.
    """

    status: str
    best: str
    counts: dict[str, int]
    progress: str
    top: list[list[str]]


@dataclass(frozen=True)
class Axis:
    name: str
    x: float
    ticks: list[tuple[str, float]]

    def value(self, y: float) -> Any:
        """What the axis says at this height: the label there, else a number between its outermost labels."""
        for label, at in self.ticks:
            if abs(at - y) < 0.01:
                return number(label)
        (first, low), (last, high) = self.ticks[0], self.ticks[-1]
        return number(first) + (number(last) - number(first)) * (y - low) / (high - low)


def number(label: str) -> Any:
    """The number that a label writes, or the label."""
    try:
        return float(label.replace(",", "").replace("\u2212", "-"))
    except ValueError:
        return label


def drawn(trial: dict[str, Any], axes: Iterable[str]) -> dict[str, Any]:
    """What a line of the parallel coordinates reads as on these axes; numbers are as exact as their heights are."""
    return {
        axis: value if isinstance(value := trial[axis], str) else pytest.approx(value, rel=1e-5, abs=1e-6)
        for axis in axes
    }


class WebPage:
    """The pages of the experiment at a port of this machine."""

    def __init__(self, browser: Browser, port: int) -> None:
        self.browser, self.address = browser, f"http://127.0.0.1:{port}"

    def open_overview(self) -> None:
        self.browser.open(f"{self.address}/oview")
        self.browser.wait(OVERVIEW)

    def overview(self) -> Overview:
        """What the page shows now, without loading it again."""
        return Overview(**self.browser.value(OVERVIEW))

    def refresh(self) -> None:
        """Presses the page's button, which does nothing within 2 s of the last press."""
        self.browser.click(REFRESH)

    def open_detail(self, tab: str) -> None:
        self.browser.open(f"{self.address}/detail")
        self.browser.click(TAB.format(name=tab))

    def series(self, container: str, accept: Callable[[dict[str, Any]], Any] = bool) -> dict[str, list[Any]]:
        """Name to values of the chart's lines, when accepted; ``container`` is a CSS selector of what is around it."""
        return dict(self.browser.wait(SERIES % container, accept))

    def open_intermediate(self, number: int) -> None:
        """Opens the dialog with the intermediate results of the trial, over the table of the detail page."""
        self.browser.open(f"{self.address}/detail")
        self.browser.click(f"document.querySelectorAll('#tableList [title=Intermediate]')[{number}]")

    def metric_keys(self) -> list[str]:
        """Of the dialog's list, which is then open."""
        self.browser.click("document.querySelector('.compare-modal .ms-Dropdown')")
        return list(self.browser.wait(KEYS))

    def choose_metric(self, key: str) -> None:
        """Takes a key of the open list."""
        self.browser.click(f"[...document.querySelectorAll('.ms-Dropdown-item')].find(k => k.innerText == '{key}')")

    def parallel_coordinates(self) -> list[dict[str, Any]]:
        """Each drawn line as axis to value, read off the canvas by the labels of the axes.

        An axis on which all trials are equal has one label, which the page rounds to a whole number: it is left out.
        """
        axes = [Axis(**axis) for axis in self.browser.wait(AXES) if len(axis["ticks"]) > 1]
        return [self._values(axes, line) for line in self.browser.wait(LINES)]

    @staticmethod
    def _values(axes: list[Axis], line: list[list[float]]) -> dict[str, Any]:
        heights = {axis.name: [y for x, y in line if abs(x - axis.x) < 0.01] for axis in axes}
        return {axis.name: axis.value(heights[axis.name][0]) for axis in axes}
