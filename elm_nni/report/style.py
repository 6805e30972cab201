"""One look for all figures: colours that colour-blind readers tell apart, dark text on white, no display needed."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

# Okabe and Ito, "Color universal design" (2008).
BLUE, SKY, GREEN = "#0072B2", "#56B4E9", "#009E73"
VERMILION, ORANGE, PURPLE = "#D55E00", "#E69F00", "#CC79A7"
INK, GREY, PALE = "#1a1a1a", "#6b6b6b", "#d9d9d9"

BLOCK_COLOURS = {
    "bert": BLUE,
    "bert_qv": SKY,
    "bert_kv": GREEN,
    "mobile": VERMILION,
    "mobile_qv": ORANGE,
    "mobile_kv": PURPLE,
}
# For blocks that a user adds.
SPARE_COLOURS = ("#F0E442", "#999999", "#44AA99", "#882255")

# Perceptually even in lightness, so they also read in grey.
SEQUENTIAL = "cividis"
DPI = 160

_LOOK: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.labelsize": 10,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "grid.color": PALE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    # Names come from users: a dollar sign in one is no formula.
    "text.parse_math": False,
    "axes.unicode_minus": True,
}

_P = ParamSpec("_P")


def styled(draw: Callable[_P, Figure]) -> Callable[_P, Figure]:
    """Makes a drawing function use the common look and leave matplotlib's settings as they were."""

    @wraps(draw)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> Figure:
        with _look():
            return draw(*args, **kwargs)

    return wrapper


@contextmanager
def _look() -> Iterator[None]:
    with mpl.rc_context():
        # A user's own matplotlibrc must not change the report.
        mpl.rcdefaults()
        mpl.rcParams.update(_LOOK)
        yield


@dataclass(frozen=True)
class Shades:
    """The sequential colours between two values."""

    low: float
    high: float

    @classmethod
    def over(cls, values: NDArray[np.float64]) -> Shades:
        """Shades over the finite values; a single value, or none, still gets a range of 1 for the colour bar."""
        seen = values[np.isfinite(values)]
        low, high = (float(seen.min()), float(seen.max())) if seen.size else (0.0, 1.0)
        return cls(low, high if high > low else low + 1.0)

    @property
    def norm(self) -> Normalize:
        return Normalize(self.low, self.high)

    @property
    def mappable(self) -> ScalarMappable:
        """What a colour bar is drawn from."""
        return ScalarMappable(self.norm, SEQUENTIAL)

    def rgba(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Colours (..., 4) of the values (...)."""
        return np.asarray(mpl.colormaps[SEQUENTIAL](self.norm(values)))


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches on an Agg canvas, unknown to pyplot (so nothing has to be closed)."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with _look():
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def block_colours(blocks: Iterable[str]) -> dict[str, str]:
    """A colour for each block name; names outside the built-in six take spare colours in order, again and again."""
    names = list(dict.fromkeys(blocks))
    unknown = [name for name in names if name not in BLOCK_COLOURS]
    spare = {name: SPARE_COLOURS[i % len(SPARE_COLOURS)] for i, name in enumerate(unknown)}
    return {name: BLOCK_COLOURS.get(name) or spare[name] for name in names}


def text_colour(background: Any) -> str:
    """Black or white, whichever has the higher contrast on the background (relative luminance of WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(background)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else INK
