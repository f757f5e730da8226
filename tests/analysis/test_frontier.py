"""Accuracy at matched distance, against hand computation."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as st

from vimpo.analysis.curves import at_end, smoothed
from vimpo.analysis.frontier import Path, frontier_rows, path_of
from vimpo.analysis.scores import Tables
from vimpo.analysis.summaries import labels
from vimpo.config import load_study
from vimpo.storage.codes import Reason
from vimpo.storage.columns import COLUMNS

STEPS = 9  # fewer than ten: nothing is smoothed


def study_of(*names, seeds=(1, 2)):
    grid = {"algorithms": list(names), "sizes": ["xs"], "noise": [0], "seeds": list(seeds)}
    return load_study({"study": "t", "grid": [grid], "train": {"steps": STEPS}})


def tables_of(runs, every=1):
    """runs: algorithm -> seed -> metric -> value by step. every: steps between those of the KL."""
    curves, outcomes = [], []
    for name, seeds in runs.items():
        for seed, metrics in seeds.items():
            key = labels(name, "xs", "0") | {"seed": seed, "params": 1e5}
            outcomes.append(key | {"outcome": "finished", "step": STEPS - 1})
            curves += [
                key | {"step": step, "metric": metric, "value": value}
                for metric, values in metrics.items()
                for step, value in enumerate(values)
                if metric == "accuracy" or step % every == 0
            ]
    frames = {"curves": curves, "outcomes": outcomes}
    frames |= {"accuracy": [], "probes": [], "measured_cost": []}
    return Tables(**{k: pd.DataFrame(rows, columns=COLUMNS[k]) for k, rows in frames.items()})


def run(slope, speed):
    """Accuracy grows by `slope` a nat, and the distance by `speed` nats a step."""
    distance = speed * np.arange(STEPS)
    return {"accuracy": 0.1 + slope * distance, "reference_kl": distance}


RUNS = {
    "vimpo": {1: run(0.2, 0.25), 2: run(0.3, 0.2)},  # reach 2 and 1.6 nats
    "grpo": {1: run(0.1, 0.5), 2: run(0.12, 0.5)},  # 4 nats
}


def rows_of(study, tables):
    return frontier_rows(study, tables, {"xs": 1e5})


def line(rows, algorithm, rival="", metric="accuracy"):
    frame = pd.DataFrame(rows)
    return frame[(frame.algorithm == algorithm) & (frame.rival == rival) & (frame.metric == metric)]


def test_a_path_is_interpolated_where_the_distance_is_first_reached():
    path = path_of(
        pd.Series([0.1, 0.2, 0.6, 0.5, 0.7]), pd.Series([0.0, 1.0, 3.0, 2.0, 5.0]), width=1
    )
    assert [path.at(d) for d in (0, 0.5, 1, 2, 3)] == pytest.approx([0.1, 0.15, 0.2, 0.4, 0.6])
    # it went back to 2 and on to 5: from the step before, at the distance it had been to
    assert path.at(4) == pytest.approx(0.6)
    assert math.isnan(path.at(5.1))
    with pytest.raises(ValueError, match=r"\(2,\).*\(3,\)"):
        Path(np.zeros(2), np.zeros(3))


def test_a_line_ends_where_the_first_of_its_runs_does():
    rows = rows_of(study_of(*RUNS), tables_of(RUNS))
    ours = line(rows, "vimpo")
    assert ours["kl"].max() == pytest.approx(1.6)
    assert ours["mean"].to_numpy() == pytest.approx(0.1 + 0.25 * ours["kl"])
    last = ours.iloc[-1]
    expected = st.t.interval(0.95, 1, 0.1 + 0.25 * 1.6, st.sem([0.42, 0.58]))
    assert (last["low"], last["high"]) == pytest.approx((max(0, expected[0]), min(1, expected[1])))
    assert line(rows, "vimpo", metric="kl")["mean"].item() == pytest.approx(1.8)
    assert all(set(row) == set(COLUMNS["frontier"]) for row in rows)


def test_rivals_are_compared_at_the_largest_distance_that_both_reach():
    rows = rows_of(study_of(*RUNS), tables_of(RUNS))
    (gap,) = line(rows, "vimpo", "grpo").to_dict("records")
    assert gap["kl"] == pytest.approx(1.6)
    differences = 1.6 * np.array([0.2 - 0.1, 0.3 - 0.12])
    assert gap["mean"] == pytest.approx(differences.mean())
    interval = st.t.interval(0.95, 1, differences.mean(), st.sem(differences))
    assert (gap["low"], gap["high"]) == pytest.approx(interval)
    assert line(rows, "grpo", "vimpo").empty
    near = RUNS | {"grpo": {1: run(0.1, 0.1), 2: run(0.12, 0.05)}}  # .8 and .4 nats
    (gap,) = line(rows_of(study_of(*RUNS), tables_of(near)), "vimpo", "grpo").to_dict("records")
    assert gap["kl"] == pytest.approx(0.4)


def test_a_distance_that_is_measured_now_and_then_gives_the_same_line():
    """Curves that are straight between the recorded steps lose nothing."""
    often, seldom = (rows_of(study_of(*RUNS), tables_of(RUNS, every)) for every in (1, 4))
    assert line(seldom, "grpo")["mean"].tolist() == pytest.approx(line(often, "grpo")["mean"])


def test_empty_fields_between_recorded_steps_are_no_numbers():
    gaps = {
        name: {
            seed: metrics
            | {"reference_kl": np.where(np.arange(STEPS) % 4, np.nan, metrics["reference_kl"])}
            for seed, metrics in runs.items()
        }
        for name, runs in RUNS.items()
    }
    rows = rows_of(study_of(*RUNS), tables_of(gaps))
    assert line(rows, "vimpo")["kl"].max() == pytest.approx(1.6)


def test_the_end_is_the_last_steps_that_were_recorded():
    curve = pd.Series([1.0, 2.0, 4.0, 6.0], index=[0, 10, 20, 30])
    assert at_end(curve, 10) == 6
    assert at_end(curve, 11) == 5
    assert smoothed(curve, 20).tolist() == [1.0, 1.5, 3.0, 5.0]
    assert smoothed(curve, 9).tolist() == curve.tolist()
    assert math.isnan(at_end(curve[:0], 10))


def test_an_algorithm_without_a_distance_says_so():
    without = RUNS | {"grpo": {seed: {"accuracy": [0.1] * STEPS} for seed in (1, 2)}}
    rows = rows_of(study_of(*RUNS), tables_of(without))
    (told,) = line(rows, "grpo").to_dict("records")
    assert told["reason_code"] == Reason.NOT_MEASURED
    assert math.isnan(told["mean"])
    assert math.isnan(told["kl"])
    assert line(rows, "vimpo", "grpo").empty
    assert len(line(rows, "vimpo")) > 10
    nobody = {name: {1: {"accuracy": [0.1] * STEPS}} for name in RUNS}
    assert rows_of(study_of(*RUNS), tables_of(nobody)) == []


def test_held_out_accuracy_has_a_frontier_of_its_own():
    validated = {
        name: {
            seed: metrics | {"validation_accuracy.sampled": metrics["accuracy"] / 2}
            for seed, metrics in runs.items()
        }
        for name, runs in RUNS.items()
    }
    rows = rows_of(study_of(*RUNS), tables_of(validated, every=4))
    own = line(rows, "vimpo", metric="validation_accuracy.sampled")
    assert own["mean"].tolist() == pytest.approx(line(rows, "vimpo")["mean"] / 2)
    assert len(line(rows, "vimpo", metric="kl")) == 1
