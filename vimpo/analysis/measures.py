"""What hypotheses can measure: from the tables to one number for each run.

A measure is one small function in the registry at the end, under its type in
vimpo/config/hypotheses.py. Keys are (size, noise, seed); (size, mode, seed) for whole noise curves;
(size, "", round) for costs.

Learning curves are of clean training accuracy. A run that failed keeps the policy it had: its curve
goes on at its last value. `steps_to` is censored at the number of steps, so that it is the steps
spent below the level; what is compared is its mean within the training budget.

`headroom` of a group of seeds (one size, one noise level) is a ratio of means, R = mean g / mean h
with g = A - floor and h = ceiling - floor of the same seed. The number of a seed is R plus its
influence,

    R + (g_i - R h_i) / mean h

of which the mean is R and the standard error that of the ratio to first order (delta method). It
asks for a denominator that is clearly above 0, and so for headroom: where the interval of mean h
reaches 0, the number is not available. Nominal 95 % intervals of it cover .95 to .96 (8,000 draws;
3, 5 and 10 normal seeds, h spread by 10 and 30 % of its mean).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from vimpo.analysis.intervals import (
    AT_MOST_ONE,
    FRACTION,
    POSITIVE,
    UNBOUNDED,
    mean_interval,
)
from vimpo.analysis.scores import (
    PLACE,
    Tables,
    along_noise,
    clean_keys,
    failed_runs,
    lost,
    measured,
    noise_curves,
    over_benchmarks,
    probed,
    rounds,
    shared,
)
from vimpo.analysis.summaries import WINDOWS
from vimpo.analysis.verdicts import Key, Scores
from vimpo.config import Study, hypotheses
from vimpo.config.hypotheses import Asked
from vimpo.storage.codes import NO_REASON, Reason, Why

LEARNING, DISTANCE = "accuracy", "reference_kl"  # metrics of the curves


@dataclass(frozen=True)
class Scored:
    """The numbers of an algorithm's runs.

    stderr: over problems, which all runs share. reasons: why a run's number is NaN. refused: why a
    group of runs has none, and so no mean over it has. censored: runs that did not reach what was
    asked. absent: why there is no number at all.
    """

    scores: Scores
    stderr: Scores = field(default_factory=dict)
    reasons: Mapping[Key, Why] = field(default_factory=dict)
    refused: Mapping[Key, Why] = field(default_factory=dict)
    censored: frozenset[Key] = frozenset()
    absent: Why = NO_REASON


def absent(frame: pd.DataFrame, algorithm: str, what: str) -> Why:
    """Runs without this number; nothing to explain where there are no runs."""
    if not len(frame) or not (frame.algorithm == algorithm).any():
        return NO_REASON
    return Why(Reason.NOT_MEASURED, f"the runs of {algorithm} have no {what}")


# --- Accuracy and cost ---------------------------------------------------------------------------


def accuracy(study: Study, tables: Tables, asked: Asked, algorithm: str) -> Scored:
    """Mean over benchmarks, or of one of them."""
    frame, where = tables.accuracy, asked.where
    rows = frame[(frame.algorithm == algorithm) & (frame.metric == where.decoder)]
    if where.benchmark:
        rows = rows[rows.benchmark == where.benchmark]
    by_run = rows.groupby(["size", "noise", "seed"])["stderr"]
    errors = by_run.agg(lambda values: math.sqrt((values**2).sum(skipna=False)) / len(values))
    what = f"{where.decoder} accuracy" + f" on {where.benchmark}" * bool(where.benchmark)
    why = absent(frame, algorithm, what)
    return Scored(over_benchmarks(rows), dict(errors.items()), absent=why)


def accuracy_lost(study: Study, tables: Tables, asked: Asked, algorithm: str) -> Scored:
    found = accuracy(study, tables, asked, algorithm)
    return Scored(along_noise(study, found.scores, algorithm, lost), absent=found.absent)


def cost(metric: str) -> Scorer:
    """Of each round: a logarithm where two algorithms are compared, else the number itself."""

    def scores(study: Study, tables: Tables, asked: Asked, algorithm: str) -> Scored:
        logs = measured(tables, algorithm, metric)
        values = logs if asked.is_ratio else {key: math.exp(x) for key, x in logs.items()}
        return Scored(values, absent=absent(tables.measured_cost, algorithm, metric))

    return scores


# --- Learning curves -----------------------------------------------------------------------------


def curves(tables: Tables, algorithm: str, metric: str) -> dict[Key, pd.Series]:
    """Values by step of each run, without the last one of a failed run if it is not finite."""
    frame = tables.curves
    rows = frame[(frame.algorithm == algorithm) & (frame.metric == metric)]
    failed, found = failed_runs(tables, algorithm), {}
    for key, run in rows.groupby(["size", "noise", "seed"]):
        curve = run.set_index("step")["value"].astype(float).sort_index()
        if key in failed and not math.isfinite(curve.iloc[-1]):
            curve = curve.iloc[:-1]
        found[key] = curve
    return found


def window(study: Study) -> int:
    """Steps over which curves are smoothed, as in the figures."""
    return max(1, study.train.steps // WINDOWS)


def area_under(curve: pd.Series, steps: int) -> float:
    """Mean height of a curve over steps 0 to steps - 1, by trapezia; its end is held."""
    if curve.empty:
        return math.nan
    x, y = curve.index.to_numpy(float), curve.to_numpy(float)
    if x[-1] < steps - 1:
        x, y = np.append(x, steps - 1), np.append(y, y[-1])
    return float(np.trapezoid(y, x) / np.ptp(x)) if len(x) > 1 else float(y[0])


def first_step(curve: pd.Series, level: float, steps: int, width: int) -> float:
    """The first step at which the centred moving average is at the level; `steps` if none is."""
    if curve.empty or not np.isfinite(curve).all():
        return math.nan
    smooth = curve.rolling(width, center=True, min_periods=1).mean()
    reached = smooth.index[smooth >= level - 1e-12]  # sums of a moving average are not exact
    return float(reached[0]) if len(reached) else float(steps)


def area(study: Study, tables: Tables, asked: Asked, algorithm: str) -> Scored:
    found = curves(tables, algorithm, LEARNING)
    scores = {key: area_under(curve, study.train.steps) for key, curve in found.items()}
    return Scored(scores, absent=absent(tables.curves, algorithm, "learning curve"))


def steps_to(study: Study, tables: Tables, asked: Asked, algorithm: str) -> Scored:
    assert isinstance(asked.measure, hypotheses.StepsTo)
    level, steps = asked.measure.accuracy, study.train.steps
    found = curves(tables, algorithm, LEARNING)
    scores = {k: first_step(curve, level, steps, window(study)) for k, curve in found.items()}
    missed = frozenset(key for key, value in scores.items() if value == steps)
    why = absent(tables.curves, algorithm, "learning curve")
    return Scored(scores, censored=missed, absent=why)


def kl(study: Study, tables: Tables, asked: Asked, algorithm: str) -> Scored:
    found = curves(tables, algorithm, DISTANCE)
    last = {key: curve.iloc[-window(study) :].mean(skipna=False) for key, curve in found.items()}
    return Scored(last, absent=absent(tables.curves, algorithm, "KL to the base policy"))


def headroom(study: Study, tables: Tables, asked: Asked, algorithm: str) -> Scored:
    assert isinstance(asked.measure, hypotheses.Headroom)
    low, high = asked.measure.floor, asked.measure.ceiling
    all_areas = [area(study, tables, asked, name) for name in (algorithm, low, high)]
    own, floor, ceiling = (found.scores for found in all_areas)
    groups: dict[Key, list[Key]] = {}
    for key in own:
        if key in floor and key in ceiling:
            groups.setdefault(key[:2], []).append(key)
    scores: dict[Key, float] = {}
    refused: dict[Key, Why] = {}
    for (size, _), keys in groups.items():
        gain = np.array([own[key] - floor[key] for key in keys])
        room = np.array([ceiling[key] - floor[key] for key in keys])
        clear = mean_interval(room, study.statistics.confidence)
        if clear.available and clear.low > 0:
            ratio = gain.mean() / room.mean()
            numbers = ratio + (gain - ratio * room) / room.mean()
            scores |= zip(keys, map(float, numbers), strict=True)
            continue
        why = clear.why
        if clear.code != Reason.NOT_FINITE:
            seen = f"area {clear.value:+.3f}, "
            seen += f"{clear.low:+.3f} to {clear.high:+.3f}" if clear.available else clear.reason
            text = f"no headroom: {high} does not clearly beat {low} at size {size} ({seen})"
            why = Why(Reason.NO_HEADROOM, text)
        scores |= dict.fromkeys(keys, math.nan)
        refused |= dict.fromkeys(keys, why)
    whys = [found.absent for found in all_areas if not found.scores and found.absent.code]
    return Scored(scores, refused=refused, absent=whys[0] if whys else NO_REASON)


# --- Probes --------------------------------------------------------------------------------------


def probe(tables: Tables, algorithm: str, labels: tuple[str, str, str, str]) -> Scored:
    """labels: probe, predictor, target, metric."""
    columns = ("value", "stderr", "reason_code", "reason")
    values, errors, codes, texts = (probed(tables, algorithm, labels, c) for c in columns)
    reasons = {key: Why(Reason(code), texts[key]) for key, code in codes.items() if code}
    why = absent(tables.probes, algorithm, f"{labels[3]} of {labels[1]}")
    return Scored(values, errors, reasons, absent=why)


def value_probe(metric: str) -> Scorer:
    def scores(study: Study, tables: Tables, asked: Asked, algorithm: str) -> Scored:
        measure = asked.measure
        assert isinstance(measure, hypotheses.OfChange)
        labels = (_where(measure, "value"), _predictor(asked, algorithm), "change", metric)
        return probe(tables, algorithm, labels)

    return scores


def pairs_probe(metric: str) -> Scorer:
    def scores(study: Study, tables: Tables, asked: Asked, algorithm: str) -> Scored:
        return probe(tables, algorithm, ("pairs", _predictor(asked, algorithm), "value", metric))

    return scores


def _where(measure: hypotheses.OnPrefixes, own: str) -> str:
    """The probe that read the policy there; own: of its own responses."""
    return own if measure.prefixes == hypotheses.OWN else measure.prefixes


def _predictor(asked: Asked, algorithm: str) -> str:
    """Whose value is read out of this side's runs."""
    measure = asked.measure
    assert isinstance(measure, hypotheses.OfValue)
    other = measure.rival_predictor if algorithm == asked.contrast.rival else None
    return other or measure.predictor


def credit(study: Study, tables: Tables, asked: Asked, algorithm: str) -> Scored:
    measure = asked.measure
    assert isinstance(measure, hypotheses.CreditAUC)
    labels = (_where(measure, "credit"), measure.signal, "step", "auc")
    return probe(tables, algorithm, labels)


def credit_beyond_place(study: Study, tables: Tables, asked: Asked, algorithm: str) -> Scored:
    measure = asked.measure
    assert isinstance(measure, hypotheses.CreditBeyondPlace)
    signal, place = (
        probe(tables, algorithm, (_where(measure, "credit"), name, "step", "auc"))
        for name in (measure.signal, PLACE)
    )
    both = [key for key in signal.scores if key in place.scores]
    gains = {k: signal.scores[k] - max(place.scores[k], 1 - place.scores[k]) for k in both}
    # As if the two errors were independent: on the same rollouts that is too wide at worst.
    errors = {key: math.hypot(signal.stderr[key], place.stderr[key]) for key in both}
    why = signal.absent if signal.absent.code else place.absent
    return Scored(gains, errors, signal.reasons, absent=why)


# --- Which numbers the grid should have ----------------------------------------------------------


def run_keys(study: Study, tables: Tables, asked: Asked, *algorithms: str) -> list[Key]:
    """Runs on clean rewards, or at one noise level, that all of these algorithms have."""
    if asked.where.noise is None:
        return clean_keys(study, *algorithms)
    runs = [
        [(c.size, c.noise, c.seed) for c in study.cells() if c.algorithm == name]
        for name in algorithms
    ]
    return shared(runs, lambda key: key[1] == asked.where.noise.label)


def curve_keys(study: Study, tables: Tables, asked: Asked, *algorithms: str) -> list[Key]:
    return shared([list(noise_curves(study, name)) for name in algorithms])


def round_keys(study: Study, tables: Tables, asked: Asked, *algorithms: str) -> list[Key]:
    return rounds(study, tables, *algorithms)


# --- Registry ------------------------------------------------------------------------------------

Scorer = Callable[[Study, Tables, Asked, str], Scored]


@dataclass(frozen=True)
class Entry:
    """A measure: its function, and how its number is bounded and said.

    text: may name fields of the measure and of `where`. unit: how sentences print it.
    """

    scores: Scorer
    text: str
    unit: str = ""
    bounds: tuple[float, float] = UNBOUNDED
    keys: Callable[..., list[Key]] = run_keys


PREDICTED = "of the change of value along a response ({predictor} value)"
MEASURES: dict[type[hypotheses.Measure], Entry] = {
    hypotheses.Accuracy: Entry(accuracy, "{decoder} accuracy{on}", "share", FRACTION),
    hypotheses.Area: Entry(area, "area under the learning curve", "share", FRACTION),
    hypotheses.StepsTo: Entry(
        steps_to, "steps below a training accuracy of {accuracy:g}, of {steps}", "steps", POSITIVE
    ),
    hypotheses.Lost: Entry(
        accuracy_lost, "{decoder} accuracy{on} lost per unit of noise", "share", keys=curve_keys
    ),
    hypotheses.Seconds: Entry(
        cost("step_total"), "seconds per step", "seconds", POSITIVE, round_keys
    ),
    hypotheses.Memory: Entry(
        cost("memory_above_floor"),
        "peak memory above what the process holds before training",
        "bytes",
        POSITIVE,
        round_keys,
    ),
    hypotheses.ExplainedVariance: Entry(
        value_probe("explained_variance"), f"explained variance {PREDICTED}", "", AT_MOST_ONE
    ),
    hypotheses.RescaledVariance: Entry(
        value_probe("explained_variance_linear"),
        f"explained variance after the best rescaling {PREDICTED}",
        "",
        AT_MOST_ONE,
    ),
    hypotheses.RankCorrelation: Entry(
        value_probe("spearman"), f"rank correlation {PREDICTED}", "", (-1.0, 1.0)
    ),
    hypotheses.PairsInOrder: Entry(
        pairs_probe("ordered"),
        "share of pairs in which the right digit has the higher {predictor} value",
        "share",
        FRACTION,
    ),
    hypotheses.PairsDifference: Entry(
        pairs_probe("difference"), "{predictor} value after the right digit minus the wrong one"
    ),
    hypotheses.CreditAUC: Entry(
        credit, "AUC of finding the first wrong step by {signal}", "", FRACTION
    ),
    hypotheses.CreditBeyondPlace: Entry(
        credit_beyond_place,
        "AUC of finding the first wrong step by {signal}, beyond that of the token's place",
        "",
        (-1.0, 1.0),
    ),
    hypotheses.KL: Entry(kl, "KL to the base policy at the end of training", "nats", POSITIVE),
    hypotheses.Headroom: Entry(headroom, "headroom captured between {floor} and {ceiling}"),
}
