"""What a page is made of: tables, sections, and plots as inline SVG."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from blake3 import blake3
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

INK: Final = "#010101"
MUTED: Final = "#010102"
GRID: Final = "#010103"
PAPER: Final = "#010104"
SERIES: Final = ("#010111", "#010112", "#010113", "#010114", "#010115", "#010116", "#010117")
MARKERS: Final = ("o", "s", "D", "^", "v", "P", "X")

_VARIABLES: Final = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    PAPER: "var(--paper)",
    **{color: f"var(--series-{number})" for number, color in enumerate(SERIES, 1)},
}

# Inches at 72 points each: 374 units wide, so that 9-point text is legible on a phone unscaled.
_SIZE: Final = (5.2, 3.3)

_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "axes.axisbelow": True,
}


@dataclass(frozen=True)
class Plot:
    """A drawing and what it shows, in words.

    Attributes:
        svg: An `<svg>` element for a page that defines the colours.
        title: Shown above it.
        alternative: What the drawing shows, for people who cannot see it.
    """

    svg: str
    title: str
    alternative: str


def draw(
    title: str, alternative: str, paint: Callable[[Axes], None], size: tuple[float, float] = _SIZE
) -> Plot:
    """Return a plot of one pair of axes on which `paint` draws."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure.add_subplot())
        sink = io.StringIO()
        figure.savefig(
            sink, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    prefix = "f" + blake3(f"{title}\n{alternative}".encode()).hexdigest()[:8]
    return Plot(_inline(sink.getvalue(), prefix, alternative), title, alternative)


def _inline(svg: str, prefix: str, alternative: str) -> str:
    """Return the `<svg>` element alone: identifiers made unique, colours from the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(xmlns(:\w+)?|version|width|height)="[^"]*"', "", svg.split(">", 1)[0]) + (
        ">" + svg.split(">", 1)[1]
    )
    # One page holds many drawings, and matplotlib numbers its elements anew in each.
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, variable)
    label = alternative.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()


def plain(value: float) -> str:
    """Return a number as a person writes it: 0.0004, 0.05, 1, 20, 3000."""
    if value == 0:
        return "0"
    return f"{value:.10f}".rstrip("0").rstrip(".") if abs(value) < 1 else f"{value:,.6g}"


def loggable(values: ArrayLike) -> NDArray[np.float64]:
    """Return the values with those that a logarithmic axis cannot show replaced by NaN."""
    array = np.asarray(values, dtype=np.float64)
    return np.where(array > 0, array, np.nan)


def log_axis(axis_owner: Axes, which: str, formatter: Callable[[float], str] = plain) -> None:
    """Make an axis ("x" or "y") logarithmic with plain numbers, a few of them even in one decade.

    Draw `loggable` values first; where there are none, the axis stays as it is.
    """
    if not np.isfinite(axis_owner.dataLim.get_points()).all():
        return
    (axis_owner.set_xscale if which == "x" else axis_owner.set_yscale)("log")
    axis = axis_owner.xaxis if which == "x" else axis_owner.yaxis
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 300 else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: formatter(value)))
    axis.set_minor_formatter(NullFormatter())


def legend(axes: Axes, columns: int = 3) -> None:
    """Put the legend above the axes, where no point can lie under it."""
    if not axes.get_legend_handles_labels()[0]:
        return
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=columns,
        frameon=False,
        borderaxespad=0.2,
        handletextpad=0.5,
        columnspacing=1.4,
    )


@dataclass(frozen=True)
class Table:
    """Numbers as text.

    Attributes:
        headers: One per column; the first column names the row.
        rows: The cells of each row.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """One part of the report.

    Attributes:
        title: A heading.
        text: Paragraphs.
        plots: Drawings, side by side where there is room.
        table: Their numbers.
    """

    title: str
    text: Sequence[str] = ()
    plots: Sequence[Plot] = field(default=())
    table: Table | None = None


@dataclass(frozen=True)
class Headline:
    """The report's summary.

    Attributes:
        title: What was deleted and how fast.
        text: The distance to retraining, in a sentence.
        figures: Pairs of a number and what it is.
        verdict: What the measured error means, in a line.
        level: How good it is, which colours the verdict; empty for pages without one.
    """

    title: str
    text: str
    figures: Sequence[tuple[str, str]]
    verdict: str = ""
    level: str = ""
