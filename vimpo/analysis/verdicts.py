"""Claims C1 to C6: effects, intervals, corrected p values and verdicts.

Each part of a claim is one effect with a threshold from the configuration, fixed before a study
runs. The unit is a pair of runs with the same size, noise and seed, which share prompts, random
draws and flips; sizes are strata of equal weight. With the two-sided p of `effect = threshold`,
corrected by Holm over all parts (including those that could not be tested),

    supported      the effect is on the claimed side of its threshold, p_holm < 1 - confidence
    refuted        it is on the other side, p_holm < 1 - confidence
    inconclusive   neither, with the seeds per size that would settle it if effect and spread are
                   the true ones; or the effect is not available, with the reason
    not applicable the task has no such number: no test, so it is left out of the correction

A claim is supported if all its parts are, refuted if any part is, and inconclusive otherwise; parts
that are not applicable decide nothing, unless there are no others. An
effect over fewer sizes than the grid has would be another effect, so it is not available; any other
missing pair lowers n, and `expected` says by how much. NaNs are never dropped. Rows of kind `fact`
describe without a threshold; they affect neither verdict nor correction. vimpo/analysis/claims.py
says what is compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from vimpo.analysis.inference import holm, p_value, paired_difference, seeds_needed, slope_log10
from vimpo.analysis.intervals import (
    UNBOUNDED,
    Estimate,
    clipped,
    not_available,
    stratified_mean,
    t_quantile,
)
from vimpo.storage.codes import Method, Reason, Why

SUPPORTED, REFUTED, INCONCLUSIVE = "supported", "refuted", "inconclusive"
NOT_APPLICABLE = "not applicable"
NEVER = (Reason.NO_ORACLE,)  # reasons for which no run of the task can have the number
ABOVE, BELOW = "above", "below"
TEST, FACT = "test", "fact"
DECODER = "decoder"  # a test again, under one of the decoders (vimpo/analysis/decoders.py)
Key = tuple  # (size, noise, seed or round)
Scores = Mapping[Key, float]


class Role(StrEnum):
    """What kind of number a part is: how findings say it, and in which unit they print it."""

    # tests
    MATCH = "match"  # accuracy, minus a rival's
    CHEAPER = "cheaper"  # step time, over a rival's
    LOST = "lost"  # accuracy lost per unit of noise, minus a rival's
    ACCURATE = "accurate"  # explained variance of the implied value
    ORDER = "order"  # rank correlation of the implied value
    SLOPE = "slope"  # change of the explained variance per tenfold of parameters
    BEHIND_CRITIC = "behind_critic"  # it, minus the critic's
    CREDIT = "credit"  # AUC of finding the first wrong step
    PLACE = "place"  # it, minus that of the token's place
    FINER = "finer"  # it, minus that of the same signal in a rival's policy
    # facts
    COST = "cost"  # any cost, over a rival's
    AREA = "area"  # mean accuracy along the noise curve, minus a rival's
    SPREAD = "spread"  # standard deviation of accuracy between seeds
    COLLAPSE = "collapse"  # share of runs
    SHAPE = "shape"  # explained variance of the implied value, once its scale is right
    HIDDEN = "hidden"  # explained variance of a value read out of another algorithm's policy
    SIGNAL = "signal"  # AUC of another signal
    REACHED = "reached"  # share of runs that reached an accuracy
    BY_SIZE = "by_size"  # what a test is about, at one size
    # anything else is said in the words of claims.csv: the tests of hypotheses among them
    LEVEL = "level"
    DIFFERENCE = "difference"  # printed with its sign


class Counted(StrEnum):
    """What n counts."""

    PAIRS = "pairs"
    RUNS = "runs"
    ROUNDS = "rounds"

    @property
    def singular(self) -> str:
        return self.value[:-1]


@dataclass(frozen=True)
class Part:
    """One part of a claim: a fact, or with a threshold a test.

    name: stable within the claim; texts may be reworded. algorithm: whom the number describes;
    rival: whom it is compared with, if anybody. unit `ratio`: the estimate is of a logarithm, and
    is shown, like the threshold, as a ratio; other units only say how sentences print it.
    """

    claim: str
    name: str
    role: Role
    statement: str
    metric: str
    counted: Counted
    algorithm: str
    rival: str = ""
    threshold: float = math.nan
    side: str = ""
    unit: str = ""

    def above(self, threshold: float) -> Part:
        """The test whether the effect is above the threshold."""
        return replace(self, threshold=threshold, side=ABOVE)

    def below(self, threshold: float) -> Part:
        return replace(self, threshold=threshold, side=BELOW)

    @property
    def id(self) -> str:
        return f"{self.claim}.{self.name}"

    @property
    def target(self) -> float:
        """The threshold on the scale of the estimate."""
        return math.log(self.threshold) if self.unit == "ratio" else self.threshold

    def shown(self, number: float) -> float:
        return math.exp(number) if self.unit == "ratio" else number

    @property
    def kind(self) -> str:
        return TEST if self.side else FACT


@dataclass(frozen=True)
class Found:
    """The estimate of a part, how many units it should have, and the fewest it has at any size.

    floor: a standard error that no number of seeds goes below; spread: the error without it.
    """

    estimate: Estimate
    expected: int
    per_size: int
    floor: float = 0.0
    spread: float = math.nan


# --- Effects -------------------------------------------------------------------------------------


def difference(a: Scores, b: Scores, expected: Iterable[Key], confidence: float) -> Found:
    """Mean of a - b over the grid's pairs, sizes weighing equally."""
    keys = list(expected)
    ours, theirs = ({k: scores[k] for k in keys if k in scores} for scores in (a, b))
    shared = [k for k in keys if k in ours and k in theirs]

    def estimate() -> Estimate:
        return paired_difference(ours, theirs, confidence, stratum=_size)

    return _whole(estimate, shared, keys, Counted.PAIRS)


def mean(
    scores: Scores,
    expected: Iterable[Key],
    confidence: float,
    stderr: Scores | None = None,
    bounds: tuple[float, float] = UNBOUNDED,
) -> Found:
    """Mean over the grid's runs, sizes weighing equally.

    `stderr`: of each score over problems. All runs are probed on the same problems, whose error
    does not average out over runs: the standard error is never below its mean.
    """
    keys = list(expected)
    shared = [k for k in keys if k in scores]
    floor = sum(stderr[k] for k in shared) / len(shared) if stderr and shared else 0.0

    def estimate() -> Estimate:
        groups = [[scores[k] for k in group] for group in _by_size(shared)]
        return stratified_mean(groups, confidence, bounds)

    found = _whole(estimate, shared, keys, Counted.RUNS)
    seen = found.estimate
    if not (seen.available and floor > seen.stderr):  # a NaN floor is none
        return found
    half = t_quantile(confidence, seen.df) * floor
    low, high = seen.value - half, seen.value + half
    wide = replace(seen, low=low, high=high, stderr=floor, method=Method.PROBLEMS)
    return replace(found, estimate=clipped(wide, bounds), floor=floor, spread=seen.stderr)


def slope(
    scores: Scores,
    expected: Iterable[Key],
    params: Mapping[str, float],
    settings,
    counted: Counted = Counted.RUNS,
) -> Found:
    """Change of the scores per tenfold of parameters. `settings`: the study's statistics."""
    keys = list(expected)
    shared = [k for k in keys if k in scores]

    def estimate() -> Estimate:
        if unknown := sorted({_size(k) for k in shared} - set(params)):
            text = f"no parameter count of size {', '.join(unknown)}"
            return not_available(Why(Reason.NO_PARAMETERS, text), len(shared))
        return slope_log10(
            [params[_size(k)] for k in shared],
            [scores[k] for k in shared],
            confidence=settings.confidence,
            resamples=settings.resamples,
            seed=settings.seed,
        )

    return _whole(estimate, shared, keys, counted)


def _whole(
    estimate: Callable[[], Estimate], shared: list[Key], expected: list[Key], counted: Counted
) -> Found:
    """The estimate, unless the grid has nothing of the kind or a size lacks all of it."""
    sizes = list(dict.fromkeys(map(_size, expected)))
    counts = {size: sum(_size(k) == size for k in shared) for size in sizes}
    fewest = min(counts.values(), default=0)
    empty = [size for size, count in counts.items() if not count]
    if not expected:
        why = Why(Reason.NOT_IN_GRID, f"the grid has no such {counted.singular}")
        found = not_available(why, 0)
    elif empty:
        code = Reason.NO_PAIR if counted == Counted.PAIRS else Reason.NO_RESULT
        why = Why(code, f"no {counted.singular} at size {', '.join(empty)}")
        found = not_available(why, len(shared))
    else:
        found = estimate()
    return Found(found, len(expected), fewest)


def _size(key: Key) -> str:
    return key[0]


def _by_size(keys: Iterable[Key]) -> list[list[Key]]:
    groups: dict[str, list[Key]] = {}
    for key in keys:
        groups.setdefault(_size(key), []).append(key)
    return list(groups.values())


# --- Verdicts ------------------------------------------------------------------------------------

PROBLEMS_LIMIT = Why(
    Reason.PROBLEMS_LIMIT,
    "the error over problems alone is too large: more problems are needed",
)


def judge(parts: list[tuple[Part, Found]], confidence: float, power: float) -> list[dict]:
    """Rows of claims.csv: effect, interval, corrected p, threshold, verdict, seeds needed.

    The seeds needed pass Holm's strictest step, p < (1 - confidence)/m, so an inconclusive part
    always needs more than it has.
    """
    tests = [(part, found) for part, found in parts if part.kind == TEST and applies(found)]
    raw = [p_value(found.estimate, part.target) for part, found in tests]
    corrected = iter(holm(raw))
    alpha = 1 - confidence
    strictest = 1 - alpha / max(1, len(tests))
    rows = []
    for part, found in parts:
        row = _described(part, found)
        if part.kind == TEST and not applies(found):
            row["verdict"] = NOT_APPLICABLE
        elif part.kind == TEST:
            row["p"] = p_value(found.estimate, part.target)
            row["p_holm"] = float(next(corrected))
            row["verdict"] = _verdict(part, found.estimate, row["p_holm"], alpha)
            row["needed_per_size"] = needed = _needed(part, found, strictest, power)
            if math.isinf(needed) and found.floor:
                row |= PROBLEMS_LIMIT.columns()
        rows.append(row)
    return rows


def applies(found: Found) -> bool:
    """Can a run of this task have the number at all?"""
    return found.estimate.code not in NEVER


def _described(part: Part, found: Found) -> dict:
    """The row of a fact: without p values, verdict and seeds needed."""
    estimate = found.estimate
    return {
        "part": part.id,
        "claim": part.claim,
        "kind": part.kind,
        "role": str(part.role),
        "algorithm": part.algorithm,
        "rival": part.rival,
        "statement": part.statement,
        "metric": part.metric,
        "unit": part.unit,
        "effect": part.shown(estimate.value),
        "low": part.shown(estimate.low),
        "high": part.shown(estimate.high),
        "n": estimate.n,
        "expected": found.expected,
        "counted": str(part.counted),
        "p": math.nan,
        "p_holm": math.nan,
        "threshold": part.threshold,
        "side": part.side,
        "verdict": "",
        "per_size": found.per_size,
        "needed_per_size": math.nan,
    } | estimate.why.columns()


def _verdict(part: Part, estimate: Estimate, p_holm: float, alpha: float) -> str:
    if not p_holm < alpha:
        return INCONCLUSIVE
    return SUPPORTED if (estimate.value > part.target) == (part.side == ABOVE) else REFUTED


def _needed(part: Part, found: Found, confidence: float, power: float) -> float:
    estimate = found.estimate
    if found.floor:
        estimate = replace(estimate, stderr=found.spread)
    return seeds_needed(estimate, part.target, found.per_size, confidence, power, found.floor)


def overall(verdicts: Iterable[str]) -> str:
    """Verdict of a claim from those of its parts."""
    found = list(verdicts)
    verdicts = [verdict for verdict in found if verdict != NOT_APPLICABLE]
    if found and not verdicts:
        return NOT_APPLICABLE
    if REFUTED in verdicts:
        return REFUTED
    if verdicts and all(verdict == SUPPORTED for verdict in verdicts):
        return SUPPORTED
    return INCONCLUSIVE
