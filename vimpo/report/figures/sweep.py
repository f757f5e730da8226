"""The figure of sweeps: what every trial scored, against the setting that was swept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vimpo.report.figures.style import (
    draw_points,
    limit_to_means,
    mark_empty,
    panel_grid,
    spread_out,
)
from vimpo.report.labels import SPARE, STYLES, Style, interval_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SPREAD = 0.03  # of the axis: how far markers at the same place are moved apart
AXES = {"lr_scale": "multiple of the size's learning rate", "beta": r"$\beta$"}


def sweeps(table: pd.DataFrame, looks: dict[str, Style]) -> Figure:
    """One row of panels per sweep, one panel per objective and metric, one line per other setting.

    A ring marks the best trial, a cross one with failed runs.
    """
    names = list(dict.fromkeys(table["sweep"])) or ["?"]
    groups = {
        name: list(table[table["sweep"] == name].groupby(["objective", "metric"], sort=False))
        for name in names
    }
    columns = max(1, *map(len, groups.values()))
    figure, panels = panel_grid(len(names), columns, width=3.1, height=3.2)
    for row, name in zip(panels, names, strict=True):
        for axes, ((objective, metric), own) in zip(row, groups[name], strict=False):
            _panel(axes, own)
            whose = STYLES[objective].label if objective in STYLES else objective
            axes.set_title(f"{name}: {whose}")
            axes.set_ylabel(metric)
        for axes in row[len(groups[name]) :]:
            axes.set_axis_off()
        if not groups[name]:
            mark_empty(row[0])
        _align(row, groups[name])
    figure.supxlabel(f"mean over seeds; bars: {interval_name(table)}", fontsize=7)
    return figure


def _align(row: np.ndarray, groups: list) -> None:
    """One y axis for panels of one metric: they are compared."""
    for metric in {key[1] for key, _ in groups}:
        shared = [axes for axes, (key, _) in zip(row, groups, strict=False) if key[1] == metric]
        means = pd.concat([own["mean"] for key, own in groups if key[1] == metric])
        for axes in shared:
            limit_to_means(axes, means, floor=-1.0)


def _panel(axes: Axes, own: pd.DataFrame) -> None:
    places = np.array(sorted(set(own["at"])))
    scale = np.log2 if (places > 0).all() else np.asarray
    width = SPREAD * max(np.ptp(scale(places)), 1)
    lines = list(own.groupby("settings", sort=False))
    shifts = spread_out(len(lines), width * max(1, len(lines) - 1))
    for i, ((settings, line), shift) in enumerate(zip(lines, shifts, strict=True)):
        colour, marker, dashes = SPARE[i % len(SPARE)]
        line = line.sort_values("at")
        x = scale(line["at"].to_numpy(float)) + shift
        draw_points(axes, x, line, Style(settings, colour, marker, dashes), dashes)
        axes.plot([], [], color=colour, marker=marker, linestyle=dashes, label=settings)
        marks: list[tuple[pd.Series, dict[str, Any]]] = [
            ((line["chosen"] == "yes"), {"marker": "o", "mfc": "none", "ms": 11}),
            ((line["failed"] > 0), {"marker": "x", "ms": 9}),
        ]
        for marked, look in marks:
            at = marked.to_numpy()
            axes.plot(x[at], line["mean"][at], linestyle="", mec="black", zorder=4, **look)
    axes.set_xticks(scale(places), [f"{place:g}" for place in places])
    axes.set_xlabel(AXES.get(own["axis"].iloc[0], own["axis"].iloc[0]))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=7)
