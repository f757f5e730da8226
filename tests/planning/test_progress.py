"""The lines of a running workflow: cells and jobs done, time left, what failed."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import yaml
from snakes import snakemake

from vimpo.planning.progress import Progress

ROOT = Path(__file__).parents[2]
CELL = {"algorithm": "vimpo", "size": "xs", "noise": "0", "seed": "1"}


class Workflow:
    """Snakemake's records of a run, on a clock that the test sets."""

    def __init__(self, cells, **stats):
        self.now, self.jobs, self.done = 0.0, 0, 0
        self.total = sum(stats.values())
        self.progress = Progress(None, cells, lambda: self.now)
        self.says("run_info", stats=stats | {"total": self.total})

    def says(self, event, module="workflow", **facts):
        """The printed line, or None."""
        record = logging.LogRecord("snakemake", logging.INFO, f"{module}.py", 1, "text", (), None)
        vars(record).update(event=event, **facts)
        return self.progress.format(record) if self.progress.filter(record) else None

    def start(self, rule, wildcards=CELL):
        self.jobs += 1
        said = self.says("job_info", jobid=self.jobs, rule_name=rule, wildcards=wildcards)
        assert said is None
        return self.jobs

    def finish(self, job):
        self.done += 1
        assert self.says("job_finished", job_id=job) is None
        return self.says("progress", done=self.done, total=self.total)


def test_a_finished_job_is_one_line_with_cells_jobs_and_the_time_left():
    run = Workflow(1, pretrain=1, train=1, evaluate=1, probe=1)
    job = run.start("pretrain", {"size": "xs"})
    run.now = 10
    # three jobs are left, each taken to last as long as the one that is known
    assert re.fullmatch(
        r"\[..:..:..\] 0 of 1 cells, 1 of 4 jobs, about 30 s left: pretrain xs \(10 s\)",
        run.finish(job),
    )
    for rule, seconds, left in (("train", 20, "30 s"), ("evaluate", 30, "20 s")):
        job = run.start(rule)
        run.now += seconds
        assert f"about {left} left: {rule} vimpo/xs/noise-0/seed-1 ({seconds} s)" in run.finish(job)
    job = run.start("probe")
    assert "1 of 1 cells, 4 of 4 jobs: probe" in run.finish(job)


def test_jobs_side_by_side_halve_the_time_left():
    run = Workflow(4, train=4)
    first, second = run.start("train"), run.start("train")
    run.now = 60
    run.says("job_finished", job_id=first)
    assert "2 of 4 cells, 1 of 4 jobs, about 60 s left" in run.finish(second)


def test_hours_are_hours():
    run = Workflow(100, train=100)
    job = run.start("train")
    run.now = 120
    assert "about 3.3 h left: train vimpo/xs/noise-0/seed-1 (2 min)" in run.finish(job)


def test_cells_that_earlier_runs_finished_count_as_done():
    run = Workflow(24, evaluate=2, probe=1)
    assert run.progress.cells_done() == 22


def test_a_failed_job_is_counted_until_the_end_and_its_cell_is_not_done():
    run = Workflow(2, train=2)
    bad, good = run.start("train"), run.start("train", CELL | {"seed": "2"})
    run.now = 5
    assert run.says("job_error", jobid=bad) == "text"
    assert "1 of 2 cells, 1 of 2 jobs, 1 FAILED" in run.finish(good)
    assert "2 of 2 cells, 2 of 2 jobs: train" in run.finish(run.start("train"))  # tried again


def test_what_the_scheduler_announces_is_dropped_and_warnings_are_kept():
    run = Workflow(1, train=1)
    assert run.says(None, module="job_scheduler") is None
    assert run.says(None, module="dag") == "text"


@pytest.fixture
def tiny(tmp_path):
    study = yaml.safe_load((ROOT / "workflow/config/tiny.yaml").read_text())
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study | {"results": str(tmp_path / "r")}))
    return tmp_path / "study.yaml"


@pytest.mark.parametrize(("more", "lines"), [((), 1), (("--printshellcmds",), 0)])
def test_snakemake_prints_it_without_a_terminal_unless_more_is_asked_for(tiny, more, lines):
    words = ["--cores", "1", "--nolock", *more, "--configfile", tiny, "--directory", tiny.parent]
    done = snakemake(*words, tiny.parent / "r/tiny/config.yaml")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert len(re.findall(r"^\[.*\] 1 of 1 jobs: resolve", said, re.M)) == lines
    assert ("Finished jobid" in said) == (not lines)
