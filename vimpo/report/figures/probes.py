"""Figures of the scaling caveat: value accuracy, credit and precision, on clean rewards.

An algorithm keeps its colour. Filled markers and its own line: what the algorithm itself uses;
hollow markers and dots: the implied value read out of a policy that was not trained on it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vimpo.report.figures.style import (
    add_legend,
    dodged,
    draw_points,
    limit_to_means,
    mark_empty,
    panel_grid,
    size_axis,
    spread_out,
)
from vimpo.report.labels import (
    GAE,
    READINGS,
    TD,
    VALUES,
    Line,
    Style,
    count_note,
    interval_name,
    on_clean_rewards,
    size_name,
)
from vimpo.storage.tables import WHOLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


CONTROL_GREY = "#e2e2e2"
LEAST = 6.8  # inches that a legend of three columns needs


def _clean(summary: pd.DataFrame, probe: str, **labels: str) -> pd.DataFrame:
    """Rows of a probe on clean rewards, of the algorithms that the lines name."""
    frame = on_clean_rewards(summary[summary["probe"] == probe])
    for column, value in labels.items():
        frame = frame[frame[column] == value]
    return frame


def _handles(lines: Sequence[Line], shown: pd.DataFrame, looks: dict[str, Style]) -> list:
    from matplotlib.lines import Line2D

    return [
        Line2D(
            *([], []),
            color=looks[line.algorithm].colour,
            marker=looks[line.algorithm].marker,
            markerfacecolor="white" if line.hollow else looks[line.algorithm].colour,
            linestyle=line.dashes(looks),
            label=line.label,
        )
        for line in lines
        if len(line.rows(shown))
    ]


def draw_lines(
    axes: Axes,
    frame: pd.DataFrame,
    lines: Sequence[Line],
    looks: dict[str, Style],
    x: str,
) -> None:
    """Each line over column `x`, shifted sideways so that they do not overlap."""
    present = [line for line in lines if len(line.rows(frame))]
    places = np.sort(frame[x].dropna().unique())
    logarithmic = x == "params"
    offsets = dodged(len(present), np.log10(places) if logarithmic else places)
    for line, offset in zip(present, offsets[: len(present)], strict=True):
        points = line.rows(frame).sort_values(x)
        at = points[x].to_numpy(float)
        at = at * 10**offset if logarithmic else at + offset
        draw_points(axes, at, points, looks[line.algorithm], line.dashes(looks), line.hollow)
    if not frame["mean"].notna().any():
        mark_empty(axes)


def _ladder(frame: pd.DataFrame) -> pd.Series:
    known = frame.dropna(subset=["params"]).drop_duplicates("size")
    return known.set_index("size")["params"]


def _note(frame: pd.DataFrame, lines: Sequence[Line], looks: dict[str, Style]) -> str:
    kept = [line.rows(frame) for line in lines if not line.hollow]
    shown = pd.concat([rows for rows in kept if len(rows)] or [frame.iloc[:0]])
    return count_note(shown, looks)


def value_accuracy(summary: pd.DataFrame, looks: dict[str, Style]) -> Figure:
    """Explained variance and rank correlation of each predictor against parameters."""
    frame = _clean(summary, "value", position=WHOLE)
    metrics = {"explained_variance": "explained variance", "spearman": "rank correlation"}
    targets = {"change": "change in value, V(s_t) - V(s_0)", "value": "value, V(s_t)"}
    figure, panels = panel_grid(2, 2, width=3.4, sharex=True, height=2.1)
    for (i, metric), (j, target) in itertools.product(enumerate(metrics), enumerate(targets)):
        axes = panels[i, j]
        part = frame[(frame["metric"] == metric) & (frame["target"] == target)]
        axes.axhline(0, color="#555555", linewidth=0.8, zorder=1)
        draw_lines(axes, part, VALUES, looks, "params")
        _ceiling(axes, part)
        size_axis(axes, _ladder(frame))
        shown = pd.concat([line.rows(part) for line in VALUES])["mean"]
        limit_to_means(axes, shown, 0.0, 1.0 if i == 0 else 0.5, floor=-1.5)
        if i == 0:
            axes.set_title(f"{targets[target]}\n{_note(part, VALUES, looks)}")
        if j == 0:
            axes.set_ylabel(metrics[metric])
    figure.supxlabel(f"parameters of the policy (bars: {interval_name(frame)})", fontsize=8)
    add_legend(figure, _handles(VALUES, frame, looks), columns=3)
    return figure


def change_explained(summary: pd.DataFrame) -> pd.DataFrame:
    """Explained variance of the change of value, over whole responses on clean rewards."""
    return _clean(summary, "value", position=WHOLE, target="change", metric="explained_variance")


def _ceiling(axes: Axes, part: pd.DataFrame) -> None:
    if len(part) and part["metric"].iloc[0] == "explained_variance":
        axes.axhline(1, color="#999999", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)


def value_by_position(summary: pd.DataFrame, looks: dict[str, Style]) -> Figure:
    """Explained variance and error of the change of value along the response, by size."""
    frame = _clean(summary, "value", target="change")
    frame = frame[frame["position"] != WHOLE]
    frame = frame.assign(place=pd.to_numeric(frame["position"]))
    sizes = list(dict.fromkeys(frame["size"])) or ["?"]
    rows = {"explained_variance": "explained variance", "rmse": "root mean square error"}
    width = max(2.6, LEAST / len(sizes))  # the legend is wide
    figure, panels = panel_grid(2, len(sizes), width, 2.0, sharex=True, sharey="row")
    for (i, metric), (j, size) in itertools.product(enumerate(rows), enumerate(sizes)):
        axes = panels[i, j]
        part = frame[(frame["metric"] == metric) & (frame["size"] == size)]
        draw_lines(axes, part, VALUES, looks, "place")
        if len(part):
            axes.set_xticks(sorted(part["place"].unique()))
        if i == 0:
            axes.axhline(0, color="#555555", linewidth=0.8, zorder=1)
            axes.set_title(f"{size_name(frame, size)}\n{_note(part, VALUES, looks)}")
        if j == 0:
            axes.set_ylabel(rows[metric])
    for i, metric in enumerate(rows):
        shown = frame.loc[frame["metric"] == metric, "mean"]
        bounds = (-np.inf, np.inf) if i == 0 else (0.0, np.inf)
        limit_to_means(panels[i, 0], shown, 0.0, bounds=bounds, least=0.2, floor=-1.5)
    figure.supxlabel(
        f"prefix length, as a share of the response (bars: {interval_name(frame)})", fontsize=8
    )
    add_legend(figure, _handles(VALUES, frame, looks), columns=3)
    return figure


def credit(summary: pd.DataFrame, looks: dict[str, Style]) -> Figure:
    """AUC of finding the first wrong step against parameters, by td and by summed advantage."""
    frame = _clean(summary, "credit", target="step", metric="auc")
    figure, panels = panel_grid(1, 2, width=3.4, sharex=True, sharey=True, height=2.5)
    kinds = {"value differences (td)": TD, "their sums (GAE)": GAE}
    for axes, (title, lines) in zip(panels[0], kinds.items(), strict=True):
        part = frame[frame["predictor"].isin({line.predictor for line in lines})]
        axes.axhline(0.5, color="#555555", linewidth=0.8, zorder=1)
        _control(axes, frame)
        draw_lines(axes, part, lines, looks, "params")
        size_axis(axes, _ladder(frame))
        axes.set_title(f"{title}\n{_note(part, lines, looks)}")
    shown = frame.loc[frame["predictor"] != "position", "mean"]
    limit_to_means(panels[0, 0], shown, 0.5, 0.7, bounds=(0.0, 1.0))
    panels[0, 0].set_ylabel("AUC; the line is chance")
    figure.supxlabel(f"parameters of the policy (bars: {interval_name(frame)})", fontsize=8)
    handles = _handles(TD, frame, looks)
    for handle in handles:
        handle.set_label(handle.get_label().replace(" td", " signal"))
    if (frame["predictor"] == "position").any():
        from matplotlib.patches import Patch

        handles.append(Patch(facecolor=CONTROL_GREY, label="control: place alone"))
    add_legend(figure, handles, columns=3)
    return figure


def _control(axes: Axes, frame: pd.DataFrame) -> None:
    """The score of a signal that only rises, or only falls, along VIMPO's responses."""
    control = Line("vimpo", "position", "").rows(frame).sort_values("params")
    if len(control):
        rising = control["mean"].to_numpy(float)
        # beyond the outer sizes too, so that one size is a band as well
        x = np.concatenate(
            [control["params"][:1] / 9, control["params"], control["params"][-1:] * 9]
        )
        rising = np.concatenate([rising[:1], rising, rising[-1:]])
        axes.fill_between(x, rising, 1 - rising, color=CONTROL_GREY, linewidth=0, zorder=0)


def credit_profile(summary: pd.DataFrame, looks: dict[str, Style]) -> Figure:
    """Mean whitened advantage around the first wrong token, by signal and size."""
    frame = _clean(summary, "credit", target="profile")
    frame = frame.assign(place=pd.to_numeric(frame["position"]))
    sizes = list(dict.fromkeys(frame["size"])) or ["?"]
    rows = {"td": TD, "advantage (GAE)": GAE}
    width = max(2.6, LEAST / len(sizes))
    figure, panels = panel_grid(2, len(sizes), width, 1.9, sharex=True, sharey="row")
    own = [[line for line in lines if not line.hollow] for lines in rows.values()]
    for (i, lines), (j, size) in itertools.product(enumerate(own), enumerate(sizes)):
        axes, part = panels[i, j], frame[frame["size"] == size]
        axes.axhline(0, color="#555555", linewidth=0.8, zorder=1)
        axes.axvline(0, color="#555555", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        axes.locator_params(axis="x", nbins=5, integer=True)
        for line in lines:
            points = line.rows(part).sort_values("place")
            if len(points):
                style = looks[line.algorithm]
                axes.plot(points["place"], points["mean"], color=style.colour, linestyle=style.line)
        if i == 0:
            axes.set_title(f"{size_name(frame, size)}\n{_note(part, lines, looks)}")
        if j == 0:
            axes.set_ylabel(list(rows)[i])
        if not part["mean"].notna().any():
            mark_empty(axes)
    figure.supxlabel("token, relative to the start of the first wrong step", fontsize=8)
    figure.supylabel("mean, in standard deviations of all tokens", fontsize=8)
    handles = _handles(own[0], frame, looks)
    for handle in handles:
        handle.set_marker("")
    add_legend(figure, handles, columns=3)
    return figure


def precision(summary: pd.DataFrame, looks: dict[str, Style]) -> Figure:
    """Drift of VIMPO's log-ratio and implied value against summed tokens, by size."""
    frame = _clean(summary, "precision", algorithm="vimpo")
    frame = frame[frame["position"] != WHOLE]
    frame = frame.assign(place=pd.to_numeric(frame["position"]))
    sizes = list(dict.fromkeys(frame["size"])) or ["?"]
    rows = {
        ("log_ratio", "rms_drift"): "drift of the\nlog-ratio, nats",
        ("implied_value", "relative_drift"): "drift of the value\nrelative to spread",
    }
    width = max(2.6, LEAST / len(sizes))
    figure, panels = panel_grid(2, len(sizes), width, 1.9, sharex=True, sharey="row")
    for (i, (target, metric)), (j, size) in itertools.product(enumerate(rows), enumerate(sizes)):
        axes, part = panels[i, j], frame[frame["size"] == size]
        part = part[(part["target"] == target) & (part["metric"] == metric)]
        # side by side, because two of them may look the same when drawn
        shifts = 2 ** spread_out(len(READINGS), 0.2)
        for (name, (_, marker, line)), shift in zip(READINGS.items(), shifts, strict=True):
            points = part[part["predictor"] == name].sort_values("place")
            x = shift * points["place"].to_numpy(float)
            if len(points):
                colour = looks["vimpo"].colour
                axes.plot(x, points["mean"], color=colour, marker=marker, linestyle=line)
                low = points["low"].clip(lower=points["mean"] / 10)
                axes.vlines(x, low, points["high"], color=colour, linewidth=1, alpha=0.6)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        if len(part):
            ticks = sorted(part["place"].unique())
            axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
            axes.set_xticks([], minor=True)
        if i == 0:
            axes.set_title(f"{size_name(frame, size)}\n{count_note(part, looks)}")
        if j == 0:
            axes.set_ylabel(list(rows.values())[i])
        if not part["mean"].notna().any():
            mark_empty(axes)
    figure.supxlabel(f"tokens summed (bars: {interval_name(frame)})", fontsize=8)
    add_legend(figure, _reading_handles(frame, looks))
    return figure


def _reading_handles(frame: pd.DataFrame, looks: dict[str, Style]) -> list:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=looks["vimpo"].colour, marker=marker, linestyle=line, label=label)
        for name, (label, marker, line) in READINGS.items()
        if name in set(frame["predictor"])
    ]
