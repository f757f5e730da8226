"""Figures of cost: what was measured side by side, and what the memory model projects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vimpo.report.figures.style import add_legend, line_handles, mark_empty, panel_grid
from vimpo.report.labels import Style, count_note, interval_name, size_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PHASES = {"rollout": "", "reference": "////", "critic": "xxxx", "update": "||||"}


def cost(measured: pd.DataFrame, looks: dict[str, Style]) -> Figure:
    """Step time by phase, peak memory, parameters, optimiser state: one row of panels per size."""
    frame = measured[measured["kind"] == "measured"]
    model = measured[measured["kind"] == "model"]
    sizes = list(dict.fromkeys(frame["size"])) or ["?"]
    names = [n for n in looks if n in set(frame["algorithm"])]
    height = 0.24 * max(len(names), 2) + 0.6
    figure, panels = panel_grid(len(sizes), 4, width=2.5, height=height)
    for row, size in zip(panels, sizes, strict=True):
        part = frame[frame["size"] == size]
        table = {m: f.set_index("algorithm").reindex(names) for m, f in part.groupby("metric")}
        none = pd.DataFrame(np.nan, index=names, columns=["mean", "low", "high", "n"])
        _step_time(row[0], table, none, names, looks)
        for axes, metric in ((row[1], "memory_above_floor"), (row[3], "optimizer")):
            draw_bars(axes, table.get(metric, none), names, looks, 2**20)
        _model_marks(row[1], model[model["size"] == size], names)
        draw_bars(row[2], table.get("parameters_resident", none), names, looks, 1e6, alpha=0.35)
        draw_bars(row[2], table.get("parameters_trainable", none), names, looks, 1e6)
        for axes in row:
            axes.set_yticks(range(len(names)), [""] * len(names))
            axes.invert_yaxis()
            axes.grid(False, axis="y")
            axes.tick_params(axis="y", length=0)
            axes.set_xlim(left=0)
            axes.locator_params(axis="x", nbins=4)
            if not len(part):
                mark_empty(axes)
        row[0].set_yticks(range(len(names)), [looks[n].label for n in names])
        counts = part[part["metric"] == "step_total"]
        row[0].set_title(f"{size_name(frame, size)} · {count_note(counts, looks, 'round')}")
    titles = (
        "seconds per step",
        "peak memory above\nthe idle process, MB",
        "parameters, millions",
        "optimiser state, MB",
    )
    for axes, title in zip(panels[-1], titles, strict=True):
        axes.set_xlabel(title)
    add_legend(figure, _cost_handles(frame, len(model) > 0))
    return figure


def _model_marks(axes: Axes, model: pd.DataFrame, names: list[str]) -> None:
    """The analytic model's peak, as a mark across each bar."""
    peaks = model[model["metric"] == "memory_above_floor"].set_index("algorithm").reindex(names)
    axes.scatter(
        peaks["mean"] / 2**20,
        range(len(names)),
        marker="D",
        s=22,
        facecolor="white",
        edgecolor="black",
        zorder=4,
    )


def _step_time(
    axes: Axes, table: dict, none: pd.DataFrame, names: list[str], looks: dict[str, Style]
) -> None:
    left = np.zeros(len(names))
    places, colours = np.arange(len(names)), [looks[n].colour for n in names]
    for phase, hatch in PHASES.items():
        width = table.get(f"step_{phase}", none)["mean"].fillna(0).to_numpy()
        axes.barh(places, width, left=left, color=colours, hatch=hatch, height=0.7, linewidth=0)
        left += width
    total = table.get("step_total", none)
    _interval_on_bar(axes, places, total["low"], total["high"])


def draw_bars(
    axes: Axes,
    values: pd.DataFrame,
    names: list[str],
    looks: dict[str, Style],
    factor: float,
    alpha: float = 1.0,
) -> None:
    places, colours = np.arange(len(names)), [looks[n].colour for n in names]
    axes.barh(places, values["mean"] / factor, color=colours, height=0.7, alpha=alpha)
    _interval_on_bar(axes, places, values["low"] / factor, values["high"] / factor)


def _interval_on_bar(axes: Axes, places: np.ndarray, low: pd.Series, high: pd.Series) -> None:
    # a white rim, because a bar may be as dark as the line
    axes.hlines(places, low, high, color="white", linewidth=3)
    axes.hlines(places, low, high, color="black", linewidth=1.2)


def _cost_handles(frame: pd.DataFrame, modelled: bool) -> list:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    grey = "#777777"
    return [
        *(Patch(facecolor=grey, hatch=h, label=p, linewidth=0) for p, h in PHASES.items()),
        Patch(facecolor=grey, label="trainable"),
        Patch(facecolor=grey, alpha=0.35, label="resident only"),
        Line2D([], [], color="black", linewidth=1.2, label=interval_name(frame)),
        *(
            Line2D(
                *([], []),
                color="black",
                marker="D",
                markerfacecolor="white",
                linestyle="",
                label="memory model",
            )
            for _ in range(modelled)
        ),
    ]


def memory_projection(projection: pd.DataFrame, looks: dict[str, Style]) -> Figure:
    """Peak bytes of the memory model at published sizes, and their ratio to PPO's."""
    frame = projection[(projection["part"] == "peak") & (projection["kind"] == "projection")]
    figure, panels = panel_grid(1, 2, width=3.4, sharex=True, height=2.6)
    names = [n for n in looks if n in set(frame["algorithm"])]
    for name in names:
        points, style = frame[frame["algorithm"] == name].sort_values("parameters"), looks[name]
        marks = {"color": style.colour, "marker": style.marker, "linestyle": style.line}
        panels[0, 0].plot(points["parameters"], points["bytes"] / 2**30, **marks)
        panels[0, 1].plot(points["parameters"], points["ratio_to_ppo"], **marks)
    sizes = frame.drop_duplicates("size")
    for axes, title in zip(
        panels[0], ("projected peak memory, GiB", "projected peak relative to PPO"), strict=True
    ):
        axes.set_xscale("log")
        axes.set_xticks(sizes["parameters"], sizes["size"], rotation=35, ha="right")
        axes.set_xticks([], minor=True)
        axes.set_ylabel(title)
        if not len(frame):
            mark_empty(axes)
    if len(frame):
        panels[0, 0].set_yscale("log")
        panels[0, 1].set_ylim(0, 1.1)
    add_legend(figure, line_handles(looks, names))
    return figure
