"""Figures of sweeps: what each trial scored, against the setting that was swept; and its curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vimpo.analysis.sweep import ACCURACY, AREA, SCORE
from vimpo.report.figures.style import (
    add_legend,
    draw_band,
    draw_points,
    limit_to_means,
    line_handles,
    mark_empty,
    panel_grid,
    spread_out,
)
from vimpo.report.labels import SPARE, STYLES, Style, interval_name, spare_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SPREAD = 0.03  # of the axis: how far markers at the same place are moved apart
AXES = {"lr_scale": "multiple of the size's learning rate", "beta": r"$\beta$"}
LABELS = {SCORE: "mean of accuracy and area"}  # where a metric's name is too long for an axis
CURVES = {"accuracy": "training accuracy", "reference_kl": "KL to the base, nats"}


def sweeps(table: pd.DataFrame, looks: dict[str, Style]) -> Figure:
    """One row of panels per sweep, one panel per objective and metric, one line per other setting.

    The two parts of a score are in the table only. A ring marks the best trial, a cross one with
    failed runs.
    """
    if (table["metric"] == SCORE).any():
        table = table[~table["metric"].isin([ACCURACY, AREA])]
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
            axes.set_ylabel(LABELS.get(metric, metric))
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
    if any(settings for settings, _ in lines):  # one setting without a name needs no legend
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=7)


def sweeps_curves(table: pd.DataFrame, looks: dict[str, Style]) -> Figure:
    """Two rows of panels per sweep and objective, accuracy and distance by step; one panel per
    value of the first setting, one line per other setting (or all lines in one panel)."""
    blocks = [
        (sweep, objective, own.assign(**_panel_and_line(own)))
        for (sweep, objective), own in table.groupby(["sweep", "objective"], sort=False)
    ]
    columns = max([1, *(own["panel"].nunique() for *_, own in blocks)])
    rows = max(1, len(CURVES) * len(blocks))
    figure, panels = panel_grid(rows, columns, width=2.3, height=1.9, sharex=True)
    lines = list(dict.fromkeys(line for *_, own in blocks for line in own["line"]))
    styles = {line: Style(line, *spare_style(i)) for i, line in enumerate(lines)}
    for axes in panels.flat:
        axes.set_axis_off()
    for i, (sweep, objective, own) in enumerate(blocks):
        whose = STYLES[objective].label if objective in STYLES else objective
        for j, (metric, label) in enumerate(CURVES.items()):
            row, part = panels[len(CURVES) * i + j], own[own["metric"] == metric]
            names = dict.fromkeys(own["panel"])
            for axes, name in zip(row, names, strict=False):
                axes.set_axis_on()
                shown = part[part["panel"] == name]
                for line, curve in shown.groupby("line", sort=False):
                    draw_band(axes, curve["step"], curve, styles[str(line)], len(styles))
                if shown["mean"].notna().sum() == 0:
                    mark_empty(axes)
                limit_to_means(axes, part["mean"], bounds=(0.0, np.inf))
                if j == 0:
                    axes.set_title(", ".join(filter(None, (f"{sweep}: {whose}", str(name)))))
            row[0].set_ylabel(label)
    if not blocks:
        mark_empty(panels[0, 0])
    figure.supxlabel(f"training step (bands: {interval_name(table)})", fontsize=8)
    add_legend(figure, line_handles(styles, styles, markers=False))
    return figure


def _panel_and_line(own: pd.DataFrame) -> dict[str, pd.Series]:
    """What heads a trial's panel and what its line is called."""
    name = own["axis"].map(lambda axis: AXES.get(axis, axis))
    at = name + " " + own["at"].map("{:g}".format)
    if own["settings"].nunique() > 1:
        return {"panel": at, "line": own["settings"]}
    return {"panel": pd.Series("", own.index), "line": at}
