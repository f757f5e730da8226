"""Claims C1 to C6: effects, intervals, corrected p values and verdicts.

Each part of a claim is one effect with a threshold from the configuration, to be fixed before a
study runs. The unit is a pair of runs with the same size, noise and seed, which share prompts, luck
and flips; sizes are strata of equal weight. With the two-sided p of `effect = threshold`, corrected
by Holm over all parts (one that could not be tested counts too),

    supported      the effect is on the claimed side of its threshold, p_holm < 1 - confidence
    refuted        it is on the other side, p_holm < 1 - confidence
    inconclusive   neither, with the seeds a size that would settle it if effect and spread are the
                   true ones; or the effect is not available, with the reason

A claim is supported if all its parts are, refuted if any part is, and inconclusive otherwise. An
effect over fewer sizes than the grid asks for would be another effect, and is not available; a
pair that is missing elsewhere lowers n, and `expected` says by how much. Nothing is dropped for
being NaN. Rows of kind `fact` describe without a threshold; they touch neither verdict nor
correction. vimpo/analysis/claims.py says what is compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from vimpo.analysis.inference import holm, p_value, paired_difference, seeds_needed, slope_log10
from vimpo.analysis.intervals import UNBOUNDED, Estimate, not_available, stratified_mean, t_quantile

SUPPORTED, REFUTED, INCONCLUSIVE = "supported", "refuted", "inconclusive"
ABOVE, BELOW = "above", "below"
TEST, FACT = "test", "fact"
Key = tuple  # (size, noise, seed or round)
Scores = Mapping[Key, float]


@dataclass(frozen=True)
class Part:
    """One testable part of a claim: is the effect above (or below) the threshold?

    unit `ratio`: the estimate is of a logarithm, and is shown, like the threshold, as a ratio.
    counted: what n counts. A fact has no threshold.
    """

    claim: str
    statement: str
    metric: str
    counted: str
    threshold: float = math.nan
    side: str = ""
    unit: str = ""

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
    """The estimate of a part: units that it should have, and how many a size it has at least.

    floor: what its standard error stays above, however many seeds; spread: the error without it.
    """

    estimate: Estimate
    expected: int
    per_size: int
    floor: float = 0.0
    spread: float = math.nan


# --- Effects -------------------------------------------------------------------------------------


def difference(a: Scores, b: Scores, expected: Iterable[Key], confidence: float) -> Found:
    """Mean of a - b over the pairs that the grid asks for, sizes weighing equally."""
    keys = list(expected)
    ours, theirs = ({k: scores[k] for k in keys if k in scores} for scores in (a, b))
    shared = [k for k in keys if k in ours and k in theirs]

    def estimate() -> Estimate:
        pair = paired_difference(ours, theirs, confidence, stratum=_size)
        return Estimate(**{name: getattr(pair, name) for name in Estimate.__dataclass_fields__})

    return _whole(estimate, shared, keys, "pair")


def mean(
    scores: Scores,
    expected: Iterable[Key],
    confidence: float,
    stderr: Scores | None = None,
    bounds: tuple[float, float] = UNBOUNDED,
) -> Found:
    """Mean over the runs that the grid asks for, sizes weighing equally.

    `stderr`: of each score over problems. All runs are probed on the same problems, whose error
    does not average out over them: the standard error is never below its mean.
    """
    keys = list(expected)
    shared = [k for k in keys if k in scores]
    floor = sum(stderr[k] for k in shared) / len(shared) if stderr and shared else 0.0

    def estimate() -> Estimate:
        groups = [[scores[k] for k in group] for group in _by_size(shared)]
        return stratified_mean(groups, confidence, bounds)

    found = _whole(estimate, shared, keys, "run")
    spread = found.estimate.stderr
    if not (found.estimate.available and floor > spread):  # a NaN floor is none
        return found
    half = t_quantile(confidence, found.estimate.df) * floor
    low, high = found.estimate.value - half, found.estimate.value + half
    wide = replace(
        found.estimate,
        low=max(low, bounds[0]),
        high=min(high, bounds[1]),
        stderr=floor,
        method="t, error over problems",
    )
    return replace(found, estimate=wide, floor=floor, spread=spread)


def slope(scores: Scores, expected: Iterable[Key], params: Mapping[str, float], settings) -> Found:
    """Change of the scores per tenfold of parameters. `settings`: the study's statistics."""
    keys = list(expected)
    shared = [k for k in keys if k in scores]

    def estimate() -> Estimate:
        if unknown := sorted({_size(k) for k in shared} - set(params)):
            return not_available(f"no parameter count of size {', '.join(unknown)}", len(shared))
        return slope_log10(
            [params[_size(k)] for k in shared],
            [scores[k] for k in shared],
            confidence=settings.confidence,
            resamples=settings.resamples,
            seed=settings.seed,
        )

    return _whole(estimate, shared, keys, "run")


def _whole(
    estimate: Callable[[], Estimate], shared: list[Key], expected: list[Key], unit: str
) -> Found:
    """The estimate, unless the grid does not ask for it or a size has nothing to show."""
    sizes = list(dict.fromkeys(map(_size, expected)))
    counts = {size: sum(_size(k) == size for k in shared) for size in sizes}
    fewest = min(counts.values(), default=0)
    empty = [size for size, count in counts.items() if not count]
    if not expected:
        found = not_available(f"the grid has no such {unit}", 0)
    elif empty:
        found = not_available(f"no {unit} at size {', '.join(empty)}", len(shared))
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


def judge(parts: list[tuple[Part, Found]], confidence: float, power: float) -> list[dict]:
    """Rows of claims.csv: effect, interval, corrected p, threshold, verdict, seeds needed.

    The seeds needed are those that pass Holm's strictest step, p < (1 - confidence)/m, so that an
    inconclusive part always needs more than it has.
    """
    alpha = 1 - confidence
    tests = [(part, found) for part, found in parts if part.kind == TEST]
    raw = [p_value(found.estimate, part.target) for part, found in tests]
    corrected = iter(holm(raw))
    rows = []
    for part, found in parts:
        estimate, row = found.estimate, {"verdict": "", "p": math.nan, "p_holm": math.nan}
        needed = math.nan
        if part.kind == TEST:
            p = float(next(corrected))
            row |= {"p": p_value(estimate, part.target), "p_holm": p, "verdict": INCONCLUSIVE}
            if p < alpha:
                right = (estimate.value > part.target) == (part.side == ABOVE)
                row["verdict"] = SUPPORTED if right else REFUTED
            strictest = 1 - alpha / max(1, len(tests))
            needed = seeds_needed(
                replace(estimate, stderr=found.spread) if found.floor else estimate,
                part.target,
                found.per_size,
                strictest,
                power,
                found.floor,
            )
            if math.isinf(needed) and found.floor:
                why = "the error over problems alone is too large: it takes more problems"
                estimate = replace(estimate, reason=why)
        rows.append(
            row
            | {
                "claim": part.claim,
                "kind": part.kind,
                "statement": part.statement,
                "metric": part.metric,
                "unit": part.unit,
                "effect": part.shown(estimate.value),
                "low": part.shown(estimate.low),
                "high": part.shown(estimate.high),
                "n": estimate.n,
                "expected": found.expected,
                "counted": part.counted,
                "threshold": part.threshold,
                "side": part.side,
                "per_size": found.per_size,
                "needed_per_size": needed,
                "reason": estimate.reason,
            }
        )
    return rows


def overall(verdicts: Iterable[str]) -> str:
    """Verdict of a claim from those of its parts."""
    verdicts = list(verdicts)
    if REFUTED in verdicts:
        return REFUTED
    if verdicts and all(verdict == SUPPORTED for verdict in verdicts):
        return SUPPORTED
    return INCONCLUSIVE
