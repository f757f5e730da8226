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
from dataclasses import dataclass, field, replace

import pandas as pd

from vimpo.analysis.along import HELD_OUT
from vimpo.analysis.curves import (
    DISTANCE,
    FLAWLESS,
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


@dataclass(frozen=True)
class Learning:
    """Accuracy along the runs of an algorithm, at steps 0 to `points` - 1 or some of them.

    steps: of training; window: how wide curves are smoothed; absent: why there are none.
    """

    curves: Mapping[Key, pd.Series]
    steps: int
    window: int
    points: int
    absent: Why


def absent(frame: pd.DataFrame, algorithm: str, what: str) -> Why:
    """Runs without this number; nothing to explain where there are no runs."""
    if not len(frame) or not (frame.algorithm == algorithm).any():
        return NO_REASON
    return Why(Reason.NOT_MEASURED, f"the runs of {algorithm} have no {what}")


# --- Accuracy and cost ---------------------------------------------------------------------------


def accuracy(study: Study, tables: Tables, asked: Asked, algorithm: str) -> Scored:
    """Mean over benchmarks, or of one of them."""
    where = asked.where
    frame = tables.accuracy if where.step is None else at_step(tables.snapshot_accuracy, where.step)
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


def learning(study: Study, tables: Tables, asked: Asked, algorithm: str) -> Learning:
    """Training accuracy before each update; or validation, which also has the end of training."""
    name = LEARNING
    if validated := asked.validated:
        name = HELD_OUT + asked.where.decoder
    found, steps = curves(tables, algorithm, name), study.train.steps
    why = absent(tables.curves, algorithm, "validation" if validated else "learning curve")
    return Learning(found, steps, 1 if validated else window(study), steps + validated, why)


def area(study: Study, tables: Tables, asked: Asked, algorithm: str) -> Scored:
    found = learning(study, tables, asked, algorithm)
    scores = {key: area_under(curve, found.points) for key, curve in found.curves.items()}
    return Scored(scores, absent=found.absent)


def steps_to(study: Study, tables: Tables, asked: Asked, algorithm: str) -> Scored:
    assert isinstance(asked.measure, hypotheses.StepsTo)
    level, found = asked.measure.accuracy, learning(study, tables, asked, algorithm)
    scores = {
        key: first_step(curve, level, found.steps, found.window)
        for key, curve in found.curves.items()
    }
    missed = {
        key
        for key, value in scores.items()
        if value == found.steps and not found.curves[key].get(found.steps, -1.0) >= level
    }
    return Scored(scores, censored=frozenset(missed), absent=found.absent)


def kl(study: Study, tables: Tables, asked: Asked, algorithm: str) -> Scored:
    """Of a run that ended early, over its own last steps; it may be measured at some steps only."""
    found = curves(tables, algorithm, DISTANCE)
    last = {key: at_end(curve, window(study)) for key, curve in found.items()}
    return Scored(last, absent=absent(tables.curves, algorithm, "KL to the base policy"))


def flawless(study: Study, tables: Tables, asked: Asked, algorithm: str) -> Scored:
    """Over the steps that had a right rollout."""
    found = curves(tables, algorithm, FLAWLESS)
    width = window(study)
    last = {k: float(c[c.index > c.index.max() - width].mean()) for k, c in found.items()}
    return Scored(last, absent=absent(tables.curves, algorithm, "graded steps"))


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


def at_step(frame: pd.DataFrame, step: int) -> pd.DataFrame:
    """Of a table of snapshots, those of one step."""
    return frame[frame["step"] == step]


def probe(
    tables: Tables, asked: Asked, algorithm: str, labels: tuple[str, str, str, str]
) -> Scored:
    """labels: probe, predictor, target, metric."""
    if asked.where.step is not None:
        tables = replace(tables, probes=at_step(tables.snapshot_probes, asked.where.step))
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
        return probe(tables, asked, algorithm, labels)

    return scores


def pairs_probe(metric: str) -> Scorer:
    def scores(study: Study, tables: Tables, asked: Asked, algorithm: str) -> Scored:
        return probe(
            tables, asked, algorithm, ("pairs", _predictor(asked, algorithm), "value", metric)
        )

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
    return probe(tables, asked, algorithm, labels)


def credit_beyond_place(study: Study, tables: Tables, asked: Asked, algorithm: str) -> Scored:
    measure = asked.measure
    assert isinstance(measure, hypotheses.CreditBeyondPlace)
    signal, place = (
        probe(tables, asked, algorithm, (_where(measure, "credit"), name, "step", "auc"))
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

    text: may name fields of the measure, and what `described` in hypotheses.py adds. unit: how
    sentences print it.
    """

    scores: Scorer
    text: str
    unit: str = ""
    bounds: tuple[float, float] = UNBOUNDED
    keys: Callable[..., list[Key]] = run_keys


PREDICTED = "of the change of value along a response ({predictor} value)"
MEASURES: dict[type[hypotheses.Measure], Entry] = {
    hypotheses.Accuracy: Entry(accuracy, "{decoded}{on}", "share", FRACTION),
    hypotheses.Area: Entry(area, "area under the {curve} curve{under}", "share", FRACTION),
    hypotheses.StepsTo: Entry(
        steps_to,
        "steps below a {of} accuracy of {accuracy:g}{under}, of {steps}",
        "steps",
        POSITIVE,
    ),
    hypotheses.Lost: Entry(
        accuracy_lost, "{decoded}{on} lost per unit of noise", "share", keys=curve_keys
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
    hypotheses.Flawless: Entry(
        flawless,
        "share of right rollouts without a wrong step, at the end of training",
        "share",
        FRACTION,
    ),
    hypotheses.Headroom: Entry(captured, "headroom captured between {floor} and {ceiling}{under}"),
}
