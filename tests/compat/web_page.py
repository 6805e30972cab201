"""What NNI's web page shows: its words, the points of its charts and the lines of its parallel coordinates."""

from dataclasses import dataclass
from typing import Any

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
TAB = "[...document.querySelectorAll('[role=tab]')].find(tab => tab.innerText.trim().endsWith('{name}'))"
# the chart hangs on the React component that owns its element
CHART = """
(element => {
    let node = element[Object.keys(element).find(key => /^__react(Fiber|InternalInstance)/.test(key))];
    while (!node.stateNode?.getEchartsInstance) node = node.return;
    return node.stateNode.getEchartsInstance().getOption();
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

    def open_detail(self, tab: str) -> None:
        self.browser.open(f"{self.address}/detail")
        self.browser.click(TAB.format(name=tab))

    def series(self, container: str) -> dict[str, list[Any]]:
        """Name to values of the chart's lines; ``container`` is a CSS selector of what is around the chart."""
        chart = self.browser.wait(CHART % container, lambda option: option.get("series"))
        return {line["name"]: line["data"] for line in chart["series"]}

    def parallel_coordinates(self) -> list[dict[str, Any]]:
        """Each drawn line as axis to value, read off the canvas by the labels of the axes."""
        axes = [Axis(axis["name"], axis["x"], axis["ticks"]) for axis in self.browser.wait(AXES)]
        return [self._values(axes, line) for line in self.browser.wait(LINES)]

    @staticmethod
    def _values(axes: list[Axis], line: list[list[float]]) -> dict[str, Any]:
        heights = {axis.name: [y for x, y in line if abs(x - axis.x) < 0.01] for axis in axes}
        return {axis.name: axis.value(heights[axis.name][0]) for axis in axes}
