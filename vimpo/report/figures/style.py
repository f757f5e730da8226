"""How figures look: one style per algorithm, and the pieces that figures share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vimpo.report.labels import Style
from vimpo.text import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


LETTER = 8  # points
FAINT = "#b8b8b8"  # lines that only show where the others are
LINE = 1.6 * LETTER / 72  # inches, of a legend
HANDLE, SPACING = 2.8, 1.3  # of a legend, in letters
RC = {
    "font.family": "DejaVu Sans",
    "font.size": LETTER,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "hatch.color": "white",
    "hatch.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "path",
    "svg.hashsalt": "vimpo-bench",
}


def panel_grid(
    rows: int, columns: int, width: float = 2.6, height: float = 2.0, **options: Any
) -> tuple[Figure, np.ndarray]:
    from matplotlib.figure import Figure

    # a single panel still needs room for axis labels and the legend above
    size = (max(width * columns, 5.2) + 0.4, height * rows + 0.9)
    figure = Figure(figsize=size)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def add_legend(figure: Figure, handles: Sequence, columns: int = 0) -> None:
    """Legend above the panels, no wider than the figure and with at most `columns` columns.

    A figure has room for two lines of it, and grows by every further one.
    """
    if not handles:
        return
    rows = -(-len(handles) // (columns or max(4, int(figure.get_figwidth() / 1.6))))
    columns = -(-len(handles) // rows)
    while columns > 1 and _legend_width(handles, columns) > figure.get_figwidth():
        columns -= 1
    rows = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + LINE * max(0, rows - 2))
    # matplotlib fills column by column; readers go row by row
    ordered = [h for start in range(columns) for h in handles[start::columns]]
    figure.legend(
        handles=ordered,
        loc="outside upper center",
        ncols=columns,
        handlelength=HANDLE,
        columnspacing=SPACING,
    )


def _legend_width(handles: Sequence, columns: int) -> float:
    """Its width in inches, estimated high: letters are half as wide as they are high."""
    longest = [max(len(h.get_label()) for h in handles[c::columns]) for c in range(columns)]
    return LETTER / 72 * sum(HANDLE + SPACING + 1 + 0.6 * n for n in longest)


def line_handles(looks: dict[str, Style], shown: Iterable[str], markers: bool = True) -> list:
    from matplotlib.lines import Line2D

    present = set(shown)
    return [
        Line2D(
            [],
            [],
            color=s.colour,
            marker=s.marker if markers else "",
            linestyle=s.line,
            label=s.label,
        )
        for name, s in looks.items()
        if name in present
    ]


def draw_points(
    axes: Axes,
    x: np.ndarray,
    frame: pd.DataFrame,
    style: Style,
    line: object,
    hollow: bool = False,
) -> None:
    """Means with their intervals; a mean without an interval stays a bare marker."""
    mean, low, high = (frame[c].to_numpy(float) for c in ("mean", "low", "high"))
    face = "white" if hollow else style.colour
    axes.plot(
        *(x, mean),
        color=style.colour,
        marker=style.marker,
        markerfacecolor=face,
        linestyle=line,
        zorder=3,
    )
    axes.vlines(x, low, high, color=style.colour, linewidth=1.1, zorder=2)


def draw_band(axes: Axes, x: pd.Series, frame: pd.DataFrame, style: Style, count: int = 1) -> None:
    """A line of means in a band of their intervals, which ends where there is none.

    count: of lines in the panel; bands of many are fainter.
    """
    axes.plot(x, frame["mean"], color=style.colour, linestyle=style.line, zorder=3)
    low, high = frame["low"].to_numpy(float), frame["high"].to_numpy(float)
    alpha = min(0.15, 0.8 / count)
    axes.fill_between(x, low, high, color=style.colour, alpha=alpha, linewidth=0, zorder=2)


def draw_faint(axes: Axes, x: pd.Series, frame: pd.DataFrame) -> None:
    axes.plot(x, frame["mean"], color=FAINT, linewidth=0.7, zorder=1.5)


def faint_handle(count: int) -> list:
    """The entry of a legend for `count` lines that do not stand out, if there are any."""
    from matplotlib.lines import Line2D

    label = f"{count} other" + "s" * (count > 1)
    return [Line2D([], [], color=FAINT, linewidth=0.7, label=label)] if count else []


def size_axis(axes: Axes, ladder: pd.Series) -> None:
    """A logarithmic axis of parameters with a tick at each size. ladder: size -> parameters"""
    axes.set_xscale("log")
    axes.set_xticks(ladder, [f"{size}\n{short(count)}" for size, count in ladder.items()])
    axes.set_xticks([], minor=True)
    if len(ladder):
        width = max(ladder.max() / ladder.min(), 4) ** 0.12
        axes.set_xlim(ladder.min() / width, ladder.max() * width)


def limit_to_means(
    axes: Axes,
    means: pd.Series,
    *landmarks: float,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    least: float = 0.1,
    floor: float = -np.inf,
) -> None:
    """A y axis that shows all means and landmarks; intervals of two seeds may reach beyond it.

    Means below `floor` may lie beyond it too: the explained variance of a collapsed policy can be
    far below zero and would flatten the rest.
    """
    shown = np.array([*means.dropna().clip(lower=floor), *landmarks])
    if len(shown):
        margin = 0.25 * max(np.ptp(shown), least)
        axes.set_ylim(max(bounds[0], shown.min() - margin), min(bounds[1], shown.max() + margin))


def mark_empty(axes: Axes, why: str = "not available") -> None:
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", color="#555555")


def noise_curve(frame: pd.DataFrame, mode: str) -> pd.DataFrame:
    """Rows of one noise mode; zero noise is the same in every mode and anchors each."""
    return frame[(frame["noise_mode"] == mode) | (frame["noise_level"] == 0)]


def spread_out(count: int, width: float) -> np.ndarray:
    """Offsets that keep `count` markers apart within `width`."""
    return np.linspace(-width / 2, width / 2, count) if count > 1 else np.zeros(count)


def dodged(count: int, places: np.ndarray) -> np.ndarray:
    """Offsets around places on an axis: just apart, and well below the distance between places."""
    places = np.unique(places)
    if len(places) < 2:
        return spread_out(count, 0.02 * count)
    return spread_out(
        count, min(0.35 * np.diff(places).min(), 0.035 * np.ptp(places) * (count - 1))
    )
