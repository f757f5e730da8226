"""Do two sets of results agree? The yardstick of one difference, and one verdict over many.

Pure functions of numbers; compare.py finds the pairs. What a difference is measured against:

A cell gave a; run again under the same configuration and seed, it gives b. On the same kind of
machine b = a to the last digit. On another one sums are rounded differently, sampling turns that
into other rollouts, and b ends somewhere between a and an independent run: with correlation
rho >= 0 of the two,

    var(b - a) = 2 sigma^2 (1 - rho) <= 2 sigma^2,   sigma between seeds, evaluation noise included

so the *prediction interval of one new run* is a +- t sqrt(2) s, and about the mean of n published
runs, if single ones are not published, mean +- t s sqrt(1/m + 1/n) for the mean of m new ones. The
confidence interval of the mean, which reports show, answers another question: it misses half of all
single runs once there are ten seeds (tests/compare/test_agreement.py measures both).

s is pooled over all groups (algorithm, size, noise) of the published study that have the number:
two seeds per group are usual, their own t has one degree of freedom, and its interval would let
anything pass. If the group itself spreads wider than that, in the seeds of both sides together, its
own spread counts (:func:`at_least`), because algorithms differ in it. Measured by simulation,
twelve groups of two seeds and eight numbers per cell, studies called different at ALARM = 1 %:

    equal studies                                     .00     with the pooled s alone   .00
    equal, one group or three with three times the sd .01                               .13 to .18
    every cell off by 1.5, 2, 3 sd                    .29 .71 .99
    one group off by 9, 15 sd                         .90 1

Nor is a score known better than its problems allow: no yardstick is below the standard error over
problems, sqrt(e_a^2 + e_b^2), which is all there is if a study has one seed. Both sides answer the
same problems, so this is on the wide side.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special
from scipy import stats as st

from vimpo.analysis.inference import holm
from vimpo.analysis.intervals import NAN, t_quantile

ALARM = 0.01  # at most, how often chance makes the verdict `different`
CONFIDENCE = 0.95  # of the interval of a single value


@dataclass(frozen=True)
class Spread:
    """Standard deviation between runs, pooled over groups, and its degrees of freedom."""

    sd: float = NAN
    df: float = 0.0


@dataclass(frozen=True)
class Difference:
    """b against a: interval of b, difference in yardsticks, its two-sided p; NaN: no yardstick."""

    low: float = NAN
    high: float = NAN
    standardised: float = NAN
    p: float = NAN

    @property
    def outside(self) -> bool:
        return self.p < 1 - CONFIDENCE


def pooled(groups: Sequence[tuple[float, int]]) -> Spread:
    """s^2 = sum (n_k - 1) s_k^2 / sum (n_k - 1). groups: (s_k, n_k); NaN and one run are left out.

    A spread of zero, when all runs gave one value, counts as unknown.
    """
    known = [(s, n - 1) for s, n in groups if n > 1 and math.isfinite(s)]
    df = sum(weight for _, weight in known)
    square = sum(s * s * weight for s, weight in known)
    return Spread(math.sqrt(square / df), df) if square > 0 else Spread()


def at_least(spread: Spread, own: Spread) -> Spread:
    """The pooled spread, or that of the group itself if it is larger."""
    if not own.df or own.sd <= spread.sd:
        return spread
    return Spread(own.sd, max(spread.df, own.df))


def difference(
    a: float,
    b: float,
    spread: Spread,
    stderrs: tuple[float, float] = (NAN, NAN),
    df: float = math.inf,
    n: int = 1,
    m: int = 1,
) -> Difference:
    """b, the mean of m new runs, against a, that of n old ones; see the module's docstring.

    stderrs: of a and b over problems (an unknown one is taken to equal the other), with Student's
    df. The wider of the two 95 % intervals decides, as in :func:`vimpo.analysis.intervals.wider`.
    """
    errors = [e for e in stderrs if math.isfinite(e)]
    over_problems = math.sqrt(2 * float(np.mean(np.square(errors)))) if errors else 0.0
    over_seeds = spread.sd * math.sqrt(1 / n + 1 / m) if spread.df else 0.0
    scales = [(s, f) for s, f in ((over_problems, df), (over_seeds, spread.df)) if s > 0]
    if not scales or not math.isfinite(b - a):
        return Difference()
    scale, freedom = max(scales, key=lambda s: s[0] * t_quantile(CONFIDENCE, s[1]))
    half = scale * t_quantile(CONFIDENCE, freedom)
    z = (b - a) / scale
    return Difference(a - half, a + half, z, float(2 * special.stdtr(freedom, -abs(z))))


def share_stderr(value: float, stderr: float, count: int) -> float:
    """Standard error of a share of `count` problems, with a floor if none or all were right.

    floor^2 = p(1 - p)/(count + 4),   p = (count value + 2)/(count + 4)      (Agresti, Coull)
    """
    p = (count * value + 2) / (count + 4)
    floor = math.sqrt(p * (1 - p) / (count + 4))
    return max(stderr, floor) if math.isfinite(stderr) else floor


# --- One verdict ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """Of many differences: how many headlines are outside, and how likely chance makes them."""

    headlines: int
    outside: int
    allowed: int
    p_share: float
    p_largest: float
    largest: Hashable

    @property
    def p(self) -> float:
        return min(1.0, 2 * min(self.p_share, self.p_largest))

    @property
    def different(self) -> bool:
        return self.p <= ALARM


def agreement(
    headlines: Sequence[float], groups: Mapping[Hashable, Mapping[str, Sequence[float]]]
) -> Agreement:
    """One verdict from p values of single differences; NaN: no yardstick, not counted.

    Two questions, each at half of ALARM. *Is everything a little off?* headlines: one p per cell,
    of its mean sampled accuracy. Of N independent cells K are outside their 95 % intervals, and
    under no difference K ~ Binomial(N, 0.05): p = P(K' >= K), exact. *Is something far off?*
    groups: for each policy, p values by family (accuracy, curves, probes). Numbers of one policy
    depend on each other in unknown ways, so Bonferroni within a family and over its F families,
    p_group = F min_f(n_f min p), and Holm over the groups: valid under any dependence.

    Cells share base policies and problems. The problems are on both sides and cancel; a base policy
    that came out differently shifts all cells of its size, and has a row of its own.
    """
    p = np.array([x for x in headlines if not math.isnan(x)])
    outside = int((p < 1 - CONFIDENCE).sum())
    share = float(st.binom.sf(outside - 1, p.size, 1 - CONFIDENCE)) if p.size else 1.0
    allowed = int(st.binom.isf(ALARM / 2, p.size, 1 - CONFIDENCE)) if p.size else 0
    found = {name: x for name, families in groups.items() if not math.isnan(x := _of(families))}
    if not found:
        return Agreement(p.size, outside, allowed, share, 1.0, None)
    adjusted = dict(zip(found, holm(list(found.values())), strict=True))
    largest = min(adjusted, key=adjusted.__getitem__)
    return Agreement(p.size, outside, allowed, share, float(adjusted[largest]), largest)


def _of(families: Mapping[str, Sequence[float]]) -> float:
    """Smallest p of a policy, corrected for all its numbers; NaN if it has none."""
    known = [[x for x in values if not math.isnan(x)] for values in families.values()]
    known = [values for values in known if values]
    return min(1.0, len(known) * min(len(v) * min(v) for v in known)) if known else NAN
