"""The panels of the figure that sums up a study: distance or noise, implied value, and cost.

A panel draws into as many axes as it counts; the figure decides where they stand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vimpo.analysis.scores import OURS
from vimpo.report.figures.accuracy import draw_base_line
from vimpo.report.figures.cost import draw_bars
from vimpo.report.figures.probes import draw_lines
from vimpo.report.figures.style import (
    dodged,
    draw_points,
    limit_to_means,
    line_handles,
    mark_empty,
    noise_curve,
    size_axis,
)
from vimpo.report.figures.yardstick import draw_paths, limit_paths, name_rows
from vimpo.report.glance import CAPACITY, DISTANCE, EXPLAINED, KNOWN, RANK, Glance, fullest, scored
from vimpo.report.labels import (
    STYLES,
    VALUES,
    Line,
    Style,
    noise_name,
    ordered_noise,
    size_name,
)
from vimpo.storage.tables import BASE
from vimpo.text import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMALL = 7  # points
TICKS = 5  # values that fit under an axis
FLOOR = -1.0  # explained variances of collapsed policies are far below it
# What an algorithm itself predicts values with.
LINES = (
    *(line for line in VALUES if line.predictor in KNOWN and not line.hollow),
    Line("ppo_pretrained", "critic", "PPO: pretrained critic"),
)
COSTS = {
    "step_total": (1, "seconds per step"),
    "memory_above_floor": (2**20, "peak memory\nabove idle, MB"),
}
SHAPES = ("o", "s", "^", "D", "v", "P")  # of sizes


@dataclass(frozen=True)
class Panel:
    """width: beside others, relative to them"""

    count: int
    draw: Callable[[list[Axes]], None]
    width: float = 1.0


# --- Accuracy against distance or noise ----------------------------------------------------------


def moved_panel(seen: Glance, looks: dict[str, Style], clear: Sequence[str]) -> Panel:
    if seen.moved == DISTANCE:
        noises = ordered_noise(seen.paths["noise"])
        return Panel(len(noises), lambda axes: _distance(axes, seen, looks, clear))
    known = {name: look for name, look in looks.items() if name in (BASE, *clear)}
    return Panel(1, lambda axes: _accuracy(axes[0], seen, known), 1.1)


def _distance(
    axes: list[Axes], seen: Glance, looks: dict[str, Style], clear: Sequence[str]
) -> None:
    frame = seen.paths
    size = frame["size"].iloc[0]
    for one, noise in zip(axes, ordered_noise(frame["noise"]), strict=True):
        draw_paths(one, frame[frame["noise"] == noise], looks, clear)
        limit_paths(one, frame)
        one.set_title(f"Distance, {size_name(frame, size)}\n{noise_name(noise)}", weight="bold")
        one.set_xlabel("KL to the base, nats (root axis)")
    axes[0].set_ylabel("training accuracy")


def _accuracy(axes: Axes, seen: Glance, looks: dict[str, Style]) -> None:
    """Mean over benchmarks; noise levels of one kind."""
    frame = seen.scores[seen.scores["algorithm"].isin(list(looks))]
    runs = scored(frame)
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
    axes.set_title("Accuracy under reward noise", weight="bold")
    axes.set_xlabel("share of training rewards flipped")
    where = ["mean of sizes"] if seen.over_sizes else frame["size"].unique()
    axes.set_ylabel(", ".join(["sampled accuracy", *where]))
    if not len(runs):
        mark_empty(axes)


# --- Implied value -------------------------------------------------------------------------------


def value_panel(seen: Glance, looks: dict[str, Style], clear: Sequence[str]) -> Panel:
    if seen.value == CAPACITY:
        return Panel(2, lambda axes: _against_capacity(axes, seen))
    known = {name: look for name, look in looks.items() if name in clear}
    return Panel(1, lambda axes: _against_size(axes[0], seen, known))


def _against_capacity(axes: list[Axes], seen: Glance) -> None:
    """Rank correlation, and explained variance: one line for each size."""
    frame = seen.by_capacity
    sizes = list(dict.fromkeys(frame["size"]))
    shades = dict(zip(sizes, _shades(len(sizes)), strict=True))
    looks = {
        size: Style(size_name(frame, size), shade, SHAPES[i % len(SHAPES)])
        for i, (size, shade) in enumerate(shades.items())
    }
    titles = {RANK: "rank correlation", EXPLAINED: "explained variance"}
    for one, (metric, title) in zip(axes, titles.items(), strict=True):
        part = frame[frame["metric"] == metric]
        _bounds(one)
        for size, look in looks.items():
            points = part[part["size"] == size]
            low = points[points["mean"] < FLOOR]
            one.plot(low["capacity"], len(low) * [FLOOR], color=look.colour, marker=7, linestyle="")
            points = points[~(points["mean"] < FLOOR)]
            draw_points(one, points["capacity"].to_numpy(float), points, look, "-")
        one.set_xscale("log")
        if len(ticks := sorted(set(frame["capacity"]))) <= TICKS:
            one.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
            one.set_xticks([], minor=True)
        limit_to_means(one, part["mean"], 0.0, 1.0, floor=FLOOR)
        one.set_title(f"Implied value:\n{title}", weight="bold")
        one.set_xlabel("capacity" + ", on the base's prefixes" * seen.common)
    if len(sizes) > 1:
        # Low capacities explain little, but never less than nothing.
        axes[-1].legend(
            handles=line_handles(looks, looks),
            fontsize=SMALL - 1,
            loc="lower left",
            labelspacing=0.2,
        )


def _shades(count: int) -> list[str]:
    """Of VIMPO's colour: light for the smallest size, the colour itself for the largest."""
    from matplotlib.colors import to_hex, to_rgb

    lights = np.linspace(0.6, 0, count) if count > 1 else [0.0]
    red, green, blue = to_rgb(STYLES[OURS].colour)
    shades = [[light + (1 - light) * part for part in (red, green, blue)] for light in lights]
    return [to_hex((r, g, b)) for r, g, b in shades]


def _against_size(axes: Axes, seen: Glance, looks: dict[str, Style]) -> None:
    """Explained variance of the change of value; zero is a constant, one is perfect."""
    frame = seen.value_rows[seen.value_rows["metric"] == EXPLAINED]
    lines = [line for line in LINES if line.algorithm in looks]
    shown = pd.concat([frame.iloc[:0], *(line.rows(frame) for line in lines)])
    _bounds(axes)
    draw_lines(axes, shown, lines, looks, "params")
    known = shown.dropna(subset=["params"]).drop_duplicates("size").sort_values("params")
    size_axis(axes, known.set_index("size")["params"])
    limit_to_means(axes, shown["mean"], 0.0, 1.0, floor=FLOOR)
    axes.set_title("Implied value and critic", weight="bold")
    axes.set_xlabel("parameters of the policy")
    axes.set_ylabel("explained change in value")


def _bounds(axes: Axes) -> None:
    """Zero is what a constant gets, one is perfect."""
    axes.axhline(0, color="#555555", linewidth=0.8, zorder=1)
    axes.axhline(1, color="#999999", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(
        *("perfect", (1, 1)),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 3),
        textcoords="offset points",
        ha="right",
        fontsize=SMALL,
        color="#555555",
    )


# --- Cost ----------------------------------------------------------------------------------------


def cost_panel(
    measured: pd.DataFrame, names: Sequence[str], looks: dict[str, Style], named: bool = True
) -> Panel:
    """Bars at the size where most of the algorithms were measured, of several such the largest.

    named: with names beside the bars; otherwise another panel has the same rows, and names them.
    """
    return Panel(2, lambda axes: _cost(axes, measured, names, looks, named), 0.9)


def _cost(
    axes: list[Axes],
    measured: pd.DataFrame,
    names: Sequence[str],
    looks: dict[str, Style],
    named: bool,
) -> None:
    frame = measured[(measured["kind"] == "measured") & measured["algorithm"].isin(list(names))]
    frame = frame[frame["size"] == fullest(frame, "algorithm")]
    rows = [n for n in names if not named or n in set(frame["algorithm"])]
    for one, (metric, (factor, title)) in zip(axes, COSTS.items(), strict=True):
        values = frame[frame["metric"] == metric].set_index("algorithm").reindex(rows)
        draw_bars(one, values, rows, looks, factor)
        name_rows(one, rows, looks)
        if not named:
            one.set_yticklabels([])
        one.set_xlim(left=0)
        one.locator_params(axis="x", nbins=4)
        one.set_xlabel(title)
        if not len(values):
            mark_empty(one)
    params = frame["params"].dropna()
    where = f", {short(params.iloc[0])} parameters" if len(params) else ""
    axes[0].set_title(f"Cost{where}", weight="bold")
