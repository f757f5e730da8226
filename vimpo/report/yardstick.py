"""Headroom and frontier, as sentences and tables of the report.

`report/yardstick.j2` writes the sentences; it knows no number that is not in the tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pandas as pd

from vimpo.analysis.along import HELD_OUT
from vimpo.analysis.curves import LEARNING
from vimpo.analysis.headroom import ENDS
from vimpo.report.findings import Critic
from vimpo.report.glance import CONTROLS
from vimpo.report.labels import Style, noise_name, on_clean_rewards, ordered_noise
from vimpo.report.parts import PLAIN, UNITS, Scale
from vimpo.report.tables import (
    Column,
    Entry,
    Row,
    Table,
    algorithm_entry,
    column_entry,
    estimate_entry,
    only,
    pivot,
)
from vimpo.storage.codes import Reason
from vimpo.storage.tables import ALL_SIZES, WHOLE

POINTS = UNITS["share"]
SIGNED = replace(POINTS, signed=True)
# Regimes that get a sentence of their own, at the top of the report and in a section; the others
# stand in the table.
FIRST, SAID = 2, 4
LEAST_EXPLAINED = 0.1  # of the change of value, for a critic that knows something

# --- Headroom ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """A number of the tables with its interval, as a sentence prints it."""

    name: str
    value: float
    low: float
    high: float
    n: int
    scale: Scale
    reason: str = ""

    @classmethod
    def of(cls, name: str, row: pd.Series, scale: Scale = PLAIN) -> Said:
        low, high, n = row["low"], row["high"], int(row["n"])
        return cls(name, row["mean"], low, high, n, scale, row["reason"])

    @property
    def available(self) -> bool:
        return math.isfinite(self.value)

    @property
    def above(self) -> bool:
        return self.low > 0

    @property
    def below(self) -> bool:
        return self.high < 0

    @property
    def text(self) -> str:
        return self.scale.text(self.value) + self.scale.unit

    @property
    def amount(self) -> str:
        return self.scale.amount(abs(self.value)) + self.scale.unit

    @property
    def interval(self) -> str:
        if not math.isfinite(self.low):
            return f"no interval: {self.reason}" if self.reason else "no interval"
        return f"{self.scale.text(self.low)} to {self.scale.text(self.high)}; n = {self.n}"


@dataclass(frozen=True)
class Regime:
    """What was found at one size and noise level. room: ceiling minus floor."""

    where: str
    room: Said
    clear: bool
    shares: list[Said]
    controls: list[Said]


def regimes(table: pd.DataFrame, looks: Mapping[str, Style]) -> list[Regime]:
    """Of headroom.csv, clean rewards first."""
    return [_regime(part, where, looks) for where, part in _by_regime(table)]


def _by_regime(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Rows of each noise level and size, and how a sentence calls them."""
    sizes = list(dict.fromkeys(table["size"]))
    found = []
    for noise in ordered_noise(table["noise"]):
        for size in sizes:
            part = table[(table["noise"] == noise) & (table["size"] == size)]
            where = ", ".join([f"size {size}"] * (len(sizes) > 1) + [noise_name(noise)])
            found += [(where, part)] * (len(part) > 0)
    return found


def _regime(part: pd.DataFrame, where: str, looks: Mapping[str, Style]) -> Regime:
    gaps = part[part["metric"] == "area_gap"]
    shares = part[part["metric"] == "captured"]
    ceiling = gaps[gaps["algorithm"] == gaps["ceiling"]]

    def said(rows: pd.DataFrame, scale: Scale) -> list[Said]:
        return [Said.of(looks[row["algorithm"]].label, row, scale) for _, row in rows.iterrows()]

    (room,) = said(ceiling, POINTS)
    return Regime(
        where,
        room,
        clear=room.above,
        shares=said(shares[~shares["algorithm"].isin(CONTROLS)], PLAIN),
        controls=said(gaps[gaps["algorithm"].isin(CONTROLS)], POINTS),
    )


HEADROOM_COLUMNS = (
    Column("headroom captured", {"metric": "captured"}),
    Column("area, %", {"metric": "area"}, ".1f", 100),
    Column("area, minus floor", {"metric": "area_gap"}, "+.1f", 100),
    Column("held-out accuracy, minus floor", {"metric": "accuracy_gap"}, "+.1f", 100),
    Column("steps to the floor's end", {"metric": "steps_to"}, ".0f"),
    Column("runs that get there, %", {"metric": "reached"}, ".0f", 100),
)


def headroom_table(table: pd.DataFrame, looks: Mapping[str, Style]) -> Table:
    """One line per size, noise level and algorithm."""
    rows = [
        Row(
            (Entry(size), Entry(noise_name(noise)), algorithm_entry(name, dict(looks))),
            {"size": size, "noise": noise, "algorithm": name},
        )
        for size, noise, name in _in_order(table, "algorithm")
    ]
    return pivot(table, ["size", "rewards", "algorithm"], rows, HEADROOM_COLUMNS, _of_scale)


def _in_order(table: pd.DataFrame, *columns: str) -> list[tuple[str, ...]]:
    """Size, noise and `columns` of the rows, sizes and noise levels together."""
    sizes, noises = list(dict.fromkeys(table["size"])), ordered_noise(table["noise"])
    found = dict.fromkeys(zip(*(table[c] for c in ("size", "noise", *columns)), strict=True))
    return sorted(found, key=lambda key: (sizes.index(key[0]), noises.index(key[1])))


def _of_scale(row: pd.Series | None, column: Column) -> Entry:
    """An end of the scale has no share of it, and the floor no gap to itself."""
    if row is None:
        return Entry("–")
    if row["reason_code"] == Reason.NO_HEADROOM:
        return Entry("n/a", "no headroom")
    return column_entry(row, column)


def headroom_content(table: pd.DataFrame, looks: Mapping[str, Style]) -> dict:
    found = regimes(table, looks)
    ends = {end: table[end].iloc[0] if len(table) else "" for end in ("floor", "ceiling")}
    return {end: looks[name].label if name in looks else name for end, name in ends.items()} | {
        "headroom_rows": len(table),
        "regimes": found,
        "first_regimes": found[:FIRST],
        "said_regimes": found[:SAID],
        "clear_regimes": sum(regime.clear for regime in found),
        "headroom": headroom_table(table, looks),
    }


# --- Frontier ------------------------------------------------------------------------------------


def matched_table(table: pd.DataFrame, looks: Mapping[str, Style]) -> Table:
    """Differences at matched distance: one line per size, noise level, algorithm and rival."""
    pairs = table[table["rival"] != ""]
    metrics = list(dict.fromkeys(pairs["metric"]))
    lines = []
    for size, noise, name, rival in _in_order(pairs, "algorithm", "rival"):
        where = {"size": size, "noise": noise, "algorithm": name}
        ends = [only(table, **{**where, "algorithm": n, "metric": "kl"}) for n in (name, rival)]
        gaps = [only(pairs, **where, rival=rival, metric=metric) for metric in metrics]
        distance = next(row["kl"] for row in gaps if row is not None)
        lines.append(
            [
                *(Entry(size), Entry(noise_name(noise)), algorithm_entry(name, dict(looks))),
                algorithm_entry(rival, dict(looks)),
                Entry(f"{distance:.2f}"),
                *(estimate_entry(row, 100, "+.1f") for row in gaps),
                *(estimate_entry(row, 1, ".2f") for row in ends),
            ]
        )
    columns = ["size", "rewards", "algorithm", "minus", "at KL, nats", *map(_gap_title, metrics)]
    return Table([*columns, "its KL at the end", "the other's"], lines)


def _gap_title(metric: str) -> str:
    if metric == LEARNING:
        return "training accuracy, points"
    return f"held-out accuracy ({metric.removeprefix(HELD_OUT)}), points"


@dataclass(frozen=True)
class Matched:
    """Who does better and who worse than the rival at the same distance, in one regime."""

    where: str
    rival: str
    above: list[Said]
    below: list[Said]
    unclear: list[Said]


def matched_said(table: pd.DataFrame, looks: Mapping[str, Style]) -> list[Matched]:
    """Training accuracy against the floor of the headroom, clean rewards first."""
    pairs = table[(table["metric"] == LEARNING) & (table["rival"] == ENDS.floor)]
    found = []
    for where, part in _by_regime(pairs):
        said = [Said.of(looks[row["algorithm"]].label, row, SIGNED) for _, row in part.iterrows()]
        known = [one for one in said if one.available]
        above, below = [x for x in known if x.above], [x for x in known if x.below]
        unclear = [x for x in known if not (x.above or x.below)]
        found.append(Matched(where, looks[ENDS.floor].label, above, below, unclear))
    return found


def frontier_content(table: pd.DataFrame, looks: Mapping[str, Style]) -> dict:
    lines = table[(table["metric"] == LEARNING) & (table["rival"] == "")]
    known = set(lines.loc[lines["kl"].notna(), "algorithm"])
    without = lines[lines["reason_code"] == Reason.NOT_MEASURED]
    return {
        "frontier_rows": len(table),
        "matched": matched_table(table, looks),
        "matched_said": matched_said(table, looks)[:SAID],
        "measured_distance": [style.label for name, style in looks.items() if name in known],
        "without_distance": list(
            dict.fromkeys(looks[n].label for n in without["algorithm"] if n not in known)
        ),
    }


# --- Critics -------------------------------------------------------------------------------------


def ignorant_critics(probes: pd.DataFrame, looks: Mapping[str, Style]) -> dict[str, Critic]:
    """Algorithm -> its critic, if that explains less than a tenth on clean rewards.

    The change of value along a response is what counts: a critic that only knows the prompt's
    difficulty explains the value itself, and none of the change.
    """
    chosen = on_clean_rewards(probes)
    for column, value in {
        "probe": "value",
        "predictor": "critic",
        "target": "change",
        "metric": "explained_variance",
        "position": WHOLE,
    }.items():
        chosen = chosen[chosen[column] == value]
    chosen = chosen[(chosen["size"] != ALL_SIZES) & (chosen["mean"] < LEAST_EXPLAINED)]
    found = {}
    for name, rows in chosen.groupby("algorithm", sort=False):
        at = [f"{PLAIN.text(row['mean'])} at size {row['size']}" for _, row in rows.iterrows()]
        found[str(name)] = Critic(f"{looks[str(name)].label}'s critic", ", ".join(at))
    return found
