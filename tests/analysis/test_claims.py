"""Verdicts from planted numbers: right, rare by chance, and never from what is not there."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from fake_results import PARAMETERS
from scipy import stats as st

from vimpo.analysis.claims import CLAIMS, SHAPES, claim_rows
from vimpo.analysis.intervals import mean_interval, not_available
from vimpo.analysis.scores import Tables, area, lost
from vimpo.analysis.summaries import labels
from vimpo.analysis.verdicts import (
    Counted,
    Found,
    Part,
    Role,
    difference,
    judge,
    mean,
    overall,
    slope,
)
from vimpo.config import load_study
from vimpo.storage.codes import Reason, Why
from vimpo.storage.columns import COLUMNS

NAN = float("nan")
SIZES, SEEDS = ("xs", "s"), (1, 2, 3, 4, 5)


def a_study(**grid):
    block = {"sizes": list(SIZES), "noise": [0, 0.25], "seeds": list(SEEDS)} | grid
    return load_study({"grid": [block], "statistics": {"resamples": 100}})


def tables_of(
    study, rng, gap=0.1, loss=0.4, value=0.6, order=0.9, drop=0.0, auc=0.8, theirs=0.7, place=0.6,
    time=0.5, spread=0.01,
):  # fmt: skip
    """Planted truth: VIMPO ahead by `gap`, the others losing `loss` more per unit of noise."""
    accuracy, probes, cost = [], [], []

    def near(centre):
        return centre + spread * rng.normal()

    for cell in study.cells():
        key = labels(cell.algorithm, cell.size, cell.noise)
        key |= {"seed": cell.seed, "params": PARAMETERS[cell.size]}
        ours, grown = cell.algorithm == "vimpo", math.log10(PARAMETERS[cell.size] / 1.07e5)
        score = near(0.6 + gap * ours - (0.2 + loss * (not ours)) * key["noise_level"])
        shared = {"metric": "sampled", "stderr": 0.01, "problems": 250, "samples": 2}
        accuracy += [key | shared | {"benchmark": b, "value": score} for b in ("easy", "hard")]
        found = {
            ("value", "implied", "change", "explained_variance"): value + drop * grown,
            ("value", "implied", "change", "explained_variance_linear"): value + 0.2,
            ("value", "implied", "change", "spearman"): order,
            ("value", "critic", "change", "explained_variance"): value - 0.3,
            ("credit", "implied_td", "step", "auc"): auc if ours else theirs,
            ("credit", "position", "step", "auc"): place,
        }
        for (probe, predictor, target, metric), centre in found.items():
            row = {"probe": probe, "predictor": predictor, "target": target, "metric": metric}
            row |= {"position": "all", "value": near(centre), "stderr": spread / 9}
            row |= {"reason_code": "", "reason": ""}
            probes.append(key | row)
    for size, algorithm, turn in itertools.product(SIZES, ("vimpo", "ppo", "grpo"), range(5)):
        key = {"kind": "measured", "size": size, "algorithm": algorithm, "round": turn}
        seconds = (time if algorithm == "vimpo" else 1.0) * math.exp(spread * rng.normal())
        trained = 2 if algorithm == "ppo" else 1
        values = {"step_total": seconds, "parameters_trainable": trained * 1e5}
        cost += [key | {"metric": m, "value": v} for m, v in values.items()]
    for size in SIZES:
        row = labels("base", size, "0") | {"params": PARAMETERS[size], "metric": "sampled"}
        accuracy.append(row | {"benchmark": "easy", "value": 0.5})
    frames = (("accuracy", accuracy), ("probes", probes), ("measured_cost", cost), ("outcomes", []))
    return Tables(*(pd.DataFrame(rows, columns=COLUMNS[name]) for name, rows in frames))


def a_part(claim="C1", counted=Counted.RUNS):
    return Part(claim, "one", Role.LEVEL, "", "", counted, "vimpo")


def claims(study, tables, params=PARAMETERS):
    rows = claim_rows(study, tables, params)
    assert set(rows[0]) == set(COLUMNS["claims"])
    assert len({row["part"] for row in rows}) == len(rows)
    return pd.DataFrame(rows, columns=COLUMNS["claims"])


def only_tests(frame):
    return frame[frame.kind == "test"]


def without(tables, name, chosen):
    frame = getattr(tables, name)
    kept = {n: getattr(tables, n) for n in ("accuracy", "probes", "measured_cost", "outcomes")}
    return Tables(**(kept | {name: frame[~chosen(frame)]}))


# --- planted -------------------------------------------------------------------------------------


def test_planted_advantages_support_every_claim():
    study = a_study()
    tested = only_tests(claims(study, tables_of(study, np.random.default_rng(0))))
    assert set(tested.verdict) == {"supported"}, tested[["statement", "p_holm"]]
    assert set(tested.claim) == set(CLAIMS)
    row = tested.set_index("claim").loc["C1"]
    assert row.effect == pytest.approx(0.1, abs=0.02)
    assert (row.n, row.expected, row.per_size, row.counted) == (10, 10, 5, "pairs")
    assert (tested.n == tested.expected).all()
    time = tested.set_index("claim").loc["C3"]
    assert time.effect == pytest.approx(0.5, rel=0.05)  # a ratio, not its logarithm
    assert time.low < time.effect < time.high < 1


def test_planted_faults_refute_every_claim():
    study, rng = a_study(), np.random.default_rng(1)
    bad = dict(gap=-0.2, loss=-0.4, value=0.0, order=0.3, drop=-0.5, auc=0.4, time=2.0)
    tables = tables_of(study, rng, **bad)
    critic = tables.probes.predictor == "critic"
    tables.probes.loc[critic, "value"] += 0.8
    tested = only_tests(claims(study, tables))
    assert set(tested.verdict) == {"refuted"}, tested[["statement", "effect", "p_holm"]]


def test_few_noisy_seeds_are_inconclusive_and_say_how_many_would_do():
    study = a_study(seeds=[1, 2])
    tables = tables_of(study, np.random.default_rng(2), gap=0.02, spread=0.05)
    row = only_tests(claims(study, tables)).set_index("claim").loc["C1"]
    assert row.verdict == "inconclusive"
    assert row.per_size == 2
    assert 3 <= row.needed_per_size < 10_000


def test_the_seeds_that_are_asked_for_mostly_settle_it():
    """At the true effect and spread, power is at least what the estimate promises."""
    rng, part = np.random.default_rng(3), a_part(counted=Counted.PAIRS).above(0.0)
    # two strata of three seeds whose mean and spread are the true ones, 0.6 standard deviations off
    exact = np.array([-1.0, 0.0, 1.0]) + 0.6
    scores = {(size, "0", k): v for size in SIZES for k, v in enumerate(exact)}
    zeros = dict.fromkeys(scores, 0.0)
    found = difference(scores, zeros, scores, 0.95)
    needed = int(judge([(part, found)], 0.95, 0.8)[0]["needed_per_size"])
    hits = 0
    for _ in range(400):
        drawn = {(s, "0", k): 0.6 + rng.normal() for s in SIZES for k in range(needed)}
        again = difference(drawn, dict.fromkeys(drawn, 0.0), drawn, 0.95)
        hits += judge([(part, again)], 0.95, 0.8)[0]["verdict"] == "supported"
    assert hits / 400 > 0.76  # 0.8 less three standard errors


@pytest.mark.parametrize("repeats", [15, pytest.param(60, marks=pytest.mark.slow)])
def test_verdicts_under_a_planted_null_are_rare(repeats):
    """Every effect on its threshold: Holm promises one false verdict in at most 5 % of studies."""
    study, rng, false = a_study(seeds=[1, 2, 3]), np.random.default_rng(4), 0
    c = study.claims
    null = dict(gap=-c.accuracy_margin, loss=0.0, value=c.value_accuracy, drop=c.value_slope)
    null |= dict(auc=0.5 + c.credit_margin, time=c.time_ratio, spread=0.05)
    null |= dict(place=null["auc"] - c.place_margin, theirs=null["auc"] - c.finer_margin)
    null |= dict(order=c.value_order)
    for _ in range(repeats):
        tables = tables_of(study, rng, **null)
        critic = tables.probes.predictor == "critic"
        tables.probes.loc[critic, "value"] += 0.3 + c.critic_margin
        # with a slope, the mean over sizes is on the threshold only after a shift
        middle = np.mean([math.log10(PARAMETERS[s] / 1.07e5) for s in SIZES])
        implied = tables.probes.predictor == "implied"
        implied &= tables.probes.metric == "explained_variance"
        tables.probes.loc[implied, "value"] -= c.value_slope * middle
        false += (only_tests(claims(study, tables)).verdict != "inconclusive").any()
    # binomial: more than this in one of a thousand suites if the rate is 0.05
    assert false <= st.binom.ppf(0.999, repeats, 0.05)


# --- not available -------------------------------------------------------------------------------


def test_one_seed_gives_an_effect_without_a_verdict():
    study = a_study(seeds=[1])
    tables = tables_of(study, np.random.default_rng(5))
    tested = only_tests(claims(study, tables))
    seeds = tested[tested.claim != "C3"]  # cost has its rounds
    assert set(seeds.verdict) == {"inconclusive"}
    assert seeds.p.isna().all()
    assert seeds.effect.notna().all()
    assert seeds.needed_per_size.isna().all()
    assert seeds.reason.str.contains("one seed").all()
    assert set(seeds.reason_code) == {Reason.STRATUM_ONE_SEED}


@pytest.mark.parametrize("rival", ["ppo", "grpo"])
def test_a_rival_that_the_grid_lacks_makes_its_claims_unavailable(rival):
    algorithms = [a for a in ("vimpo", "ppo", "grpo") if a != rival]
    study = a_study(algorithms=algorithms)
    tested = only_tests(claims(study, tables_of(study, np.random.default_rng(6))))
    lacking = tested[tested.reason_code == Reason.NOT_IN_GRID]
    assert set(lacking.reason) == {"the grid has no such pair"}
    expected = {"ppo": {"C2", "C3", "C4", "C5", "C6"}, "grpo": {"C1", "C4", "C6"}}[rival]
    assert set(lacking.claim) == expected
    assert set(lacking.verdict) == {"inconclusive"}
    credit = tested[tested.claim == "C6"].set_index("part").drop(f"C6.finer.{rival}")
    assert set(credit.verdict) == {"supported"}


@pytest.mark.parametrize("place", [0.8, 0.2])
def test_credit_that_the_place_alone_gives_is_no_credit(place):
    """A signal that rises along the response says as much as one that falls."""
    study = a_study()
    tested = only_tests(claims(study, tables_of(study, np.random.default_rng(2), place=place)))
    by_part = tested.set_index("part")
    assert by_part.verdict["C6.first_wrong"] == "supported"
    assert by_part.verdict["C6.place"] == "inconclusive"
    assert by_part.effect["C6.place"] == pytest.approx(0, abs=0.02)


def test_credit_that_any_policy_has_is_no_merit_of_vimpo():
    """The same td read out of a rival's policy, paired by seed: a tie, or one ahead."""
    study, rng = a_study(), np.random.default_rng(3)
    tables = tables_of(study, rng, theirs=0.8)
    frame = tables.probes
    td = frame.predictor == "implied_td"
    frame.loc[td & (frame.algorithm == "ppo"), "value"] += 0.1
    by_seed = 0.2 * (frame.seed - 3)  # between seeds, and the same for all: pairs do not see it
    frame.loc[td, "value"] += by_seed[td]
    tested = only_tests(claims(study, tables)).set_index("part")
    tie, behind = tested.loc["C6.finer.grpo"], tested.loc["C6.finer.ppo"]
    assert tie.effect == pytest.approx(0, abs=0.02)
    assert (tie.verdict, tie.counted, tie.n) == ("inconclusive", "pairs", 10)
    assert behind.effect == pytest.approx(-0.1, abs=0.02)
    assert behind.verdict == "refuted"


def test_every_mean_is_also_given_at_each_size_without_a_test():
    study = a_study()
    found = claims(study, tables_of(study, np.random.default_rng(0), drop=-0.2))
    rows = found.set_index("part")
    small, grown = rows.loc["C5.accurate.xs"], rows.loc["C5.accurate.s"]
    assert small.effect == pytest.approx(0.6, abs=0.02)
    assert grown.effect == pytest.approx(0.6 - 0.2 * math.log10(PARAMETERS["s"] / 1.07e5), abs=0.02)
    assert (small.kind, small.role, small.n, small.verdict) == ("fact", "by_size", 5, "")
    assert (small.effect + grown.effect) / 2 == pytest.approx(rows.effect["C5.accurate"])
    tested = found[found.kind == "test"].part
    given = found[found.role == "by_size"].part.str.rpartition(".")[0]
    assert set(given) == set(tested) - {"C5.slope"}
    one = a_study(sizes=["xs"])
    assert "by_size" not in set(claims(one, tables_of(one, np.random.default_rng(0))).role)


def test_a_size_without_pairs_is_not_silently_left_out():
    study = a_study()
    tables = tables_of(study, np.random.default_rng(7))
    lost_size = without(tables, "accuracy", lambda f: (f.algorithm == "grpo") & (f["size"] == "s"))
    row = only_tests(claims(study, lost_size)).set_index("claim").loc["C1"]
    assert (row.verdict, row.reason) == ("inconclusive", "no pair at size s")
    assert row.reason_code == Reason.NO_PAIR
    assert math.isnan(row.effect)


def test_a_missing_run_lowers_n_and_the_count_that_was_expected_stays():
    study = a_study()
    tables = tables_of(study, np.random.default_rng(8))
    gone = without(
        tables,
        "accuracy",
        lambda f: (f.algorithm == "grpo") & (f["size"] == "s") & (f.seed == 2) & (f.noise == "0"),
    )
    tested = only_tests(claims(study, gone)).set_index("part")
    first = tested.loc["C1.grpo"]
    assert (first.n, first.expected, first.per_size) == (9, 10, 4)
    assert tested.loc["C4.lost.grpo"].n == 9  # half a curve is none
    assert tested.loc["C4.lost.ppo"].n == 10


@pytest.mark.parametrize("name", ["accuracy", "probes", "measured_cost"])
def test_a_nan_is_never_averaged_away(name):
    study = a_study()
    tables = tables_of(study, np.random.default_rng(9))
    frame = getattr(tables, name)
    chosen = (frame.algorithm == "vimpo") & (frame["size"] == "s")
    if name == "accuracy":  # one benchmark of one run
        chosen &= (frame.seed == 1) & (frame.noise == "0") & (frame.benchmark == "hard")
    frame.loc[frame[chosen].index[:2], "value"] = NAN
    tested = only_tests(claims(study, tables))
    hit = tested[tested.reason_code == Reason.NOT_FINITE]
    assert hit.reason.str.contains("not finite").all()
    expected = {"accuracy": {"C1", "C2", "C4"}, "probes": {"C5"}, "measured_cost": {"C3"}}[name]
    assert expected <= set(hit.claim)
    assert set(hit.verdict) == {"inconclusive"}
    assert hit.effect.isna().all()


def test_parts_that_cannot_be_tested_still_count_in_the_correction():
    estimate = mean_interval([0.1, 0.12, 0.09, 0.11])
    part = a_part().above(0.08)
    empty = mean({}, [], 0.95)
    alone = judge([(part, Found(estimate, 4, 4))], 0.95, 0.8)[0]
    among = judge([(part, Found(estimate, 4, 4)), (part, empty), (part, empty)], 0.95, 0.8)
    assert among[0]["p_holm"] == pytest.approx(3 * alone["p"])
    assert math.isnan(among[1]["p_holm"])
    fact = a_part()
    beside = judge([(part, Found(estimate, 4, 4)), (fact, Found(estimate, 4, 4))], 0.95, 0.8)
    assert beside[0]["p_holm"] == alone["p"]  # a fact is no test
    assert beside[1]["verdict"] == ""


def test_one_size_has_no_slope_and_an_unknown_size_says_so():
    study = a_study(sizes=["xs"])
    scores = {("xs", "0", k): 0.3 + 0.01 * k for k in SEEDS}
    found = slope(scores, scores, PARAMETERS, study.statistics)
    assert "1 size gives no slope" in found.estimate.reason
    found = slope(scores, scores, {}, study.statistics)
    assert found.estimate.reason == "no parameter count of size xs"
    assert found.estimate.code == Reason.NO_PARAMETERS


# --- definitions ---------------------------------------------------------------------------------


def test_accuracy_lost_is_a_least_squares_slope_and_area_a_mean():
    rates, values = np.array([0.0, 0.1, 0.25, 0.4]), np.array([0.8, 0.77, 0.66, 0.6])
    assert lost(rates, values) == pytest.approx(-st.linregress(rates, values).slope)
    assert area(rates, np.full(4, 0.7)) == pytest.approx(0.7)
    assert area(np.array([0, 0.25]), np.array([0.8, 0.6])) == pytest.approx(0.7)


def test_the_control_at_one_half_enters_no_claim():
    with_control, plain = a_study(noise=[0, 0.25, 0.5]), a_study()
    a, b = (
        claims(study, tables_of(study, np.random.default_rng(10), spread=0.0))
        for study in (with_control, plain)
    )
    a, b = a[a.claim == "C4"], b[b.claim == "C4"]
    pd.testing.assert_series_equal(a.effect, b.effect)
    pd.testing.assert_series_equal(a.n, b.n)


def test_noise_per_rollout_is_used_where_the_grid_has_no_group_noise():
    study = a_study(noise_mode="rollout")
    tables = tables_of(study, np.random.default_rng(11))
    tested = only_tests(claims(study, tables)).set_index("part")
    assert tested.loc["C4.lost.grpo"].effect == pytest.approx(-0.4, abs=0.1)
    assert tested.loc["C1.grpo"].n == 10  # `rollout-0` is clean too


def test_collapse_and_spread_are_counted_over_runs():
    study = a_study()
    tables = tables_of(study, np.random.default_rng(12), spread=0.02)
    frame = tables.accuracy
    frame.loc[
        (frame.algorithm == "grpo") & (frame.seed == 3) & (frame.noise == "0.25"), "value"
    ] = 0.1
    facts = claims(study, tables)
    facts = facts[facts.kind == "fact"].set_index("part")
    down = facts.loc["C4.collapse.grpo"]
    assert down.effect == 2 / 20
    exact = st.binomtest(2, 20).proportion_ci(0.95, method="exact")
    assert (down.low, down.high) == pytest.approx((exact.low, exact.high))
    assert facts.loc["C4.collapse.vimpo"].effect == 0
    spread = facts.loc["C4.spread.vimpo"]
    assert spread.low < 0.02 < spread.high
    assert facts.loc["C4.spread.grpo"].effect > 0.05


def test_a_run_that_failed_has_collapsed_with_any_accuracy_and_with_none():
    study = a_study()
    tables = tables_of(study, np.random.default_rng(12), spread=0.02)
    kinds = {1: "finished", 2: "not_finite", 3: "collapsed"}
    rows = [
        labels("grpo", SIZES[0], "0.25") | {"seed": seed, "outcome": kind, "step": 3}
        for seed, kind in kinds.items()
    ]
    tables = replace(tables, outcomes=pd.DataFrame(rows, columns=COLUMNS["outcomes"]))
    row = claims(study, tables).set_index("part").loc["C4.collapse.grpo"]
    assert (row.effect, row.n) == (2 / 20, 20)
    of_seed_2 = (tables.accuracy["size"] == SIZES[0]) & (tables.accuracy.noise == "0.25")
    of_seed_2 &= (tables.accuracy.algorithm == "grpo") & (tables.accuracy.seed == 2)
    tables = replace(tables, accuracy=tables.accuracy[~of_seed_2])  # never evaluated
    row = claims(study, tables).set_index("part").loc["C4.collapse.grpo"]
    assert (row.effect, row.n) == (2 / 20, 20)


def test_ratios_of_the_design_are_facts_without_an_interval():
    study = a_study()
    facts = claims(study, tables_of(study, np.random.default_rng(13))).set_index("part")
    row = facts.loc["C3.trainable.ppo"]
    assert (row.effect, row.kind, row.verdict) == (pytest.approx(0.5), "fact", "")
    assert row.reason_code == Reason.DESIGN
    assert row.reason == "it follows from the design: nothing varies"


def test_a_value_that_is_only_badly_scaled_is_a_fact_of_c5():
    study = a_study()
    found = claims(study, tables_of(study, np.random.default_rng(0), value=0.1))
    facts = found[(found.claim == "C5") & (found.kind == "fact")].set_index("part")
    for name, centre in zip(SHAPES, (0.3,), strict=True):
        row = facts.loc[f"C5.{name}"]
        assert row.effect == pytest.approx(centre, abs=0.01)
        assert (row.n, row.verdict, row.low < row.effect < row.high) == (10, "", True)
    tested = found.set_index("part")
    assert tested.verdict["C5.accurate"] == "refuted"
    assert tested.verdict["C5.order"] == "supported"  # the order may be right all the same
    assert tested.effect["C5.order"] == pytest.approx(0.9, abs=0.01)


def test_the_error_over_shared_problems_does_not_average_out():
    keys = [(size, "0", k) for size in SIZES for k in SEEDS]
    scores = {key: 0.6 + 0.001 * key[2] for key in keys}
    part = a_part("C6").above(0.55)
    sure = mean(scores, keys, 0.95, dict.fromkeys(keys, 0.0001))
    unsure = mean(scores, keys, 0.95, dict.fromkeys(keys, 0.2))
    assert sure.estimate.stderr == mean(scores, keys, 0.95).estimate.stderr
    assert unsure.estimate.stderr == pytest.approx(0.2)
    row = judge([(part, unsure)], 0.95, 0.8)[0]
    assert row["verdict"] == "inconclusive"
    assert row["needed_per_size"] == math.inf
    assert row["reason_code"] == Reason.PROBLEMS_LIMIT
    assert "more problems are needed" in row["reason"]


def test_what_no_run_of_a_task_can_have_is_no_test():
    part = a_part().above(0.08)
    tested = (part, Found(mean_interval([0.1, 0.12, 0.09, 0.11]), 4, 4))
    lacking = Found(not_available(Why(Reason.NO_ORACLE, "no oracle"), 0), 4, 0)
    alone, beside = (judge(parts, 0.95, 0.8) for parts in ([tested], [(part, lacking), tested]))
    assert beside[1] == alone[0]  # no harder for it
    row = beside[0]
    assert (row["verdict"], row["reason_code"]) == ("not applicable", Reason.NO_ORACLE)
    assert all(math.isnan(row[name]) for name in ("p", "p_holm", "needed_per_size"))
    # Whatever is or is not there, and whatever the grid lacks.
    data = {"kind": "dataset", "datasets": [{"path": "a/b"}]}
    data |= {"benchmarks": {"aime": {"task": "aime25"}}}
    grid = {"algorithms": ["vimpo", "grpo"], "sizes": ["q"]}
    study = load_study({"task": data, "sizes": {"q": {"path": "a/c"}}, "grid": grid})
    names = ("accuracy", "probes", "measured_cost", "outcomes")
    empty = Tables(*(pd.DataFrame(columns=COLUMNS[name]) for name in names))
    rows = pd.DataFrame(claim_rows(study, empty, {})).query("kind == 'test'")
    assert set(rows.verdict[rows.claim == "C6"]) == {"not applicable"}
    assert set(rows.verdict[rows.claim != "C6"]) == {"inconclusive"}


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["supported", "supported"], "supported"),
        (["supported", "inconclusive"], "inconclusive"),
        (["supported", "refuted", "inconclusive"], "refuted"),
        ([], "inconclusive"),
        (["not applicable", "supported"], "supported"),
        (["not applicable", "not applicable"], "not applicable"),
    ],
)
def test_a_claim_is_supported_only_if_all_of_it_is(verdicts, expected):
    assert overall(verdicts) == expected
