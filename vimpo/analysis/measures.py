"""What hypotheses can measure: from the tables to one number for each run.

A measure is one small function in the registry at the end, under its type in
vimpo/config/hypotheses.py. Keys are (size, noise, seed); (size, mode, seed) for whole noise curves;
(size, "", round) for costs.

Learning curves are of clean training accuracy (vimpo/analysis/curves.py). `steps_to` is censored at
the number of steps, so that it is the steps spent below the level; what is compared is its mean
within the training budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pandas as pd

from vimpo.analysis.curves import (
    DISTANCE,
    LEARNING,
    area_under,
    at_end,
    curves,
    first_step,
    window,
)
from vimpo.analysis.headroom import by_seed, gap, is_clear, refusal
from vimpo.analysis.intervals import (
    AT_MOST_ONE,
    FRACTION,
    POSITIVE,
    UNBOUNDED,
)
from vimpo.analysis.scores import (
    PLACE,
    Tables,
    along_noise,
    clean_keys,
    lost,
    measured,
    noise_curves,
    over_benchmarks,
    probed,
    rounds,
    shared,
)
from vimpo.analysis.verdicts import Key, Scores
from vimpo.config import Study, hypotheses
from vimpo.config.hypotheses import Asked
from vimpo.storage.codes import NO_REASON, Reason, Why


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
    last = {key: at_end(curve, window(study)) for key, curve in found.items()}
    return Scored(last, absent=absent(tables.curves, algorithm, "KL to the base policy"))


def captured(study: Study, tables: Tables, asked: Asked, algorithm: str) -> Scored:
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
        mine, bottom, top = ({key: side[key] for key in keys} for side in (own, floor, ceiling))
        room = gap(top, bottom, study.statistics.confidence)
        if is_clear(room):
            scores |= by_seed(mine, bottom, top)
            continue
        scores |= dict.fromkeys(keys, math.nan)
        refused |= dict.fromkeys(keys, refusal(room, size, low, high))
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
        assert isinstance(measure, hypotheses.ExplainedVariance | hypotheses.RankCorrelation)
        predictor = measure.predictor
        if algorithm == asked.contrast.rival:
            predictor = measure.rival_predictor or predictor
        return probe(tables, algorithm, ("value", predictor, "change", metric))

    return scores


def credit(study: Study, tables: Tables, asked: Asked, algorithm: str) -> Scored:
    assert isinstance(asked.measure, hypotheses.CreditAUC)
    return probe(tables, algorithm, ("credit", asked.measure.signal, "step", "auc"))


def credit_beyond_place(study: Study, tables: Tables, asked: Asked, algorithm: str) -> Scored:
    assert isinstance(asked.measure, hypotheses.CreditBeyondPlace)
    signal, place = (
        probe(tables, algorithm, ("credit", name, "step", "auc"))
        for name in (asked.measure.signal, PLACE)
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
    hypotheses.RankCorrelation: Entry(
        value_probe("spearman"), f"rank correlation {PREDICTED}", "", (-1.0, 1.0)
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
    hypotheses.Headroom: Entry(captured, "headroom captured between {floor} and {ceiling}"),
}
