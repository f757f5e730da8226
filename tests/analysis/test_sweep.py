"""Sweeps: fair trials, the rule that chooses, the table and the figure."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest
from fake_results import seal_again, write_results

from vimpo.analysis.aggregate import aggregate
from vimpo.analysis.sweep import (
    ACCURACY,
    AREA,
    SCORE,
    VALUE,
    _identity,
    settings_text,
    sweep,
    sweep_tables,
    trials,
    varied,
)
from vimpo.cli import main
from vimpo.config import ConfigError, dump_yaml, load_study
from vimpo.planning.preflight import check_before_running
from vimpo.report.figures.sweep import sweeps
from vimpo.storage.tables import read_table

TRIALS = {
    "vimpo_1": {"objective": "vimpo", "lr_scale": 1, "beta": 0.02},
    "vimpo_2": {"objective": "vimpo", "lr_scale": 2, "beta": 0.02},
    "vimpo_3": {"objective": "vimpo", "lr_scale": 2, "beta": 0.1},
    "ppo_1": {"objective": "ppo", "lr_scale": 1, "lam": 1.0},
    "ppo_2": {"objective": "ppo", "lr_scale": 2, "lam": 1.0},
    "ppo_3": {"objective": "ppo", "lr_scale": 2, "lam": 0.95},
}


def a_sweep(folder, names=tuple(TRIALS), **changes):
    grid = {"algorithms": list(names), "sizes": ["xs"], "noise": [0, 0.25], "seeds": [101, 102]}
    plain = {"study": "sweeping", "results": str(folder), "algorithms": TRIALS, "grid": [grid]}
    return load_study(plain | changes)


def sweep_rows(study):
    return sweep_tables(study)["sweeps"]


def set_accuracy(study, cell, value):
    """Rewrite a fake run's scores, all benchmarks alike."""
    path = study.run_folder(cell) / "eval.json"
    report = json.loads(path.read_text())
    for row in report["results"]:
        row["value"] = value
    path.write_text(json.dumps(report))
    seal_again(path.parent)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Accuracies that decide: vimpo_2 and vimpo_3 are equal and best, ppo_3 is best."""
    study = a_sweep(tmp_path_factory.mktemp("sweep"))
    write_results(study)
    level = dict(zip(TRIALS, (0.5, 0.7, 0.7, 0.6, 0.4, 0.65), strict=True))
    for cell in study.cells():
        noisy = 0.1 if cell.noise != "0" else 0.0
        luck = 0.02 if cell.seed == 101 else -0.02
        set_accuracy(study, cell, level[cell.algorithm] - noisy + luck)
    return study


def test_trials_of_an_objective_compete(finished):
    assert trials(finished) == {
        "vimpo": ["vimpo_1", "vimpo_2", "vimpo_3"],
        "ppo": ["ppo_1", "ppo_2", "ppo_3"],
    }


def test_the_best_mean_over_seeds_and_noise_is_chosen_and_the_first_of_equal_ones(finished):
    rows = pd.DataFrame(sweep_rows(finished)).query("metric == @ACCURACY").set_index("trial")
    assert rows.loc["vimpo_1", "mean"] == pytest.approx(0.5 - 0.05)
    assert set(rows.n) == {2}  # the seed is the unit, not the run
    # Student's t over two seeds that differ by 0.04: 12.706 * 0.04 / 2
    assert rows.loc["vimpo_1", "high"] == pytest.approx(0.45 + 12.706 * 0.02, rel=1e-3)


def test_the_mean_of_accuracy_and_area_decides_and_the_first_of_equals(finished, tmp_path):
    copy = finished.model_copy(update={"results": str(tmp_path)})
    shutil.copytree(finished.folder, copy.folder)
    # Areas are the heights of flat curves: they reverse the order that accuracies give vimpo's.
    height = dict(zip(TRIALS, (0.9, 0.2, 0.2, 0.5, 0.5, 0.5), strict=True))
    for cell in copy.cells():
        path = copy.run_folder(cell) / "metrics.csv"
        pd.read_csv(path).assign(accuracy=height[cell.algorithm]).to_csv(path, index=False)
        seal_again(path.parent)
    rows = pd.DataFrame(sweep_rows(copy)).set_index(["metric", "trial"])
    assert list(rows.index[rows.chosen == "yes"]) == [(SCORE, "vimpo_1"), (SCORE, "ppo_3")]
    assert rows.loc[(AREA, "vimpo_1"), "mean"] == pytest.approx(0.9)
    assert rows.loc[(SCORE, "vimpo_1"), "mean"] == pytest.approx((0.45 + 0.9) / 2)
    assert rows.loc[(SCORE, "vimpo_2"), "mean"] == rows.loc[(SCORE, "vimpo_3"), "mean"]


def test_the_first_setting_that_differs_is_the_axis_and_the_rest_is_text(finished):
    rows = pd.DataFrame(sweep_rows(finished)).drop_duplicates("trial").set_index("trial")
    assert set(rows.axis) == {"lr_scale"}
    assert rows.loc["vimpo_3", ["at", "settings"]].tolist() == [2, "beta 0.1"]
    assert varied(finished, ["vimpo_1", "vimpo_2"]) == ["lr_scale"]
    assert settings_text(finished.algorithms["ppo_3"], ["lam", "critic_warmup"]) == (
        "lam 0.95, critic_warmup 0"
    )


def test_the_implied_value_is_shown_where_all_runs_were_probed(finished, tmp_path):
    assert {row["metric"] for row in sweep_rows(finished)} == {SCORE, ACCURACY, AREA, VALUE}
    copy = finished.model_copy(update={"results": str(tmp_path)})
    shutil.copytree(finished.folder, copy.folder)
    (copy.run_folder(copy.cells()[0]) / "probes.parquet").unlink()
    assert {row["metric"] for row in sweep_rows(copy)} == {SCORE, ACCURACY, AREA}


def test_a_missing_run_is_counted_and_nothing_is_chosen(finished, tmp_path):
    copy = finished.model_copy(update={"results": str(tmp_path)})
    shutil.copytree(finished.folder, copy.folder)
    (copy.run_folder(copy.cells()[3]) / "eval.json").unlink()
    with pytest.raises(ConfigError, match=r"1 of 24 runs are missing, such as vimpo_1/xs"):
        sweep_rows(copy)


def test_a_failed_run_counts_with_its_score(finished, tmp_path):
    copy = finished.model_copy(update={"results": str(tmp_path)})
    shutil.copytree(finished.folder, copy.folder)
    path = copy.run_folder(copy.cells()[0]) / "manifest.json"
    outcome = {"kind": "collapsed", "step": 3, "reason": "planted"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"outcome": outcome}))
    seal_again(path.parent)
    rows = pd.DataFrame(sweep_rows(copy)).query("metric == @ACCURACY").set_index("trial")
    assert rows.failed.to_dict() == dict.fromkeys(TRIALS, 0) | {"vimpo_1": 1}
    assert rows.loc["vimpo_1", "mean"] == pytest.approx(0.45)


def test_unequal_numbers_of_trials_are_refused(tmp_path):
    names = ["vimpo_1", "vimpo_2", "ppo_1"]
    with pytest.raises(ConfigError, match="a sweep of 2 of vimpo, 1 of ppo; allowed: as many"):
        trials(a_sweep(tmp_path, names))


def test_trials_with_other_seeds_are_refused(tmp_path):
    study = a_sweep(tmp_path)
    block = study.grid[0].model_dump() | {"algorithms": ["vimpo_1"], "seeds": [103]}
    study = a_sweep(tmp_path, grid=[study.grid[0].model_dump(), block])
    with pytest.raises(ConfigError, match=r"other sizes, noise levels or seeds than the rest"):
        trials(study)


def test_table_and_figure_are_written_and_a_study_takes_them_over(finished, tmp_path):
    (tmp_path / "study.yaml").write_text(dump_yaml(finished))
    assert main(["sweep", "--config", str(tmp_path / "study.yaml")]) == 0
    path = finished.folder / "sweep/sweeps.csv"
    assert path.with_suffix(".png").stat().st_size > 10_000
    table = read_table(path.parent, "sweeps")
    assert len(table) == 4 * len(TRIALS)
    named = shutil.copy(path, tmp_path / "tuning.csv")
    study = finished.model_copy(update={"sweeps": [str(named)]})
    aggregate(study, tmp_path / "tables")
    taken = read_table(tmp_path / "tables", "sweeps")
    pd.testing.assert_frame_equal(taken, table)
    assert read_table(tmp_path / "tables", "sweeps_curves").empty  # not beside it
    curves = shutil.copy(path.with_name("sweeps_curves.csv"), tmp_path / "tuning_curves.csv")
    aggregate(study, tmp_path / "tables")
    taken = read_table(tmp_path / "tables", "sweeps_curves")
    pd.testing.assert_frame_equal(taken, read_table(curves.parent, "sweeps_curves", curves.name))
    assert path.with_name("sweeps_curves.png").stat().st_size > 10_000


def test_a_trials_curves_are_means_over_seeds_of_its_other_cells_means(finished):
    rows = pd.DataFrame(sweep_tables(finished)["sweeps_curves"])
    assert set(rows.metric) == {"accuracy", "reference_kl"}
    own = rows[(rows.trial == "vimpo_3") & (rows.metric == "accuracy")].set_index("step")
    runs = [
        pd.read_csv(finished.run_folder(cell) / "metrics.csv").set_index("step")["accuracy"]
        for cell in finished.cells()
        if cell.algorithm == "vimpo_3"
    ]
    width = finished.train.steps // 10
    smooth = pd.concat(runs, axis=1).mean(axis=1).rolling(width, center=True, min_periods=1).mean()
    assert own["mean"].to_numpy() == pytest.approx(smooth[own.index].to_numpy())
    assert set(own.n) == {2}
    assert own[["axis", "at", "settings"]].iloc[0].tolist() == ["lr_scale", 2, "beta 0.1"]


def test_a_collapsed_trial_flattens_no_other(finished, tmp_path):
    table = read_table(sweep(finished, tmp_path).parent, "sweeps")
    table.loc[(table.trial == "vimpo_1") & (table.metric == VALUE), "mean"] = -40
    panels = {axes.get_ylabel(): axes for axes in sweeps(table, {}).axes}
    low, high = panels[VALUE].get_ylim()
    assert -2 < low < -1
    assert high < 2


def test_only_settings_that_have_a_name_have_a_legend(finished, tmp_path):
    table = read_table(sweep(finished, tmp_path).parent, "sweeps")
    assert all(axes.get_legend() for axes in sweeps(table, {}).axes)
    alone = table[table.trial.isin(["vimpo_1", "vimpo_2"])].assign(settings="")
    assert not any(axes.get_legend() for axes in sweeps(alone, {}).axes)


def test_a_sweep_that_is_not_there_is_named_before_anything_runs(tmp_path):
    study = a_sweep(tmp_path, sweeps=[str(tmp_path / "none.csv")])
    with pytest.raises(ConfigError, match=r"sweeps: '.*none.csv' is not a file"):
        check_before_running(study)


def test_trials_of_several_capacities_have_those_on_the_axis(tmp_path):
    names = [f"vimpo_{c}" for c in (0.1, 0.5)]
    betas = {n: {"objective": "vimpo", "beta": {"capacity": float(n[6:])}} for n in names}
    study = a_sweep(tmp_path, names, algorithms=betas)
    found = [_identity(study, name, varied(study, names)) for name in names]
    assert [(row["axis"], row["at"]) for row in found] == [("capacity", 0.1), ("capacity", 0.5)]
    assert settings_text(study.algorithms[names[0]], ["beta"]) == 'beta {"capacity": 0.1}'
