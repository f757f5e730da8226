"""Hypotheses as data: measures against numbers computed by hand, or the reason for none."""

import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_results import PARAMETERS
from scipy import stats as st

from vimpo.analysis.claims import CLAIMS, claim_rows
from vimpo.analysis.curves import area_under, first_step
from vimpo.analysis.measures import MEASURES
from vimpo.analysis.scores import Tables
from vimpo.analysis.summaries import labels
from vimpo.analysis.verdicts import DECODER, Role
from vimpo.config import ConfigError, dump_yaml, load_study
from vimpo.config import hypotheses as types
from vimpo.config.judging import CLAIM_NAMES, Claims
from vimpo.config.shipped import shipped_claims
from vimpo.report.parts import SCALES
from vimpo.storage.codes import Reason
from vimpo.storage.columns import COLUMNS, SNAPSHOTS
from vimpo.storage.tables import write_table

PUBLISHED = Path(__file__).parents[2] / "results/published"
NAN = float("nan")
STEPS, SEEDS = 5, (1, 2, 3)
OWN = {"objective": "grpo"}  # stands for any algorithm


def hypothesis(measure="area", algorithm="vimpo", minus=0.0, **more):
    contrast = {"algorithm": algorithm, "minus": minus}
    fields = {"id": "H", "question": "Is it so?", "measure": measure, "contrast": contrast}
    return fields | {"side": "above", "threshold": 0.0} | more


def a_study(*asked, probes=None, **grid):
    block = {"algorithms": ["vimpo", "ppo", "grpo", "oracle"], "sizes": ["xs"], "seeds": [*SEEDS]}
    return load_study(
        {
            "algorithms": {"oracle": OWN},
            "grid": block | {"noise": [0, 0.2, 0.4]} | grid,
            "train": {"steps": STEPS},
            "statistics": {"resamples": 100},
            "claims": {"tested": []},
            "probes": probes or {},
            "hypotheses": list(asked),
        }
    )


def tables_of(study, curves=(), accuracy=(), probes=(), cost=(), failed=()):
    """curves: {(algorithm, size, noise, seed): values by step}; other rows as they are."""
    found = {"curves": [], "accuracy": [], "probes": list(probes), "measured_cost": list(cost)}
    for (*cell, seed), values in dict(curves).items():
        key = labels(*cell) | {"seed": seed, "metric": "accuracy"}
        found["curves"] += [key | {"step": i, "value": v} for i, v in enumerate(values)]
    for (*cell, seed), value in dict(accuracy).items():
        key = labels(*cell) | {"seed": seed, "metric": "sampled", "stderr": 0.01}
        found["accuracy"].append(key | {"benchmark": "chain_easy", "value": value})
    ends = [labels(*cell) | {"seed": s, "outcome": "not_finite"} for *cell, s in failed]
    frames = {name: pd.DataFrame(rows, columns=COLUMNS[name]) for name, rows in found.items()}
    return Tables(**frames, outcomes=pd.DataFrame(ends, columns=COLUMNS["outcomes"]))


def judged(study, tables):
    frame = pd.DataFrame(claim_rows(study, tables, PARAMETERS), columns=COLUMNS["claims"])
    assert frame.part.is_unique
    return frame.set_index("part")


def flat(levels, algorithm, size="xs", noise="0"):
    """Curves at one height: their area is that height."""
    return {(algorithm, size, noise, s): [x] * STEPS for s, x in zip(SEEDS, levels, strict=True)}


# --- measures ------------------------------------------------------------------------------------


def test_every_measure_of_the_configuration_is_computed():
    assert set(MEASURES) == set(types.MEASURES.values())
    assert len(types.MEASURES) == 16


def test_the_area_is_that_of_trapezia_and_a_failed_run_keeps_its_end():
    curve = pd.Series([0.2, 0.4, 0.8], index=[0, 1, 2])
    assert area_under(curve, 3) == pytest.approx((0.3 + 0.6) / 2)
    assert area_under(curve, 5) == pytest.approx((0.3 + 0.6 + 0.8 + 0.8) / 4)
    assert area_under(curve[:1], 1) == 0.2
    assert math.isnan(area_under(curve.replace(0.4, NAN), 3))


def test_steps_to_an_accuracy_are_censored_where_it_is_not_reached():
    curve = pd.Series([0.1, 0.3, 0.6, 0.5, 0.9])
    assert first_step(curve, 0.6, 5, 1) == 2
    assert first_step(curve, 0.1, 5, 1) == 0
    assert first_step(curve, 0.95, 5, 1) == 5
    # means of three: 0.2, 1/3, 7/15, 2/3, 0.7
    assert first_step(curve, 0.6, 5, 3) == 3
    assert math.isnan(first_step(curve.replace(0.9, NAN), 0.6, 5, 1))


def test_an_area_is_compared_over_pairs():
    study = a_study(hypothesis(minus="grpo", threshold=0.05))
    ours, theirs = (0.6, 0.7, 0.65), (0.5, 0.5, 0.5)
    row = judged(study, tables_of(study, flat(ours, "vimpo") | flat(theirs, "grpo"))).loc["H.area"]
    gaps = np.subtract(ours, theirs)
    expected = st.ttest_1samp(gaps, 0.05)
    assert (row.effect, row.p) == pytest.approx((gaps.mean(), expected.pvalue))
    assert (row.low, row.high) == pytest.approx(
        tuple(st.ttest_1samp(gaps, 0).confidence_interval())
    )
    assert row.p_holm == row.p  # the only test: no claim of the suite is tested
    assert (row.n, row.expected, row.counted, row.role) == (3, 3, "pairs", "difference")
    assert (row.statement, row.rival, row.threshold, row.side) == (
        "Is it so?",
        "grpo",
        0.05,
        "above",
    )


def test_headroom_is_a_ratio_of_means_with_the_error_of_the_delta_method():
    study = a_study(hypothesis("headroom", threshold=0.3))
    own, low, high = (0.60, 0.58, 0.66), (0.50, 0.52, 0.54), (0.70, 0.74, 0.78)
    curves = flat(own, "vimpo") | flat(low, "grpo") | flat(high, "oracle")
    row = judged(study, tables_of(study, curves)).loc["H.headroom"]
    # gains 0.10, 0.06, 0.12, room 0.20, 0.22, 0.24: 0.28 / 0.66
    ratio = 0.28 / 0.66
    residuals = [0.10 - ratio * 0.20, 0.06 - ratio * 0.22, 0.12 - ratio * 0.24]
    stderr = math.sqrt(sum(r**2 for r in residuals) / 2 / 3) / 0.22
    half = 4.302653 * stderr  # Student's t at 97.5 %, two degrees of freedom
    assert row.effect == pytest.approx(ratio)
    assert (row.low, row.high) == pytest.approx((ratio - half, ratio + half), rel=1e-5)
    assert (row.n, row.expected, row.counted) == (3, 3, "runs")


@pytest.mark.parametrize("high", [(0.45, 0.6, 0.5), (0.5, 0.52, 0.54), (0.3, 0.31, 0.35)])
def test_without_headroom_nothing_is_captured(high):
    """An oracle that is no clear winner, one that never differs, and one that is worse."""
    study = a_study(hypothesis("headroom"))
    own, low = (0.60, 0.58, 0.66), (0.50, 0.52, 0.54)
    curves = flat(own, "vimpo") | flat(low, "grpo") | flat(high, "oracle")
    row = judged(study, tables_of(study, curves)).loc["H.headroom"]
    assert (row.verdict, row.reason_code) == ("inconclusive", Reason.NO_HEADROOM)
    assert math.isnan(row.effect)
    assert "process oracle does not clearly beat GRPO at size xs" in row.reason


def test_headroom_asks_every_size_and_by_size_says_which_has_some():
    asked = hypothesis("headroom", by_size=True)
    study = a_study(asked, sizes=["xs", "s"])
    curves = {}
    for size, top in (("xs", 0.3), ("s", 0.0)):
        low = np.array([0.50, 0.52, 0.54])
        room = top + np.array([0.01, -0.01, 0.03])
        for name, values in (("vimpo", low + 0.1), ("grpo", low), ("oracle", low + room)):
            curves |= flat(values, name, size)
    rows = judged(study, tables_of(study, curves))
    assert rows.loc["H.headroom"].reason_code == Reason.NO_HEADROOM
    assert rows.loc["H.headroom.s"].reason_code == Reason.NO_HEADROOM
    assert rows.loc["H.headroom.xs"].effect == pytest.approx(0.3 / 0.93)
    assert list(rows.kind) == ["test", "fact", "fact"]


def test_a_floor_and_a_ceiling_of_other_names():
    measure = {"name": "headroom", "floor": "ppo", "ceiling": "grpo"}
    study = a_study(hypothesis(measure), algorithms=["vimpo", "ppo", "grpo"])
    curves = flat((0.5, 0.6, 0.7), "vimpo") | flat((0.4, 0.4, 0.4), "ppo")
    row = judged(study, tables_of(study, curves | flat((0.8, 0.9, 0.8), "grpo"))).iloc[0]
    assert row.effect == pytest.approx(0.6 / 1.3)
    assert "between PPO and GRPO" in row.metric


def test_steps_are_compared_within_the_budget_and_runs_that_get_there_are_counted():
    study = a_study(hypothesis({"name": "steps_to", "accuracy": 0.5}, minus="grpo", side="below"))
    rise = {1: [0, 0.5, 1, 1, 1], 2: [0, 0, 0.7, 1, 1], 3: [0, 0, 0, 0, 0.4]}
    slow = {1: [0, 0, 0, 0.6, 1], 2: [0.1] * 5, 3: [0.2] * 5}
    curves = {
        (name, "xs", "0", seed): values
        for name, runs in (("vimpo", rise), ("grpo", slow))
        for seed, values in runs.items()
    }
    rows = judged(study, tables_of(study, curves))
    assert rows.loc["H.steps_to"].effect == pytest.approx(np.mean([1 - 3, 2 - 5, 5 - 5]))
    assert rows.loc["H.reached.vimpo"].effect == pytest.approx(2 / 3)
    assert rows.loc["H.reached.grpo"].effect == pytest.approx(1 / 3)
    never = {key: [0.1] * 5 for key in curves}
    row = judged(study, tables_of(study, never)).loc["H.steps_to"]
    assert (row.reason_code, row.reason) == (Reason.CENSORED, "no run reached it in 5 steps")


def test_accuracy_lost_is_that_of_c4():
    study = a_study(hypothesis("lost", minus="grpo", side="below"))
    levels = {"0": 0.8, "0.2": 0.7, "0.4": 0.65}
    accuracy = {
        (name, "xs", noise, seed): value - steep * float(noise) - 0.01 * seed * float(noise)
        for name, steep in (("vimpo", 0.0), ("grpo", 0.3))
        for noise, value in levels.items()
        for seed in SEEDS
    }
    tables = tables_of(study, accuracy=accuracy)
    row = judged(study, tables).loc["H.lost"]
    fits = {
        name: -st.linregress([0, 0.2, 0.4], [accuracy[name, "xs", n, 2] for n in levels]).slope
        for name in ("vimpo", "grpo")
    }
    assert row.effect == pytest.approx(fits["vimpo"] - fits["grpo"])
    with_claims = study.model_copy(update={"claims": load_study({}).claims})
    again = judged(with_claims, tables)
    assert again.loc["H.lost"].effect == again.loc["C4.lost.grpo"].effect
    # fourteen tests share one correction: the thirteen of the suite, and this one
    assert (again.kind == "test").sum() == 14


def test_costs_of_two_are_a_ratio_and_of_one_a_number():
    asked = [
        hypothesis("seconds", minus="ppo", side="below", threshold=1.0, id="ratio"),
        hypothesis("seconds", side="below", threshold=2.0, id="plain"),
        hypothesis("memory", minus="ppo", threshold=1.0, id="memory"),
    ]
    study = a_study(*asked)
    seconds = {"vimpo": (1.0, 1.1), "ppo": (2.0, 2.4), "grpo": (1.0, 1.0)}
    cost = [
        {"kind": "measured", "algorithm": a, "size": "xs", "round": i, "metric": "step_total"}
        | {"value": value}
        for a, values in seconds.items()
        for i, value in enumerate(values)
    ]
    rows = judged(study, tables_of(study, cost=cost))
    assert rows.loc["ratio.seconds"].effect == pytest.approx(math.sqrt(1.0 / 2 * 1.1 / 2.4))
    assert (rows.loc["ratio.seconds"].unit, rows.loc["ratio.seconds"].n) == ("ratio", 2)
    assert rows.loc["plain.seconds"].effect == pytest.approx(1.05)
    assert rows.loc["plain.seconds"].counted == "rounds"
    assert rows.loc["memory.memory"].reason_code == Reason.NOT_MEASURED


def probe_rows(study, numbers):
    """numbers: {(algorithm, predictor): values of the seeds}, at every size and noise."""
    return [
        labels(cell.algorithm, cell.size, cell.noise)
        | {"seed": cell.seed, "probe": "value", "predictor": predictor, "target": "change"}
        | {"position": "all", "metric": "explained_variance", "value": value[cell.seed - 1]}
        | {"stderr": 0.0, "reason_code": "", "reason": ""}
        for cell in study.cells()
        for (algorithm, predictor), value in numbers.items()
        if cell.algorithm == algorithm
    ]


def test_an_implied_value_is_compared_with_a_critic():
    measure = {"name": "explained_variance", "rival_predictor": "critic"}
    study = a_study(hypothesis(measure, minus="ppo"))
    numbers = {
        ("vimpo", "implied"): (0.4, 0.5, 0.6),
        ("ppo", "implied"): (0.0, 0.1, 0.0),
        ("ppo", "critic"): (0.3, 0.2, 0.1),
    }
    tables = tables_of(study, probes=probe_rows(study, numbers))
    row = judged(study, tables).iloc[0]
    assert row.effect == pytest.approx(0.3)
    assert "(implied minus critic value), VIMPO minus PPO" in row.metric
    lacking = {key: value for key, value in numbers.items() if key[1] != "critic"}
    row = judged(study, tables_of(study, probes=probe_rows(study, lacking))).iloc[0]
    assert (row.reason_code, row.reason) == (
        Reason.NOT_MEASURED,
        "the runs of ppo have no explained_variance of critic",
    )


ALL_PROBES = {"common": True, "pairs": 8, "baselines": {}}


@pytest.mark.parametrize(
    ("measure", "labels", "text"),
    [
        ("rescaled_variance", ("value", "implied", "change", "explained_variance_linear"),
         "explained variance after the best rescaling of the change of value"),
        ({"name": "rank_correlation", "predictor": "ceiling"},
         ("value", "ceiling", "change", "spearman"), "(ceiling value)"),
        ({"name": "explained_variance", "prefixes": "common"},
         ("common", "implied", "change", "explained_variance"), "in responses of the base policy"),
        ({"name": "credit_auc", "prefixes": "common"},
         ("common", "implied_td", "step", "auc"), "in responses of the base policy"),
        ("pairs_in_order", ("pairs", "implied", "value", "ordered"), "higher implied value"),
        ({"name": "pairs_difference", "predictor": "log_probability"},
         ("pairs", "log_probability", "value", "difference"), "log_probability value after"),
    ],
)  # fmt: skip
def test_each_measure_of_the_probes_reads_its_own_rows(measure, labels, text):
    study = a_study(hypothesis(measure), probes=ALL_PROBES)
    rows = probe_rows(study, {("vimpo", "implied"): (0.4, 0.5, 0.6)})
    names = ("probe", "predictor", "target", "metric")
    right = [row | dict(zip(names, labels, strict=True)) for row in rows]
    other = [
        row | dict(zip(names, labels, strict=True)) | {name: "another", "value": 9.0}
        for row in rows
        for name in names
    ]
    row = judged(study, tables_of(study, probes=[*right, *other])).iloc[0]
    assert row.effect == pytest.approx(0.5)
    assert text in row.metric
    row = judged(study, tables_of(study, probes=other)).iloc[0]
    assert row.reason_code == Reason.NOT_MEASURED


def test_own_prefixes_are_the_default_and_resolve_as_before():
    study = a_study(hypothesis("rank_correlation"))
    assert study.hypotheses[0].measure.prefixes == "own"
    assert "prefixes" not in dump_yaml(study)


def test_a_slope_is_that_of_the_contrast_in_log10_of_the_parameters():
    study = a_study(hypothesis(minus="grpo", pooling="slope", threshold=-0.1), sizes=["xs", "s"])
    heights = {"xs": (0.5, 0.55, 0.6), "s": (0.7, 0.72, 0.68)}
    curves = {}
    for size, values in heights.items():
        curves |= flat(values, "vimpo", size) | flat((0.4, 0.4, 0.4), "grpo", size)
    row = judged(study, tables_of(study, curves)).loc["H.area"]
    x = np.repeat(np.log10([PARAMETERS["xs"], PARAMETERS["s"]]), 3)
    y = np.concatenate([*heights.values()]) - 0.4
    assert row.effect == pytest.approx(st.linregress(x, y).slope)
    assert row.counted == "pairs"
    one = a_study(hypothesis(minus="grpo", pooling="slope"))
    assert judged(one, tables_of(one, curves)).iloc[0].reason_code == Reason.ONE_SIZE


def test_where_chooses_noise_size_benchmark_and_decoder():
    asked = hypothesis(
        "accuracy", minus=0.25, where={"noise": 0.2, "sizes": ["s"], "benchmark": "chain_hard"}
    )
    study = a_study(asked, sizes=["xs", "s"])
    accuracy = {
        ("vimpo", size, noise, seed): 0.1
        for size in ("xs", "s")
        for noise in ("0", "0.2")
        for seed in SEEDS
    }
    tables = tables_of(study, accuracy=accuracy)
    wanted = tables.accuracy.copy()
    wanted["benchmark"] = "chain_hard"
    chosen = (wanted["size"] == "s") & (wanted.noise == "0.2")
    wanted.loc[chosen, "value"] = [0.5, 0.6, 0.7]
    both = replace(tables, accuracy=pd.concat([tables.accuracy, wanted]))
    row = judged(study, both).iloc[0]
    assert (row.effect, row.n, row.expected) == (pytest.approx(0.35), 3, 3)
    assert row.metric == ("sampled accuracy on chain_hard, VIMPO minus 0.25, noise 0.2, size s")
    greedy = a_study(hypothesis("accuracy", where={"decoder": "greedy"}))
    assert judged(greedy, tables).iloc[0].reason_code == Reason.NOT_MEASURED


def test_no_interval_is_narrower_than_over_problems():
    study = a_study(hypothesis("accuracy"))
    accuracy = {("vimpo", "xs", "0", s): 0.5 + 0.001 * s for s in SEEDS}
    row = judged(study, tables_of(study, accuracy=accuracy)).iloc[0]
    assert row.high - row.low == pytest.approx(2 * 4.302653 * 0.01, rel=1e-5)


def test_a_nan_is_never_averaged_away_but_a_failed_runs_last_step_is_its_end():
    study = a_study(hypothesis())
    curves = flat((0.5, 0.6, 0.7), "vimpo")
    curves["vimpo", "xs", "0", 1] = [0.5, 0.5, NAN]
    row = judged(study, tables_of(study, curves)).iloc[0]
    assert row.reason_code == Reason.NOT_FINITE
    failed = tables_of(study, curves, failed=[("vimpo", "xs", "0", 1)])
    assert judged(study, failed).iloc[0].effect == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("runs", "code", "reason"),
    [(3, Reason.NO_ORACLE, "no oracle"), (1, Reason.NOT_FINITE, "1 of 3 values are not finite")],
)
def test_a_probes_own_reason_is_given_if_all_runs_have_it(runs, code, reason):
    study = a_study(hypothesis("explained_variance"), noise=[0])
    rows = probe_rows(study, {("vimpo", "implied"): (0.4, 0.5, 0.6)})
    for row in rows[:runs]:
        row |= {"value": NAN, "reason_code": "no_oracle", "reason": "no oracle"}
    row = judged(study, tables_of(study, probes=rows)).iloc[0]
    assert (row.reason_code, row.reason) == (code, reason)


def test_missing_runs_lower_n_and_a_size_without_any_is_said():
    study = a_study(hypothesis(minus="grpo"), sizes=["xs", "s"])
    curves = flat((0.5, 0.6, 0.7), "vimpo") | flat((0.4, 0.4, 0.4), "grpo")
    both = curves | flat((0.5, 0.6, 0.7), "vimpo", "s") | flat((0.4, 0.4, 0.4), "grpo", "s")
    del both["grpo", "xs", "0", 3]
    row = judged(study, tables_of(study, both)).iloc[0]
    assert (row.n, row.expected, row.per_size) == (5, 6, 2)
    row = judged(study, tables_of(study, curves)).iloc[0]
    assert (row.reason_code, row.reason) == (Reason.NO_PAIR, "no pair at size s")


def test_kl_that_an_algorithm_does_not_record_is_not_available():
    study = a_study(hypothesis("kl", minus="grpo"))
    curves = flat((0.5, 0.6, 0.7), "vimpo") | flat((0.4, 0.4, 0.4), "grpo")
    tables = tables_of(study, curves)
    known = tables.curves[tables.curves.algorithm == "vimpo"].assign(metric="reference_kl")
    tables = replace(tables, curves=pd.concat([tables.curves, known]))
    row = judged(study, tables).iloc[0]
    assert (row.reason_code, row.verdict) == (Reason.NOT_MEASURED, "inconclusive")
    assert row.reason == "the runs of grpo have no KL to the base policy"


# --- the suite's own claims ----------------------------------------------------------------------


def test_the_claims_that_come_with_the_suite_are_entries_of_the_same_kind():
    claims = shipped_claims()
    assert list(claims) == CLAIM_NAMES == list(CLAIMS)
    entries = [entry for claim in claims.values() for entry in claim.parts]
    assert all(isinstance(entry, types.Asked) for entry in entries)
    assert {Role(entry.role) for entry in entries} <= set(SCALES)
    limits = {name for entry in entries for name in (entry.plus, entry.less) if name}
    assert limits == set(Claims.model_fields) - {"tested", "power"}


# Tests that are newer than the published studies, whose verdicts they would correct for more tests,
# and what became one of them.
NEWER = ("order", "finer.grpo", "finer.ppo")
FORMER = "C5.rank,"


def test_the_claims_of_a_published_study_are_made_again_digit_by_digit(tmp_path, monkeypatch):
    folder = PUBLISHED / "first_study"
    names = [field.name for field in fields(Tables) if field.name not in SNAPSHOTS]
    tables = {name: pd.read_parquet(folder / f"cells/{name}.parquet") for name in names}
    sizes = tables["accuracy"].groupby("size")["params"].first()
    of_then = {
        name: claim.model_copy(update={"parts": [p for p in claim.parts if p.part not in NEWER]})
        for name, claim in shipped_claims().items()
    }
    monkeypatch.setattr("vimpo.analysis.claims.SHIPPED", of_then)
    rows = claim_rows(load_study(folder / "config.yaml"), Tables(**tables), sizes.to_dict())
    rows = [r for r in rows if r["kind"] != DECODER and r["role"] != Role.BY_SIZE]
    write_table(tmp_path / "claims.csv", rows)
    published = (folder / "tables/claims.csv").read_text().splitlines()
    expected = [line for line in published if not line.startswith(FORMER)]
    assert (tmp_path / "claims.csv").read_text().splitlines() == expected


# --- along training ------------------------------------------------------------------------------

WATCHED = {"train": {"steps": 8, "validation": {"every": 4}, "snapshots": [4]}}


def watched_study(*asked, **grid):
    """Two algorithms, looked at in steps 0, 4 and 8, with a snapshot at 4."""
    plain = a_study(algorithms=["vimpo", "grpo"], noise=[0], **grid).model_dump(mode="json")
    return load_study(plain | WATCHED | {"hypotheses": list(asked)})


def points(metric, levels):
    """{(algorithm, seed): {step: value}} -> rows of curves.csv."""
    return [
        labels(algorithm, "xs", "0") | {"seed": s, "metric": metric, "step": i, "value": v}
        for (algorithm, s), values in levels.items()
        for i, v in values.items()
    ]


def with_rows(study, **rows):
    tables = tables_of(study)
    return replace(tables, **{n: pd.DataFrame(r, columns=COLUMNS[n]) for n, r in rows.items()})


def test_the_area_of_validation_is_over_the_whole_run_under_its_decoder():
    asked = hypothesis({"name": "area", "of": "validation"}, where={"decoder": "greedy"})
    study = watched_study(asked)
    heights = {("vimpo", s): {0: 0.1, 4: 0.5 + s / 10, 8: 0.9} for s in SEEDS}
    other = {key: {0: 0.0, 4: 0.0, 8: 0.0} for key in heights}
    rows = points("validation_accuracy.greedy", heights) + points(
        "validation_accuracy.sampled", other
    )
    row = judged(study, with_rows(study, curves=rows)).loc["H.area"]
    areas = [(0.1 + h) / 4 + (h + 0.9) / 4 for h in (0.6, 0.7, 0.8)]
    assert row.effect == pytest.approx(np.mean(areas))
    assert row.metric == "area under the validation curve under greedy, VIMPO, clean rewards"


def test_steps_to_an_accuracy_in_validation_may_be_all_steps_without_being_censored():
    measure = {"name": "steps_to", "of": "validation", "accuracy": 0.6}
    study = watched_study(hypothesis(measure))
    runs = {("vimpo", 1): {0: 0.1, 4: 0.6, 8: 0.9}, ("vimpo", 2): {0: 0.1, 4: 0.5, 8: 0.7}}
    runs["vimpo", 3] = {0: 0.1, 4: 0.2, 8: 0.3}
    rows = judged(study, with_rows(study, curves=points("validation_accuracy.sampled", runs)))
    assert rows.loc["H.steps_to"].effect == pytest.approx((4 + 8 + 8) / 3)
    assert rows.loc["H.reached.vimpo"].effect == pytest.approx(2 / 3)
    assert "a validation accuracy of 0.6 under sampled, of 8" in rows.loc["H.steps_to"].metric


def test_headroom_may_be_that_of_validation():
    measure = {"name": "headroom", "of": "validation", "floor": "grpo", "ceiling": "ppo"}
    plain = a_study(algorithms=["vimpo", "grpo", "ppo"], noise=[0]).model_dump(mode="json")
    study = load_study(plain | WATCHED | {"hypotheses": [hypothesis(measure)]})
    heights = {"vimpo": 0.6, "grpo": 0.4, "ppo": 0.8}
    flat_runs = {
        (name, s): dict.fromkeys((0, 4, 8), height + s / 1000 * (name == "ppo"))
        for name, height in heights.items()
        for s in SEEDS
    }
    rows = points("validation_accuracy.sampled", flat_runs)
    row = judged(study, with_rows(study, curves=rows)).loc["H.headroom"]
    assert row.effect == pytest.approx(0.2 / 0.402)


def test_a_measure_of_a_step_reads_the_snapshots():
    places = dict(where={"step": 4, "decoder": "greedy"})
    value = hypothesis("explained_variance", id="V", where={"step": 4})
    study = watched_study(hypothesis("accuracy", minus="grpo", **places), value)
    scores, probes = [], []
    for algorithm, base in (("vimpo", 0.5), ("grpo", 0.3)):
        for seed in SEEDS:
            key = labels(algorithm, "xs", "0") | {"seed": seed, "stderr": 0.01}
            for step, more in ((4, 0.0), (8, 0.4)):
                score = {"benchmark": "chain_easy", "metric": "greedy", "value": base + more}
                scores.append(key | score | {"step": step, "value": base + more + seed / 100})
                labelled = ("value", "implied", "change", "explained_variance")
                names = dict(zip(("probe", "predictor", "target", "metric"), labelled, strict=True))
                row = names | {"position": "all", "reason_code": "", "reason": "", "step": step}
                probes.append(key | row | {"value": base + more + seed / 100})
    found = judged(study, with_rows(study, snapshot_accuracy=scores, snapshot_probes=probes))
    assert found.loc["H.accuracy"].effect == pytest.approx(0.2)
    assert found.loc["V.explained_variance"].effect == pytest.approx(0.52)
    assert found.loc["V.explained_variance"].metric.endswith("VIMPO, clean rewards, step 4")


def test_the_distance_and_flawless_responses_are_those_of_the_last_tenth():
    study = watched_study(hypothesis("kl"), hypothesis("flawless", id="F"))
    kl = {("vimpo", s): {0: 0.0, 4: 9.0, 7: s / 10} for s in SEEDS}  # only where it was measured
    clean = {("vimpo", s): {**dict.fromkeys(range(7), 0.1), 7: 0.5 + s / 10} for s in SEEDS}
    clean["vimpo", 3][7] = NAN  # no right rollout in that step
    rows = points("reference_kl", kl) + points("flawless", clean)
    found = judged(study, with_rows(study, curves=rows))
    assert found.loc["H.kl"].effect == pytest.approx(0.2)
    assert math.isnan(found.loc["F.flawless"].effect)
    assert found.loc["F.flawless"].reason_code == Reason.NOT_FINITE
    clean["vimpo", 3][7] = 0.8
    rows = points("flawless", clean)
    assert judged(study, with_rows(study, curves=rows)).loc["F.flawless"].effect == pytest.approx(
        0.7
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (dict(measure="accuracy", where={"step": 3}),
         r"hypotheses\[0\].where.step: '3' is not in this study; allowed: 4$"),
        (dict(where={"step": 4}),
         "hypotheses.0.where.step: has no meaning for measure 'area'; allowed: without it, or "),
        (dict(measure="accuracy", where={"decoder": "training"}),
         r"hypotheses\[0\].where.decoder: 'training' is not in this .*: sampled, greedy$"),
        (dict(measure={"name": "area", "of": "validation"}, where={"decoder": "beam"}),
         r"hypotheses\[0\].where.decoder: 'beam' is not in this .*: training, sampled, greedy$"),
        (dict(measure={"name": "area", "of": "test"}), "hypotheses.0.measure.of: 'test' is not"),
        (dict(where={"decoder": "greedy"}), "where.decoder: has no meaning for measure 'area'"),
    ],
)  # fmt: skip
def test_what_a_study_does_not_look_at_cannot_be_asked(asked, message):
    with pytest.raises(ConfigError, match=message) as error:
        watched_study(hypothesis(**({"measure": "area"} | asked)))
    assert "\n" not in str(error.value)


def test_a_study_without_validation_or_snapshots_has_none_to_ask_of():
    message = r"hypotheses\[0\].measure.of: 'validation' is not in this study; allowed: training"
    with pytest.raises(ConfigError, match=message):
        a_study(hypothesis({"name": "steps_to", "of": "validation", "accuracy": 0.5}))
    with pytest.raises(ConfigError, match=r"where.step: '4' is not in this study; allowed: none"):
        a_study(hypothesis("accuracy", where={"step": 4}))


# --- configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(measure="speed"), "hypotheses.0.measure: 'speed' is unknown; allowed: accuracy"),
        (dict(measure=3), "hypotheses.0.measure: 3 is unknown; allowed: accuracy, area"),
        (dict(measure="steps_to"), "hypotheses.0.measure.accuracy: .* field required"),
        (
            dict(measure={"name": "steps_to", "accuracy": 2}),
            "hypotheses.0.measure.accuracy: 2 is not allowed; .* less than or equal to 1",
        ),
        (
            dict(measure={"name": "headroom", "ceiling": "sage"}),
            r"hypotheses\[0\].measure.ceiling: 'sage' is not in this study; allowed: vimpo, ppo, ",
        ),
        (
            dict(measure={"name": "headroom", "floor": "oracle"}),
            "hypotheses.0.measure.ceiling: 'oracle' is the floor; allowed: another algorithm",
        ),
        (
            dict(contrast={"algorithm": "rloo"}),
            r"hypotheses\[0\].contrast.algorithm: 'rloo' is not in this study; allowed: vimpo, ",
        ),
        (
            dict(contrast={"algorithm": "vimpo", "minus": "rloo"}),
            r"hypotheses\[0\].contrast.minus: 'rloo' is not in this study; allowed: vimpo, ",
        ),
        (
            dict(contrast={"algorithm": "vimpo", "minus": "vimpo"}),
            "hypotheses.0.contrast.minus: 'vimpo' is the algorithm itself; allowed: another",
        ),
        (
            dict(contrast={"algorithm": "vimpo", "minus": float("inf")}),
            "hypotheses.0.contrast.minus: inf is not allowed; allowed: an algorithm, or a finite",
        ),
        (
            dict(measure="pairs_in_order"),
            r"hypotheses\[0\].measure.name: 'pairs_in_order' is not measured without probes.pairs; "
            "allowed: with it",
        ),
        (
            dict(measure={"name": "rank_correlation", "prefixes": "common"}),
            r"hypotheses\[0\].measure.prefixes: 'common' is not measured without probes.common",
        ),
        (
            dict(measure={"name": "explained_variance", "rival_predictor": "ceiling"}),
            r"measure.predictor: 'ceiling' is not measured without probes.baselines; allowed: with",
        ),
        (
            dict(measure={"name": "explained_variance", "predictor": "oracle"}),
            "hypotheses.0.measure.*predictor: 'oracle' is not allowed; .*'ceiling'",
        ),
        (dict(axis="width"), "hypotheses.0.axis: 'width' is not allowed; .*'params'"),
        (
            dict(measure="accuracy", where={"benchmark": "gsm8k"}),
            r"hypotheses\[0\].where.benchmark: 'gsm8k' is not in this study; allowed: chain_easy, ",
        ),
        (
            dict(where={"benchmark": "chain_easy"}),
            "hypotheses.0.where.benchmark: has no meaning for measure 'area'; allowed: without it",
        ),
        (
            dict(measure="lost", where={"noise": 0.2}),
            "hypotheses.0.where.noise: has no meaning for measure 'lost'",
        ),
        (dict(where={"noise": 0.3}), r"hypotheses\[0\].where.noise: '0.3' is not in this study"),
        (dict(where={"noise": "loud"}), "hypotheses.0.where.noise: 'loud' is not a noise level"),
        (dict(where={"sizes": ["m"]}), r"hypotheses\[0\].where.sizes: 'm' is not .*allowed: xs$"),
        (dict(measure="seconds", contrast={"algorithm": "vimpo", "minus": "ppo"}),
         r"hypotheses.0.threshold: 0 is not allowed; costs .* allowed: a number in \(0, inf\)"),
        (dict(threshold=NAN), "hypotheses.0.threshold: nan is not allowed; .*finite"),
        (dict(side="over"), "hypotheses.0.side: 'over' is not allowed; .*'above' or 'below'"),
        (dict(id="C1"), "hypotheses.0.id: 'C1' is one of the suite's claims; allowed: another"),
        (dict(question="a\nb"), "hypotheses.0.question: .* is no line of text"),
        (dict(speed=1), "hypotheses.0.speed: unknown key"),
    ],
)  # fmt: skip
def test_bad_hypotheses_are_one_error(change, message):
    with pytest.raises(ConfigError, match=message) as error:
        a_study(hypothesis() | change)
    assert "\n" not in str(error.value)


def test_ids_are_distinct_and_a_decoder_must_be_evaluated():
    with pytest.raises(ConfigError, match=r"hypotheses\[1\].id: 'H' is repeated; allowed: each"):
        a_study(hypothesis(), hypothesis())
    asked = hypothesis("accuracy", where={"decoder": "greedy"})
    message = r"hypotheses\[0\].where.decoder: 'greedy' is not in this study; allowed: sampled"
    with pytest.raises(ConfigError, match=message):
        load_study({"hypotheses": [asked], "evaluation": {"greedy": False}})


def test_a_study_without_hypotheses_resolves_as_before_and_no_digest_knows_of_them():
    plain = a_study()
    assert "hypotheses" not in dump_yaml(plain)
    assert "tested" not in dump_yaml(load_study())
    asking = a_study(hypothesis())
    for cell in plain.cells():
        assert plain.cell_digest(cell) == asking.cell_digest(cell)
        assert plain.probe_digest(cell) == asking.probe_digest(cell)
    assert plain.evaluation_digest() == asking.evaluation_digest()
    assert load_study(asking.model_dump(mode="json")) == asking


def test_a_study_tests_the_claims_that_it_names():
    study = load_study({"claims": {"tested": ["C6", "C3", "C6"]}})
    rows = judged(study, tables_of(study))
    assert list(dict.fromkeys(rows.claim)) == ["C3", "C6"]
    everything = load_study({})
    assert set(judged(everything, tables_of(everything)).claim) == set(CLAIMS)
    with pytest.raises(ConfigError, match=r"claims\.tested\.0: 'C9' is not allowed; .*'C1'"):
        load_study({"claims": {"tested": ["C9"]}})
