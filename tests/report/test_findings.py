"""Findings in plain words: questions, answers and what would settle them, from claims.csv alone."""

import re
from pathlib import Path

import pandas as pd
import pytest

from vimpo.analysis.claims import SHAPES
from vimpo.analysis.measures import MEASURES
from vimpo.analysis.names import label
from vimpo.analysis.verdicts import FACT, INCONCLUSIVE, REFUTED, SUPPORTED, TEST, Role
from vimpo.report.findings import Critic, findings, short_claims
from vimpo.report.page import template_environment
from vimpo.report.parts import MEASURED, SCALES, View
from vimpo.report.readme import STUDIES
from vimpo.report.verdicts import claims_table, facts_table, verdicts
from vimpo.storage.codes import Reason
from vimpo.storage.tables import read_table

PUBLISHED = Path(__file__).parents[2] / "results/published"
BEST = next(PUBLISHED / name for name in STUDIES if (PUBLISHED / name).is_dir())


@pytest.fixture
def claims():
    """Rows of a small study, all open; tests overwrite what they are about."""
    return read_table(Path(__file__).parents[1] / "data", "claims")


def change(claims, *parts, **columns):
    """Overwrite columns of the rows of these parts."""
    chosen = claims["part"].isin(parts)
    assert chosen.sum() == len(parts), parts
    for column, value in columns.items():
        claims.loc[chosen, column] = value
    return claims


def said(claims, name, tests=9):
    """Question, short answer and body of one of the questions."""
    finding = next(f for f in findings(claims) if f["name"] == name)
    template = template_environment().from_string(
        '{% import "findings.j2" as said with context %}'
        "{{ said.question(f) }}|{{ said.short(f) }}|{{ said.body(f) }}"
    )
    return template.render(f=finding, part_count=tests).split("|")


GAP, LOST = "C1.grpo", ("C4.lost.grpo", "C4.lost.ppo")


@pytest.mark.parametrize(
    ("verdict", "low", "high", "answer"),
    [
        (INCONCLUSIVE, -0.01, 0.03, "Open."),
        (SUPPORTED, 0.01, 0.03, "Yes."),
        (SUPPORTED, -0.01, 0.03, "As good; better is not shown."),
        (SUPPORTED, -0.015, -0.001, "It is behind, by less than was allowed."),
        (REFUTED, -0.09, -0.03, "No, it is worse."),
    ],
)
def test_better_than_grpo_is_more_than_a_match(claims, verdict, low, high, answer):
    effect = (low + high) / 2
    frame = change(claims, GAP, verdict=verdict, low=low, high=high, effect=effect)
    _, short, body = said(frame, "grpo")
    assert short == answer
    side = "above" if effect > 0 else "below"
    assert body.startswith(
        f"On clean rewards it scores {100 * abs(effect):.1f} points {side} GRPO "
        f"({100 * low:+.1f} to {100 * high:+.1f}; 4 pairs); to match, it may be at most 2.0 points "
        "behind."
    )
    assert ("would settle it" in body) == (verdict == INCONCLUSIVE)
    ahead = verdict == SUPPORTED and low * high > 0
    assert ("was not tested" in body) == ahead


def test_an_open_answer_says_what_would_settle_it(claims):
    frame = change(claims, GAP, per_size=1, needed_per_size=17, low=-0.2)
    body = said(frame, "grpo")[2]
    wanted = "About 17 seeds per size would settle it; there is 1."
    assert body.endswith(wanted)
    one_seed = {"reason_code": Reason.ONE_SEED, "reason": "one seed has no spread"}
    frame = change(frame, GAP, needed_per_size=float("nan"), **one_seed)
    assert said(frame, "grpo")[2].endswith("behind. Not settled (one seed has no spread).")
    no_pair = {"reason_code": Reason.NO_PAIR, "reason": "no pair at size s"}
    frame = change(frame, GAP, effect=float("nan"), low=float("nan"), **no_pair)
    assert said(frame, "grpo")[1:] == ["Not known.", "Not available: no pair at size s."]
    frame = change(frame, "C4.lost.ppo", effect=float("nan"), **no_pair)
    assert "VIMPO loses less to noise than PPO: not available, no pair" in said(frame, "noise")[2]


def test_an_interval_that_passes_alone_is_told_from_a_verdict(claims):
    frame = change(claims, GAP, low=-0.01, high=0.03)
    assert "corrected for all 7 tests it does not." in said(frame, "grpo", tests=7)[2]
    frame = change(claims, GAP, low=-0.03)
    assert "corrected" not in said(frame, "grpo")[2]


def test_the_largest_need_of_several_parts_is_named(claims):
    assert "About 5 seeds per size" in said(claims, "noise")[2]
    frame = change(claims, "C4.lost.grpo", needed_per_size=40)
    assert "About 40 seeds per size" in said(frame, "noise")[2]


def test_noise_is_answered_against_each_rival(claims):
    frame = change(claims, "C4.lost.grpo", verdict=REFUTED)
    _, short, body = said(frame, "noise")
    assert short == "Against GRPO: no; against PPO: open."
    assert "it loses 0.8 points more than GRPO (-0.4 to +2.0; 4 pairs; refuted)" in body
    assert "PPO (-1.2 to +2.5; 4 pairs; inconclusive)" in body
    assert said(change(frame, *LOST, verdict=SUPPORTED, effect=-0.05), "noise")[1] == "Yes."
    assert "VIMPO 0 of 8, GRPO 0 of 8, PPO 0 of 8." in body
    assert "scores 0.8 points below GRPO" in body


@pytest.mark.parametrize(
    ("own", "critic", "answer"),
    [
        (INCONCLUSIVE, INCONCLUSIVE, "Open."),
        (REFUTED, SUPPORTED, "Short of what was asked; no worse than the critic."),
        (SUPPORTED, REFUTED, "As good as was asked; worse than the critic."),
        (REFUTED, INCONCLUSIVE, "Short of what was asked; open against the critic."),
        (REFUTED, REFUTED, "Short of what was asked; worse than the critic."),
    ],
)
def test_the_implied_value_is_held_against_its_mark_and_the_critic(claims, own, critic, answer):
    frame = change(change(claims, "C5.accurate", verdict=own), "C5.critic", verdict=critic)
    _, short, body = said(frame, "value")
    assert short == answer
    assert "It explains 0.01 of the variance" in body
    assert "It explains 0.08 more than PPO's critic (" in body
    assert "GRPO 0.00 (-0.30 to 0.30; 4 runs)" in body


def test_scale_and_order_of_the_implied_value_are_said_beside_its_accuracy(claims):
    hidden = claims[claims["part"] == "C5.hidden.grpo"]
    rows = [
        hidden.assign(part=f"C5.{name}", role=Role.SHAPE, statement=text, effect=0.37)
        for name, (_, text) in SHAPES.items()
    ]
    accurate = claims[claims["part"] == "C5.accurate"]
    order = accurate.assign(part="C5.order", role=Role.ORDER, effect=0.31, threshold=0.5)
    _, _, body = said(pd.concat([claims, order, *rows]), "value")
    assert (
        " Of the implied value: explained variance after the best rescaling 0.37 (-0.30 to 0.30; "
        "4 runs)." in body
    )
    assert "Its rank correlation with the truth is 0.31 (" in body
    assert "order is all that the actor uses of it. Threshold: above 0.50." in body


@pytest.mark.parametrize(("effect", "words"), [(0.04, "0.04 less"), (-0.04, "0.04 more")])
def test_credit_is_held_against_the_same_read_out_of_a_rival(claims, effect, words):
    first = claims[claims["part"] == "C6.first_wrong"]
    finer = first.assign(
        part="C6.finer.grpo", role=Role.FINER, rival="grpo", effect=effect, threshold=0.0
    )
    body = said(pd.concat([claims, finer]), "credit")[2]
    assert f"The same td, read out of GRPO's policy on its own responses, scores {words}" in body


def test_numbers_by_size_are_said_of_a_studys_own_questions_and_tabled_beside_every_test(claims):
    first = claims[claims["part"] == GAP]
    rows = [
        first.assign(
            part=f"{GAP}.{size}", kind=FACT, role=Role.BY_SIZE, effect=effect, side="", verdict="",
            statement=f"size {size}",
        )
        for size, effect in (("0.6b", 0.25), ("s", -0.125))
    ]  # fmt: skip
    frame = pd.concat([claims, *rows])
    assert "size 0.6b" not in said(frame, "grpo")[2]
    table = claims_table(verdicts(frame))
    place = table.columns.index("at each size")
    cells = [row[place].text for row in table.rows]
    assert cells[0] == "0.6b 0.250, s -0.125"
    assert set(cells[1:]) == {"–"}
    assert len(facts_table(frame).rows) == len(facts_table(claims).rows)
    assert "at each size" not in claims_table(verdicts(claims)).columns
    own = frame.replace({"claim": {"C1": "H"}})
    assert "By size: size 0.6b +0.25" in said(own, "own")[2]


def test_size_and_cost_are_answered_either_way(claims):
    for verdict, answer in ((SUPPORTED, "It does not fall by more"), (REFUTED, "It falls.")):
        assert said(change(claims, "C5.slope", verdict=verdict), "size")[1].startswith(answer)
    for verdict, answer in ((SUPPORTED, "Yes, in time."), (REFUTED, "No, not in time.")):
        assert said(change(claims, "C3.time.ppo", verdict=verdict), "cost")[1] == answer
    body = said(claims, "cost")[2]
    assert "75 % of PPO's time (56 to 101 %; 4 rounds" in body
    # what follows from the design has neither interval nor n
    assert "trainable parameters 50 %, resident parameters 100 %, optimiser state 50 %." in body


def test_a_part_that_no_phrase_knows_is_said_in_the_words_of_the_table(claims):
    metric = "AUC of VIMPO's td, minus that of a coin"
    new = claims[claims["part"] == "C6.first_wrong"].assign(
        part="C6.coin", role=Role.DIFFERENCE, metric=metric, statement="more than a coin",
        effect=0.02, low=-0.1, high=0.14, threshold=0.0, verdict=INCONCLUSIVE, needed_per_size=50,
        reason_code="", reason="",
    )  # fmt: skip
    frame = pd.concat([change(claims, "C6.first_wrong", verdict=SUPPORTED), new])
    place = frame.replace({Role.DIFFERENCE.value: Role.PLACE.value})
    assert "That is 0.02 more than the token's place" in said(place, "credit")[2]
    _, short, body = said(frame, "credit")
    assert short == "In part."
    assert f"{metric}: +0.02 (-0.10 to +0.14; 4 runs; inconclusive); threshold: above 0.00." in body
    assert "About 50 seeds per size" in body
    assert [row[0] for row in short_claims(findings(frame))][-1:] == ["C6 more than a coin"]


def test_a_row_of_the_short_table_says_its_verdict_once(claims):
    split = claims.copy()
    split.loc[(split["claim"] == "C5") & (split["kind"] == "test"), "verdict"] = (
        "refuted",
        "supported",
        "inconclusive",
    )
    rows = [row for row in short_claims(findings(split)) if row[0].startswith("C5")]
    assert len(rows) == 3
    for row in rows:
        assert not re.search("refuted|supported|inconclusive", row[2])


def test_zero_has_no_sign_and_one_unit_no_plural(claims):
    row = claims[claims["part"] == GAP].iloc[0]
    tiny = View.of(pd.concat([row.drop(["effect", "n"]), pd.Series({"effect": -1e-5, "n": 1})]))
    assert tiny.value == "0.0 points"
    assert tiny.interval_n.endswith("1 of 4 pairs")
    one = View.of(row.replace({4: 1}))
    assert one.interval_n.endswith("; 1 pair")


def test_every_role_has_a_scale_and_claims_a_role_each(claims):
    assert set(SCALES) == set(Role)
    for finding in findings(claims):
        assert {part.kind for part in finding["parts"]} == {TEST}
        assert {fact.kind for fact in finding["facts"]} <= {FACT}
    rows = sum(len(f["parts"]) + len(f["facts"]) for f in findings(claims))
    assert rows == len(claims)


@pytest.mark.parametrize(
    "name", [f["name"] for f in findings(read_table(BEST / "tables", "claims"))]
)
def test_every_number_of_a_published_answer_stands_in_its_claims(name):
    claims = read_table(BEST / "tables", "claims")
    finding = next(f for f in findings(claims) if f["name"] == name)
    text = " ".join(said(claims, name, tests=int((claims["kind"] == "test").sum()))[1:])
    assert "nan" not in text
    assert "inf" not in text.replace("infinity", "")
    for part in finding["parts"]:
        if part.available:
            assert part.amount.split()[0] in text
            assert part.interval_n in text
    rows = claims[claims["claim"] == finding["claim"]]
    numbers = rows.select_dtypes("number").to_numpy().ravel()
    known = {
        f"{abs(x) * factor:.{d}f}" for x in numbers for factor in (1, 10, 100) for d in (0, 1, 2)
    }
    known |= {f"{e * n:.0f}" for e, n in zip(rows["effect"], rows["n"], strict=True)}
    known.add(str((claims["kind"] == "test").sum()))
    unknown = set(re.findall(r"\d+(?:\.\d+)?", text)) - known
    assert not unknown, text


def test_the_short_table_has_a_row_for_every_test(claims):
    rows = short_claims(findings(claims))
    assert len(rows) == (claims["kind"] == "test").sum()
    assert [row[0][:2] for row in rows] == sorted(row[0][:2] for row in rows)
    assert rows[0][1:] == [
        "inconclusive (about 3 seeds per size would settle it)",
        "+0.2 points (-0.5 to +1.0; 4 pairs)",
        "> -2.0 points",
    ]
    row = short_claims(findings(change(claims, GAP, verdict=SUPPORTED)))[0]
    assert row[1] == "**supported**"


def test_what_is_said_about_a_critic_that_knows_nothing_says_so(claims):
    found = {
        f["name"]: f for f in findings(claims, {"ppo": Critic("PPO's critic", "0.02 at size s")})
    }
    told = {name for name, finding in found.items() if finding["ignorant"]}
    assert told == {"ppo", "noise", "value"}  # and neither what a step costs, nor GRPO
    template = template_environment().from_string(
        '{% import "findings.j2" as said with context %}{{ said.short(f) }}|{{ said.body(f) }}'
    )
    short, body = template.render(f=found["ppo"], part_count=9).split("|")
    assert short.endswith("(PPO's critic knows nothing.)")
    assert body.endswith(
        "But PPO's critic explains less than a tenth of how the true value changes along a "
        "response (0.02 at size s): it knows nothing, so this says nothing of a critic that has "
        "learned."
    )


def test_what_a_hypothesis_measured_stands_after_its_number(claims):
    row = claims[claims["part"] == GAP].assign(claim="mine", role="difference", unit="share")
    for measure, words in MEASURED.items():
        view = View.of(row.assign(part=f"mine.{measure}").iloc[0])
        assert view.value_of == f"{view.value}{words}"
        assert view.value.endswith(" points")


def test_every_measure_has_words():
    names = {measure.model_fields["name"].default for measure in MEASURES}
    assert names == set(MEASURED) | {"steps_to", "seconds", "memory"}  # whose units say it


@pytest.mark.parametrize("pair", [("oracle_shuffled", "dr_grpo"), ("tbrm", ""), ("mine", "rloo")])
def test_own_questions_are_answered_about_any_pair(claims, pair):
    row = claims[claims["part"] == GAP].assign(
        part="asked.area", claim="asked", role="difference" if pair[1] else "level", unit="share",
        algorithm=pair[0], rival=pair[1], statement="Is it so?", verdict=REFUTED,
        metric=f"area under the learning curve, {' minus '.join(filter(None, pair))}",
    )  # fmt: skip
    (finding,) = findings(row)
    template = template_environment().from_string(
        '{% import "findings.j2" as said with context %}'
        "{{ said.question(f) }} {{ said.short(f) }} {{ said.body(f) }}"
    )
    text = template.render(f=finding, part_count=1)
    assert text.startswith("Is it so? No. Area under the learning curve, " + pair[0])
    assert not re.search(r"VIMPO|PPO|\bGRPO", text)
    assert finding["parts"][0].whose == label(pair[1] or pair[0])
