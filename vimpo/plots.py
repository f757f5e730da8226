"""Figures, from tables only: every number drawn here was computed by `vimpo.aggregate`.

An algorithm has one colour, marker and line style in all figures (Okabe and Ito's colours, which
colour-blind readers tell apart). Means carry their interval, panels their n. SVGs repeat byte for
byte: fixed ids, no date, text as outlines of the fonts that matplotlib brings along.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vimpo.plot_style import (
    RC,
    Style,
    add_legend,
    count_note,
    dodged,
    draw_points,
    interval_name,
    line_handles,
    mark_empty,
    noise_name,
    ordered_noise,
    panel_grid,
    short_count,
    size_name,
    spread_out,
    styles,
)
from vimpo.tables import ALL_SIZES, BASE, MEAN, read_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


PHASES = {"rollout": "", "reference": "////", "critic": "xxxx", "update": "||||"}
FIGURES = (
    "learning_curves",
    "accuracy_by_benchmark",
    "accuracy_vs_noise",
    "accuracy_vs_size",
    "cost",
)


def draw(tables: Path, output: Path) -> list[Path]:
    """Draw every figure as SVG and PNG into `output`; returns the paths."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.style import context

    summary, curves = read_table(tables, "summary"), read_table(tables, "curves_summary")
    cost = read_table(tables, "cost_summary")
    looks = styles(summary["algorithm"])
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    drawers: dict[str, Callable[[], Figure]] = {
        "learning_curves": lambda: learning_curves(curves, looks),
        "accuracy_by_benchmark": lambda: accuracy_by_benchmark(summary, looks),
        "accuracy_vs_noise": lambda: accuracy_vs_noise(summary, looks),
        "accuracy_vs_size": lambda: accuracy_vs_size(summary, looks),
        "cost": lambda: cost_bars(cost, looks),
    }
    written = []
    # a reader's own matplotlibrc must not change a figure
    with mpl.rc_context(), context(["default", RC]):
        for name in FIGURES:
            figure = drawers[name]()
            FigureCanvasAgg(figure)
            for suffix, metadata in (("svg", {"Date": None}), ("png", None)):
                path = output / f"{name}.{suffix}"
                figure.savefig(path, metadata=metadata)
                written.append(path)
    return written


# --- Figures -------------------------------------------------------------------------------------


def learning_curves(curves: pd.DataFrame, looks: dict[str, Style]) -> Figure:
    """Clean training accuracy against step: a row of panels a noise level, a column a size."""
    frame = curves[curves["metric"] == "accuracy"]
    sizes = list(dict.fromkeys(frame["size"])) or ["?"]
    noises = ordered_noise(frame["noise"]) or ["0"]
    figure, panels = panel_grid(len(noises), len(sizes), sharex=True, sharey=True)
    for (i, noise), (j, size) in itertools.product(enumerate(noises), enumerate(sizes)):
        axes = panels[i, j]
        part = frame[(frame["noise"] == noise) & (frame["size"] == size)]
        for k, (name, line) in enumerate(part.groupby("algorithm", sort=False)):
            style = looks[name]
            axes.plot(line["step"], line["mean"], color=style.colour, linestyle=style.line)
            _whiskers(axes, line, style, k, part["algorithm"].nunique())
        _title(axes, part, frame, looks, noise, size)
    means = frame["mean"].dropna()
    if len(means):
        margin = 0.25 * max(means.max() - means.min(), 0.1)
        low, high = max(0.0, means.min() - margin), min(1.0, means.max() + margin)
        panels[0, 0].set_ylim(low, high)
    window = int(frame["window"].iloc[0]) if len(frame) else 1
    figure.supxlabel("training step", fontsize=8)
    figure.supylabel(
        f"accuracy of rollouts on clean rewards\n"
        f"(mean over {window} steps; bars: {interval_name(frame)})",
        fontsize=8,
    )
    add_legend(figure, line_handles(looks, frame["algorithm"], markers=False))
    return figure


def _whiskers(axes: Axes, line: pd.DataFrame, style: Style, place: int, count: int) -> None:
    """Intervals at three times, shifted between algorithms: bands of seven would hide all."""
    last = len(line) - 1
    shift = (count - 1 - place) * min(0.04, 0.25 / count)
    at = line.iloc[sorted({round(last * max(0, f - shift)) for f in (1 / 3, 2 / 3, 1)})]
    axes.vlines(at["step"], at["low"], at["high"], color=style.colour, linewidth=1, alpha=0.8)


def _title(
    axes: Axes,
    part: pd.DataFrame,
    frame: pd.DataFrame,
    looks: dict[str, Style],
    noise: str,
    size: str,
) -> None:
    runs = part[part["algorithm"] != BASE]
    axes.set_title(f"{size_name(frame, size)} · {noise_name(noise)}\n{count_note(part, looks)}")
    if runs["mean"].notna().sum() == 0:
        mark_empty(axes)


def accuracy_by_benchmark(summary: pd.DataFrame, looks: dict[str, Style]) -> Figure:
    """Sampled accuracy on each benchmark and their mean: a row a noise level, a column a size."""
    frame = _sampled(summary)
    frame = frame[frame["size"] != ALL_SIZES]
    sizes, noises = list(dict.fromkeys(frame["size"])), ordered_noise(frame["noise"])
    names = [b for b in dict.fromkeys(frame["benchmark"]) if b != MEAN] + [MEAN]
    figure, panels = panel_grid(len(noises), len(sizes), sharex=True, sharey=True)
    offsets = dict(zip(looks, spread_out(len(looks), 0.7), strict=True))
    for (i, noise), (j, size) in itertools.product(enumerate(noises), enumerate(sizes)):
        axes = panels[i, j]
        part = _with_base(frame[frame["size"] == size], noise)
        for name, points in part.groupby("algorithm", sort=False):
            points = points.set_index("benchmark").reindex(names)
            draw_points(axes, np.arange(len(names)) + offsets[name], points, looks[name], "")
        for boundary in range(len(names) - 1):
            last = boundary == len(names) - 2
            axes.axvline(boundary + 0.5, color="#999999" if last else "#dddddd", linewidth=0.7)
        axes.grid(False, axis="x")
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_xticks(range(len(names)), _short(names), rotation=30, ha="right")
        axes.tick_params(axis="x", length=0)
        _title(axes, part, frame, looks, noise, size)
    figure.supylabel(f"sampled accuracy (bars: {interval_name(frame)})", fontsize=8)
    add_legend(figure, line_handles(looks, frame["algorithm"]))
    return figure


def _sampled(summary: pd.DataFrame) -> pd.DataFrame:
    return summary[summary["metric"] == "sampled"]


def _with_base(frame: pd.DataFrame, noise: str) -> pd.DataFrame:
    """Rows at one noise level, and the base policy, which no reward has touched."""
    return frame[(frame["algorithm"] == BASE) | (frame["noise"] == noise)]


def _short(names: Sequence[str]) -> list[str]:
    """Benchmark names without a prefix that all of them share: `chain_easy` -> `easy`."""
    own = [n for n in names if n != MEAN]
    prefix = own[0].partition("_")[0] + "_" if own else ""
    shared = len(own) > 1 and all(n.startswith(prefix) for n in own)
    return [n.removeprefix(prefix) if shared else n for n in names]


def accuracy_vs_noise(summary: pd.DataFrame, looks: dict[str, Style]) -> Figure:
    """Mean sampled accuracy against the flip rate: a row a noise mode, a column a size."""
    frame = _sampled(summary)
    frame = frame[frame["benchmark"] == MEAN]
    runs = frame[frame["algorithm"] != BASE]
    noisy = runs[runs["noise_level"] > 0]
    modes = list(dict.fromkeys(noisy["noise_mode"])) or ["group"]
    sizes = [s for s in dict.fromkeys(frame["size"]) if s != ALL_SIZES]
    sizes += [ALL_SIZES] if len(sizes) > 1 else []
    figure, panels = panel_grid(len(modes), len(sizes), sharex=True, sharey=True, height=2.4)
    for (i, mode), (j, size) in itertools.product(enumerate(modes), enumerate(sizes)):
        axes = panels[i, j]
        # no noise is the same in every mode, and anchors each of them
        part = runs[
            (runs["size"] == size) & ((runs["noise_mode"] == mode) | (runs["noise_level"] == 0))
        ]
        levels = np.sort(part["noise_level"].unique())
        names = [n for n in looks if n in set(part["algorithm"])]
        for name, offset in zip(names, dodged(len(names), levels), strict=True):
            points = part[part["algorithm"] == name].sort_values("noise_level")
            style = looks[name]
            draw_points(axes, points["noise_level"].to_numpy() + offset, points, style, style.line)
        _base_line(axes, frame[(frame["size"] == size) & (frame["algorithm"] == BASE)], looks)
        axes.set_xticks(levels, [f"{level:g}" for level in levels])
        unit = "run" if size == ALL_SIZES else "seed"
        title = size_name(frame, size) + (f" · {mode} noise" if len(modes) > 1 else "")
        axes.set_title(f"{title}\n{count_note(part, looks, unit)}")
        if part["mean"].notna().sum() == 0:
            mark_empty(axes)
    figure.supxlabel("share of training rewards flipped", fontsize=8)
    figure.supylabel(_mean_label(frame), fontsize=8)
    add_legend(figure, line_handles(looks, frame["algorithm"]))
    return figure


def _mean_label(frame: pd.DataFrame) -> str:
    return f"sampled accuracy, mean of benchmarks\n(bars: {interval_name(frame)})"


def _base_line(axes: Axes, base: pd.DataFrame, looks: dict[str, Style]) -> None:
    if base["mean"].notna().any():
        row, style = base.iloc[0], looks[BASE]
        axes.axhline(row["mean"], color=style.colour, linestyle=style.line, zorder=1)
        axes.axhspan(row["low"], row["high"], color=style.colour, alpha=0.15, linewidth=0)


def accuracy_vs_size(summary: pd.DataFrame, looks: dict[str, Style]) -> Figure:
    """Mean sampled accuracy against parameters, on a logarithmic axis: a panel a noise level."""
    frame = _sampled(summary)
    frame = frame[(frame["benchmark"] == MEAN) & (frame["size"] != ALL_SIZES)]
    noises = ordered_noise(frame["noise"])
    ladder = frame.dropna(subset=["params"]).drop_duplicates("size").set_index("size")["params"]
    figure, panels = panel_grid(1, len(noises), sharex=True, sharey=True, height=2.6)
    for axes, noise in zip(panels[0], noises, strict=True):
        part = _with_base(frame, noise)
        names = [n for n in looks if n in set(part["algorithm"])]
        for name, offset in zip(names, dodged(len(names), np.log10(ladder)), strict=True):
            points = part[part["algorithm"] == name].sort_values("params")
            x = points["params"].to_numpy() * 10**offset
            draw_points(axes, x, points, looks[name], looks[name].line)
        axes.set_xscale("log")
        axes.set_xticks(ladder, [f"{s}\n{short_count(p)}" for s, p in ladder.items()])
        axes.set_xticks([], minor=True)
        axes.set_title(f"{noise_name(noise)}\n{count_note(part, looks)}")
        if part["mean"].notna().sum() == 0:
            mark_empty(axes)
    figure.supxlabel("parameters of the policy", fontsize=8)
    figure.supylabel(_mean_label(frame), fontsize=8)
    add_legend(figure, line_handles(looks, frame["algorithm"]))
    return figure


def cost_bars(cost: pd.DataFrame, looks: dict[str, Style]) -> Figure:
    """Step time by phase, peak memory, parameters, optimiser state: a row of panels a size."""
    frame = cost[cost["algorithm"] != BASE]
    sizes = list(dict.fromkeys(frame["size"])) or ["?"]
    names = [n for n in looks if n in set(frame["algorithm"])]
    height = 0.24 * max(len(names), 2) + 0.6
    figure, panels = panel_grid(len(sizes), 4, width=2.5, height=height)
    for row, size in zip(panels, sizes, strict=True):
        part = frame[frame["size"] == size]
        table = {m: f.set_index("algorithm").reindex(names) for m, f in part.groupby("metric")}
        none = pd.DataFrame(np.nan, index=names, columns=["mean", "low", "high", "n"])
        _step_time(row[0], table, none, names, looks)
        for axes, metric, factor in (
            (row[1], "peak_memory_mb", 1),
            (row[3], "optimizer_bytes", 2**20),
        ):
            _bars(axes, table.get(metric, none), names, looks, factor)
        _bars(row[2], table.get("resident_parameters", none), names, looks, 1e6, alpha=0.35)
        _bars(row[2], table.get("trainable_parameters", none), names, looks, 1e6)
        for axes in row:
            axes.set_yticks(range(len(names)), [""] * len(names))
            axes.invert_yaxis()
            axes.grid(False, axis="y")
            axes.tick_params(axis="y", length=0)
            axes.set_xlim(left=0)
            axes.locator_params(axis="x", nbins=4)
        row[0].set_yticks(range(len(names)), [looks[n].label for n in names])
        counts = part[part["metric"].isin(["step_total", "peak_memory_mb"])]
        row[0].set_title(f"{size_name(frame, size)} · {count_note(counts, looks, 'run')}")
    titles = ("seconds a step", "peak memory, MB", "parameters, millions", "optimiser state, MB")
    for axes, title in zip(panels[-1], titles, strict=True):
        axes.set_xlabel(title)
    add_legend(figure, _cost_handles(frame))
    return figure


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


def _bars(
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


def _cost_handles(frame: pd.DataFrame) -> list:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    grey = "#777777"
    return [
        *(Patch(facecolor=grey, hatch=h, label=p, linewidth=0) for p, h in PHASES.items()),
        Patch(facecolor=grey, label="trainable"),
        Patch(facecolor=grey, alpha=0.35, label="resident only"),
        Line2D([], [], color="black", linewidth=1.2, label=interval_name(frame)),
    ]
