"""Figures of the yardstick: headroom captured, and accuracy at matched distance from the base."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vimpo.report.figures.style import (
    add_legend,
    draw_band,
    limit_to_means,
    line_handles,
    mark_empty,
    panel_grid,
)
from vimpo.report.labels import Style, interval_name, noise_name, ordered_noise, size_name
from vimpo.storage.codes import Reason

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FARTHEST = 1.5  # shares beyond it, on either side of the scale, may lie outside the panel


def headroom(table: pd.DataFrame, looks: dict[str, Style]) -> Figure:
    """Share of the headroom that each algorithm captures, by noise (rows) and size (columns)."""
    frame = table[table["metric"] == "captured"]
    sizes = list(dict.fromkeys(frame["size"])) or ["?"]
    noises = ordered_noise(frame["noise"]) or ["0"]
    names = [name for name in looks if name in set(frame["algorithm"])]
    figure, panels = panel_grid(
        *(len(noises), len(sizes)),
        width=2.9,
        height=0.5 + 0.2 * max(4, len(names)),
        sharex=True,
        sharey=True,
    )
    for (i, noise), (j, size) in itertools.product(enumerate(noises), enumerate(sizes)):
        axes = panels[i, j]
        part = frame[(frame["noise"] == noise) & (frame["size"] == size)]
        _shares(axes, part.set_index("algorithm"), names, looks)
        if len(frame):
            axes.set_title(f"{size_name(frame, size)} · {noise_name(noise)}")
    panels[0, 0].set_ylim(len(names) - 0.5, -0.5) if names else None
    ends = np.clip(frame["mean"].dropna(), -FARTHEST, 1 + FARTHEST)
    panels[0, 0].set_xlim(min([-0.3, *(ends - 0.2)]), max([1.3, *(ends + 0.2)]))
    low, high = (looks[n].label if n in looks else n for n in _ends(frame))
    figure.supxlabel(
        f"share of the headroom captured: 0 is {low}, 1 is {high}\n"
        f"(area under the learning curve; bars: {interval_name(frame)})",
        fontsize=8,
    )
    return figure


def _ends(frame: pd.DataFrame) -> tuple[str, str]:
    first = frame.iloc[0] if len(frame) else {"floor": "grpo", "ceiling": "oracle"}
    return first["floor"], first["ceiling"]


def _shares(axes: Axes, part: pd.DataFrame, names: list[str], looks: dict[str, Style]) -> None:
    for place in (0, 1):
        axes.axvline(place, color="#555555", linewidth=0.9, zorder=1)
    axes.set_yticks(range(len(names)), [looks[name].label for name in names])
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    for place, name in enumerate(names):
        if name in part.index and np.isfinite(part.loc[name, "mean"]):
            row, style = part.loc[name], looks[name]
            axes.plot(row["mean"], place, color=style.colour, marker=style.marker, zorder=3)
            axes.hlines(place, row["low"], row["high"], color=style.colour, linewidth=1.1, zorder=2)
    if part["mean"].notna().sum() == 0:
        said = (
            "no headroom" if (part["reason_code"] == Reason.NO_HEADROOM).any() else "not available"
        )
        axes.text(0.5, 0.5, said, transform=axes.transAxes, ha="center", color="#555555")


def frontier(table: pd.DataFrame, looks: dict[str, Style]) -> Figure:
    """Training accuracy against KL to the base, by noise level (rows) and size (columns)."""
    frame = table[(table["metric"] == "accuracy") & (table["rival"] == "") & table["kl"].notna()]
    sizes = list(dict.fromkeys(frame["size"])) or ["?"]
    noises = ordered_noise(frame["noise"]) or ["0"]
    figure, panels = panel_grid(
        len(noises), len(sizes), width=3.0, height=2.2, sharex=True, sharey=True
    )
    for (i, noise), (j, size) in itertools.product(enumerate(noises), enumerate(sizes)):
        axes = panels[i, j]
        part = frame[(frame["noise"] == noise) & (frame["size"] == size)]
        for name, line in part.groupby("algorithm", sort=False):
            style = looks[str(name)]
            draw_band(axes, line["kl"], line, style, part["algorithm"].nunique())
            last = line.iloc[-1]
            axes.plot(last["kl"], last["mean"], color=style.colour, marker=style.marker, zorder=4)
        if len(frame):
            axes.set_title(f"{size_name(frame, size)} · {noise_name(noise)}")
        if part["mean"].notna().sum() == 0:
            mark_empty(axes)
    if len(frame):
        _root_axis(panels[0, 0], frame["kl"].max())
        limit_to_means(panels[0, 0], frame["mean"], bounds=(0.0, 1.0))
    figure.supxlabel("KL to the base policy, nats (axis: square root)", fontsize=8)
    figure.supylabel(
        f"accuracy of rollouts on clean rewards\n(bands: {interval_name(frame)})", fontsize=8
    )
    add_legend(figure, line_handles(looks, frame["algorithm"]))
    return figure


def _root_axis(axes: Axes, largest: float) -> None:
    """An axis on which equal steps are equal steps of the root, with ticks at round numbers."""
    axes.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    axes.set_xlim(0, 1.03 * max(largest, 1e-9))
    unit = 10.0 ** np.floor(np.log10(max(largest, 1e-9)))
    unit *= next(m for m in (1, 2, 5, 10) if largest / (m * unit) <= 5)
    ticks = np.array([0, 0.25, 1, 2, 3, 4, 5]) * unit
    axes.set_xticks(ticks[ticks <= largest], [f"{t:g}" for t in ticks[ticks <= largest]])
