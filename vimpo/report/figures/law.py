"""Figure of the capacity law: accuracy of the implied value against capacity, over studies.

Both columns show the same points: one base policy at one capacity. The left one colours them by
size, the right one by length. If accuracy collapses on capacity, neither order is to be seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vimpo.analysis import law
from vimpo.report.figures.style import dodged, limit_to_means, mark_empty, panel_grid
from vimpo.text import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = {law.ACCURACY: "explained variance of change", law.ORDER: "rank correlation"}
PER = {law.SIZE: "per tenfold size", law.LENGTH: "per tenfold length"}
MARKERS = "osD^vP*X"
DARK = 0.8  # of the palette: its lightest colours vanish on white


def capacity_law(points: pd.DataFrame, remainder: pd.DataFrame) -> Figure:
    """Two measures (rows), coloured by size and by length (columns)."""
    figure, panels = panel_grid(2, 2, width=3.5, height=2.5, sharex=True, sharey="row")
    for row, measure in zip(panels, NAMES, strict=True):
        units, own = law.units_of(points, measure), remainder[remainder["measure"] == measure]
        for axes, term in zip(row, law.AXES, strict=True):
            _panel(axes, units, own, term)
        row[0].set_ylabel(NAMES[measure])
        if not len(units):
            continue
        bound = law.FLOOR if measure == law.ACCURACY else -1.0
        limit_to_means(row[0], units["mean"], 0.0, bounds=(bound - 0.12, 1.05), floor=bound)
    for axes in panels[0]:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.14), ncols=2, fontsize=7)
    figure.supxlabel(
        "capacity: beta × surprisal of a base response / range of rewards\n" + _key(points),
        fontsize=8,
    )
    return figure


def _key(points: pd.DataFrame) -> str:
    units = law.units_of(points, law.ACCURACY)
    said = [f"bars: {100 * law.CONFIDENCE:g} % interval over {_range(units['n'])} seeds"]
    said.append("grey: fitted curve")
    if units["group"].nunique() > 1:
        said.append("hollow: other settings")
    if (units["cut"] > 0).any():
        said.append(f"triangle: with runs below {law.FLOOR:g}, counted as {law.FLOOR:g}")
    return f"({'; '.join(said)})"


def _range(counts: pd.Series) -> str:
    ends = sorted({counts.min(), counts.max()}) if len(counts) else [0]
    return "–".join(f"{n:.0f}" for n in ends)


def _labels(units: pd.DataFrame, term: str) -> pd.Series:
    """What each unit is called, and in which order the legend has it."""
    key = "size" if term == law.SIZE else "study"
    means = units.groupby(key)[law.AXES[term][0]].mean()
    if term == law.SIZE:
        names = {size: f"{size}, {short(count)}" for size, count in means.items()}
    else:
        names = {study: f"{count:.0f} tokens ({study})" for study, count in means.items()}
    order = [names[place] for place in means.sort_values().index]
    return pd.Series(pd.Categorical(units[key].map(names), order), units.index)


def _panel(axes: Axes, units: pd.DataFrame, own: pd.DataFrame, term: str) -> None:
    import matplotlib as mpl

    axes.set_xscale("log")
    axes.axhline(0, color="#555555", linewidth=0.8, zorder=1)
    if not len(units):
        mark_empty(axes)
        return
    fitted = own[own["term"] == law.CURVE]
    axes.plot(fitted["capacity"], fitted["mean"], color="#999999", linewidth=2.5, zorder=1.5)
    labels, main = _labels(units, term), law.main_group(units)
    names = labels.cat.categories
    colours = mpl.colormaps["viridis"](np.linspace(0, DARK, len(names)))
    shifts = _shifts(units, term)
    for i, name in enumerate(names):
        look = {"color": colours[i], "marker": MARKERS[i % len(MARKERS)], "linestyle": ""}
        axes.plot([], [], label=name, **look)
        part = units[labels == name]
        x = part["capacity"].to_numpy() * 10 ** shifts[labels == name].to_numpy()
        axes.vlines(x, part["low"], part["high"], color=colours[i], linewidth=1.0, zorder=2)
        for inside in (True, False):
            shown = ((part["group"] == main) == inside).to_numpy()
            face = colours[i] if inside else "white"
            axes.plot(x[shown], part["mean"][shown], markerfacecolor=face, zorder=3, **look)
        cut = (part["cut"] > 0).to_numpy()
        below = np.full(cut.sum(), law.FLOOR - 0.06)
        axes.plot(x[cut], below, linestyle="", marker=7, color=colours[i])
    levels = sorted(set(units["level"]))
    if len(levels) <= len(MARKERS):
        axes.set_xticks(levels, [f"{level:g}" for level in levels])
        axes.set_xticks([], minor=True)
    axes.set_title(remainder_text(own, term), fontsize=7)


def _shifts(units: pd.DataFrame, term: str) -> pd.Series:
    """Sideways, in log10 of capacity, so that points at one capacity lie apart and in order."""
    lines = units.sort_values([law.AXES[term][0], "base"]).groupby(["base", "group"], sort=False)
    offsets = dodged(lines.ngroups, np.log10(units["level"].to_numpy()))
    return lines.ngroup().map(dict(enumerate(offsets))).reindex(units.index)


def remainder_text(own: pd.DataFrame, term: str) -> str:
    """`-0.05 (-0.20 to 0.10) per tenfold size`, with the numbers of base policies and units."""
    row = own[own["term"] == term].iloc[0]
    bases, units = int(row["n"]), int(row["units"])
    count = (
        f"{bases} base polic{'y' if bases == 1 else 'ies'}, {units} unit{'' if units == 1 else 's'}"
    )
    if not np.isfinite(row["low"]):
        return f"remainder {PER[term]}: n/a\n({row['reason']}; {count})"
    found = f"{row['mean']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f})"
    return f"remainder {PER[term]}: {found}\n({count})"
