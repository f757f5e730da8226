"""Figures of the yardstick: headroom captured, and accuracy at matched distance from the base."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vimpo.report.figures.style import (
    add_legend,
    draw_band,
    draw_faint,
    limit_to_means,
    line_handles,
    mark_empty,
    panel_grid,
)
from vimpo.report.glance import CAPTURED, lines_of, no_headroom, room_of, standing_of
from vimpo.report.labels import (
    Style,
    featured,
    interval_name,
    noise_name,
    ordered_noise,
    size_name,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FARTHEST = 1.5  # shares beyond it, on either side of the scale, may lie outside the panel
ROW = 0.19  # inches that the row of an algorithm takes


def headroom(table: pd.DataFrame, looks: dict[str, Style]) -> Figure:
    """Where each algorithm stands, by noise (rows) and size (columns)."""
    sizes = list(dict.fromkeys(table["size"])) or ["?"]
    noises = ordered_noise(table["noise"]) or ["0"]
    present = {noise: set(table.loc[table["noise"] == noise, "algorithm"]) for noise in noises}
    heights = [0.9 + ROW * max(4, len(names)) for names in present.values()]
    figure, panels = panel_grid(
        *(len(noises), len(sizes)),
        width=2.9,
        height=sum(heights) / len(heights),
        sharey="row",
        gridspec_kw={"height_ratios": heights},
    )
    for (i, noise), (j, size) in itertools.product(enumerate(noises), enumerate(sizes)):
        axes = panels[i, j]
        part = table[(table["noise"] == noise) & (table["size"] == size)]
        draw_standing(axes, part, [name for name in looks if name in present[noise]], looks)
        if len(table):
            where = f"{size_name(table, size)} · {noise_name(noise)}"
            axes.set_title(f"{where}\n{room_text(part, looks)}".strip())
    figure.supxlabel(f"bars: {interval_name(table)}", fontsize=8)
    return figure


def draw_standing(
    axes: Axes, regime: pd.DataFrame, names: list[str], looks: dict[str, Style]
) -> None:
    """A row for each name: its share of the headroom or, without headroom, its area.

    regime: rows of headroom.csv of one size and noise level. Lines stand at floor and ceiling; a
    triangle at the edge is for what lies beyond it.
    """
    kind = standing_of(regime)
    rows = regime[regime["metric"] == kind].set_index("algorithm")
    if not kind:
        mark_empty(axes)
    else:
        ends = [regime[end].iloc[0] for end in ("floor", "ceiling")]
        scale = {ends[0]: 0.0, ends[1]: 1.0} if kind == CAPTURED else rows["mean"].to_dict()
        for name in ends:
            if name in scale and np.isfinite(scale[name]):
                axes.axvline(scale[name], color=looks[name].colour, linewidth=0.9, zorder=1)
                if name not in rows.index and name in names:
                    _dot(axes, scale[name], names.index(name), looks[name])
        first, last = (looks[name].label if name in looks else name for name in ends)
        axes.set_xlabel(
            f"share of the headroom captured:\n0 is {first}, 1 is {last}"
            if kind == CAPTURED
            else f"area under the learning curve\n(lines: {first}, {last})"
        )
    for place, name in enumerate(names):
        if name in rows.index and np.isfinite(rows.loc[name, "mean"]):
            row, style = rows.loc[name], looks[name]
            _dot(axes, row["mean"], place, style)
            axes.hlines(place, row["low"], row["high"], color=style.colour, linewidth=1.1, zorder=2)
    name_rows(axes, names, looks)
    left, right = _reach(rows["mean"].dropna(), kind)
    axes.set_xlim(left, right)
    for place, name in enumerate(names):
        if name in rows.index and rows.loc[name, "mean"] < left:
            axes.plot(
                0,
                place,
                color=looks[name].colour,
                marker="<",
                markersize=6,
                transform=axes.get_yaxis_transform(),
                clip_on=False,
                zorder=3,
            )


def _dot(axes: Axes, at: float, place: int, style: Style) -> None:
    axes.plot(at, place, color=style.colour, marker=style.marker, markersize=5, zorder=3)


def _reach(means: pd.Series, kind: str) -> tuple[float, float]:
    if kind != CAPTURED:
        return 0.0, min(1.0, max([0.1, *(means + 0.1)]))
    ends = np.clip(means, -FARTHEST, 1 + FARTHEST)
    return min([-0.3, *(ends - 0.2)]), max([1.3, *(ends + 0.2)])


def name_rows(axes: Axes, names: list[str], looks: dict[str, Style]) -> None:
    """The y axis of a panel with a row for each algorithm, the first on top."""
    axes.set_yticks(range(len(names)), [looks[name].label for name in names])
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    if names:
        axes.set_ylim(len(names) - 0.5, -0.5)


def room_text(regime: pd.DataFrame, looks: dict[str, Style]) -> str:
    """How far the ceiling is above the floor, and whether that is headroom."""
    room = room_of(regime)
    if not len(room):
        return ""
    row = room.iloc[0]
    ceiling, floor = (looks[row[end]].label for end in ("ceiling", "floor"))
    ends = " to ".join(f"{100 * row[end]:+.1f}" for end in ("low", "high"))
    interval = f"({ends})" if np.isfinite(row["low"]) else "(no interval)"
    number = f"{ceiling} minus {floor}: {100 * row['mean']:+.1f} points\n{interval}"
    return number + ": no headroom" * no_headroom(regime)


def frontier(table: pd.DataFrame, looks: dict[str, Style]) -> Figure:
    """Training accuracy against KL to the base, by noise level (rows) and size (columns)."""
    frame = lines_of(table)
    sizes = list(dict.fromkeys(frame["size"])) or ["?"]
    noises = ordered_noise(frame["noise"]) or ["0"]
    figure, panels = panel_grid(
        len(noises), len(sizes), width=3.0, height=2.2, sharex=True, sharey=True
    )
    for (i, noise), (j, size) in itertools.product(enumerate(noises), enumerate(sizes)):
        axes = panels[i, j]
        part = frame[(frame["noise"] == noise) & (frame["size"] == size)]
        draw_paths(axes, part, looks, featured(frame["algorithm"]))
        if len(frame):
            axes.set_title(f"{size_name(frame, size)} · {noise_name(noise)}")
    limit_paths(panels[0, 0], frame)
    figure.supxlabel("KL to the base policy, nats (axis: square root)", fontsize=8)
    figure.supylabel(
        f"accuracy of rollouts on clean rewards\n(bands: {interval_name(frame)})", fontsize=8
    )
    add_legend(figure, line_handles(looks, frame["algorithm"]))
    return figure


def draw_paths(
    axes: Axes, part: pd.DataFrame, looks: dict[str, Style], clear: Sequence[str]
) -> None:
    """Accuracy against distance; a line that does not stand out keeps the marker at its end."""
    for name, line in part.groupby("algorithm", sort=False):
        style = looks[str(name)]
        if name in clear:
            draw_band(axes, line["kl"], line, style, part["algorithm"].nunique())
        else:
            draw_faint(axes, line["kl"], line)
        last = line.iloc[-1]
        axes.plot(last["kl"], last["mean"], color=style.colour, marker=style.marker, zorder=4)
    if part["mean"].notna().sum() == 0:
        mark_empty(axes)


def limit_paths(axes: Axes, frame: pd.DataFrame) -> None:
    if len(frame):
        _root_axis(axes, frame["kl"].max())
        limit_to_means(axes, frame["mean"], bounds=(0.0, 1.0))


def _root_axis(axes: Axes, largest: float) -> None:
    """An axis on which equal steps are equal steps of the root, with ticks at round numbers."""
    axes.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    axes.set_xlim(0, 1.03 * max(largest, 1e-9))
    unit = 10.0 ** np.floor(np.log10(max(largest, 1e-9)))
    unit *= next(m for m in (1, 2, 5, 10) if largest / (m * unit) <= 5)
    ticks = np.array([0, 0.25, 1, 2, 3, 4, 5]) * unit
    axes.set_xticks(ticks[ticks <= largest], [f"{t:g}" for t in ticks[ticks <= largest]])
