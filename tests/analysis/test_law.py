"""The capacity law: what is known of made data is found again, with intervals that cover it."""

import math
import shutil
from functools import reduce
from operator import getitem
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from made_law import CAPACITIES, made_points
from scipy import stats

from vimpo.analysis.clustered import CONFOUNDED, TOO_FEW, coefficient
from vimpo.analysis.law import (
    ACCURACY,
    FLOOR,
    LENGTH,
    MEASURES,
    ORDER,
    PER_CAPACITY,
    POINTS,
    REMAINDER,
    RESCALED,
    SCALE,
    SIZE,
    Remains,
    family,
    fit,
    gather,
    law,
    measures,
    units_of,
)
from vimpo.config import ConfigError, VimpoConfig
from vimpo.storage.archive import archived_frames
from vimpo.storage.codes import Reason
from vimpo.storage.tables import read_table

YARDSTICK = Path(__file__).parents[2] / "results/published/yardstick"


def terms(points, measure=ORDER):
    return {row["term"]: row for row in fit(points, measure) if row["term"] in (SIZE, LENGTH)}


# --- clustered errors ----------------------------------------------------------------------------


def test_two_groups_of_single_rows_are_compared_as_by_welch():
    """scipy's Welch test, but for df, which is that of equal variances."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=5), 2 + 3 * rng.normal(size=8)
    X = np.column_stack([np.ones(13), np.repeat([0.0, 1.0], [5, 8])])
    found = coefficient(np.concatenate([x, y]), X, [str(i) for i in range(13)], 1)
    expected = stats.ttest_ind(y, x, equal_var=False)
    assert found.value / found.stderr == pytest.approx(expected.statistic)
    parts = np.array([1 / 5, 1 / 8])
    assert found.df == pytest.approx(parts.sum() ** 2 / (parts**2 / [4, 7]).sum())
    assert found.n == 13


def test_rows_of_a_cluster_are_no_more_than_one():
    """The same rows four times over: the interval of the clusters does not shrink."""
    rng = np.random.default_rng(4)
    X, y = np.column_stack([np.ones(9), rng.normal(size=9)]), rng.normal(size=9)
    names = np.array([str(i) for i in range(9)])
    once = coefficient(y, X, names, 1)
    often = coefficient(np.tile(y, 4), np.tile(X, (4, 1)), np.tile(names, 4), 1)
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


def test_what_the_data_do_not_decide_is_not_available():
    X = np.column_stack([np.ones(4), [0, 0, 0, 1.0], [0, 0, 0, 2.0]])
    assert coefficient(np.arange(4.0), X, list("abcd"), 1).why == CONFOUNDED
    alone = coefficient(np.arange(4.0), X[:, :2], list("abcd"), 1)
    assert alone.why == TOO_FEW
    assert alone.value == pytest.approx(2)


# --- fits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacities", [CAPACITIES, None], ids=["levels", "quadratic"])
def test_known_remainders_are_recovered_and_a_length_effect_is_detected(capacities):
    points = made_points(a=0.2, b=-0.6, noise=0.05)
    if capacities is None:  # every base at capacities of its own
        shift = {base: 1.1**i for i, base in enumerate(dict.fromkeys(points["base"]))}
        points["capacity"] *= points["base"].map(shift)
    found = terms(points)
    assert found[SIZE]["curve"] == ("levels" if capacities else "quadratic")
    assert (found[SIZE]["n"], found[SIZE]["units"]) == (9, 36)
    for term, truth in ((SIZE, 0.2), (LENGTH, -0.6)):
        assert found[term]["low"] < truth < found[term]["high"]
        assert found[term]["mean"] == pytest.approx(truth, abs=0.15)
        assert found[term]["verdict"] == Remains.SHOWN


def test_intervals_cover_at_nearly_their_nominal_rate():
    """300 studies of 9 base policies in which all collapses on capacity: 95 % +- 2.5 errors."""
    repeats = [terms(made_points(seed=seed)) for seed in range(300)]
    for term in (SIZE, LENGTH):
        covered = np.mean([r[term]["low"] < 0 < r[term]["high"] for r in repeats])
        assert 0.915 < covered < 0.985
    assert repeats[0][SIZE]["verdict"] == Remains.NOT_SHOWN


def test_an_axis_without_variation_is_not_available_and_says_why():
    one_length = terms(made_points(lengths=(60,)))
    assert one_length[LENGTH]["reason_code"] == Reason.ONE_LENGTH
    assert math.isfinite(one_length[SIZE]["low"])
    one_size = terms(made_points(sizes={"xs": 1e5}))
    assert one_size[SIZE]["reason_code"] == Reason.ONE_SIZE
    points = made_points(lengths=(25, 60), sizes={"xs": 1e5, "s": 4e5})
    few = terms(points[points["base"] != "length60/s"])
    assert {row["reason_code"] for row in few.values()} == {Reason.TOO_FEW_BASES}
    apart = terms(points[points["base"].isin(["length60/s", "length25/xs"])])
    assert {row["verdict"] for row in apart.values()} == {Remains.NOT_KNOWN}
    assert terms(made_points(), RESCALED)[SIZE]["reason_code"] == Reason.NO_VALUES


def test_other_settings_get_a_curve_of_their_own():
    """The same base policies under another algorithm, one higher everywhere: no remainder moves."""
    points = made_points(a=0.2)
    other = points.assign(family="vimpo, actor_coef 0", value=points["value"] + 1)
    both, one = terms(pd.concat([points, other])), terms(points)
    assert both[SIZE]["mean"] == pytest.approx(one[SIZE]["mean"])
    assert (both[SIZE]["n"], both[SIZE]["units"]) == (9, 72)


def test_the_scale_is_given_per_capacity():
    rows = [row for row in fit(made_points(noise=0.01), SCALE) if row["term"] == PER_CAPACITY]
    assert [row["capacity"] for row in rows] == [0.02, 0.1, 0.5]
    for row in rows:
        assert row["mean"] == pytest.approx(0.8, abs=0.02)
        assert row["n"] == 9


def test_an_explained_variance_counts_from_its_floor():
    points = made_points(sizes={"xs": 1e5}, lengths=(60,)).query(f"measure == '{ORDER}'")
    values = np.tile([0.5, -40.0, 0.3], 4)
    units = units_of(points.assign(measure=ACCURACY, value=values), ACCURACY)
    assert units["mean"].tolist() == pytest.approx([(0.8 + FLOOR) / 3] * 4)
    assert units["cut"].tolist() == [1] * 4


# --- studies -------------------------------------------------------------------------------------


def test_the_scale_is_the_slope_of_the_implied_change_on_the_true_one():
    rng = np.random.default_rng(5)
    truth = rng.normal(size=50)
    implied = 0.3 * truth + 0.1 * rng.normal(size=50)
    line, back = stats.linregress(implied, truth), stats.linregress(truth, implied)
    metrics = {"explained_variance_linear": line.rvalue**2, "slope": line.slope}
    found = measures(metrics | {"explained_variance": 0.1, "spearman": 0.2})
    assert found[SCALE] == pytest.approx(back.slope)
    assert math.isnan(
        measures(
            {**metrics, "slope": 0.0} | dict.fromkeys(("explained_variance", "spearman"), 0.0)
        )[SCALE]
    )


def test_what_makes_a_family():
    assert family(VimpoConfig(beta=0.7, lr_scale=2)) == "vimpo"
    assert family(VimpoConfig(actor_coef=0, refresh_every=5)) == (
        "vimpo, actor_coef 0, refresh_every 5"
    )


def test_the_law_of_a_published_study(tmp_path):
    law(gather([YARDSTICK]), tmp_path)
    points, remainder = (read_table(tmp_path, name) for name in (POINTS, REMAINDER))
    probes = archived_frames(YARDSTICK / "tables", ["probes"])["probes"]
    for (algorithm, capacity), own in points.groupby(["algorithm", "capacity"]):
        assert capacity == {"vimpo_c002": 0.02, "vimpo_c01": 0.1, "vimpo_c2": 2}.get(algorithm, 0.5)
        expected = probes[
            (
                probes[["algorithm", "probe", "predictor", "target", "position", "metric"]]
                == [algorithm, "value", "implied", "change", "all", "spearman"]
            ).all(axis=1)
        ]
        assert own[own.measure == ORDER]["value"].tolist() == expected["value"].tolist()
    assert set(points["algorithm"]) == {
        *("vimpo", "vimpo_value_only", "vimpo_c002", "vimpo_c01", "vimpo_c2")
    }
    assert len(points) == 25 * len(MEASURES)
    assert set(remainder.query("term == 'size'")["reason_code"]) == {"one_size"}
    assert set(remainder.query("term == 'length'")["reason_code"]) == {"one_length"}


def changed_copy(folder, *section, **changes):
    """The published study under the folder's name, with some settings of a section changed."""
    shutil.copytree(YARDSTICK, folder)
    file = folder / "config.yaml"
    content = yaml.safe_load(file.read_text()) | {"study": folder.name}
    reduce(getitem, section, content).update(changes)
    file.write_text(yaml.safe_dump(content))
    return folder


def test_studies_share_a_base_policy_only_if_it_is_the_same(tmp_path):
    """One more study of the same base policy, and one of another task."""
    for name, change in {"again": {}, "longer": {"step_error": 0.3}}.items():
        changed_copy(tmp_path / name, "task", **change)
    points = pd.DataFrame(gather([YARDSTICK, tmp_path / "again", tmp_path / "longer"]))
    bases = dict(zip(points["study"], points["base"], strict=True))
    assert bases == {
        "yardstick": "yardstick/xs",
        "again": "yardstick/xs",
        "longer": "longer/xs",
    }
    units = units_of(points, ORDER).set_index(["base", "group", "level"])["n"]
    assert units["yardstick/xs", "vimpo; own prefixes", 0.5] == 10
    assert units["longer/xs", "vimpo; own prefixes", 0.5] == 5
    row = terms(points)[SIZE]
    assert (row["n"], row["units"], row["curve"]) == (2, 10, "levels")


def test_a_pretrained_model_is_drawn_and_enters_no_fit(tmp_path):
    scratch = [YARDSTICK, changed_copy(tmp_path / "longer", "task", step_error=0.3)]
    real = changed_copy(tmp_path / "real", "sizes", "xs", path="some/model")
    points = pd.DataFrame(gather([*scratch, real]))
    own = points[points["study"] == "real"]
    assert set(own["family"]) == {
        *("vimpo, a pretrained model", "vimpo, actor_coef 0, a pretrained model")
    }
    assert fit(points, ORDER) == fit(points.drop(own.index), ORDER)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["nowhere"], "has no config.yaml"),
        ([YARDSTICK, YARDSTICK], "comes twice"),
        ([YARDSTICK.parent / "first_study"], "no run with a capacity"),
    ],
)
def test_what_is_no_study_with_a_capacity_is_refused(folders, message):
    with pytest.raises(ConfigError, match=message):
        gather(map(Path, folders))
