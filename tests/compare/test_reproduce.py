"""Cells of a finished study are trained again and compared; the committed reference."""

import json
from pathlib import Path

import pytest
from snakes import snakemake

from vimpo.analysis.aggregate import aggregate
from vimpo.cli import main
from vimpo.compare.compare import read_side
from vimpo.compare.reproduce import _run, chosen
from vimpo.config import load_study
from vimpo.report.published import publish
from vimpo.storage.columns import CELL_TABLES

ROOT = Path(__file__).parents[2]
PROBES = {"problems": 4, "continuations": 4, "baseline_continuations": 4, "credit_rollouts": 4}
CELLS = ["grpo/tiny/noise-rollout-0.25/seed-1", "vimpo/tiny/noise-rollout-0.25/seed-1"]


@pytest.fixture
def reference(tiny_study, tmp_path):
    """Two finished cells, published cell by cell."""
    study = chosen(tiny_study(probes=PROBES, train={"steps": 2}), CELLS)
    _run(study)
    aggregate(study, study.folder / "tables")
    return publish(study, tmp_path / "published", names=CELL_TABLES)


@pytest.mark.slow
def test_a_cell_that_is_trained_again_is_byte_equal(reference, tmp_path, capsys):
    """Base policy included; a second time it is trained once more, not read.

    Slow; `.ci/run` does it by the rule.
    """
    command = ["reproduce", str(reference), "--cells", CELLS[0], "--results", str(tmp_path / "new")]
    folder = tmp_path / "new/tiny"
    trained = []
    for _ in range(2):
        assert main(command) == 0
        text = capsys.readouterr().out
        assert "verdict: byte-equal" in text
        assert "1 cell in common, 1 only in A, 0 only in B" in text
        assert json.loads((folder / "comparison.json").read_text())["verdict"] == "byte-equal"
        trained.append((folder / "runs" / CELLS[0] / "manifest.json").stat().st_mtime_ns)
    assert trained[0] < trained[1]
    assert not (folder / "runs" / CELLS[1]).exists()

    # interrupted before its verdict: resumes
    (folder / "comparison.json").unlink()
    assert main(command) == 0
    assert (folder / "runs" / CELLS[0] / "manifest.json").stat().st_mtime_ns == trained[1]


def test_a_cell_that_the_reference_lacks_is_refused(reference, tmp_path, capsys):
    command = ["reproduce", str(reference), "--results", str(tmp_path / "new"), "--cells", "sft/a"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "cells: 'sft/a' is not in study 'tiny'; allowed: such as grpo/tiny/" in error
    assert not (tmp_path / "new").exists()


def test_the_committed_reference_is_that_of_its_configuration():
    side = read_side(ROOT / "tests/reference")
    study = load_study(ROOT / "workflow/config/reference.yaml")
    for cell in study.cells():
        assert side.study.cell_digest(cell) == study.cell_digest(cell), "see rules/reproduce.smk"
    assert side.study.evaluation_digest() == study.evaluation_digest()
    assert side.tables["missing"].empty
    assert {len(seeds) for group, seeds in side.seeds.items() if group[0] != "base"} == {2}
    accuracy = side.tables["accuracy"]
    assert accuracy["value"].between(0.02, 0.98).mean() > 0.9  # says something


def test_the_rule_trains_nothing_of_the_study_and_is_no_published_one():
    result = snakemake("-n", "--nolock", "reproduce")
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in (result.stdout + result.stderr).splitlines()]
    jobs = [w[1].rstrip(":") for w in lines if w and w[0] in ("rule", "localrule")]
    assert jobs == ["reproduce"]
    assert not (ROOT / "results/published/reference").exists()


@pytest.mark.slow
def test_the_committed_reference_is_what_comes_out(tmp_path):
    """As `snakemake reproduce`; on another machine digits may differ, and the verdict holds."""
    assert main(["reproduce", str(ROOT / "tests/reference"), "--results", str(tmp_path)]) == 0
