"""Tables from runs: complete, exact, repeatable, and never silently averaged."""

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
from fake_results import (
    NO_CLAIMS,
    PARAMETERS,
    seal_again,
    small_study,
    write_figures,
    write_probes,
    write_results,
)

from vimpo.analysis.aggregate import aggregate
from vimpo.analysis.intervals import mean_interval
from vimpo.config import Cell, ConfigError, load_study
from vimpo.report.page import write_report
from vimpo.storage.codes import Reason, Why
from vimpo.storage.columns import COLUMNS, OPTIONAL_TABLES, PUBLISHED_TABLES
from vimpo.storage.integrity import SUMS, seal
from vimpo.storage.tables import check_tables, read_table, read_tables

LOST = Cell("vimpo", "xs", "0.25", 2)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    study = small_study(tmp_path_factory.mktemp("template"))
    write_results(study)
    return study


@pytest.fixture
def study(template, tmp_path):
    """A results folder of one's own, without claims."""
    copy = small_study(tmp_path, claims=NO_CLAIMS)
    shutil.copytree(template.folder, copy.folder)
    return copy


@pytest.fixture
def judged(template, tmp_path):
    """As `study`, with claims."""
    copy = small_study(tmp_path)
    shutil.copytree(template.folder, copy.folder)
    return copy


@pytest.fixture
def little(tmp_path):
    """The results of VIMPO at one size, which make tables in a moment."""
    grid = {"algorithms": ["vimpo"], "sizes": ["xs"], "noise": [0, 0.25]}
    study = small_study(tmp_path, grid=[grid], claims=NO_CLAIMS)
    write_results(study)
    return study


@pytest.fixture(scope="module")
def folder(template, tmp_path_factory):
    """Where the tables of the template lie."""
    folder = tmp_path_factory.mktemp("tables")
    aggregate(template, folder)
    return folder


@pytest.fixture(scope="module")
def tables(folder):
    """All tables of the template; read only."""
    return {name: read_table(folder, name) for name in COLUMNS}


def tables_of(study):
    aggregate(study, study.folder / "tables")
    return {name: read_table(study.folder / "tables", name) for name in COLUMNS}


def pick(frame, **values):
    for column, value in values.items():
        frame = frame[frame[column] == value]
    return frame


def edit(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    seal_again(path.parent)


def test_names_that_pandas_would_take_for_numbers_or_for_nothing(tmp_path, monkeypatch):
    names, sizes = ["NA", "None", "02"], ["nan", "1"]
    benchmarks = ["NaN", "3", "1e5", "true"]
    ladder = {size: {"pretrain_steps": 1} for size in sizes}
    for size in sizes:
        monkeypatch.setitem(PARAMETERS, size, 1000 * (1 + sizes.index(size)))
    study = small_study(
        tmp_path,
        algorithms={name: {"objective": "grpo"} for name in names},
        sizes=ladder,
        task={"benchmarks": {name: {"operators": 3} for name in benchmarks}},
        grid=[{"algorithms": ["vimpo", *names], "sizes": sizes, "noise": [0], "seeds": [1]}],
    )
    write_results(study)
    tables = tables_of(study)
    assert tables["missing"].empty
    for name in ("accuracy", "curves_summary", "measured_summary", "measured_cost", "probes"):
        assert set(tables[name]["size"]) - {"all"} == set(sizes)
        assert set(tables[name]["algorithm"]) - {"base"} == {"vimpo", *names}
    assert set(tables["accuracy"]["benchmark"]) == set(benchmarks)
    check_tables(study, tables)
    figures = write_figures(tmp_path / "figures")
    page = tmp_path / "report.html"
    write_report(study, study.folder / "tables", figures, page)
    assert "02" in page.read_text(encoding="utf-8")


def test_the_own_score_of_a_stock_task_is_a_metric_beside_ours_and_in_no_summary(judged, tables):
    before = tables
    folder = judged.run_folder(Cell("ppo", "s", "0.25", 2))
    own = {"stock_metric": "math_verify", "stock_value": 0.125, "stock_stderr": 0.03}
    edit(folder / "eval.json", lambda data: data["results"][0].update(own))
    after = tables_of(judged)
    (row,) = pick(after["accuracy"], metric="sampled_math_verify").to_dict("records")
    ours = json.loads((folder / "eval.json").read_text())["results"][0]
    assert (row["algorithm"], row["seed"], row["value"], row["stderr"]) == ("ppo", 2, 0.125, 0.03)
    assert (row["benchmark"], row["problems"]) == (ours["benchmark"], ours["problems"])
    assert len(after["accuracy"]) == len(before["accuracy"]) + 1
    for name in ("summary", "comparisons", "claims", "missing"):
        pd.testing.assert_frame_equal(after[name], before[name])


def test_every_cell_gives_every_number(template, tables):
    accuracy = tables["accuracy"]
    assert len(accuracy) == (24 + 2) * 4 * 2  # cells and bases, benchmarks, metrics
    assert tables["missing"].empty
    one = pick(accuracy, algorithm="ppo", size="s", noise="0.25", seed=2, metric="sampled")
    recorded = json.loads(
        (template.run_folder(Cell("ppo", "s", "0.25", 2)) / "eval.json").read_text()
    )
    expected = [r["value"] for r in recorded["results"] if r["metric"] == "sampled"]
    np.testing.assert_allclose(one["value"], expected, rtol=1e-9)
    assert set(accuracy["params"]) == {PARAMETERS["xs"], PARAMETERS["s"]}
    base = pick(accuracy, algorithm="base")
    assert set(base["noise"]) == {"0"}
    assert base["seed"].isna().all()
    curves = pick(tables["curves"], algorithm="grpo", size="xs", noise="0", seed=1)
    assert set(pick(curves, metric="accuracy")["step"]) == set(range(template.train.steps))
    assert pick(curves, metric="explained_variance").empty  # a critic's metric


def test_summary_is_the_t_interval_of_seed_means_or_wider(tables):
    runs = pick(tables["accuracy"], algorithm="vimpo", size="xs", noise="0", metric="sampled")
    seeds = runs.groupby("seed")["value"].mean()
    row = pick(
        tables["summary"],
        algorithm="vimpo",
        size="xs",
        noise="0",
        metric="sampled",
        benchmark="mean",
    ).iloc[0]
    expected = mean_interval(seeds, bounds=(0, 1))
    stderr = math.sqrt((runs["stderr"] ** 2).sum() / 2) / 4
    half = max((expected.high - expected.low) / 2, 1.959964 * stderr)
    assert row["mean"] == pytest.approx(expected.value)
    assert (row["high"] - row["low"]) / 2 == pytest.approx(half, rel=1e-3)
    assert (row["n"], row["expected"]) == (2, 2)


def test_the_mean_over_sizes_weighs_sizes_equally(study):
    shutil.rmtree(study.run_folder(LOST))
    summary = pick(tables_of(study)["summary"], metric="sampled", benchmark="mean", noise="0.25")
    rows = pick(summary, algorithm="vimpo").set_index("size")
    assert rows.loc["all", "mean"] == pytest.approx(rows.loc[["xs", "s"], "mean"].mean())
    assert (rows.loc["xs", "n"], rows.loc["xs", "expected"]) == (1, 2)
    assert rows.loc["xs", "reason"] == "one seed has no spread"
    assert rows.loc["all", "reason"] == "one seed at size xs"
    codes = [Reason.ONE_SEED, Reason.STRATUM_ONE_SEED]
    assert rows.loc[["xs", "all"], "reason_code"].tolist() == codes
    assert math.isnan(rows.loc["all", "low"])


def test_the_interval_of_the_base_is_over_problems(tables):
    runs = pick(tables["accuracy"], algorithm="base", size="s", metric="greedy")
    row = pick(
        tables["summary"], algorithm="base", size="s", metric="greedy", benchmark="mean"
    ).iloc[0]
    stderr = math.sqrt((runs["stderr"] ** 2).sum()) / 4
    assert row["high"] - row["mean"] == pytest.approx(1.959964 * stderr, rel=1e-5)
    assert row["n"] == 1


def test_tables_repeat_byte_for_byte(little, tmp_path):
    for name in ("one", "two"):
        aggregate(little, tmp_path / name)
    for name in COLUMNS:
        assert (tmp_path / f"one/{name}.csv").read_bytes() == (
            tmp_path / f"two/{name}.csv"
        ).read_bytes()


@pytest.mark.parametrize(
    ("damage", "stage", "reason"),
    [
        (lambda f: shutil.rmtree(f), "train", "manifest.json is missing"),
        (lambda f: (f / "metrics.csv").unlink(), "train", "metrics.csv is missing"),
        (lambda f: (f / "metrics.csv").write_text(""), "train", "metrics.csv is damaged"),
        (lambda f: (f / "manifest.json").write_text("{"), "train", "manifest.json is damaged"),
        (lambda f: (f / "eval.json").unlink(), "evaluate", "eval.json is missing"),
        (
            lambda f: edit(f / "manifest.json", lambda m: m.update(status="running")),
            "train",
            "the run is running",
        ),
        (
            lambda f: edit(f / "eval.json", lambda e: e["results"].pop(0)),
            "evaluate",
            "lacks chain_easy sampled",
        ),
        (
            lambda f: edit(f / "eval.json", lambda e: e["results"][0].update(value=math.nan)),
            "evaluate",
            "not finite: chain_easy sampled",
        ),
        (
            lambda f: edit(f / "eval.json", lambda e: e["results"][0].update(samples=8)),
            "evaluate",
            "8 samples of chain_easy sampled, the study asks for 2",
        ),
    ],
)
def test_a_damaged_cell_is_listed_by_name_and_enters_no_mean(little, damage, stage, reason):
    damage(little.run_folder(LOST))
    tables = tables_of(little)
    missing = tables["missing"]
    assert list(missing["cell"]) == [LOST.name]
    assert list(missing["stage"]) == [stage]
    assert reason in missing["reason"].iloc[0]
    of_cell = dict(algorithm="vimpo", size="xs", noise="0.25")
    assert pick(tables["accuracy"], **of_cell, seed=2).empty
    assert pick(tables["curves"], **of_cell, seed=2).empty == (stage == "train")
    assert set(pick(tables["summary"], **of_cell)["n"]) == {1}


def test_a_nan_metric_makes_a_gap_not_an_average(little):
    path = little.run_folder(LOST) / "metrics.csv"
    metrics = pd.read_csv(path)
    metrics.loc[20, "accuracy"] = np.nan
    metrics.to_csv(path, index=False)
    seal_again(path.parent)
    tables = tables_of(little)
    assert tables["missing"]["reason"].tolist() == [
        f"not finite: accuracy at 1 of {little.train.steps} steps"
    ]
    where = {"algorithm": "vimpo", "size": "xs", "noise": "0.25", "metric": "accuracy"}
    curve = pick(tables["curves_summary"], **where)
    gap = curve.set_index("step").loc[20]
    assert math.isnan(gap["mean"])
    assert gap["reason"] == "1 of 2 values are not finite"
    assert curve["mean"].isna().sum() == 1


def test_a_missing_base_is_listed(study):
    shutil.rmtree(study.base_folder("xs"))
    tables = tables_of(study)
    assert tables["missing"]["cell"].tolist() == ["base/xs"]
    rows = pick(tables["summary"], algorithm="base", benchmark="mean", metric="sampled")
    assert "no result at size xs" in rows.set_index("size").loc["all", "reason"]
    assert set(tables["accuracy"]["params"]) == {PARAMETERS["xs"], PARAMETERS["s"]}


def test_nothing_at_all_gives_tables_of_nothing(tmp_path):
    study = small_study(tmp_path)
    tables = tables_of(study)
    assert tables["missing"]["stage"].value_counts().to_dict() == {
        "train": 24,
        "pretrain": 2,
        "cost": 2,
    }
    assert set(pick(tables["claims"], kind="test")["verdict"]) == {"inconclusive"}
    assert (pick(tables["claims"], kind="test")["reason"] != "").all()
    assert tables["summary"]["mean"].isna().all()
    assert (tables["summary"]["reason"] != "").all()


def test_a_run_of_another_configuration_is_missing_with_the_reason(study):
    """And all that others made is there."""
    other = load_study(
        {"study": "fake", "results": study.results, "algorithms": {"vimpo": {"beta": 0.5}}}
    )
    tables = tables_of(other)
    expected = [cell.name for cell in other.cells() if cell.algorithm == "vimpo"]
    missing = pick(tables["missing"], stage="train").reset_index()
    assert missing["cell"].tolist() == expected
    first = next(cell for cell in other.cells() if cell.algorithm == "vimpo")
    assert missing["reason"][0] == (
        f"made by another configuration (digest {study.cell_digest(first)} in "
        f"'{other.run_folder(first)}', {other.cell_digest(first)} here): remove the folder, or use "
        "the configuration beside its results"
    )
    assert set(tables["accuracy"]["algorithm"]) == {"base", "grpo", "ppo"}
    # The probes of the others' policies read td with VIMPO's beta.
    others = pick(tables["missing"], stage="probe")
    assert others["reason"].str.startswith("probes.parquet is of other probe settings").all()
    assert len(tables["missing"]) == len(missing) + len(others)


def test_one_size_has_one_model(study):
    manifest = study.run_folder(LOST) / "manifest.json"
    edit(manifest, lambda m: m.update(parameters=5))
    with pytest.raises(ConfigError, match="5 parameters"):
        aggregate(study, study.folder / "tables")


def test_noise_modes_stay_apart(tmp_path):
    noise = [0, 0.25, {"mode": "rollout", "rate": 0.25}]
    study = small_study(tmp_path, grid=[{"algorithms": ["vimpo"], "sizes": ["xs"], "noise": noise}])
    write_results(study)
    summary = pick(tables_of(study)["summary"], algorithm="vimpo", size="xs", metric="sampled")
    means = pick(summary, benchmark="mean").set_index("noise")
    assert list(means.index) == ["0", "0.25", "rollout-0.25"]
    assert list(means["noise_mode"]) == ["group", "group", "rollout"]
    assert list(means["noise_level"]) == [0, 0.25, 0.25]


def test_an_ablation_at_one_size_has_no_mean_over_sizes(tmp_path):
    grid = [
        {"algorithms": ["vimpo", "grpo"], "noise": [0]},
        {"algorithms": ["vimpo_value_only"], "sizes": ["s"], "noise": [0]},
    ]
    study = small_study(tmp_path, grid=grid)
    write_results(study)
    tables = tables_of(study)
    rows = pick(
        tables["summary"], algorithm="vimpo_value_only", benchmark="mean", metric="sampled"
    ).set_index("size")
    assert list(rows.index) == ["s", "all"]
    assert rows.loc["all", "reason"] == "no result at size xs"
    assert tables["missing"].empty


def test_cost_and_provenance(template, tables):
    row = dict(algorithm="ppo", size="xs", noise="0", seed=1)
    cost = pick(tables["cost"], **row).set_index("metric")["value"]
    timing = pd.read_csv(template.run_folder(Cell("ppo", "xs", "0", 1)) / "timing.csv")
    assert cost["step_critic"] == pytest.approx(timing["critic_s"].median())
    assert cost["rollouts_per_second"] == pytest.approx(128 / timing["total_s"].median())
    assert cost["optimizer_bytes"] == 16 * PARAMETERS["xs"]
    assert cost["wall_startup"] == 7
    provenance = tables["provenance"].set_index("item")
    assert provenance.loc["versions.torch", "value"] == "2.13.0"
    assert provenance.loc["versions.torch", "count"] == 26
    assert provenance.loc["configuration.grpo/s", "count"].sum() == 4


# --- Probes, comparisons, digests ----------------------------------------------------------------


def test_probes_are_small_and_their_positions_stand_in_the_summary(template, folder, tables):
    assert set(tables["probes"]["position"]) == {"all"}
    places = pick(tables["probe_summary"], probe="value", metric="explained_variance")
    assert set(places["position"]) == {"all", *(f"{p:g}" for p in template.probes.positions)}
    published = sum((folder / f"{name}.csv").stat().st_size for name in PUBLISHED_TABLES)
    assert published / 24 * 300 < 8e6  # a study of 300 cells stays fit for git


def test_a_probe_interval_is_over_seeds_and_never_narrower_than_over_problems(tables):
    labels = dict(algorithm="vimpo", size="xs", noise="0", probe="value", target="change")
    labels |= dict(predictor="implied", metric="explained_variance", position="all")
    runs, row = pick(tables["probes"], **labels), pick(tables["probe_summary"], **labels).iloc[0]
    expected = mean_interval(runs["value"])
    half = max((expected.high - expected.low) / 2, 1.959964 * runs["stderr"].mean())
    assert row["mean"] == pytest.approx(expected.value)
    assert row["high"] - row["mean"] == pytest.approx(min(half, 1 - row["mean"]), rel=1e-5)
    # the group mean knows nothing of the change by construction: no error, no interval
    constant = pick(tables["probe_summary"], **labels | dict(predictor="group_mean")).iloc[0]
    assert (constant["mean"], constant["reason"]) == (
        0,
        "all 2 values are equal, so their spread is unknown",
    )


def test_a_run_without_spread_leaves_its_statistic_without_a_number(judged):
    """All rollouts right: nothing to explain, nothing wrong to find."""
    reason = Why(Reason.NO_VARIATION, "the truth does not vary")
    change = {("implied", "explained_variance"): reason, ("implied_td", "auc"): reason}
    cell = Cell("vimpo", "s", "0", 2)
    write_probes(judged, cell, np.random.default_rng(0), change)
    tables = tables_of(judged)
    labels = dict(algorithm="vimpo", size="s", noise="0", predictor="implied", target="change")
    row = pick(tables["probe_summary"], **labels, metric="explained_variance", position="all")
    assert row["mean"].isna().all()
    assert row["reason"].tolist() == [f"1 of 2 runs: {reason.text}"]
    assert row["reason_code"].tolist() == [reason.code]
    claims = pick(tables["claims"], claim="C5", kind="test").set_index("part")
    accurate = claims.loc["C5.accurate"]
    assert accurate["verdict"] == "inconclusive"
    assert accurate["reason"] == "1 of 4 values are not finite"
    assert math.isnan(accurate["effect"])
    # the same at the other size is untouched
    other = pick(tables["probe_summary"], **labels | dict(size="xs"), metric="explained_variance")
    assert other["mean"].notna().all()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: (f / "probes.parquet").unlink(), "probes.parquet is missing"),
        (
            lambda f: (f / "probes.parquet").write_text("no"),
            "probes.parquet is damaged: its checksum is not the one in probes.sha256",
        ),
        (
            lambda f: [
                shutil.copy(f.parents[1] / f"noise-0/seed-1/{name}", f / name)
                for name in ("probes.parquet", "probes.sha256")
            ],
            "of other probe settings",
        ),
    ],
)
def test_unusable_probes_are_listed_and_the_accuracy_stays(little, damage, reason):
    damage(little.run_folder(LOST))
    tables = tables_of(little)
    assert tables["missing"]["stage"].tolist() == ["probe"]
    assert reason in tables["missing"]["reason"].iloc[0]
    summary = pick(tables["summary"], algorithm="vimpo", size="xs", noise="0.25")
    assert set(summary["n"]) == {2}
    probed = pick(tables["probe_summary"], algorithm="vimpo", size="xs", noise="0.25")
    assert set(probed["n"]) == {1}
    assert set(probed["expected"]) == {2}


def test_comparisons_are_paired_differences(tables):
    labels = dict(rival="grpo", noise="0.25", metric="difference")
    rows = pick(tables["comparisons"], **labels).set_index("size")
    runs = pick(tables["accuracy"], noise="0.25", metric="sampled")
    means = runs.groupby(["algorithm", "size", "seed"])["value"].mean()
    gaps = means["vimpo"] - means["grpo"]
    for size in ("xs", "s"):
        expected = mean_interval(gaps[size])
        assert rows.loc[size, "low"] == pytest.approx(expected.low)
        assert rows.loc[size, "mean"] == pytest.approx(expected.value)
    assert rows.loc["all", "mean"] == pytest.approx(gaps.mean())
    assert set(pick(tables["comparisons"], metric="iqm")["rival"]) == {""}


def test_tables_of_two_studies_are_refused_by_name(little, tmp_path):
    aggregate(little, tmp_path / "one")
    shutil.rmtree(little.run_folder(LOST))
    aggregate(little, tmp_path / "two")
    assert len(read_tables(tmp_path / "one", PUBLISHED_TABLES)) == len(PUBLISHED_TABLES)
    shutil.copy(tmp_path / "two/summary.csv", tmp_path / "one/summary.csv")
    with pytest.raises(ConfigError, match=r"one/summary\.csv' is damaged: its checksum is not"):
        read_tables(tmp_path / "one", PUBLISHED_TABLES)


def test_a_lost_table_is_an_error(little, tmp_path):
    aggregate(little, tmp_path)
    (tmp_path / "outcomes.csv").unlink()
    with pytest.raises(ConfigError, match=r"outcomes\.csv' is missing"):
        read_tables(tmp_path, PUBLISHED_TABLES)


def test_a_table_that_is_newer_than_its_folder_is_empty_and_a_lost_one_an_error(little, tmp_path):
    aggregate(little, tmp_path)
    name = OPTIONAL_TABLES[0]
    (tmp_path / f"{name}.csv").unlink()
    with pytest.raises(ConfigError, match=rf"{name}\.csv' is missing"):
        read_tables(tmp_path, PUBLISHED_TABLES)
    # as an earlier version would have left it
    seal(tmp_path / SUMS, [f"{table}.csv" for table in COLUMNS if table != name])
    frame = read_tables(tmp_path, PUBLISHED_TABLES)[name]
    assert frame.empty
    assert list(frame.columns) == COLUMNS[name]
    assert frame["mean"].dtype == float
