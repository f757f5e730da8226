"""What a study has for the figure that sums it up: the same for the drawing and its caption."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median_high

import pandas as pd

from vimpo.analysis.curves import LEARNING
from vimpo.analysis.scores import OURS
from vimpo.config import Noise
from vimpo.report.labels import FEATURED, STYLES, on_clean_rewards, ordered_noise
from vimpo.storage.tables import ALL_SIZES, BASE, MEAN, WHOLE

CAPTURED, AREA = "captured", "area"  # metrics of headroom.csv
CAPACITY, SIZE = "capacity", "size"  # what the implied value is drawn against
DISTANCE, NOISE = "distance", "noise"  # what accuracy is drawn against
RANK, EXPLAINED = "spearman", "explained_variance"
# Algorithms that should capture nothing: right numbers in wrong places, and no reward at all.
CONTROLS = ("oracle_shuffled", "entropy")
KNOWN = ("implied", "critic")
PURE_NOISE = 0.5  # flips of all rewards, after which they say nothing


@dataclass(frozen=True)
class Glance:
    """Panels of the figure, empty where the study has nothing to show, and their rows.

    standing: CAPTURED or AREA of the algorithms, in the rows of headroom.csv in `regime`
    value: the implied value against CAPACITY, in the rows `by_capacity`, or else against SIZE, in
        the rows of probe_summary.csv in `value_rows`; common: on the base policy's prefixes
    moved: accuracy against DISTANCE, in the rows of frontier.csv in `paths`, or against NOISE, in
        the rows of summary.csv in `scores`, where no rival has a distance
    cost: whether steps were measured side by side
    """

    standing: str
    regime: pd.DataFrame
    value: str
    value_rows: pd.DataFrame
    by_capacity: pd.DataFrame
    moved: str
    paths: pd.DataFrame
    scores: pd.DataFrame
    cost: bool

    @property
    def refused(self) -> bool:
        """Whether the ceiling does not clearly beat the floor."""
        return no_headroom(self.regime)

    @property
    def common(self) -> bool:
        return "common" in set(self.value_rows["probe"])

    @property
    def over_sizes(self) -> bool:
        """Whether scores are means over sizes."""
        return ALL_SIZES in set(self.scores["size"])


def glance(
    summary: pd.DataFrame,
    probes: pd.DataFrame,
    measured: pd.DataFrame,
    headroom: pd.DataFrame,
    frontier: pd.DataFrame,
    capacity: pd.DataFrame,
) -> Glance:
    regime, paths, rows = regime_of(headroom), paths_of(frontier), value_rows(probes)
    standing, lines = standing_of(regime), by_capacity(rows, capacity)
    scores = scores_of(summary)
    return Glance(
        standing=standing,
        regime=regime,
        value=CAPACITY if len(lines) else SIZE if rows["mean"].notna().any() else "",
        value_rows=rows,
        by_capacity=lines,
        moved=moved_of(paths, scored(scores), standing),
        paths=paths,
        scores=scores,
        cost=bool((measured["kind"] == "measured").any()),
    )


# --- Headroom ------------------------------------------------------------------------------------


def standing_of(regime: pd.DataFrame) -> str:
    """By what the algorithms of one size and noise level stand. regime: rows of headroom.csv"""
    known = regime[regime["mean"].notna()]
    return next((m for m in (CAPTURED, AREA) if m in set(known["metric"])), "")


def regime_of(headroom: pd.DataFrame) -> pd.DataFrame:
    """Rows of one size on clean rewards: of those with headroom, or else of all.

    That with most algorithms, or of several such the largest.
    """
    clean = on_clean_rewards(headroom).sort_values("params", kind="stable")
    found = [part for _, part in clean.groupby("size", sort=False)]
    clear = [part for part in found if standing_of(part) == CAPTURED]
    ranked = sorted(clear or found, key=lambda part: part["algorithm"].nunique())
    return ranked[-1] if ranked else headroom.iloc[:0]


def in_order(regime: pd.DataFrame, names: Iterable[str]) -> list[str]:
    """The algorithms of a regime, the best first; controls and what has no number at the end."""
    rows = regime[regime["metric"] == standing_of(regime)].set_index("algorithm")["mean"].to_dict()
    if CAPTURED in set(regime.loc[regime["mean"].notna(), "metric"]):
        rows |= {regime["floor"].iloc[0]: 0.0, regime["ceiling"].iloc[0]: 1.0}
    present = [name for name in names if name in set(regime["algorithm"])]

    def place(name: str) -> tuple[bool, bool, float]:
        mean = rows.get(name, math.nan)
        return name in CONTROLS, math.isnan(mean), -mean

    return sorted(present, key=place)


def room_of(regime: pd.DataFrame) -> pd.DataFrame:
    """The row that says how far the ceiling is above the floor, over all seeds of both."""
    gaps = regime[(regime["metric"] == "area_gap") & (regime["algorithm"] == regime["ceiling"])]
    return gaps[gaps["mean"].notna()].iloc[:1]


def no_headroom(regime: pd.DataFrame) -> bool:
    """Whether the ceiling does not clearly beat the floor, whoever is refused a share of it."""
    return bool((~(room_of(regime)["low"] > 0)).any())


# --- Value ---------------------------------------------------------------------------------------


def value_rows(probes: pd.DataFrame) -> pd.DataFrame:
    """How well the change of value along whole responses is known, on clean rewards.

    Of the base policy's prefixes, which are the same for all, where the study has them.
    """
    frame = on_clean_rewards(probes[probes["probe"].isin(["common", "value"])])
    frame = frame[(frame["target"] == "change") & (frame["position"] == WHOLE)]
    frame = frame[frame["metric"].isin([RANK, EXPLAINED]) & frame["predictor"].isin(KNOWN)]
    common = frame[frame["probe"] == "common"]
    return common if common["mean"].notna().any() else frame[frame["probe"] == "value"]


def by_capacity(value: pd.DataFrame, capacity: pd.DataFrame) -> pd.DataFrame:
    """Rows of VIMPO's implied value with its capacity, at sizes that have several capacities.

    VIMPO and what the study itself defined with a beta, which are variants of it; where several
    have the same capacity, the first of them.
    """
    known = capacity.loc[capacity["capacity"].notna(), ["algorithm", "size", "capacity"]]
    rows = value[value["predictor"] == "implied"].merge(known, on=["algorithm", "size"])
    rows = rows[(rows["algorithm"] == OURS) | ~rows["algorithm"].isin(list(STYLES))]
    rows = rows.drop_duplicates(["size", "capacity", "metric"])
    several = rows.groupby("size")["capacity"].transform("nunique") > 1
    return rows[several.astype(bool)].sort_values(["params", "capacity"])


# --- Distance or noise ---------------------------------------------------------------------------


def moved_of(paths: pd.DataFrame, runs: pd.DataFrame, standing: str) -> str:
    """What accuracy is drawn against. runs: rows of summary.csv that have a number

    DISTANCE, unless there is noise to draw it against and only one method has a distance where
    several ran; variants of a method are none of their own.
    """
    methods = set(FEATURED) & set(runs["algorithm"])
    alone = len(methods) > 1 and len(methods & set(paths["algorithm"])) < 2
    several = runs["noise_level"].nunique() > 1
    if len(paths) and not (several and alone):
        return DISTANCE
    return NOISE if several or not standing else ""


# --- Noise ---------------------------------------------------------------------------------------


def scored(scores: pd.DataFrame) -> pd.DataFrame:
    """Rows of algorithms that have a number."""
    return scores[(scores["algorithm"] != BASE) & scores["mean"].notna()]


def scores_of(summary: pd.DataFrame) -> pd.DataFrame:
    """Sampled accuracy, the mean of benchmarks: over several sizes, if none has more noise levels.

    Otherwise at the size with most noise levels and algorithms.
    """
    frame = summary[(summary["metric"] == "sampled") & (summary["benchmark"] == MEAN)]
    runs = scored(frame)
    levels = runs.groupby("size")["noise_level"].nunique()
    each = runs[runs["size"] != ALL_SIZES]
    whole = levels.get(ALL_SIZES, 0) == levels.max() and each["size"].nunique() > 1
    size = ALL_SIZES if whole else fullest(each, "noise", "algorithm")
    return frame[frame["size"] == size]


# --- Distance ------------------------------------------------------------------------------------


def lines_of(frontier: pd.DataFrame) -> pd.DataFrame:
    """Rows of frontier.csv that are points of a line."""
    own = (frontier["metric"] == LEARNING) & (frontier["rival"] == "")
    return frontier[own & frontier["kl"].notna()]


def paths_of(frontier: pd.DataFrame) -> pd.DataFrame:
    """Lines at the size with most noise levels and algorithms: on clean rewards, and at one level.

    The noise level is the one with most algorithms, or of several such the middle one (the higher
    of two, the first of equal ones), pure noise aside.
    """
    frame = lines_of(frontier)
    size = fullest(frame, "noise", "algorithm")
    frame = frame[frame["size"] == size]
    levels = {noise: Noise.parse(noise).level for noise in ordered_noise(frame["noise"])}
    counts = frame.groupby("noise")["algorithm"].nunique()
    shown = [noise for noise, level in levels.items() if level == 0]
    noisy = [noise for noise, level in levels.items() if level > 0]
    if some := [noise for noise in noisy if levels[noise] < PURE_NOISE] or noisy:
        most = max(counts[noise] for noise in some)
        some = [noise for noise in some if counts[noise] == most]
        middle = median_high({levels[noise] for noise in some})
        shown.append(next(noise for noise in some if levels[noise] == middle))
    return frame[frame["noise"].isin(shown)]


def fullest(rows: pd.DataFrame, *columns: str) -> str:
    """The size with most values in the first column, then in the next; of several, the largest."""
    if not len(rows):
        return "?"
    by_size = rows.groupby("size", sort=False)
    sizes = by_size[[*columns]].nunique().assign(params=by_size["params"].max())
    return str(sizes.sort_values([*columns, "params"], ascending=False).index[0])
