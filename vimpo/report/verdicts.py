"""The report's claims: verdicts, the numbers behind them, and what sentences are made from."""

from __future__ import annotations

import math

import pandas as pd

from vimpo.analysis.claims import CLAIMS
from vimpo.analysis.verdicts import FACT, INCONCLUSIVE, REFUTED, SUPPORTED, TEST, overall
from vimpo.report.tables import Entry, Table

MARKS = {SUPPORTED: "#1a7f37", REFUTED: "#b3261e", INCONCLUSIVE: "#8a8f98"}
RELATIONS = {"above": ">", "below": "<"}


def number(value: float, unit: str = "") -> str:
    """`+0.012`, or `0.80x` for a ratio; `0` is no negative number."""
    if not math.isfinite(value):
        return "n/a"
    text = f"{value:.3g}×" if unit == "ratio" else f"{value:.3f}"
    return "0" + text[2:] if text.startswith("-0.") and float(text.rstrip("×")) == 0 else text


def p_text(p: float) -> str:
    if not math.isfinite(p):
        return "n/a"
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def part_view(row: pd.Series) -> dict:
    """A row of claims.csv as words and formatted numbers, for templates."""
    unit, needed = row["unit"], row["needed_per_size"]
    interval = ""
    if math.isfinite(row["low"]):
        interval = f"[{number(row['low'], unit)}, {number(row['high'], unit)}]"
    n, expected = int(row["n"]), int(row["expected"])
    return {
        "claim": row["claim"],
        "statement": row["statement"],
        "metric": row["metric"],
        "verdict": row["verdict"],
        "effect": number(row["effect"], unit),
        "available": math.isfinite(row["effect"]),
        "interval": interval,
        "n": f"{n} of {expected}" if n < expected else str(n),
        "counted": row["counted"],
        "p": p_text(row["p_holm"]),
        "tested": math.isfinite(row["p_holm"]),
        "relation": RELATIONS.get(row["side"], ""),
        "threshold": f"{row['threshold']:g}" + ("×" if unit == "ratio" else ""),
        "per_size": int(row["per_size"]),
        "needed": "" if row["reason"] else _needed(needed),
        "units": "rounds" if row["counted"] == "rounds" else "seeds",
        "reason": row["reason"],
        "open": row["verdict"] == INCONCLUSIVE,
    }


COUNTABLE = 100  # beyond it the estimate's own error is larger than any study


def _needed(needed: float) -> str:
    if math.isnan(needed):
        return ""
    return f"about {needed:.0f}" if needed <= COUNTABLE else "more than a hundred"


def verdicts(claims: pd.DataFrame) -> list[dict]:
    """Each claim with its verdict and its tested parts, in order."""
    found = []
    for claim, title in CLAIMS.items():
        tests = claims[(claims["claim"] == claim) & (claims["kind"] == TEST)]
        found.append(
            {
                "claim": claim,
                "title": title,
                "verdict": overall(tests["verdict"]),
                "parts": [part_view(row) for _, row in tests.iterrows()],
            }
        )
    return found


def counts(found: list[dict]) -> dict[str, int]:
    """How many claims got each verdict."""
    return {name: sum(c["verdict"] == name for c in found) for name in MARKS}


def claims_table(found: list[dict]) -> Table:
    """A row a tested part; the claim and its verdict stand at its first one."""
    rows = []
    for claim in found:
        head = [
            Entry(f"{claim['claim']}  {claim['title']}"),
            Entry(claim["verdict"], "", MARKS[claim["verdict"]]),
        ]
        for i, part in enumerate(claim["parts"]):
            several = len(claim["parts"]) > 1
            verdict = f"{part['statement']}: {part['verdict']}" if several else ""
            detail = ", ".join(
                x for x in (part["interval"], f"n = {part['n']} {part['counted']}") if x
            )
            rows.append(
                [
                    *(head if i == 0 else [Entry(""), Entry("")]),
                    Entry(part["metric"], verdict),
                    Entry(part["effect"], detail),
                    Entry(f"{part['relation']} {part['threshold']}"),
                    Entry(part["p"]),
                    _seeds_entry(part),
                ]
            )
    columns = ["claim", "verdict", "tested on", "effect", "asked", "p", "seeds a size"]
    return Table(columns, rows)


def _seeds_entry(part: dict) -> Entry:
    have = f"{part['per_size']}"
    if part["units"] == "rounds":
        have += " rounds"
    if not part["open"]:
        return Entry(have)
    return Entry(have, f"needs {part['needed']}" if part["needed"] else part["reason"])


def facts_table(claims: pd.DataFrame) -> Table:
    """What describes the claims without a threshold."""
    rows = []
    for _, row in claims[claims["kind"] == FACT].iterrows():
        view = part_view(row)
        detail = [view["interval"], f"n = {view['n']} {view['counted']}"]
        if not view["interval"] and view["reason"]:
            detail.append(view["reason"])
        rows.append(
            [
                Entry(view["claim"]),
                Entry(view["metric"]),
                Entry(view["effect"], ", ".join(x for x in detail if x)),
            ]
        )
    return Table(["claim", "fact", "value"], rows)
