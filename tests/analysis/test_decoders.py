"""Verdicts on accuracy under each decoder, and what the report says where they differ."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats as st

from vimpo.analysis.claims import claim_rows
from vimpo.analysis.inference import holm
from vimpo.analysis.scores import Tables
from vimpo.analysis.summaries import labels
from vimpo.config import load_study
from vimpo.report.page import template_environment
from vimpo.report.verdicts import by_decoder, decoders_table, disagreements, verdicts
from vimpo.storage.columns import COLUMNS

SEEDS = (1, 2, 3, 4, 5, 6)
NOISE = np.array([0.01, -0.02, 0.015, 0.0, -0.01, 0.005])
GAP = {"sampled": 0.1, "greedy": -0.1, "training": 0.1}  # VIMPO minus GRPO, or minus RLOO's half
OWN = {
    "id": "H",
    "question": "Is it ahead of RLOO?",
    "measure": "accuracy",
    "contrast": {"algorithm": "vimpo", "minus": "rloo"},
    "side": "above",
    "threshold": 0.0,
}


@pytest.fixture
def study():
    names = ["vimpo", "grpo", "ppo", "rloo"]
    return load_study(
        {
            "grid": {"algorithms": names, "sizes": ["xs"], "noise": [0], "seeds": [*SEEDS]},
            "evaluation": {"decoders": {"training": {}}},
            "claims": {"tested": ["C1", "C6"]},
            "hypotheses": [OWN],
        }
    )


@pytest.fixture
def claims(study):
    rows = []
    for cell in study.cells():
        key = labels(cell.algorithm, cell.size, cell.noise) | {"seed": cell.seed}
        for metric, gap in GAP.items():
            ahead = {"vimpo": gap, "rloo": gap / 2}.get(cell.algorithm, 0.0)
            value = 0.5 + ahead + NOISE[cell.seed - 1] * (cell.algorithm == "vimpo")
            row = {"benchmark": "chain_easy", "metric": metric, "value": value, "stderr": 0.01}
            rows.append(key | row)
    frames = {n: pd.DataFrame(columns=COLUMNS[n]) for n in ("probes", "measured_cost", "outcomes")}
    frames["accuracy"] = pd.DataFrame(rows, columns=COLUMNS["accuracy"])
    found = claim_rows(study, Tables(**frames), {"xs": 1e5})
    return pd.DataFrame(found, columns=COLUMNS["claims"])


def test_each_test_of_accuracy_is_made_under_each_decoder(claims):
    rows = claims[claims.kind == "decoder"].set_index("part")
    assert list(rows.index) == [
        f"{part}@{decoder}" for part in ("C1.grpo", "H.accuracy") for decoder in GAP
    ]
    assert list(rows.verdict)[:3] == ["supported", "refuted", "supported"]
    gaps = {d: GAP[d] + NOISE for d in GAP}, {d: GAP[d] / 2 + NOISE for d in GAP}
    for decoder in GAP:
        c1 = st.ttest_1samp(gaps[0][decoder], -0.02).pvalue
        own = st.ttest_1samp(gaps[1][decoder], 0).pvalue
        # C6 has four parts without a number, which count as tests.
        corrected = holm([c1, *[1.0] * 4, own])
        for part, p, p_holm in (("C1.grpo", c1, corrected[0]), ("H.accuracy", own, corrected[-1])):
            row = rows.loc[f"{part}@{decoder}"]
            assert (row.p, row.p_holm) == pytest.approx((p, p_holm))
            assert row.effect == pytest.approx(gaps[part == "H.accuracy"][decoder].mean())
    assert rows.loc["C1.grpo@greedy"].metric == "greedy accuracy, VIMPO minus GRPO, clean rewards"


def test_they_leave_the_tests_alone(claims, study):
    tests = claims[claims.kind == "test"].set_index("part")
    assert len(tests) == 6
    again = claims.set_index("part").loc["C1.grpo@sampled"]
    for column in ("effect", "p", "p_holm", "verdict", "needed_per_size"):
        same = again[column] == tests.loc["C1.grpo"][column]
        assert same or pd.isna(again[column])
    assert {v["claim"] for v in verdicts(claims)} == {"C1", "C6", "H"}


def test_the_report_leads_with_a_disagreement(claims):
    found = disagreements(claims)
    assert [d["claim"] for d in found] == ["C1", "H"]
    template = template_environment().from_string(
        '{% import "findings.j2" as said with context %}{{ said.disagreement(found) }}'
    )
    assert template.render(found=found) == (
        "The verdict depends on how answers are drawn: C1 (VIMPO matches GRPO) is supported under "
        "sampled, training and refuted under greedy; H (Is it ahead of RLOO?) is supported under "
        "sampled, training and refuted under greedy."
    )
    table = decoders_table(claims)
    assert table.columns == ["claim", "tested", "threshold", "sampled", "greedy", "training"]
    assert [entry.text for entry in table.rows[0]][3:] == ["0.100", "-0.100", "0.100"]


def test_without_a_difference_nothing_is_said(claims):
    agreed = claims[~claims.part.str.endswith("@greedy")]
    assert disagreements(agreed) == []
    assert len(by_decoder(agreed)) == 2
    lone = claims[claims.kind != "decoder"]
    assert by_decoder(lone) == disagreements(lone) == decoders_table(lone).rows == []


def test_a_decoder_without_numbers_disagrees_with_nobody(claims):
    absent = claims.part == "C1.grpo@greedy"
    claims.loc[absent, ["effect", "low", "high"]] = np.nan
    claims.loc[absent, "verdict"] = "inconclusive"
    assert [d["claim"] for d in disagreements(claims)] == ["H"]
