"""Figures of what happens during training, on the axes of the paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from vimpo.analysis.along import HELD_OUT
from vimpo.report.figures.style import (
    add_legend,
    draw_band,
    draw_faint,
    faint_handle,
    limit_to_means,
    line_handles,
    mark_empty,
    panel_grid,
)
from vimpo.report.glance import fullest
from vimpo.report.labels import (
    Style,
    count_note,
    featured,
    interval_name,
    noise_name,
    ordered_noise,
    size_name,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = {
    "accuracy": "training accuracy",
    "response_length": "response length, tokens",
    "entropy": "entropy, nats a token",
    "reference_kl": "KL to the base, nats",
}


def training_curves(curves: pd.DataFrame, looks: dict[str, Style]) -> Figure:
    """One row of panels per number, one column per noise level, at the size with most of them.

    In a crowd of algorithms few stand out; the learning curves have a panel for each.
    """
    size = fullest(curves, "noise", "algorithm")
    frame = curves[curves["size"] == size]
    noises, metrics = ordered_noise(frame["noise"]) or ["0"], rows_of(frame)
    names = list(dict.fromkeys(frame["algorithm"]))
    clear = featured(names)
    figure, panels = panel_grid(
        len(metrics), len(noises), width=2.7, height=1.6, sharex=True, sharey="row"
    )
    for row, (metric, label) in zip(panels, metrics.items(), strict=True):
        own = frame[frame["metric"] == metric]
        for axes, noise in zip(row, noises, strict=True):
            part = own[own["noise"] == noise]
            for name, line in part.groupby("algorithm", sort=False):
                if name in clear:
                    draw_band(axes, line["step"], line, looks[str(name)], len(clear))
                else:
                    draw_faint(axes, line["step"], line)
            if part["mean"].notna().sum() == 0:
                mark_empty(axes)
        bounded = metric == "accuracy" or metric.startswith(HELD_OUT)
        limit_to_means(row[0], own["mean"], bounds=(0.0, 1.0 if bounded else float("inf")))
        row[0].set_ylabel(label, fontsize=7)
    for axes, noise in zip(panels[0], noises, strict=True):
        part = frame[(frame["noise"] == noise) & (frame["metric"] == "accuracy")]
        title = f"{size_name(frame, size)} · {noise_name(noise)}" if len(frame) else "no run"
        axes.set_title(f"{title}\n{count_note(part, looks)}")
    figure.supxlabel(f"training step (bands: {interval_name(frame)})", fontsize=8)
    handles = line_handles(looks, clear, markers=False)
    add_legend(figure, handles + faint_handle(len(names) - len(clear)))
    return figure


def rows_of(frame: pd.DataFrame) -> dict[str, str]:
    """Metric -> label of those that were recorded; held-out accuracy after that of training."""
    recorded = list(dict.fromkeys(frame["metric"]))
    validated = {
        metric: f"held-out accuracy,\n{metric.removeprefix(HELD_OUT).replace('_', ' ')}"
        for metric in sorted(recorded)
        if metric.startswith(HELD_OUT)
    }
    accuracy, *others = METRICS.items()
    known = dict([accuracy, *validated.items(), *others])
    return {m: label for m, label in known.items() if m in recorded} or dict([accuracy])
