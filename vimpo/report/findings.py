"""What a study found, as questions: the rows of claims.csv, grouped and formatted for sentences.

`report/findings.j2` writes the sentences, for the report and for the README; neither knows a number
that is not in claims.csv. Accuracies are in percentage points, costs in percent of another's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import pandas as pd

from vimpo.analysis.claims import CHANGE, LOST_GAP, SHAPES
from vimpo.analysis.scores import NAMES, OURS
from vimpo.analysis.verdicts import ABOVE, FACT, INCONCLUSIVE, SUPPORTED, TEST
from vimpo.report.verdicts import part_view

# Questions in the order of the report, each with the claim that answers it. C5 answers two.
QUESTIONS = {
    "grpo": "C1",
    "ppo": "C2",
    "cost": "C3",
    "noise": "C4",
    "value": "C5",
    "size": "C5",
    "credit": "C6",
}
# What a row says, by how its metric or statement begins or ends: templates have a phrase for each.
# A row that none of these knows is `other`, and is said in the words of claims.csv.
AUC = "AUC of finding the first wrong step by "
BEYOND = ", minus that of the token's place"
LOST = LOST_GAP.partition(",")[0]
PER_SIZE = "per tenfold of parameters"
FACTS = {
    "area under the noise curve": "area",
    "spread between seeds": "spread",
    "collapse": "collapse",
    "other signals": "signal",
    **dict.fromkeys(SHAPES, "shape"),
}


@dataclass(frozen=True)
class Scale:
    """How an effect is printed: times `factor`, with its unit; `of`: what it is, in tables."""

    factor: float
    digits: str
    unit: str = ""
    of: str = ""


POINTS, PERCENT = Scale(100, ".1f", " points"), Scale(100, ".0f", " %")
ROLES = {
    "accuracy": POINTS,
    "time": replace(PERCENT, of=" of the time"),
    "cost": PERCENT,
    "lost": Scale(10, ".1f", " points", " a tenth of flips"),  # accuracy per unit of noise
    "area": POINTS,
    "spread": POINTS,
    "explained": Scale(1, ".2f", "", " explained variance"),
    "critic": Scale(1, ".2f", "", " explained variance"),
    "slope": Scale(1, ".2f", "", " explained variance a tenfold"),
    "auc": Scale(1, ".2f", "", " AUC"),
    "place": Scale(1, ".2f", "", " AUC"),
}
OTHER = Scale(1, ".2f")


def role_of(row: pd.Series) -> str:
    """Which phrase a row of claims.csv gets."""
    claim, metric = row["claim"], row["metric"]
    if row["kind"] == FACT:
        plain = {"C3": "cost", "C5": "hidden"}.get(claim, "other")
        return FACTS.get(row["statement"], plain)
    if claim in ("C1", "C2"):
        return "accuracy"
    if claim == "C3":
        return "time" if metric.startswith("seconds a step") else "other"
    if metric.startswith(LOST):
        return "lost"
    if metric.startswith(CHANGE):
        kinds = {"": "explained", PER_SIZE: "slope", "minus the critic's": "critic"}
        return kinds.get(metric.removeprefix(CHANGE).removeprefix(", "), "other")
    if metric.startswith(AUC):
        return {"": "auc", BEYOND: "place"}.get(metric.removeprefix(AUC + "VIMPO's td"), "other")
    return "other"


def _text(number: float, scale: Scale, signed: bool) -> str:
    text = format(scale.factor * number, ("+" if signed else "") + scale.digits)
    return text.lstrip("+-") if float(text) == 0 else text


def _whose(metric: str) -> str:
    """The rival that a metric names; VIMPO where it names none else."""
    others = [name for algorithm, name in NAMES.items() if algorithm != OURS]
    return next((name for name in others if name in metric), NAMES[OURS])


def view(row: pd.Series) -> dict:
    """A row of claims.csv as words and formatted numbers."""
    role, metric, part = role_of(row), row["metric"], part_view(row)
    scale = ROLES.get(role, OTHER)
    signed = " minus " in metric or role == "slope"
    n = f"{part['n']} {row['counted'].removesuffix('s') if part['n'] == '1' else row['counted']}"
    low, high = (_text(row[c], scale, signed) for c in ("low", "high"))
    around = f"{low} to {high}" + (scale.unit if scale.unit == PERCENT.unit else "")
    bounded = math.isfinite(row["low"])
    fixed = not bounded and row["kind"] == FACT and "design" in row["reason"]
    # a number that follows from the design has neither interval nor n
    interval_n = "" if fixed else f"{around if bounded else 'no interval'}; {n}"
    limit, above = row["threshold"], row["side"] == ABOVE
    return part | {
        "role": role,
        "whose": _whose(metric),
        "value": _text(row["effect"], scale, signed) + scale.unit,
        "of": scale.of,
        "amount": _text(abs(row["effect"]), scale, False) + scale.unit,
        "positive": row["effect"] > 0,
        "interval_n": interval_n,
        "evidence": interval_n,
        "mark": _text(limit, scale, False) + scale.unit,
        "mark_amount": _text(abs(limit), scale, False) + scale.unit,
        "at_zero": limit == 0,
        "ahead": row["low"] > 0,
        "behind": row["high"] < 0,
        # the interval alone, which no correction for the number of tests has widened
        "passes": (row["low"] > limit) if above else (row["high"] < limit),
        "share": f"{row['effect'] * row['n']:.0f} of {row['n']:.0f}" if role == "collapse" else "",
        "signal": metric.removeprefix(AUC),
        "needed_number": row["needed_per_size"],
    }


def findings(claims: pd.DataFrame) -> list[dict]:
    """Each question with the parts and facts that answer it, and what would settle it."""
    found = []
    for name, claim in QUESTIONS.items():
        views = [view(row) for _, row in claims[claims["claim"] == claim].iterrows()]
        if claim == "C5":
            views = [v for v in views if (v["role"] == "slope") == (name == "size")]
        kinds = claims.loc[claims["claim"] == claim].set_index("metric")["kind"]
        parts = [v for v in views if kinds[v["metric"]] == TEST]
        verdicts = [part["verdict"] for part in parts]
        if len(set(verdicts)) > 1:  # a sentence on one of them has to say which
            for part in parts:
                part["evidence"] += f"; {part['verdict']}"
        found.append(
            {
                "name": name,
                "claim": claim,
                "verdicts": list(dict.fromkeys(verdicts)),
                "parts": parts,
                "facts": [v for v in views if kinds[v["metric"]] == FACT],
                "settling": settling(parts),
            }
        )
    return found


def settling(parts: Iterable[dict]) -> dict:
    """What it would take to settle the open parts, by the largest of their needs; and why not."""
    tested = [p for p in parts if p["open"] and p["available"]]
    counted = [p for p in tested if p["needed"]]
    most = max(counted, key=lambda p: p["needed_number"], default=None)
    return {
        "needed": most["needed"] if most else "",
        "units": most["units"] if most else "",
        "per_size": min((p["per_size"] for p in counted), default=0),
        "reasons": list(dict.fromkeys(p["reason"] for p in tested if p["reason"])),
        "passes": bool(tested) and all(p["passes"] for p in tested),
    }


def verdict_words(part: dict) -> str:
    """`inconclusive`, and what would settle it."""
    if part["verdict"] != INCONCLUSIVE or not (part["needed"] or part["reason"]):
        return part["verdict"]
    if not part["needed"]:
        return f"{part['verdict']} ({part['reason']})"
    return f"{part['verdict']} ({part['needed']} {part['units']} a size would settle it)"


def short_claims(found: Iterable[dict]) -> list[list[str]]:
    """Rows of the README's table: claim, verdict, effect with interval and n, what was asked."""
    return [
        [
            f"{part['claim']} {part['statement']}",
            f"**{part['verdict']}**" if part["verdict"] == SUPPORTED else verdict_words(part),
            f"{part['value']}{part['of']} ({part['interval_n']})" if part["available"] else "n/a",
            f"{part['relation']} {part['mark']}",
        ]
        for finding in found
        for part in finding["parts"]
    ]
