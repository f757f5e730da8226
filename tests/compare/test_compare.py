"""Two results compared: re-runs, published tables, other configurations."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from fake_results import NO_CLAIMS, seal_again, small_study, write_probes, write_results

from vimpo.analysis.aggregate import aggregate
from vimpo.analysis.intervals import mean_interval, normal_interval
from vimpo.analysis.summaries import interval_columns
from vimpo.cli import main
from vimpo.compare.compare import check_configurations, compare, read_side
from vimpo.compare.scores import Score, _of_interval
from vimpo.config import Cell, ConfigError, dump_yaml, load_study
from vimpo.report.published import publish
from vimpo.storage.columns import CELL_TABLES

FILES = "files of weights and metrics"
GRID = {"sizes": ["xs", "s"], "noise": [0.25], "seeds": [1, 2]}


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A finished study, and its published folders.

    published: summaries, and rows of single runs; means: summaries alone, as
    results/published/quick; cells: tables of single runs.
    """
    study = small_study(tmp_path_factory.mktemp("old"), grid=GRID, claims=NO_CLAIMS)
    write_results(study, seed=1)
    aggregate(study, study.folder / "tables")
    publish(study, Path(study.results) / "published")
    shutil.rmtree(publish(study, Path(study.results) / "means") / "cells")
    publish(study, Path(study.results) / "cells", names=CELL_TABLES)
    return study


def side(study, kind):
    return read_side({"runs": study.folder}.get(kind, Path(study.results) / kind / study.study))


def rerun(old, folder, seed=1, **changes):
    """The same study, trained again, with other random draws or with a changed part."""
    study = load_study(old.model_dump(mode="json") | {"results": str(folder)} | changes)
    write_results(study, seed=seed)
    return study


def change_scores(study, cells, by, metrics=("sampled", "greedy")):
    for cell in cells:
        path = study.run_folder(cell) / "eval.json"
        report = json.loads(path.read_text())
        for result in report["results"]:
            if result["metric"] in metrics:
                result["value"] = float(np.clip(result["value"] + by, 0, 1))
        path.write_text(json.dumps(report))
        seal_again(path.parent)


@pytest.mark.parametrize("kind", ["runs", "published", "means", "cells"])
def test_the_same_numbers_are_byte_equal(old, kind, tmp_path):
    """Whatever kind A is, and though B lies elsewhere and was not aggregated."""
    new = rerun(old, tmp_path)
    found = compare(side(old, kind), read_side(new.folder))
    assert found.verdict == "byte-equal"
    assert found.exit_code == 0
    assert set(found.rows["judgement"]) == {"equal"}
    assert all(count and not unequal for count, unequal in found.digits.values())
    kinds = {"accuracy", "curves", "probes"}
    assert set(found.rows["kind"]) == kinds
    assert found.digits.pop(FILES) == (len(old.cells()), 0)
    assert (found.rows["number"] == "mean sampled").sum() == len(old.cells()) + 2
    if kind == "means":
        assert set(found.digits) == {"accuracy", "curves_summary", "probe_summary"}
    else:
        assert set(found.digits) == kinds
    # every position of the probes, if both sides have them
    rows = [row for cell in old.cells() for row in probes_of(old, cell).to_pylist()]
    whole = sum(row["position"] == "all" for row in rows)
    counts = {"means": 0, "cells": whole}
    assert found.digits.get("probes", (0, 0))[0] == counts.get(kind, len(rows)) != 2 * whole


def probes_of(study, cell):
    return pq.read_table(study.run_folder(cell) / "probes.parquet")


def change_probe(study, cell):
    """One number of one position."""
    table = probes_of(study, cell)
    rows = table.to_pylist()
    next(row for row in rows if row["position"] != "all")["value"] += 1e-6
    changed = pa.Table.from_pylist(rows, schema=table.schema)
    pq.write_table(changed, study.run_folder(cell) / "probes.parquet")
    seal_again(study.run_folder(cell))


def change_curve(study, cell):
    path = study.run_folder(cell) / "metrics.csv"
    metrics = pd.read_csv(path)
    metrics.loc[4, "entropy"] += 1e-6
    metrics.to_csv(path, index=False)
    seal_again(path.parent)


def set_weights(study, content):
    """Weights of the first run; its timings differ from those of any other study."""
    folder = study.run_folder(study.cells()[0])
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model/model.safetensors").write_text(content)
    timing = (folder / "timing.csv").read_text()
    (folder / "timing.csv").write_text(timing.replace("total_s", f'total_s,"{study.results}"'))
    seal_again(folder)


@pytest.mark.slow
def test_weights_count_though_they_are_committed_nowhere(old, tmp_path):
    first, new = rerun(old, tmp_path / "first"), rerun(old, tmp_path / "new")
    set_weights(first, "alike")
    aggregate(first, first.folder / "tables")
    publish(first, tmp_path / "first/published")
    publish(first, tmp_path / "first/cells", names=CELL_TABLES)
    sides = [side(first, kind) for kind in ("runs", "published", "cells")]
    for weights, verdict in (("alike", "byte-equal"), ("other", "statistically the same")):
        set_weights(new, weights)
        again = read_side(new.folder)
        for first_side in sides:
            found = compare(first_side, again)
            assert found.digits[FILES] == (len(old.cells()) + 1, int(weights == "other"))
            assert found.verdict == verdict


def test_damaged_manifests_are_refused_by_name(old, tmp_path):
    folder = publish(old, tmp_path)
    (folder / "manifests.jsonl").write_text('{"run": "base/xs"')
    with pytest.raises(ConfigError, match=r"manifests: '.*manifests.jsonl' is damaged"):
        read_side(folder)


@pytest.mark.parametrize("kind", ["published", "means"])
def test_one_cell_against_a_published_study(old, kind, tmp_path):
    """All of it compares digit by digit, except curves and probes with means alone."""
    cell = Cell("ppo", "s", "0.25", 2)
    new = rerun(old, tmp_path)
    for other in set(new.cells()) - {cell}:
        shutil.rmtree(new.run_folder(other))
    found = compare(side(old, kind), read_side(new.folder))
    assert found.notes[0] == "1 cell in common, 11 only in A, 11 only in B"
    assert found.verdict == "byte-equal"
    if kind == "published":
        assert set(found.rows["judgement"]) == {"equal"}
        assert set(found.digits) == {"accuracy", "curves", "probes", FILES}
        change_probe(new, cell)
        change_curve(new, cell)
        changed = compare(side(old, kind), read_side(new.folder)).digits
        assert [changed[name][1] for name in ("accuracy", "curves", "probes")] == [0, 1, 1]
        return
    accuracy = found.rows[found.rows["kind"] == "accuracy"]
    assert accuracy["equal"].all()
    assert set(accuracy["algorithm"]) == {"base", "ppo"}
    rest = found.rows[found.rows["kind"] != "accuracy"]
    assert not rest["equal"].any()
    assert set(rest["judgement"]) <= {"inside", "no yardstick"}
    assert set(rest["seed"]) == {"mean"}


@pytest.mark.parametrize("kind", ["runs", "published"])
def test_other_random_draws_are_statistically_the_same(old, kind, tmp_path):
    found = compare(side(old, kind), read_side(rerun(old, tmp_path, seed=2).folder))
    assert found.verdict == "statistically the same"
    assert found.exit_code == 0
    accuracy = found.rows[found.rows["kind"] == "accuracy"]
    assert not accuracy["equal"].all()
    assert (accuracy["judgement"] == "outside").mean() < 0.1


@pytest.mark.parametrize(
    ("cells", "by"), [(None, -0.12), ([Cell("ppo", "s", "0.25", s) for s in (1, 2)], -0.6)]
)
def test_a_shift_of_all_cells_or_a_broken_group_is_different(old, tmp_path, cells, by):
    new = rerun(old, tmp_path, seed=2)
    change_scores(new, cells or new.cells(), by)
    found = compare(side(old, "published"), read_side(new.folder))
    assert found.verdict == "different"
    assert found.exit_code == 1
    if cells:
        assert found.agreement.largest == ("ppo", "s", "0.25")
    else:
        assert found.agreement.outside > found.agreement.allowed


@pytest.mark.parametrize("part", ["accuracy", "curves", "probes"])
def test_one_changed_digit_anywhere_is_not_byte_equal(old, tmp_path, part):
    new = rerun(old, tmp_path)
    cell = Cell("grpo", "xs", "0.25", 2)
    if part == "accuracy":
        change_scores(new, [cell], 1e-6, ("greedy",))
    elif part == "curves":
        change_curve(new, cell)
    else:
        rows = {("critic", "slope"): 0.0, ("implied", "slope"): 1.0}
        write_probes(new, cell, np.random.default_rng(0), rows)
    found = compare(side(old, "runs"), read_side(new.folder))
    assert found.verdict == "statistically the same"
    assert found.digits[part][1] >= 1
    changed = {part, FILES} if part == "curves" else {part}
    assert {name for name, (_, unequal) in found.digits.items() if unequal} == changed


def test_a_lost_number_is_not_byte_equal(old, tmp_path):
    new = rerun(old, tmp_path)
    path = new.run_folder(new.cells()[0]) / "metrics.csv"
    pd.read_csv(path).iloc[:-1].to_csv(path, index=False)
    seal_again(path.parent)
    found = compare(side(old, "runs"), read_side(new.folder))
    assert found.digits["curves"][1] > 0
    assert found.verdict != "byte-equal"


def test_other_settings_are_refused_by_name_and_the_machine_is_named(old, tmp_path):
    cases = [
        ({"algorithms": {"ppo": {"lam": 0.9}}}, "objective.lam: 1.0 there, 0.9 here (ppo/xs/"),
        ({"evaluation": {"samples": 4}}, "evaluation.samples: 2 there, 4 here (vimpo/xs/"),
    ]
    for change, message in cases:
        new = load_study(old.model_dump(mode="json") | change)
        with pytest.raises(ConfigError) as caught:
            check_configurations(old, new, old.cells())
        assert message in str(caught.value)
    new = rerun(old, tmp_path / "threads", runtime={"threads": 2})
    found = compare(side(old, "published"), read_side(new.folder))
    assert "runtime.threads: 1 there, 2 here" in found.notes
    assert found.verdict == "byte-equal"
    new = rerun(old, tmp_path / "probes", probes={"continuations": 8})
    found = compare(side(old, "published"), read_side(new.folder))
    assert "probes: other settings, not compared" in found.notes
    assert "probes" not in set(found.rows["kind"])


def test_memory_and_time_are_told_and_not_judged(old, tmp_path):
    new = rerun(old, tmp_path)
    for cell in new.cells():
        path = new.run_folder(cell) / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["peak_memory_mb"] *= 100
        manifest["hardware"]["cpu"] = "another"
        path.write_text(json.dumps(manifest))
        seal_again(path.parent)
    found = compare(side(old, "published"), read_side(new.folder))
    assert found.verdict == "byte-equal"
    told = {row["item"]: row for row in found.machine}
    assert told["hardware.cpu"]["b"] == "another | test"
    x, y = (float(told["ppo s peak_memory_mb"][s]) for s in "ab")
    assert y == pytest.approx(100 * x, rel=0.01)


def test_the_command_prints_writes_and_returns_the_verdict(old, tmp_path, capsys):
    new = rerun(old, tmp_path, seed=2)
    a, b = str(side(old, "published").path), str(new.folder)
    output = tmp_path / "found.csv"
    assert main(["compare", a, b, "--output", str(output)]) == 0
    text = capsys.readouterr().out
    assert "verdict: statistically the same" in text
    rows = pd.read_csv(output)
    assert len(rows) == len(compare(read_side(a), read_side(b)).rows)
    change_scores(new, new.cells(), -0.5)
    output = tmp_path / "found.json"
    assert main(["compare", a, b, "--output", str(output)]) == 1
    assert "verdict: different" in capsys.readouterr().out
    written = json.loads(output.read_text())
    assert written["verdict"] == "different"
    assert written["agreement"]["outside"] > written["agreement"]["allowed"]
    assert len(written["rows"]) == len(rows)


def test_damaged_rows_of_single_cells_are_refused_by_name(old, tmp_path):
    folder = publish(old, tmp_path)
    path = folder / "cells/curves.parquet"
    path.write_bytes(path.read_bytes()[:-9] + b"damage!!!")
    with pytest.raises(ConfigError, match=r"cells: '.*cells/curves\.parquet' is damaged"):
        read_side(folder)
    path.unlink()
    with pytest.raises(ConfigError, match=r"cells: '.*cells/curves\.parquet' is missing"):
        read_side(folder)


def test_bad_input_is_one_error(old, tmp_path, capsys):
    published = str(side(old, "published").path)
    other = small_study(tmp_path, grid={"seeds": [9]})
    write_results(other)
    (tmp_path / "empty").mkdir()
    cases = {
        (published, str(tmp_path / "none")): "is not a results folder",
        (published, str(tmp_path / "empty")): "is not a results folder",
        (published, str(other.folder)): "have no finished cell in common",
        (published, published, "--output", "x.txt"): "allowed: a name in .csv or .json",
    }
    for arguments, message in cases.items():
        assert main(["compare", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
    tables = tmp_path / "changed"
    shutil.copytree(published, tables)
    text = (tables / "tables/accuracy.csv").read_text()
    (tables / "tables/accuracy.csv").write_text(text.replace("0.5", "0.6"))
    assert main(["compare", published, str(tables)]) == 2
    error = capsys.readouterr().err
    assert f"tables: '{tables}/tables/accuracy.csv' is damaged: its checksum is not" in error


def test_runs_made_by_hand_take_the_study_from_config(old, tmp_path):
    new = rerun(old, tmp_path)
    (new.folder / "config.yaml").unlink()
    with pytest.raises(ConfigError, match="--config for a folder of runs"):
        read_side(new.folder)
    config = tmp_path / "study.yaml"
    config.write_text(dump_yaml(new))
    assert main(["compare", str(old.folder), str(new.folder), "--config", str(config)]) == 0
    assert yaml.safe_load(config.read_text())["study"] == "fake"


@pytest.mark.parametrize("bounds", [(-np.inf, np.inf), (0.35, 1.0)])
def test_the_spread_is_read_back_from_a_published_interval(bounds):
    values = np.array([0.4, 0.5, 0.6])

    class Row:
        pass

    row = Row()
    vars(row).update(interval_columns(mean_interval(values, 0.95, bounds), 3, 0.95))
    found = _of_interval(row, 31)
    assert found.sd == pytest.approx(values.std(ddof=1))
    assert (found.value, found.n) == (pytest.approx(0.5), 3)
    vars(row).update(interval_columns(normal_interval(0.5, 0.07, 3), 3, 0.95))
    assert _of_interval(row, 31) == Score(0.5, pytest.approx(0.07), 31, 3)
    row.low, row.high = 0.0, 1.0  # cut at both ends
    assert np.isnan(_of_interval(row, 31).sd)
    assert np.isnan(_of_interval(row, 31).stderr)
