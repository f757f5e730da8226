"""The report's claims: verdicts and the numbers behind them, as tables."""

from __future__ import annotations

import pandas as pd

from vimpo.analysis.claims import CLAIMS
from vimpo.analysis.verdicts import (
    DECODER,
    FACT,
    INCONCLUSIVE,
    NOT_APPLICABLE,
    REFUTED,
    SUPPORTED,
    TEST,
    Counted,
    Role,
    overall,
)
from vimpo.report.parts import View, p_text
from vimpo.report.tables import Entry, Table

MARKS = {SUPPORTED: "#1a7f37", REFUTED: "#b3261e", INCONCLUSIVE: "#8a8f98"}
MARKS[NOT_APPLICABLE] = MARKS[INCONCLUSIVE]


def views(claims: pd.DataFrame) -> list[View]:
    return [View.of(row) for _, row in claims.iterrows()]


def verdicts(claims: pd.DataFrame) -> list[dict]:
    """Each claim with its verdict and its tested parts, in order; a study's own come first."""
    rows = views(claims)
    tests = [view for view in rows if view.kind == TEST]
    found = []
    for claim, title in (own_claims(tests) | CLAIMS).items():
        if not (parts := [part for part in tests if part.claim == claim]):
            continue  # not tested by this study
        verdict = overall(part.verdict for part in parts)
        by_size = {part.part: _at_sizes(part, rows) for part in parts}
        found.append(
            {"claim": claim, "title": title, "verdict": verdict, "parts": parts, "by_size": by_size}
        )
    return found


def _at_sizes(part: View, rows: list[View]) -> dict[str, View]:
    """The facts that give a test's number at each size."""
    start = f"{part.part}."
    facts = [view for view in rows if view.role == Role.BY_SIZE and view.part.startswith(start)]
    return {fact.part.removeprefix(start): fact for fact in facts}


def own_claims(rows: list[View]) -> dict[str, str]:
    """The study's own hypotheses: id -> question."""
    tests = [view for view in rows if view.kind == TEST and view.claim not in CLAIMS]
    return {view.claim: view.statement for view in tests}


def counts(found: list[dict]) -> dict[str, int]:
    """How many claims got each verdict; those that do not apply are named if there are any."""
    number = {name: sum(c["verdict"] == name for c in found) for name in MARKS}
    return {name: n for name, n in number.items() if n or name != NOT_APPLICABLE}


def test_count(claims: pd.DataFrame) -> int:
    """How many tests p values are corrected for."""
    return int(((claims["kind"] == TEST) & (claims["verdict"] != NOT_APPLICABLE)).sum())


def claims_table(found: list[dict]) -> Table:
    """One row per tested part; the claim and its verdict stand at its first one."""
    sizes = any(facts for claim in found for facts in claim["by_size"].values())
    rows = []
    for claim in found:
        head = [
            Entry(f"{claim['claim']}  {claim['title']}"),
            Entry(claim["verdict"], "", MARKS[claim["verdict"]]),
        ]
        several = len(claim["parts"]) > 1
        for i, part in enumerate(claim["parts"]):
            rows.append(
                [
                    *(head if i == 0 else [Entry(""), Entry("")]),
                    Entry(part.metric, f"{part.statement}: {part.verdict}" if several else ""),
                    Entry(part.effect_text, _detail(part)),
                    *[_sizes_entry(claim["by_size"][part.part])] * sizes,
                    Entry(part.asked),
                    Entry(p_text(part.p_holm)),
                    _seeds_entry(part),
                ]
            )
    columns = ["claim", "verdict", "tested on", "effect"] + ["at each size"] * sizes
    return Table([*columns, "threshold", "p", "seeds per size"], rows)


def _sizes_entry(facts: dict[str, View]) -> Entry:
    """`xs 0.123, s 0.045`"""
    return Entry(", ".join(f"{size} {fact.effect_text}" for size, fact in facts.items()) or "–")


def _detail(part: View, *more: str) -> str:
    """`[-0.004, 0.010], n = 4 pairs`"""
    count = f"n = {part.n_of_expected} {part.counted}"
    return ", ".join(filter(None, (part.interval, count, *more)))


def _seeds_entry(part: View) -> Entry:
    have = f"{part.per_size}" + " rounds" * (part.counted == Counted.ROUNDS)
    if part.applies and not part.open:
        return Entry(have)
    return Entry(have, f"needs {part.needed}" if part.needed else part.reason)


def by_decoder(claims: pd.DataFrame) -> list[list[View]]:
    """Each test of accuracy under every decoder that it has a number for."""
    found: dict[str, list[View]] = {}
    for view in views(claims):
        if view.kind == DECODER and view.available:
            found.setdefault(view.test, []).append(view)
    return list(found.values())


def disagreements(claims: pd.DataFrame) -> list[dict]:
    """Tests whose verdict depends on the decoder, with the decoders of each verdict."""
    found = []
    for parts in by_decoder(claims):
        decoders = {v: [p.decoder for p in parts if p.verdict == v] for v in MARKS}
        verdicts = {verdict: names for verdict, names in decoders.items() if names}
        if len(verdicts) > 1:
            said = {"claim": parts[0].claim, "statement": parts[0].statement}
            found.append(said | {"verdicts": verdicts})
    return found


def decoders_table(claims: pd.DataFrame) -> Table:
    """Effect and verdict of each test of accuracy under every decoder."""
    tests = by_decoder(claims)
    names = list(dict.fromkeys(part.decoder for parts in tests for part in parts))
    rows = []
    for parts in tests:
        under = {part.decoder: part for part in parts}
        entries = [
            Entry(p.effect_text, f"{p.verdict}, {_detail(p)}", MARKS[p.verdict])
            if (p := under.get(name))
            else Entry("n/a")
            for name in names
        ]
        head = [Entry(parts[0].claim), Entry(parts[0].statement), Entry(parts[0].asked)]
        rows.append([*head, *entries])
    return Table(["claim", "tested", "threshold", *names], rows)


def facts_table(claims: pd.DataFrame) -> Table:
    """What describes the claims without a threshold."""
    rows = [
        [
            Entry(fact.claim),
            Entry(fact.metric),
            Entry(fact.effect_text, _detail(fact, "" if fact.bounded else fact.reason)),
        ]
        for fact in views(claims)
        if fact.kind == FACT and fact.role != Role.BY_SIZE  # those stand beside their test
    ]
    return Table(["claim", "fact", "value"], rows)
