"""Capacity in tables and reports, of studies that have it and of those that are older."""

from __future__ import annotations

import math
import shutil

import pytest
from fake_results import small_study, write_figures, write_results, write_surprisal

from vimpo.analysis.aggregate import aggregate
from vimpo.compare.compare import compare, read_side
from vimpo.config import load_study
from vimpo.errors import DamagedError
from vimpo.planning.capacity import capacity_lines, measured
from vimpo.report.page import write_report
from vimpo.report.published import publish
from vimpo.storage.columns import COLUMNS, OPTIONAL_TABLES, PUBLISHED_TABLES
from vimpo.storage.integrity import SUMS, seal
from vimpo.storage.surprisal import Nats, Surprisal
from vimpo.storage.tables import read_table, read_tables

FOUND = {
    "xs": Surprisal(Nats(256, 30.5, 4.0, 0.1), Nats(90, 30.0, 2.5, 0.2)),
    "s": Surprisal(Nats(256, 29.0, 1.6, 0.05), None),
}
CHANGES = {
    "algorithms": {"vimpo": {"beta": {"capacity": 0.5}}},
    "grid": [
        {"algorithms": ["vimpo", "vimpo_value_only", "grpo"], "sizes": ["xs"], "noise": [0]},
        {"algorithms": ["vimpo", "grpo"], "sizes": ["s"], "noise": [0]},
    ],
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    study = small_study(tmp_path_factory.mktemp("capacity"), **CHANGES)
    write_results(study)
    for size, surprisal in FOUND.items():
        write_surprisal(study, size, surprisal)
    aggregate(study, study.folder / "tables")
    return study


@pytest.fixture
def older(study, tmp_path):
    """The study as one that was published before the table existed."""
    folder = publish(study, tmp_path)
    for name in OPTIONAL_TABLES:
        (folder / "tables" / f"{name}.csv").unlink()
    (folder / SUMS).unlink()
    seal(folder / SUMS, ["."])
    return folder


def report(study, tables, folder):
    write_report(study, tables, write_figures(folder / "figures"), folder / "report.html")
    return (folder / "report.md").read_text()


def test_the_table_has_each_base_and_each_algorithm_with_a_beta(study):
    table = read_table(study.folder / "tables", "capacity").set_index(["size", "algorithm"])
    rows = ["base", "vimpo", "vimpo_value_only"]
    assert list(table.index) == [*(("xs", n) for n in rows), *(("s", n) for n in rows[:2])]
    assert table.loc[("xs", "vimpo"), "beta"] == 0.5 / 4
    assert table.loc[("s", "vimpo"), "beta"] == pytest.approx(0.5 / 1.6)
    assert (table.xs("vimpo", level="algorithm")["capacity"] == 0.5).all()
    assert table.loc[("xs", "vimpo_value_only"), "capacity"] == pytest.approx(0.02 * 4)
    assert math.isnan(table.loc[("xs", "base"), "beta"])
    assert table.loc[("xs", "base"), "right_surprisal"] == 2.5
    assert table.loc[("s", "base"), "right_responses"] == 0
    assert math.isnan(table.loc[("s", "base"), "right_surprisal"])


def test_the_report_prints_it(study, tmp_path):
    text = report(study, study.folder / "tables", tmp_path)
    assert "| size | surprisal, nats | of right responses | capacity of VIMPO |" in text
    row = next(line for line in text.splitlines() if line.startswith("| xs | 4 "))
    assert "4 (standard error 0.1, 256 responses of 30.5 tokens)" in row
    assert "0.5 (beta 0.125) | 0.08 (beta 0.02) |" in row
    row = next(line for line in text.splitlines() if line.startswith("| s | 1.6 "))
    assert "| none | 0.5 (beta 0.3125) | n/a (not in the grid) |" in row
    assert "has not been measured" not in text
    assert "capacity 0.5" in text  # among the hyperparameters


def test_what_was_not_measured_is_said(study, tmp_path):
    lost = study.model_copy(update={"results": str(tmp_path)})
    shutil.copytree(study.folder, lost.folder)
    (lost.base_folder("s") / "surprisal.json").unlink()
    aggregate(lost, lost.folder / "tables")
    text = report(lost, lost.folder / "tables", tmp_path)
    assert "The surprisal of the base policy s has not been measured." in text
    assert set(read_table(lost.folder / "tables", "capacity")["size"]) == {"xs"}


def test_a_published_study_without_the_table_still_gives_a_report(study, older, tmp_path):
    frames = read_tables(older / "tables", PUBLISHED_TABLES)
    assert list(frames["capacity"].columns) == COLUMNS["capacity"]
    text = report(load_study(older / "config.yaml"), older / "tables", tmp_path)
    assert "The surprisal of the base policies xs, s has not been measured." in text
    same = compare(read_side(str(older)), read_side(str(study.folder)))
    assert same.exit_code == 0


def test_a_table_that_was_lost_is_damage_and_not_age(study, tmp_path):
    folder = publish(study, tmp_path)
    (folder / "tables/capacity.csv").unlink()
    with pytest.raises(DamagedError, match=r"capacity\.csv' is missing"):
        read_tables(folder / "tables", PUBLISHED_TABLES)


def test_a_continued_study_knows_what_was_measured_there(study, tmp_path):
    folder = publish(study, tmp_path / "published")
    here = study.model_copy(update={"results": str(tmp_path / "r"), "continues": str(folder)})
    assert measured(here) == FOUND
    assert len(list(capacity_lines(here))) == 4
    aggregate(here, tmp_path / "tables")
    old, new = (read_table(f, "capacity") for f in (folder / "tables", tmp_path / "tables"))
    assert old.equals(new)
