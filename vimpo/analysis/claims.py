"""Rows of claims.csv: the claims C1 to C6, and a study's own hypotheses.

What the claims test is data (vimpo/config/claims.yaml), computed as any hypothesis is. Here are the
facts beside them, which have no threshold.

C1, C2 compare accuracy on clean rewards: VIMPO is not behind by more than a margin. They, C4 and
own hypotheses about accuracy are judged again under every decoder (decoders.py).

C4, «steadier under noisy rewards», is tested as accuracy lost per unit of noise: for each seed, the
least-squares slope of its accuracies over all flip rates p of the grid below 1/2, sign reversed.
The same runs also give, as facts without a verdict,

    area        the accuracy under the noise curve, by trapezia over the same rates, divided by
                their range: VIMPO minus the other. It mixes accuracy with steadiness
    spread      the standard deviation between seeds, pooled over sizes and rates
    collapse    the share of runs that failed in training (vimpo/training/outcomes.py) or end below
                half of their base policy's accuracy

At p = 1/2 and above labels say nothing or the opposite: those runs are controls and enter none of
these. Group noise is used if the grid has it, else noise per rollout.

C5 tests the implied value, its order (the actor whitens, so order is what it uses), its change with
size, and PPO's critic for comparison. C6 tests the implied td of single tokens against chance and
against the token's place: GRPO's credit is constant within a response and scores one half, but a
signal that merely rises or falls along the response does better, so td must beat that too. And a td
can be read out of any policy, so VIMPO's must beat that of the rivals' policies, in pairs of runs:
else it is no merit of the algorithm.

Every part but a slope is also given at each size, as a fact, where there are several.

C3 is tested by step time alone. Parameters and optimiser bytes follow from the design, and memory
repeats between processes: a p value for either would be about nothing that varies.

A new fact is one more (Part, Found) in one of the lists below, about any algorithm. Its name is for
good, its texts may be reworded, and its role says how report/findings.j2 puts it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from vimpo.analysis.decoders import decoder_rows
from vimpo.analysis.hypotheses import Comparison, Parts, at_sizes, hypothesis_parts, tested
from vimpo.analysis.inference import pooled_spread, share
from vimpo.analysis.intervals import AT_MOST_ONE, FRACTION, not_available, not_finite
from vimpo.analysis.scores import (
    NAMES,
    OURS,
    PLACE,
    RIVALS,
    Summary,
    Tables,
    accuracies,
    along_noise,
    area,
    clean_keys,
    failed_runs,
    measured,
    noise_curves,
    noisy_runs,
    probed,
    rounds,
    shared,
)
from vimpo.analysis.verdicts import (
    Counted,
    Found,
    Key,
    Part,
    Role,
    Scores,
    difference,
    judge,
    mean,
)
from vimpo.config import Study
from vimpo.config.judging import ClaimName
from vimpo.config.shipped import shipped_claims
from vimpo.storage.codes import Reason, Why
from vimpo.storage.tables import BASE

COLLAPSE = 0.5  # of the base policy's accuracy
SHIPPED = shipped_claims()
CLAIMS: dict[str, str] = {name: claim.title for name, claim in SHIPPED.items()}
DESIGN = Why(Reason.DESIGN, "it follows from the design: nothing varies")
EXPLAINED = "explained_variance"
CHANGE = "explained variance of the change of value along a response"
# What an explained variance hides: a value that is right but for its scale.
# Name -> metric of the probe, and its text.
SHAPES = {"linear": ("explained_variance_linear", "explained variance after the best rescaling")}
# Facts of C3: name -> metric of the measurement, and its text.
COSTS = {
    "memory": (
        "memory_above_floor",
        "peak memory above what the process holds before training",
    ),
    "trainable": ("parameters_trainable", "trainable parameters"),
    "resident": ("parameters_resident", "resident parameters"),
    "optimizer": ("optimizer", "optimiser state"),
}
OF_DESIGN = ("trainable", "resident", "optimizer")
# Facts of C6: signals other than VIMPO's td, and in whose policy they are measured.
SIGNALS = {
    "implied_gae": (OURS, "VIMPO's advantage (GAE of td)"),
    PLACE: (OURS, "the token's place alone, in VIMPO's responses"),
    "critic_td": ("ppo", "PPO's critic td"),
    "critic_gae": ("ppo", "PPO's advantage (GAE)"),
}


def claim_tests(
    claim: ClaimName, study: Study, tables: Tables, params: Mapping[str, float]
) -> Parts:
    """The tested parts of a claim, as vimpo/config/claims.yaml asks for them."""
    parts: Parts = []
    for asked in SHIPPED[claim].parts:
        comparison = Comparison.of(asked, study, tables)
        part = Part(
            claim,
            asked.part,
            Role(asked.role),
            asked.statement,
            asked.metric,
            comparison.counted,
            asked.contrast.algorithm,
            asked.contrast.rival,
            unit="ratio" if asked.is_ratio else "",
        )
        parts.append(tested(part, asked.target(study.claims), comparison, params))
        if asked.pooling == "mean":
            parts += at_sizes(comparison, part)
    return parts


def cost_facts(study: Study, tables: Tables) -> Parts:
    """C3: memory and size against PPO, and step time against GRPO."""

    def ratio(metric: str, rival: str = "ppo") -> Found:
        ours, theirs = (measured(tables, name, metric) for name in (OURS, rival))
        keys = rounds(study, tables, OURS, rival)
        return difference(ours, theirs, keys, study.statistics.confidence)

    def part(name: str, statement: str, what: str, rival: str = "ppo") -> Part:
        name, metric = f"{name}.{rival}", f"{what}, VIMPO over {NAMES[rival]}"
        whose = (Counted.ROUNDS, OURS, rival)
        return Part("C3", name, Role.COST, statement, metric, *whose, unit="ratio")

    parts: Parts = []
    for name, (metric, text) in COSTS.items():
        found = ratio(metric)
        if name in OF_DESIGN and found.estimate.code == Reason.ALL_EQUAL:
            found = replace(found, estimate=replace(found.estimate, why=DESIGN))
        parts.append((part(name, text, text), found))
    seconds = "seconds per step"
    against_grpo = part("time", seconds, seconds, "grpo")
    return [*parts, (against_grpo, ratio("step_total", "grpo"))]


def noise_facts(study: Study, tables: Tables) -> Parts:
    """C4: area, spread and collapse."""

    def gap(rival: str, summary: Summary) -> Found:
        ours, theirs = (
            along_noise(study, accuracies(tables, name), name, summary) for name in (OURS, rival)
        )
        keys = shared([list(noise_curves(study, name)) for name in (OURS, rival)])
        return difference(ours, theirs, keys, study.statistics.confidence)

    def against(rival: str, role: Role, statement: str, what: str) -> Part:
        metric, whose = f"{what}, VIMPO minus {NAMES[rival]}", (Counted.PAIRS, OURS, rival)
        return Part("C4", f"{role}.{rival}", role, statement, metric, *whose)

    def of(algorithm: str, role: Role, statement: str, metric: str) -> Part:
        whose = (Counted.RUNS, algorithm)
        return Part("C4", f"{role}.{algorithm}", role, statement, metric, *whose)

    runs = {name: keys for name in NAMES if (keys := noisy_runs(study, name))}
    parts: Parts = []
    for rival in RIVALS:
        texts = ("area under the noise curve", "mean accuracy along the noise curve")
        parts.append((against(rival, Role.AREA, *texts), gap(rival, area)))
    for name, keys in runs.items():
        text = f"standard deviation between seeds of {NAMES[name]}'s accuracy"
        part = of(name, Role.SPREAD, "spread between seeds", text)
        parts.append((part, _spread(study, accuracies(tables, name), keys)))
    for name, keys in runs.items():
        text = (
            f"share of {NAMES[name]}'s runs that failed or ended below half of the base policy's "
            "accuracy"
        )
        part = of(name, Role.COLLAPSE, "collapse", text)
        parts.append((part, _collapses(study, tables, name, keys)))
    return parts


def _spread(study: Study, scores: Scores, runs: list[Key]) -> Found:
    groups: dict[Key, list[float]] = {}
    for key in runs:
        if key in scores:
            groups.setdefault(key[:2], []).append(scores[key])
    return Found(pooled_spread([*groups.values()], study.statistics.confidence), len(runs), 0)


def _collapses(study: Study, tables: Tables, algorithm: str, runs: list[Key]) -> Found:
    """Of runs whose end is known. A failed run counts whatever its accuracy, or without one."""
    scores, failed = accuracies(tables, algorithm), failed_runs(tables, algorithm)
    base = {key[0]: value for key, value in accuracies(tables, BASE).items()}
    known = [key for key in runs if key in scores and base.get(key[0])]
    ratios = {key: scores[key] / base[key[0]] for key in known if key not in failed}
    if bad := sum(math.isnan(ratio) for ratio in ratios.values()):
        found = not_available(not_finite(bad, len(ratios)), len(ratios))
    else:
        low = [ratio < COLLAPSE for ratio in ratios.values()]
        found = share([True] * len(failed.intersection(runs)) + low, study.statistics.confidence)
    return Found(found, len(runs), 0)


def value_facts(study: Study, tables: Tables) -> Parts:
    """C5: what is left once its scale is right, its order, and values in other policies."""

    def averaged(algorithm: str, metric: str = EXPLAINED) -> Found:
        labels = ("value", "implied", "change", metric)
        values, errors = (probed(tables, algorithm, labels, name) for name in ("value", "stderr"))
        keys = clean_keys(study, algorithm)
        return mean(values, keys, study.statistics.confidence, errors, AT_MOST_ONE)

    def part(name: str, role: Role, texts: tuple[str, str], algorithm: str = OURS) -> Part:
        return Part("C5", name, role, *texts, Counted.RUNS, algorithm)

    parts: Parts = []
    for name, (metric, text) in SHAPES.items():
        texts = (text, f"{text}, VIMPO's implied change of value")
        parts.append((part(name, Role.SHAPE, texts), averaged(OURS, metric)))
    for rival, name in RIVALS.items():
        texts = (f"a value hidden in {name}'s policy", f"{CHANGE}, read out of {name}'s policy")
        parts.append((part(f"hidden.{rival}", Role.HIDDEN, texts, rival), averaged(rival)))
    return parts


def credit_facts(study: Study, tables: Tables) -> Parts:
    """C6: the sum of td that the actor uses, the token's place, and PPO's signals."""
    confidence, parts = study.statistics.confidence, []
    for name, (algorithm, text) in SIGNALS.items():
        labels = ("credit", name, "step", "auc")
        columns = ("value", "stderr", "reason_code", "reason")
        scores, errors, codes, texts = (probed(tables, algorithm, labels, c) for c in columns)
        reasons = {key: Why(Reason(codes[key]), texts[key]) for key in codes}
        found = mean(scores, clean_keys(study, algorithm), confidence, errors, FRACTION)
        metric = f"AUC of finding the first wrong step by {text}"
        part = Part("C6", f"signal.{name}", Role.SIGNAL, text, metric, Counted.RUNS, algorithm)
        parts.append((part, explained(found, scores, reasons)))
    return parts


def explained(found: Found, scores: Scores, reasons: Mapping[Key, Why]) -> Found:
    """With the probe's own reason, if no run has a number and all give the same one."""
    if len({why.code for why in reasons.values()}) == 1 and all(map(math.isnan, scores.values())):
        return replace(found, estimate=replace(found.estimate, why=next(iter(reasons.values()))))
    return found


FACTS = {"C3": cost_facts, "C4": noise_facts, "C5": value_facts, "C6": credit_facts}


def claim_rows(study: Study, tables: Tables, params: Mapping[str, float]) -> list[dict]:
    """Rows of claims.csv, in the order of the report. params: of each size that is known."""
    known = {size: count for size, count in params.items() if count > 0}
    parts: Parts = []
    for claim in (name for name in SHIPPED if name in study.claims.tested):
        parts += claim_tests(claim, study, tables, known)
        parts += FACTS[claim](study, tables) if claim in FACTS else []
    parts += hypothesis_parts(study, tables, known)
    judged = judge(parts, study.statistics.confidence, study.claims.power)
    return judged + decoder_rows(study, tables, known, parts)
