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
these. Group noise is used where the grid has it, else noise per rollout.

C3 is tested by step time alone. Parameters and optimiser bytes follow from the design, and memory
repeats between processes: a p value of either would be about nothing that varies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from vimpo.analysis.inference import pooled_spread, share
from vimpo.analysis.intervals import not_available
from vimpo.analysis.scores import (
    NAMES,
    OURS,
    PLACE,
    RIVALS,
    Tables,
    accuracies,
    along_noise,
    area,
    clean_keys,
    lost,
    measured,
    noise_curves,
    noisy_runs,
    probed,
    rounds,
    shared,
)
from vimpo.analysis.verdicts import (
    ABOVE,
    BELOW,
    Found,
    Key,
    Part,
    Scores,
    difference,
    judge,
    mean,
    slope,
)
from vimpo.config import Study
from vimpo.storage.columns import OUTCOMES
from vimpo.storage.tables import BASE

COLLAPSE = 0.5  # of the base policy's accuracy
FRACTION, AT_MOST_ONE = (0.0, 1.0), (-math.inf, 1.0)
CLAIMS = {
    "C1": "VIMPO reaches GRPO's accuracy",
    "C2": "VIMPO reaches the accuracy of PPO with a critic",
    "C3": "VIMPO is cheaper than PPO",
    "C4": "VIMPO is steadier under noisy rewards",
    "C5": "The implied value stays accurate as models grow",
    "C6": "VIMPO's credit is finer than GRPO's",
}


EXPLAINED = "explained_variance"
CHANGE = "explained variance of the change of value along a response"
# What an explained variance hides: a value that is right but for its scale, or right in its order.
SHAPES = {
    "explained variance after the best rescaling": "explained_variance_linear",
    "rank correlation with the truth": "spearman",
}
ACCURACY_GAP = "sampled accuracy, VIMPO minus {}, clean rewards"
LOST_GAP = "accuracy lost per unit of noise, VIMPO minus {}"


def accuracy_parts(study: Study, tables: Tables) -> list[tuple[Part, Found]]:
    """C1 and C2: VIMPO is not behind by more than the margin."""
    margin = 0.0 - study.claims.accuracy_margin
    return [
        (
            Part(c, f"VIMPO matches {name}", ACCURACY_GAP.format(name), "pairs", margin, ABOVE),
            difference(
                accuracies(tables, OURS),
                accuracies(tables, rival),
                clean_keys(study, OURS, rival),
                study.statistics.confidence,
            ),
        )
        for c, (rival, name) in zip(("C1", "C2"), RIVALS.items(), strict=True)
    ]


def cost_parts(study: Study, tables: Tables) -> list[tuple[Part, Found]]:
    """C3: step time, and the facts of memory and size, and of what GRPO's step takes."""

    def ratio(metric: str, rival: str = "ppo") -> Found:
        ours, theirs = (measured(tables, name, metric) for name in (OURS, rival))
        keys = rounds(study, tables, OURS, rival)
        return difference(ours, theirs, keys, study.statistics.confidence)

    def fixed(metric: str) -> Found:
        found = ratio(metric)
        if found.estimate.reason.startswith("all "):
            why = "it follows from the design: nothing varies"
            return replace(found, estimate=replace(found.estimate, reason=why))
        return found

    def fact(statement: str, rival: str = "PPO") -> Part:
        return Part("C3", statement, f"{statement}, VIMPO over {rival}", "rounds", unit="ratio")

    step = Part(
        "C3",
        "a step is faster than PPO's",
        "seconds a step, VIMPO over PPO",
        "rounds",
        study.claims.time_ratio,
        BELOW,
        "ratio",
    )
    return [
        (step, ratio("step_total")),
        (
            fact("peak memory above what the process holds before training"),
            ratio("memory_above_floor"),
        ),
        (fact("trainable parameters"), fixed("parameters_trainable")),
        (fact("resident parameters"), fixed("parameters_resident")),
        (fact("optimiser state"), fixed("optimizer")),
        (fact("seconds a step", "GRPO"), ratio("step_total", "grpo")),
    ]


def noise_parts(study: Study, tables: Tables) -> list[tuple[Part, Found]]:
    """C4: accuracy lost, and the facts of area, spread and collapse."""

    def gap(rival: str, summary) -> Found:
        ours, theirs = (along_noise(study, tables, name, summary) for name in (OURS, rival))
        keys = shared([list(noise_curves(study, name)) for name in (OURS, rival)])
        return difference(ours, theirs, keys, study.statistics.confidence)

    limit, parts = 0.0 - study.claims.noise_margin, []
    for rival, name in RIVALS.items():
        statement = f"noise costs less than with {name}"
        part = Part("C4", statement, LOST_GAP.format(name), "pairs", limit, BELOW)
        parts.append((part, gap(rival, lost)))
    for rival, name in RIVALS.items():
        text = f"mean accuracy along the noise curve, VIMPO minus {name}"
        parts.append((Part("C4", "area under the noise curve", text, "pairs"), gap(rival, area)))
    for algorithm, name in NAMES.items():
        runs = noisy_runs(study, algorithm)
        if runs:
            text = f"standard deviation between seeds of {name}'s accuracy"
            found = _spread(study, accuracies(tables, algorithm), runs)
            parts.append((Part("C4", "spread between seeds", text, "runs"), found))
    for algorithm, name in NAMES.items():
        runs = noisy_runs(study, algorithm)
        if runs:
            text = f"share of {name}'s runs that failed, or end below half of the base's accuracy"
            found = _collapses(study, tables, algorithm, runs)
            parts.append((Part("C4", "collapse", text, "runs"), found))
    return parts


def _spread(study: Study, scores: Scores, runs: list[Key]) -> Found:
    groups: dict[Key, list[float]] = {}
    for key in runs:
        if key in scores:
            groups.setdefault(key[:2], []).append(scores[key])
    return Found(pooled_spread([*groups.values()], study.statistics.confidence), len(runs), 0)


def _collapses(study: Study, tables: Tables, algorithm: str, runs: list[Key]) -> Found:
    """Of runs whose end is known: a failed one counts whatever its accuracy is, or without any."""
    scores, failed = accuracies(tables, algorithm), _failed(tables, algorithm)
    base = {key[0]: value for key, value in accuracies(tables, BASE).items()}
    known = [key for key in runs if key in scores and base.get(key[0])]
    ratios = {key: scores[key] / base[key[0]] for key in known if key not in failed}
    if bad := sum(math.isnan(ratio) for ratio in ratios.values()):
        found = not_available(f"{bad} of {len(ratios)} values are not finite", len(ratios))
    else:
        low = [ratio < COLLAPSE for ratio in ratios.values()]
        found = share([True] * len(failed.intersection(runs)) + low, study.statistics.confidence)
    return Found(found, len(runs), 0)


def _failed(tables: Tables, algorithm: str) -> set[Key]:
    frame = tables.outcomes
    rows = frame[(frame.algorithm == algorithm) & (frame.outcome != OUTCOMES[0])]
    return set(zip(rows["size"], rows.noise, rows.seed, strict=True))


def value_parts(
    study: Study, tables: Tables, params: Mapping[str, float]
) -> list[tuple[Part, Found]]:
    """C5: accuracy of the implied value, its change with size, and PPO's critic beside it.

    Facts: what is left when its scale is set right, its order, and values in other policies.
    """
    c, s = study.claims, study.statistics

    def scores(
        algorithm: str, predictor: str, column: str = "value", metric: str = EXPLAINED
    ) -> Scores:
        return probed(tables, algorithm, ("value", predictor, "change", metric), column)

    implied, errors = scores(OURS, "implied"), scores(OURS, "implied", "stderr")
    keys = clean_keys(study, OURS)
    per_tenfold, minus = f"{CHANGE}, per tenfold of parameters", f"{CHANGE}, minus the critic's"
    parts = [
        (
            Part("C5", "the implied value is accurate", CHANGE, "runs", c.value_accuracy, ABOVE),
            mean(implied, keys, s.confidence, errors, AT_MOST_ONE),
        ),
        (
            Part("C5", "it stays so as models grow", per_tenfold, "runs", c.value_slope, ABOVE),
            slope(implied, keys, params, s),
        ),
        (
            Part("C5", "PPO's critic is no better", minus, "pairs", 0.0 - c.critic_margin, ABOVE),
            difference(
                implied, scores("ppo", "critic"), clean_keys(study, OURS, "ppo"), s.confidence
            ),
        ),
    ]
    for statement, metric in SHAPES.items():
        own, stderr = (scores(OURS, "implied", column, metric) for column in ("value", "stderr"))
        part = Part("C5", statement, f"{statement}, VIMPO's implied change of value", "runs")
        parts.append((part, mean(own, keys, s.confidence, stderr, AT_MOST_ONE)))
    for rival, name in RIVALS.items():
        hidden, stderr = scores(rival, "implied"), scores(rival, "implied", "stderr")
        part = Part("C5", f"a value hidden in {name}'s policy", f"{CHANGE}, {name}", "runs")
        parts.append(
            (part, mean(hidden, clean_keys(study, rival), s.confidence, stderr, AT_MOST_ONE))
        )
    return parts


def explained(found: Found, scores: Scores, reasons: Mapping[Key, str]) -> Found:
    """With the probe's own reason, where no run has a number and all say the same of it."""
    said = set(reasons.values())
    if len(said) == 1 and all(math.isnan(value) for value in scores.values()):
        return replace(found, estimate=replace(found.estimate, reason=said.pop()))
    return found


def credit_parts(study: Study, tables: Tables) -> list[tuple[Part, Found]]:
    """C6: the implied td of single tokens, beside chance and beside the token's place.

    GRPO's credit is constant within a response and scores one half. A signal that merely rises or
    falls along the response does better, so td must beat that too. Facts: the sum of td that the
    actor uses, and PPO's signals.
    """
    auc, confidence = "AUC of finding the first wrong step by {}", study.statistics.confidence

    def signal(algorithm: str, name: str) -> list[Scores]:
        labels = ("credit", name, "step", "auc")
        return [probed(tables, algorithm, labels, c) for c in ("value", "stderr", "reason")]

    def found(algorithm: str, name: str) -> Found:
        scores, errors, reasons = signal(algorithm, name)
        keys = clean_keys(study, algorithm)
        return explained(mean(scores, keys, confidence, errors, FRACTION), scores, reasons)

    def beyond_place() -> Found:
        ours, error, reasons = signal(OURS, "implied_td")
        place, place_error, _ = signal(OURS, PLACE)
        both = [key for key in ours if key in place]
        gains = {key: ours[key] - max(place[key], 1 - place[key]) for key in both}
        # As if the two errors were independent, which on the same rollouts is too wide at worst.
        errors = {key: math.hypot(error[key], place_error[key]) for key in both}
        return explained(
            mean(gains, clean_keys(study, OURS), confidence, errors, (-1.0, 1.0)), gains, reasons
        )

    def tested(statement: str, whose: str, limit: float) -> Part:
        return Part("C6", statement, auc.format(whose), "runs", limit, ABOVE)

    chance, place = 0.5 + study.claims.credit_margin, 0.0 + study.claims.place_margin
    beyond = "VIMPO's td, minus that of the token's place"
    parts = [
        (tested("credit is finer than GRPO's", "VIMPO's td", chance), found(OURS, "implied_td")),
        (tested("it says more than the token's place", beyond, place), beyond_place()),
    ]
    others = {
        "VIMPO's advantage (GAE of td)": (OURS, "implied_gae"),
        "the token's place alone, in VIMPO's responses": (OURS, PLACE),
        "PPO's critic td": ("ppo", "critic_td"),
        "PPO's advantage (GAE)": ("ppo", "critic_gae"),
    }
    facts = [
        (Part("C6", "other signals", auc.format(text), "runs"), found(*whose))
        for text, whose in others.items()
    ]
    return [*parts, *facts]


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
    return judge(parts, study.statistics.confidence, study.claims.power)
