"""Headroom captured: against hand computation, its interval against simulation."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats as st

from vimpo.analysis.headroom import by_seed, captured, gap, headroom_rows, is_clear
from vimpo.analysis.scores import Tables
from vimpo.analysis.summaries import labels
from vimpo.config import load_study
from vimpo.storage.codes import Method, Reason
from vimpo.storage.columns import COLUMNS

FLOOR, CEILING = {1: 0.2, 2: 0.3, 3: 0.25}, {1: 0.7, 2: 0.9, 3: 0.8}
OWN = {1: 0.4, 2: 0.55, 3: 0.45}
STEPS = 20


def study_of(*names, noise=(0,), seeds=(1, 2, 3)):
    grid = {"algorithms": list(names), "sizes": ["xs"], "noise": list(noise), "seeds": list(seeds)}
    return load_study({"study": "t", "grid": [grid], "train": {"steps": STEPS}})


def tables_of(heights, accuracy=None, length=STEPS):
    """Flat learning curves. heights: algorithm -> seed -> height (or one value for each step)."""
    curves, scores, outcomes = [], [], []
    for name, runs in heights.items():
        for seed, height in runs.items():
            key = labels(name, "xs", "0") | {"seed": seed, "params": 1e5}
            values = np.broadcast_to(height, length)
            curves += [
                key | {"step": step, "metric": "accuracy", "value": value}
                for step, value in enumerate(values)
            ]
            outcomes.append(key | {"outcome": "finished", "step": length - 1})
    for name, runs in (accuracy or {}).items():
        for seed, value in runs.items():
            key = labels(name, "xs", "0") | {"seed": seed, "params": 1e5}
            scores.append(key | {"benchmark": "b", "metric": "sampled", "value": value})
    frames = {"curves": curves, "accuracy": scores, "outcomes": outcomes}
    frames |= {"probes": [], "measured_cost": []}
    return Tables(**{k: pd.DataFrame(rows, columns=COLUMNS[k]) for k, rows in frames.items()})


def rows_of(study, tables):
    return headroom_rows(study, tables, {"xs": 1e5})


def row(rows, algorithm, metric):
    (found,) = [r for r in rows if (r["algorithm"], r["metric"]) == (algorithm, metric)]
    return found


# --- The ratio -----------------------------------------------------------------------------------


def test_the_share_is_a_ratio_of_means_with_the_error_of_a_ratio():
    numbers = list(by_seed(OWN, FLOOR, CEILING).values())
    g, h = np.array([0.2, 0.25, 0.2]), np.array([0.5, 0.6, 0.55])
    assert np.mean(numbers) == pytest.approx(0.65 / 1.65)
    # delta method, from the textbook: (var g - 2 R cov + R^2 var h) / (n h^2)
    ratio, cov = 0.65 / 1.65, np.cov(g, h, ddof=1)
    error = np.sqrt(cov[0, 0] - 2 * ratio * cov[0, 1] + ratio**2 * cov[1, 1]) / h.mean() / 3**0.5
    found = captured(OWN, FLOOR, CEILING, 0.95)
    assert found.stderr == pytest.approx(error)
    assert found.high - found.value == pytest.approx(4.302653 * error, rel=1e-6)
    assert (found.n, found.method) == (3, Method.STUDENT)


def test_the_ends_capture_nothing_and_all():
    assert captured(FLOOR, FLOOR, CEILING, 0.95).value == pytest.approx(0)
    assert captured(CEILING, FLOOR, CEILING, 0.95).value == pytest.approx(1)


def test_a_missing_seed_leaves_the_pairs_that_are_whole():
    two = {seed: FLOOR[seed] for seed in (1, 3)}
    found = captured(OWN, two, CEILING, 0.95)
    assert found.n == 2
    assert found.value == pytest.approx(0.4 / 1.05)


def test_without_pairs_means_are_compared():
    apart = {seed + 10: value for seed, value in CEILING.items()}
    found = captured(OWN, FLOOR, apart, 0.95)
    a, f, c = (np.array(list(x.values())) for x in (OWN, FLOOR, CEILING))
    ratio, room = 0.65 / 1.65, 0.55
    assert found.value == pytest.approx(ratio)
    parts = np.array([a.var(ddof=1), (1 - ratio) ** 2 * f.var(ddof=1), ratio**2 * c.var(ddof=1)])
    parts /= 3 * room**2
    assert found.stderr == pytest.approx(parts.sum() ** 0.5)
    assert found.df == pytest.approx(parts.sum() ** 2 / (parts**2 / 2).sum())
    assert (found.n, found.method) == (3, Method.WELCH)
    welch = st.ttest_ind(c, f, equal_var=False).confidence_interval()
    assert gap(apart, FLOOR, 0.95).low == pytest.approx(welch.low)


@pytest.mark.parametrize(("seeds", "spread"), [(3, 0.3), (5, 0.3), (5, 1.0), (10, 0.6)])
@pytest.mark.parametrize("pairs", [True, False])
def test_where_there_is_headroom_the_interval_covers_what_it_claims(seeds, spread, pairs):
    """spread: of the difference between the ends, in units of its mean."""
    rng, truth, covered, given = np.random.default_rng(0), 0.5, 0, 0
    means = np.array([truth, 0.0, 1.0])
    for _ in range(400):
        areas = means + rng.normal(0, spread / 2**0.5, (seeds, 3))
        sides = [
            {(i, k * (not pairs)): x for i, x in enumerate(column)}
            for k, column in enumerate(areas.T)
        ]
        if not is_clear(gap(sides[2], sides[1], 0.95)):
            continue
        found = captured(*sides, 0.95)
        given += 1
        covered += found.low <= truth <= found.high
    assert given > 100
    error = (0.95 * 0.05 / given) ** 0.5
    assert 0.93 - 2.5 * error < covered / given < 0.98 + 2 * error


# --- The table -----------------------------------------------------------------------------------

NAMES = ("vimpo", "grpo", "oracle")
HEIGHTS = {"vimpo": OWN, "grpo": FLOOR, "oracle": CEILING}


def test_the_table_is_what_a_hand_computes():
    scores = {"vimpo": {1: 0.5, 2: 0.7, 3: 0.6}, "grpo": {1: 0.45, 2: 0.6, 3: 0.5}}
    rows = rows_of(study_of(*NAMES), tables_of(HEIGHTS, scores))
    assert row(rows, "vimpo", "captured")["mean"] == pytest.approx(0.65 / 1.65)
    assert row(rows, "vimpo", "area")["mean"] == pytest.approx(1.4 / 3)
    assert row(rows, "vimpo", "area_gap")["mean"] == pytest.approx(0.65 / 3)
    assert row(rows, "oracle", "area_gap")["mean"] == pytest.approx(0.55)
    assert row(rows, "vimpo", "accuracy_gap")["mean"] == pytest.approx(0.25 / 3)
    assert row(rows, "oracle", "accuracy_gap")["reason_code"] == Reason.NO_VALUES
    captured_by = [r["algorithm"] for r in rows if r["metric"] == "captured"]
    assert captured_by == ["vimpo"]
    # the floor ends at .25: one of its runs never does, two are there from the start
    reached = row(rows, "grpo", "reached")
    assert reached["mean"] == pytest.approx(2 / 3)
    assert reached["level"] == pytest.approx(0.25)
    assert row(rows, "grpo", "steps_to")["mean"] == pytest.approx(STEPS / 3)
    assert all(set(r) == set(COLUMNS["headroom"]) for r in rows)


def test_steps_to_the_floors_end_are_counted():
    rising = {seed: np.linspace(0, 1, STEPS) for seed in (1, 2, 3)}
    rows = rows_of(study_of(*NAMES), tables_of({"vimpo": rising, "grpo": FLOOR, "oracle": CEILING}))
    # a centred window of two steps: the mean of steps k - 1 and k is at .25 from step 6 on
    assert row(rows, "vimpo", "steps_to")["mean"] == 6


def test_without_headroom_nobody_gets_a_number():
    ceiling = {1: 0.7, 2: 0.1, 3: 0.3}
    rows = rows_of(study_of(*NAMES, "ppo"), tables_of(HEIGHTS | {"oracle": ceiling, "ppo": OWN}))
    for name in ("vimpo", "ppo"):
        found = row(rows, name, "captured")
        assert np.isnan([found["mean"], found["low"], found["high"]]).all()
        assert found["reason_code"] == Reason.NO_HEADROOM
        assert "process oracle does not clearly beat GRPO" in found["reason"]
    assert row(rows, "vimpo", "area_gap")["mean"] == pytest.approx(0.65 / 3)


def test_a_study_without_both_ends_has_no_table():
    assert rows_of(study_of("vimpo", "grpo"), tables_of(HEIGHTS)) == []


def test_a_run_that_is_missing_is_told():
    heights = HEIGHTS | {"vimpo": {1: 0.4, 2: 0.55}}
    found = row(rows_of(study_of(*NAMES), tables_of(heights)), "vimpo", "captured")
    assert (found["n"], found["expected"]) == (2, 3)
    lost = HEIGHTS | {"vimpo": {}}
    found = row(rows_of(study_of(*NAMES), tables_of(lost)), "vimpo", "captured")
    assert found["reason_code"] == Reason.NO_VALUES


def test_without_any_run_every_number_is_missing():
    rows = rows_of(study_of(*NAMES), tables_of({}))
    assert {row["algorithm"] for row in rows} == set(NAMES)
    assert np.isnan([row["mean"] for row in rows]).all()
    assert all(row["reason_code"] for row in rows)
