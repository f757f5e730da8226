"""The figure that sums up a study: what it has of standing, distance, implied value and cost.

With an oracle in the study, a row for each algorithm says where it stands and what it costs, above
the panels of distance and value; without one, all panels stand side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from vimpo.report.figures.panels import Panel, cost_panel, moved_panel, value_panel
from vimpo.report.figures.style import add_legend, faint_handle, line_handles
from vimpo.report.figures.yardstick import ROW, draw_standing, room_text
from vimpo.report.glance import CAPTURED, DISTANCE, SIZE, Glance, glance, in_order
from vimpo.report.labels import FEATURED, Style, featured, interval_name, noise_name, size_name
from vimpo.storage.tables import BASE

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpecBase

WIDTH, HEIGHT = 9.0, 3.3  # inches; a README shows it about a page wide
AROUND, BELOW, LEGEND = 0.9, 2.5, 0.4  # inches: around the rows of algorithms; panels below


def headline(
    summary: pd.DataFrame,
    probes: pd.DataFrame,
    measured: pd.DataFrame,
    headroom: pd.DataFrame,
    frontier: pd.DataFrame,
    capacity: pd.DataFrame,
    looks: dict[str, Style],
) -> Figure:
    from matplotlib.lines import Line2D

    seen = glance(summary, probes, measured, headroom, frontier, capacity)
    names = [name for name in looks if name != BASE]
    clear = featured(names) if seen.standing else [n for n in names if n in FEATURED] or names
    panels = [
        *([moved_panel(seen, looks, clear)] if seen.moved else []),
        *([value_panel(seen, looks, clear)] if seen.value else []),
    ]
    if seen.standing:
        figure = _with_rows(seen, measured, panels, looks)
    else:
        costs = [cost_panel(measured, clear, looks)] if seen.cost else []
        figure = _side_by_side([*panels, *costs])
    sources = [seen.regime, measured]
    sources += [seen.paths if seen.moved == DISTANCE else seen.scores] if seen.moved else []
    sources += [seen.value_rows] if seen.value == SIZE else []
    known = [frame.loc[frame["mean"].notna(), "algorithm"] for frame in sources]
    drawn = {*clear, BASE} & set(pd.concat(known))
    others = set(seen.paths["algorithm"]) - set(clear) if seen.moved == DISTANCE else ()
    handles = [*line_handles(looks, drawn), *faint_handle(len(others))]
    handles.append(Line2D([], [], color="#777777", label=interval_name(summary)))
    add_legend(figure, handles, columns=len(handles))
    return figure


def _side_by_side(panels: Sequence[Panel]) -> Figure:
    """A column for each panel, which has its axes one above the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT))
    ratios = [panel.width for panel in panels]
    grid = figure.add_gridspec(1, len(panels), width_ratios=ratios)
    for place, panel in enumerate(panels):
        _fill(figure, panel, grid[place].subgridspec(panel.count, 1))
    return figure


def _fill(figure: Figure, panel: Panel, grid: GridSpecBase) -> None:
    panel.draw([figure.add_subplot(grid[i]) for i in range(panel.count)])


def _with_rows(
    seen: Glance, measured: pd.DataFrame, panels: Sequence[Panel], looks: dict[str, Style]
) -> Figure:
    """Standing and cost of each algorithm in a row; below, the axes of all panels in one line."""
    from matplotlib.figure import Figure

    names = in_order(seen.regime, looks)
    heights = [AROUND + ROW * len(names), *([BELOW] if panels else [])]
    figure = Figure(figsize=(WIDTH, sum(heights) + LEGEND))
    parts = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    costs = [cost_panel(measured, names, looks, named=False)] if seen.cost else []
    widths = [2.0, *(1.0 for panel in costs for _ in range(panel.count))]
    above = parts[0].subgridspec(1, len(widths), width_ratios=widths)
    axes = figure.add_subplot(above[0])
    draw_standing(axes, seen.regime, names, looks)
    first = seen.regime.iloc[0]
    where = f"{size_name(seen.regime, first['size'])} · {noise_name(first['noise'])}"
    what = "Headroom captured" if seen.standing == CAPTURED else "Speed of learning"
    axes.set_title(f"{what}, {where}", weight="bold", pad=16)
    axes.annotate(
        *(room_text(seen.regime, looks).replace("\n", " "), (0.5, 1)),
        xycoords="axes fraction",
        xytext=(0, 4),
        textcoords="offset points",
        ha="center",
    )
    for panel in costs:
        panel.draw([figure.add_subplot(above[1 + i]) for i in range(panel.count)])
    if panels:
        counts = [panel.count for panel in panels]
        line = parts[1].subgridspec(1, len(panels), width_ratios=counts)
        for place, panel in enumerate(panels):
            _fill(figure, panel, line[place].subgridspec(1, panel.count))
    return figure
