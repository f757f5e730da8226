"""What a study found, as questions: the rows of claims.csv, grouped and formatted for sentences.

`report/findings.j2` writes the sentences, for the report and for the README; neither knows a number
that is not in claims.csv. Accuracies are in percentage points, costs in percent of another's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd

from vimpo.analysis.verdicts import FACT, SUPPORTED, TEST, Role
from vimpo.report.parts import View
from vimpo.report.verdicts import own_claims, views

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
OWN = "own"  # a hypothesis of the study, which brings its question along
COSTS = ("ratio", "seconds", "bytes")  # units
OF_SIZE = (Role.SLOPE,)  # roles of C5 that answer the question of size


@dataclass(frozen=True)
class Critic:
    """Whose it is, and how little it explains of how the true value changes along a response."""

    whose: str
    explains: str


def findings(claims: pd.DataFrame, critics: Mapping[str, Critic] | None = None) -> list[dict]:
    """Each question with the parts and facts that answer it, and what would settle it.

    A study's own questions come first. critics: algorithm -> its critic, of those that explain next
    to nothing; what is said about such an algorithm says so.
    """
    rows, found = views(claims), []
    asked = [(OWN, claim) for claim in own_claims(rows)]
    for name, claim in [*asked, *QUESTIONS.items()]:
        own = [view for view in rows if view.claim == claim]
        if claim == "C5":
            own = [view for view in own if (view.role in OF_SIZE) == (name == "size")]
        if not (parts := [view for view in own if view.kind == TEST]):
            continue  # not tested by this study
        found.append(
            {
                "name": name,
                "claim": claim,
                "asked": parts[0].statement if name == OWN else "",
                "verdicts": list(dict.fromkeys(part.verdict for part in parts)),
                "parts": parts,
                "facts": [view for view in own if view.kind == FACT],
                "settling": settling(parts),
                "ignorant": _ignorant(parts, critics or {}),
            }
        )
    return found


def _ignorant(parts: Iterable[View], critics: Mapping[str, Critic]) -> list[Critic]:
    """Of whom the parts speak; what a critic costs does not depend on what it knows."""
    told = [part for part in parts if part.unit not in COSTS]
    named = {name for part in told for name in (part.algorithm, part.rival)}
    return [critic for name, critic in critics.items() if name in named]


def settling(parts: Iterable[View]) -> dict:
    """What would settle the open parts, by the largest of their needs; else why nothing would."""
    tested = [part for part in parts if part.open and part.available]
    counted = [part for part in tested if part.needed]
    most = max(counted, key=lambda part: part.needed_per_size, default=None)
    return {
        "needed": most.needed if most else "",
        "units": most.units if most else "",
        "per_size": min((part.per_size for part in counted), default=0),
        "reasons": list(dict.fromkeys(part.reason for part in tested if part.reason_code)),
        "passes": bool(tested) and all(part.passes for part in tested),
    }


def verdict_words(part: View) -> str:
    """`inconclusive`, and what would settle it."""
    if part.open and part.needed:
        return f"{part.verdict} ({part.needed} {part.units} per size would settle it)"
    unsettled = part.open or not part.applies
    return f"{part.verdict} ({part.reason})" if unsettled and part.reason_code else part.verdict


def short_claims(found: Iterable[dict]) -> list[list[str]]:
    """Rows of the README's table: question, verdict, effect with interval and n, threshold.

    A study's own questions come first, as they were asked; claims are named.
    """
    return [
        [
            part.statement if finding["name"] == OWN else f"{part.claim} {part.statement}",
            f"**{part.verdict}**" if part.verdict == SUPPORTED else verdict_words(part),
            f"{part.value_of} ({part.interval_n})" if part.available else "n/a",
            part.asked_mark,
        ]
        for finding in found
        for part in finding["parts"]
    ]
