"""Figures of accuracy: during training, by benchmark, against noise and size, and gaps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vimpo.analysis.scores import NAMES, RIVALS
from vimpo.report.figures.style import (
    add_legend,
    dodged,
    draw_band,
    draw_faint,
    draw_points,
    limit_to_means,
    line_handles,
    mark_empty,
    noise_curve,
    panel_grid,
    size_axis,
    spread_out,
)
from vimpo.report.labels import (
    CROWD,
    Style,
    count_note,
    interval_name,
    noise_name,
    ordered_noise,
    size_name,
)
from vimpo.storage.tables import ALL_SIZES, BASE, MEAN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def learning_curves(curves: pd.DataFrame, looks: dict[str, Style]) -> Figure:
    """Clean training accuracy against step, by noise level (rows) and size (columns).

    A crowd of algorithms has a panel for each, with the others behind it.
    """
    frame = curves[curves["metric"] == "accuracy"]
    if frame["algorithm"].nunique() > CROWD:
        return _one_each(frame, looks)
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
        limit_to_means(panels[0, 0], means, bounds=(0.0, 1.0))
    _name_axes(figure, frame, "bars")
    add_legend(figure, line_handles(looks, frame["algorithm"], markers=False))
    return figure


def _name_axes(figure: Figure, frame: pd.DataFrame, marks: str) -> None:
    window = int(frame["window"].iloc[0]) if len(frame) else 1
    figure.supxlabel("training step", fontsize=8)
    figure.supylabel(
        f"accuracy of rollouts on clean rewards\n"
        f"(mean over {window} steps; {marks}: {interval_name(frame)})",
        fontsize=8,
    )


ACROSS = 5  # panels of single algorithms


def _one_each(frame: pd.DataFrame, looks: dict[str, Style]) -> Figure:
    """A block of panels for each size and noise level, and a panel for each of its algorithms."""
    sizes, noises = dict.fromkeys(frame["size"]), ordered_noise(frame["noise"])
    blocks = [
        (f"{size_name(frame, size)}\n{noise_name(noise)}", part)
        for size, noise in itertools.product(sizes, noises)
        if len(part := frame[(frame["size"] == size) & (frame["noise"] == noise)])
    ]
    heights = [-(-part["algorithm"].nunique() // ACROSS) for _, part in blocks]
    figure, panels = panel_grid(
        sum(heights), ACROSS, width=1.7, height=1.3, sharex=True, sharey=True
    )
    rows = iter(panels)
    for (where, part), height in zip(blocks, heights, strict=True):
        places = np.concatenate([next(rows) for _ in range(height)])
        names = [name for name in looks if name in set(part["algorithm"])]
        for axes, name in itertools.zip_longest(places, names):
            if name is None:
                axes.axis("off")
                continue
            for other, line in part.groupby("algorithm", sort=False):
                if other != name:
                    draw_faint(axes, line["step"], line)
            own = part[part["algorithm"] == name]
            draw_band(axes, own["step"], own, looks[name])
            axes.set_title(f"{looks[name].label}\n{count_note(own, looks)}", fontsize=6.5)
            if own["mean"].notna().sum() == 0:
                mark_empty(axes)
        places[0].set_ylabel(where, fontsize=7)
    for column in panels.T:
        lowest = [axes for axes in column if axes.axison][-1:]
        for axes in lowest:
            axes.tick_params(labelbottom=True)
    limit_to_means(panels[0, 0], frame["mean"].dropna(), bounds=(0.0, 1.0))
    _name_axes(figure, frame, "bands")
    return figure


def _whiskers(axes: Axes, line: pd.DataFrame, style: Style, place: int, count: int) -> None:
    """Intervals at three times, shifted between algorithms: seven bands would hide everything."""
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
    """Sampled accuracy on each benchmark and their mean, by noise level (rows) and size."""
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
    """Rows at one noise level, and the base policy, which saw no reward."""
    return frame[(frame["algorithm"] == BASE) | (frame["noise"] == noise)]


def _short(names: Sequence[str]) -> list[str]:
    """Benchmark names without a prefix that all of them share: `chain_easy` -> `easy`."""
    own = [n for n in names if n != MEAN]
    prefix = own[0].partition("_")[0] + "_" if own else ""
    shared = len(own) > 1 and all(n.startswith(prefix) for n in own)
    return [n.removeprefix(prefix) if shared else n for n in names]


def accuracy_vs_noise(summary: pd.DataFrame, looks: dict[str, Style]) -> Figure:
    """Mean sampled accuracy against the flip rate, by noise mode (rows) and size (columns)."""
    frame = _sampled(summary)
    frame = frame[frame["benchmark"] == MEAN]
    runs = frame[frame["algorithm"] != BASE]
    drawn = runs.dropna(subset=["mean"])
    noisy = runs[runs["noise_level"] > 0]
    modes = list(dict.fromkeys(noisy["noise_mode"])) or ["group"]
    sizes = [s for s in dict.fromkeys(frame["size"]) if s != ALL_SIZES]
    sizes += [ALL_SIZES] if len(sizes) > 1 else []
    figure, panels = panel_grid(len(modes), len(sizes), sharex=True, sharey=True, height=2.4)
    ticks = np.sort(runs["noise_level"].unique())  # of all panels: they share the axis
    for (i, mode), (j, size) in itertools.product(enumerate(modes), enumerate(sizes)):
        axes = panels[i, j]
        part = noise_curve(drawn[drawn["size"] == size], mode)
        levels = np.sort(part["noise_level"].unique())
        names = [n for n in looks if n in set(part["algorithm"])]
        for name, offset in zip(names, dodged(len(names), levels), strict=True):
            points = part[part["algorithm"] == name].sort_values("noise_level")
            style = looks[name]
            draw_points(axes, points["noise_level"].to_numpy() + offset, points, style, style.line)
        base = frame[(frame["size"] == size) & (frame["algorithm"] == BASE)]
        draw_base_line(axes, base, looks)
        if mode != "asymmetric":
            _expected_lines(axes, part, base, looks)
        axes.set_xticks(ticks, [f"{level:g}" for level in ticks])
        unit = "run" if size == ALL_SIZES else "seed"
        title = size_name(frame, size) + (f" · {mode} noise" if len(modes) > 1 else "")
        axes.set_title(f"{title}\n{count_note(part, looks, unit)}")
        if part.empty:
            mark_empty(axes)
    figure.supxlabel("share of training rewards flipped", fontsize=8)
    figure.supylabel(_mean_label(frame), fontsize=8)
    handles = line_handles(looks, frame["algorithm"])
    if len(noisy):
        from matplotlib.lines import Line2D

        expected = "gain at noise 0, times (1 - 2p)"
        handles.append(Line2D([], [], color="#777777", linestyle=":", alpha=0.7, label=expected))
    add_legend(figure, handles)
    return figure


def _expected_lines(
    axes: Axes, part: pd.DataFrame, base: pd.DataFrame, looks: dict[str, Style]
) -> None:
    """Where accuracy would go if the gain over the base shrank as the signal of the labels does.

    A label that flips with probability p keeps (1 - 2p) of its correlation with the truth: the
    expected policy gradient of a centred reward shrinks by that factor, vanishes at p = 1/2 and
    reverses above ("Rate or Fate?", PMLR 306).
    """
    if not base["mean"].notna().any() or not (part["noise_level"] > 0).any():
        return
    levels = np.linspace(0, part["noise_level"].max(), 50)
    start = base["mean"].iloc[0]
    clean = part[part["noise_level"] == 0]
    clean = clean[clean["algorithm"].isin(NAMES)]
    for name, gain in zip(clean["algorithm"], clean["mean"] - start, strict=True):
        line = start + gain * (1 - 2 * levels)
        axes.plot(levels, line, color=looks[name].colour, linestyle=":", linewidth=1, alpha=0.7)


def _mean_label(frame: pd.DataFrame) -> str:
    return f"sampled accuracy, mean of benchmarks\n(bars: {interval_name(frame)})"


def draw_base_line(axes: Axes, base: pd.DataFrame, looks: dict[str, Style]) -> None:
    if base["mean"].notna().any():
        row, style = base.iloc[0], looks[BASE]
        axes.axhline(row["mean"], color=style.colour, linestyle=style.line, zorder=1)
        axes.axhspan(row["low"], row["high"], color=style.colour, alpha=0.15, linewidth=0)


def accuracy_vs_size(summary: pd.DataFrame, looks: dict[str, Style]) -> Figure:
    """Mean sampled accuracy against parameters: one panel per noise level."""
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
        size_axis(axes, ladder)
        axes.set_title(f"{noise_name(noise)}\n{count_note(part, looks)}")
        if part["mean"].notna().sum() == 0:
            mark_empty(axes)
    figure.supxlabel("parameters of the policy", fontsize=8)
    figure.supylabel(_mean_label(frame), fontsize=8)
    add_legend(figure, line_handles(looks, frame["algorithm"]))
    return figure


def gap_vs_size(comparisons: pd.DataFrame, looks: dict[str, Style]) -> Figure:
    """VIMPO's accuracy minus PPO's and GRPO's against parameters: one panel per noise level."""
    frame = comparisons[comparisons["metric"] == "difference"]
    frame = frame[(frame["size"] != ALL_SIZES) & frame["rival"].isin(RIVALS)]
    noises = ordered_noise(frame["noise"]) or ["0"]
    ladder = frame.dropna(subset=["params"]).drop_duplicates("size").set_index("size")["params"]
    figure, panels = panel_grid(1, len(noises), sharex=True, sharey=True, height=2.6)
    names = [n for n in looks if n in set(frame["rival"])]
    for axes, noise in zip(panels[0], noises, strict=True):
        part = frame[frame["noise"] == noise]
        axes.axhline(0, color="#555555", linewidth=0.9, zorder=1)
        for name, offset in zip(names, dodged(len(names), np.log10(ladder)), strict=True):
            points = part[part["rival"] == name].sort_values("params")
            x = points["params"].to_numpy() * 10**offset
            draw_points(axes, x, points, looks[name], looks[name].line)
        counted = part.assign(algorithm=part["rival"])
        title = count_note(counted, looks, "pair") if len(part) else "no pair"
        axes.set_title(f"{noise_name(noise)}\n{title}")
        size_axis(axes, ladder)
        if part["mean"].notna().sum() == 0:
            mark_empty(axes)
    limit_to_means(panels[0, 0], frame["mean"], 0.0)
    figure.supxlabel("parameters of the policy", fontsize=8)
    figure.supylabel(
        f"sampled accuracy, VIMPO minus rival\n(bars: {interval_name(frame)})", fontsize=8
    )
    handles = line_handles(looks, names)
    for handle in handles:
        handle.set_label(f"minus {handle.get_label()}")
    add_legend(figure, handles)
    return figure
