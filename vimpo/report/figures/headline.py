"""The figure that sums up a study: accuracy under noise, the implied value, and cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vimpo.analysis.scores import NAMES
from vimpo.report.figures.accuracy import draw_base_line
from vimpo.report.figures.cost import draw_bars
from vimpo.report.figures.probes import change_explained, draw_lines
from vimpo.report.figures.style import (
    add_legend,
    dodged,
    draw_points,
    limit_to_means,
    line_handles,
    mark_empty,
    noise_curve,
    size_axis,
)
from vimpo.report.labels import VALUES, Style, interval_name
from vimpo.storage.tables import ALL_SIZES, BASE, MEAN
from vimpo.text import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 9.0, 3.3  # inches; a README shows it about a page wide
PREDICTORS = {"implied": "VIMPO's implied value", "critic": "PPO's critic"}


def headline(
    summary: pd.DataFrame, probes: pd.DataFrame, measured: pd.DataFrame, looks: dict[str, Style]
) -> Figure:
    """Three panels for VIMPO, PPO and GRPO; variants are in the other figures."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(WIDTH, HEIGHT))
    grid = figure.add_gridspec(2, 3, width_ratios=(1.1, 1, 0.9))
    known = {name: look for name, look in looks.items() if name in (BASE, *NAMES)}
    left, middle = figure.add_subplot(grid[:, 0]), figure.add_subplot(grid[:, 1])
    _accuracy(left, summary, known)
    _value(middle, probes, known)
    time, memory = figure.add_subplot(grid[0, 2]), figure.add_subplot(grid[1, 2])
    _cost(time, memory, measured, known)
    for axes in (left, middle, time):
        axes.title.set_fontweight("bold")
    handles = line_handles(known, known)
    handles.append(Line2D([], [], color="#777777", label=interval_name(summary)))
    add_legend(figure, handles, columns=len(handles))
    return figure


def _accuracy(axes: Axes, summary: pd.DataFrame, looks: dict[str, Style]) -> None:
    """Mean over benchmarks and sizes; noise levels that some size lacks have none."""
    frame = summary[(summary["metric"] == "sampled") & (summary["benchmark"] == MEAN)]
    sizes = [s for s in dict.fromkeys(frame["size"]) if s != ALL_SIZES]
    size = ALL_SIZES if len(sizes) > 1 else next(iter(sizes), "")
    frame = frame[(frame["size"] == size) & frame["algorithm"].isin(list(looks))]
    runs = frame[(frame["algorithm"] != BASE) & frame["mean"].notna()]
    noisy = runs[runs["noise_level"] > 0]
    runs = noise_curve(runs, next(iter(noisy["noise_mode"]), "group"))
    levels = np.sort(runs["noise_level"].unique())
    names = [n for n in looks if n in set(runs["algorithm"])]
    for name, offset in zip(names, dodged(len(names), levels), strict=True):
        points = runs[runs["algorithm"] == name].sort_values("noise_level")
        x = points["noise_level"].to_numpy() + offset
        draw_points(axes, x, points, looks[name], looks[name].line)
    base = frame[frame["algorithm"] == BASE]
    draw_base_line(axes, base, looks)
    axes.set_xticks(levels, [f"{level:g}" for level in levels])
    limit_to_means(axes, pd.concat([runs["mean"], base["mean"]]), bounds=(0.0, 1.0))
    axes.set_title("Accuracy under reward noise")
    axes.set_xlabel("share of training rewards flipped")
    axes.set_ylabel("sampled accuracy" + ", mean of sizes" * (size == ALL_SIZES))
    if not len(runs):
        mark_empty(axes)


def _value(axes: Axes, probes: pd.DataFrame, looks: dict[str, Style]) -> None:
    """Explained variance of the change of value; zero is a constant, one is perfect."""
    lines = [line for line in VALUES if not line.hollow and line.predictor in PREDICTORS]
    frame = change_explained(probes)
    shown = pd.concat([line.rows(frame) for line in lines])
    axes.axhline(0, color="#555555", linewidth=0.8, zorder=1)
    axes.axhline(1, color="#999999", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    draw_lines(axes, shown, lines, looks, "params")
    known = shown.dropna(subset=["params"]).drop_duplicates("size").sort_values("params")
    size_axis(axes, known.set_index("size")["params"])
    limit_to_means(axes, shown["mean"], 0.0, 1.0, floor=-1.0)
    axes.set_title("Implied value and critic")
    axes.set_xlabel("parameters of the policy")
    axes.set_ylabel("explained change in value")
    axes.annotate(
        *("perfect", (1, 1)),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 3),
        textcoords="offset points",
        ha="right",
        fontsize=7,
        color="#555555",
    )


def _cost(time: Axes, memory: Axes, measured: pd.DataFrame, looks: dict[str, Style]) -> None:
    """Bars at the largest size that was measured."""
    frame = measured[(measured["kind"] == "measured") & measured["algorithm"].isin(list(looks))]
    largest = frame.sort_values("params")["size"].iloc[-1] if len(frame) else ""
    frame = frame[frame["size"] == largest]
    names = [n for n in looks if n in set(frame["algorithm"])]
    none = pd.DataFrame(np.nan, index=names, columns=["mean", "low", "high"])
    for axes, metric, factor, title in (
        (time, "step_total", 1, "seconds per step"),
        (memory, "memory_above_floor", 2**20, "peak memory above idle, MB"),
    ):
        values = frame[frame["metric"] == metric].set_index("algorithm").reindex(names)
        draw_bars(axes, values if len(values) else none, names, looks, factor)
        axes.set_yticks(range(len(names)), [looks[n].label for n in names])
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(left=0)
        axes.locator_params(axis="x", nbins=4)
        axes.set_xlabel(title)
        if not len(frame):
            mark_empty(axes)
    params = frame["params"].dropna()
    where = f", {short(params.iloc[0])} parameters" if len(params) else ""
    time.set_title(f"Cost{where}")
