"""Headroom captured: how far an algorithm comes from a floor (GRPO) to a ceiling (the oracle).

For the runs of one size and noise level, with the areas under their learning curves,

    R = mean g / mean h        g = A - floor      h = ceiling - floor       of the same seed

A seed's number is R plus its influence,

    R + (g_i - R h_i) / mean h

of which the mean is R and the standard error that of the ratio to first order (delta method), so
that Student's interval of these numbers is one of R. It asks for a denominator that is clearly
above 0, and so for headroom: where the interval of mean h reaches 0 there is no number, for any
algorithm. Given that there is one, nominal 95 % intervals cover

    h spread by         10 %          30 %          60 %          100 % of its mean
    3 seeds          .95 to .95    .95 to .96    .94 to .95      .94 to .95
    5 seeds          .95 to .95    .95 to .95    .95 to .96      .93 to .97
    10 seeds         .95 to .95    .95 to .95    .95 to .96      .95 to .97

(20,000 draws of normal seeds for R of 0, .5 and 1, the three algorithms independent or correlated
by .5 within a seed). Fieller's interval, exact for normal seeds and bounded exactly where there is
headroom, covers .93 to .955 there: no better, and without a number for each seed, which means over
sizes and contrasts need.

Where fewer than two seeds have all three runs, the three means are taken as independent: the
numerator of the error is then A - (1 - R) floor - R ceiling, with Welch's degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from vimpo.analysis.curves import LEARNING, area_under, at_end, curves, first_step, runs_of, window
from vimpo.analysis.inference import share
from vimpo.analysis.intervals import (
    FRACTION,
    NAN,
    POSITIVE,
    Estimate,
    mean_interval,
    not_available,
    stratified_mean,
)
from vimpo.analysis.names import label
from vimpo.analysis.scores import Tables, accuracies
from vimpo.analysis.summaries import expected_runs, interval_columns, labels
from vimpo.config import Study
from vimpo.config.hypotheses import Headroom
from vimpo.storage.codes import Reason, Why

ENDS = Headroom()  # the floor and the ceiling of the table
BySeed = Mapping[Any, float]

# --- The ratio -----------------------------------------------------------------------------------


def gap(own: BySeed, other: BySeed, confidence: float) -> Estimate:
    """Mean of own - other, over pairs of a seed if at least two have both."""
    seeds = _common(own, other)
    if seeds is None:
        # the mean of two strata is half their sum
        strata = [[2 * x for x in own.values()], [-2 * x for x in other.values()]]
        return replace(stratified_mean(strata, confidence), n=len(own))
    return mean_interval([own[seed] - other[seed] for seed in seeds], confidence)


def is_clear(room: Estimate) -> bool:
    return room.available and room.low > 0


def by_seed(own: BySeed, floor: BySeed, ceiling: BySeed) -> dict[Any, float]:
    """R plus its influence, for each seed that has all three; only where headroom is clear."""
    seeds = [seed for seed in own if seed in floor and seed in ceiling]
    if not seeds:
        return {}
    gain = np.array([own[seed] - floor[seed] for seed in seeds])
    room = np.array([ceiling[seed] - floor[seed] for seed in seeds])
    ratio = gain.mean() / room.mean()
    numbers = ratio + (gain - ratio * room) / room.mean()
    return dict(zip(seeds, map(float, numbers), strict=True))


def captured(own: BySeed, floor: BySeed, ceiling: BySeed, confidence: float) -> Estimate:
    """R with its interval; only where headroom is clear."""
    if _common(own, floor, ceiling) is not None:
        return mean_interval(list(by_seed(own, floor, ceiling).values()), confidence)
    a, f, c = (np.array(list(x.values()), float) for x in (own, floor, ceiling))
    room = c.mean() - f.mean()
    ratio = (a.mean() - f.mean()) / room
    # the mean of three strata is a third of their sum, which is R
    strata = [3 * (a / room + ratio), -3 * (1 - ratio) * f / room, -3 * ratio * c / room]
    return replace(stratified_mean(strata, confidence), n=len(own))


def _common(*sides: BySeed) -> list[Any] | None:
    """Seeds that all sides have, if pairs can be made of them; None: compare means instead."""
    seeds = [seed for seed in sides[0] if all(seed in side for side in sides)]
    apart = len(seeds) < 2 and min(map(len, sides)) > 1
    return None if apart else seeds


def refusal(room: Estimate, size: str, floor: str, ceiling: str) -> Why:
    """Why there is no number where headroom is not clear."""
    if room.code in (Reason.NOT_FINITE, Reason.NO_VALUES):
        return room.why
    seen = f"area {room.value:+.3f}, "
    seen += f"{room.low:+.3f} to {room.high:+.3f}" if room.available else room.reason
    text = f"no headroom: {label(ceiling)} does not clearly beat {label(floor)} at size {size}"
    text += f" ({seen})"
    return Why(Reason.NO_HEADROOM, text)


# --- The table -----------------------------------------------------------------------------------


def headroom_rows(study: Study, tables: Tables, params: Mapping[str, float]) -> list[dict]:
    """Rows of headroom.csv, for each size and noise level that has both ends of the scale.

    captured        R, for all but the two ends
    area            mean of the learning curve
    area_gap        the same, minus the floor's
    accuracy_gap    sampled held-out accuracy, minus the floor's
    steps_to        updates below `level`, the training accuracy that the floor ends at (the mean
                    over its last tenth of steps); runs that miss it count with all their steps
    reached         share of runs that get there
    """
    expected = expected_runs(study)
    names = list(dict.fromkeys(name for name, *_ in expected))
    if not {ENDS.floor, ENDS.ceiling} <= set(names):
        return []
    found = {name: curves(tables, name, LEARNING) for name in names}
    scores = {name: accuracies(tables, name) for name in names}
    rows = []
    for size, noise in dict.fromkeys((size, noise) for _, size, noise in expected):
        group = [name for name in names if (name, size, noise) in expected]
        if not {ENDS.floor, ENDS.ceiling} <= set(group):
            continue
        regime = Regime(
            study,
            {name: runs_of(found[name], size, noise) for name in group},
            {name: runs_of(scores[name], size, noise) for name in group},
        )
        for name in group:
            key = labels(name, size, noise) | {"params": params.get(size, NAN)}
            key |= {"floor": ENDS.floor, "ceiling": ENDS.ceiling}
            counts = (expected[name, size, noise], study.statistics.confidence)
            rows += [
                key
                | {"metric": metric, "level": regime.level if metric in OF_LEVEL else NAN}
                | interval_columns(estimate, *counts)
                for metric, estimate in regime.estimates(name, size).items()
            ]
    return rows


OF_LEVEL = ("steps_to", "reached")


@dataclass(frozen=True)
class Regime:
    """The runs of one size and noise level: algorithm -> run -> learning curve, or score."""

    study: Study
    curves: Mapping[str, Mapping[Any, pd.Series]]
    scores: Mapping[str, BySeed]

    @cached_property
    def areas(self) -> dict[str, dict[Any, float]]:
        steps = self.study.train.steps
        return {
            name: {seed: area_under(curve, steps) for seed, curve in runs.items()}
            for name, runs in self.curves.items()
        }

    @cached_property
    def level(self) -> float:
        """Training accuracy that the floor ends at."""
        width = window(self.study)
        ends = [at_end(curve, width) for curve in self.curves[ENDS.floor].values()]
        return float(np.mean(ends)) if ends else NAN

    def estimates(self, name: str, size: str) -> dict[str, Estimate]:
        """Of one algorithm; see :func:`headroom_rows`."""
        confidence = self.study.statistics.confidence
        own = self.areas[name]
        found = {"area": mean_interval(list(own.values()), confidence, FRACTION)}
        if name != ENDS.floor:
            for metric, sides in (("area_gap", self.areas), ("accuracy_gap", self.scores)):
                found[metric] = gap(sides[name], sides[ENDS.floor], confidence)
        if name not in (ENDS.floor, ENDS.ceiling):
            found["captured"] = self._captured(own, size)
        return found | self._steps_to(name)

    def _captured(self, own: BySeed, size: str) -> Estimate:
        confidence = self.study.statistics.confidence
        floor, ceiling = self.areas[ENDS.floor], self.areas[ENDS.ceiling]
        rooms = [(ceiling, floor)]
        # and of the runs whose pairs this algorithm has, which are its denominators
        if shared := _common(own, floor, ceiling):
            rooms.append(({s: ceiling[s] for s in shared}, {s: floor[s] for s in shared}))
        for top, bottom in rooms:
            if not is_clear(room := gap(top, bottom, confidence)):
                return not_available(refusal(room, size, ENDS.floor, ENDS.ceiling), len(own))
        return captured(own, floor, ceiling, confidence)

    def _steps_to(self, name: str) -> dict[str, Estimate]:
        steps, width = self.study.train.steps, window(self.study)
        runs = self.curves[name].values()
        if not math.isfinite(self.level):
            why = Why(Reason.NOT_MEASURED, f"the runs of {ENDS.floor} have no end to be reached")
            return dict.fromkeys(OF_LEVEL, not_available(why, len(runs)))
        at = [first_step(curve, self.level, steps, width) for curve in runs]
        confidence = self.study.statistics.confidence
        return {
            "steps_to": mean_interval(at, confidence, POSITIVE),
            "reached": share([step < steps for step in at], confidence),
        }
