"""What the claims C1 to C6 compare: the parts of each, made from numbers of single runs.

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

C3 is tested by step time alone. Parameters and optimiser bytes follow from the design, and memory
repeats between processes: a p value for either would be about nothing that varies.

A study's own hypotheses (vimpo/analysis/hypotheses.py) join the same list.

A new part is one more (Part, Found) in one of the lists below, about any algorithm. Its name is for
good, its texts may be reworded, and its role says how report/findings.j2 puts it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from vimpo.analysis.hypotheses import Parts, hypothesis_parts
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
    lost,
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
    slope,
)
from vimpo.config import Study
from vimpo.storage.codes import Reason, Why
from vimpo.storage.tables import BASE

COLLAPSE = 0.5  # of the base policy's accuracy
CLAIMS = {
    "C1": "VIMPO reaches GRPO's accuracy",
    "C2": "VIMPO reaches the accuracy of PPO with a critic",
    "C3": "VIMPO is cheaper than PPO",
    "C4": "VIMPO is steadier under noisy rewards",
    "C5": "The implied value stays accurate as models grow",
    "C6": "VIMPO's credit is finer than GRPO's",
}
DESIGN = Why(Reason.DESIGN, "it follows from the design: nothing varies")
EXPLAINED = "explained_variance"
CHANGE = "explained variance of the change of value along a response"
# What an explained variance hides: a value that is right but for its scale, or right in its order.
# Name -> metric of the probe, and its text.
SHAPES = {
    "linear": ("explained_variance_linear", "explained variance after the best rescaling"),
    "rank": ("spearman", "rank correlation with the truth"),
}
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


def accuracy_parts(study: Study, tables: Tables) -> Parts:
    """C1 and C2: VIMPO is not behind by more than the margin."""
    parts = []
    for claim, (rival, name) in zip(("C1", "C2"), RIVALS.items(), strict=True):
        statement = f"VIMPO matches {name}"
        metric = f"sampled accuracy, VIMPO minus {name}, clean rewards"
        part = Part(claim, rival, Role.MATCH, statement, metric, Counted.PAIRS, OURS, rival)
        ours, theirs = accuracies(tables, OURS), accuracies(tables, rival)
        found = difference(
            ours, theirs, clean_keys(study, OURS, rival), study.statistics.confidence
        )
        parts.append((part.above(0.0 - study.claims.accuracy_margin), found))
    return parts


def cost_parts(study: Study, tables: Tables) -> Parts:
    """C3: step time against PPO; facts: memory, size, and step time against GRPO."""

    def ratio(metric: str, rival: str = "ppo") -> Found:
        ours, theirs = (measured(tables, name, metric) for name in (OURS, rival))
        keys = rounds(study, tables, OURS, rival)
        return difference(ours, theirs, keys, study.statistics.confidence)

    def part(name: str, role: Role, statement: str, what: str, rival: str = "ppo") -> Part:
        name, metric = f"{name}.{rival}", f"{what}, VIMPO over {NAMES[rival]}"
        whose = (Counted.ROUNDS, OURS, rival)
        return Part("C3", name, role, statement, metric, *whose, unit="ratio")

    seconds = "seconds per step"
    step = part("time", Role.CHEAPER, "a step is faster than PPO's", seconds)
    parts = [(step.below(study.claims.time_ratio), ratio("step_total"))]
    for name, (metric, text) in COSTS.items():
        found = ratio(metric)
        if name in OF_DESIGN and found.estimate.code == Reason.ALL_EQUAL:
            found = replace(found, estimate=replace(found.estimate, why=DESIGN))
        parts.append((part(name, Role.COST, text, text), found))
    against_grpo = part("time", Role.COST, seconds, seconds, "grpo")
    return [*parts, (against_grpo, ratio("step_total", "grpo"))]


def noise_parts(study: Study, tables: Tables) -> Parts:
    """C4: accuracy lost; facts: area, spread and collapse."""

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

    limit = 0.0 - study.claims.noise_margin
    runs = {name: keys for name in NAMES if (keys := noisy_runs(study, name))}
    parts: Parts = []
    for rival, name in RIVALS.items():
        texts = (f"VIMPO loses less to noise than {name}", "accuracy lost per unit of noise")
        parts.append((against(rival, Role.LOST, *texts).below(limit), gap(rival, lost)))
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


def value_parts(study: Study, tables: Tables, params: Mapping[str, float]) -> Parts:
    """C5: accuracy of the implied value, its change with size, and PPO's critic for comparison.

    Facts: what is left once its scale is right, its order, and values in other policies.
    """
    c, s = study.claims, study.statistics
    keys, pairs = clean_keys(study, OURS), clean_keys(study, OURS, "ppo")

    def scores(
        algorithm: str, predictor: str, column: str = "value", metric: str = EXPLAINED
    ) -> Scores:
        return probed(tables, algorithm, ("value", predictor, "change", metric), column)

    def averaged(algorithm: str, metric: str = EXPLAINED) -> Found:
        columns = ("value", "stderr")
        values, errors = (scores(algorithm, "implied", name, metric) for name in columns)
        return mean(values, clean_keys(study, algorithm), s.confidence, errors, AT_MOST_ONE)

    def part(name: str, role: Role, texts: tuple[str, str], algorithm: str = OURS) -> Part:
        return Part("C5", name, role, *texts, Counted.RUNS, algorithm)

    accurate = part("accurate", Role.ACCURATE, ("the implied value is accurate", CHANGE))
    texts = ("it stays accurate as models grow", f"{CHANGE}, per tenfold of parameters")
    steady = part("slope", Role.SLOPE, texts)
    texts = ("PPO's critic is no better", f"{CHANGE}, minus the critic's")
    critic = replace(part("critic", Role.BEHIND_CRITIC, texts), counted=Counted.PAIRS, rival="ppo")
    implied, of_critic = scores(OURS, "implied"), scores("ppo", "critic")
    parts = [
        (accurate.above(c.value_accuracy), averaged(OURS)),
        (steady.above(c.value_slope), slope(implied, keys, params, s)),
        (critic.above(0.0 - c.critic_margin), difference(implied, of_critic, pairs, s.confidence)),
    ]
    for name, (metric, text) in SHAPES.items():
        texts = (text, f"{text}, VIMPO's implied change of value")
        parts.append((part(name, Role.SHAPE, texts), averaged(OURS, metric)))
    for rival, name in RIVALS.items():
        texts = (f"a value hidden in {name}'s policy", f"{CHANGE}, read out of {name}'s policy")
        parts.append((part(f"hidden.{rival}", Role.HIDDEN, texts, rival), averaged(rival)))
    return parts


def credit_parts(study: Study, tables: Tables) -> Parts:
    """C6: the implied td of single tokens, against chance and against the token's place.

    GRPO's credit is constant within a response and scores one half. A signal that merely rises or
    falls along the response does better, so td must beat that too. Facts: the sum of td that the
    actor uses, and PPO's signals.
    """
    confidence = study.statistics.confidence

    def signal(algorithm: str, name: str) -> tuple[Scores, Scores, Mapping[Key, Why]]:
        labels = ("credit", name, "step", "auc")
        columns = ("value", "stderr", "reason_code", "reason")
        values, errors, codes, texts = (probed(tables, algorithm, labels, c) for c in columns)
        return values, errors, {key: Why(Reason(codes[key]), texts[key]) for key in codes}

    def found(algorithm: str, name: str) -> Found:
        scores, errors, reasons = signal(algorithm, name)
        keys = clean_keys(study, algorithm)
        return explained(mean(scores, keys, confidence, errors, FRACTION), scores, reasons)

    def beyond_place() -> Found:
        ours, error, reasons = signal(OURS, "implied_td")
        place, place_error, _ = signal(OURS, PLACE)
        both = [key for key in ours if key in place]
        gains = {key: ours[key] - max(place[key], 1 - place[key]) for key in both}
        # As if the two errors were independent: on the same rollouts that is too wide at worst.
        errors = {key: math.hypot(error[key], place_error[key]) for key in both}
        keys = clean_keys(study, OURS)
        return explained(mean(gains, keys, confidence, errors, (-1.0, 1.0)), gains, reasons)

    def part(name: str, role: Role, statement: str, whose: str, algorithm: str = OURS) -> Part:
        metric = f"AUC of finding the first wrong step by {whose}"
        return Part("C6", name, role, statement, metric, Counted.RUNS, algorithm)

    chance, place = 0.5 + study.claims.credit_margin, 0.0 + study.claims.place_margin
    finer = part("first_wrong", Role.CREDIT, "credit is finer than GRPO's", "VIMPO's td")
    beyond = "VIMPO's td, minus that of the token's place"
    further = part("place", Role.PLACE, "it says more than the token's place", beyond)
    return [
        (finer.above(chance), found(OURS, "implied_td")),
        (further.above(place), beyond_place()),
        *(
            (part(f"signal.{name}", Role.SIGNAL, text, text, whose), found(whose, name))
            for name, (whose, text) in SIGNALS.items()
        ),
    ]


def explained(found: Found, scores: Scores, reasons: Mapping[Key, Why]) -> Found:
    """With the probe's own reason, if no run has a number and all give the same one."""
    if len({why.code for why in reasons.values()}) == 1 and all(map(math.isnan, scores.values())):
        return replace(found, estimate=replace(found.estimate, why=next(iter(reasons.values()))))
    return found


def claim_rows(study: Study, tables: Tables, params: Mapping[str, float]) -> list[dict]:
    """Rows of claims.csv, in the order of the report. params: of each size that is known."""
    known = {size: count for size, count in params.items() if count > 0}
    parts = [
        *accuracy_parts(study, tables),
        *cost_parts(study, tables),
        *noise_parts(study, tables),
        *value_parts(study, tables, known),
        *credit_parts(study, tables),
    ]
    parts = [(part, found) for part, found in parts if part.claim in study.claims.tested]
    parts += hypothesis_parts(study, tables, known)
    return judge(parts, study.statistics.confidence, study.claims.power)
