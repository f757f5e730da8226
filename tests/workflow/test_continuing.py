"""The DAG of a study that continues a published one: no job makes what is there."""

import shutil
from collections import Counter
from pathlib import Path

import pytest
import snakes
import yaml
from fake_results import NO_CLAIMS, small_study, write_results

from vimpo.analysis.aggregate import aggregate
from vimpo.config import Cell
from vimpo.report.published import publish
from vimpo.storage.continued import taken_over

ROOT = Path(__file__).parents[2]
GRID = {"algorithms": ["vimpo", "ppo", "grpo"], "noise": [0.25], "seeds": [1]}
JOBS = ("pretrain", "evaluate_base", "cost", "train", "evaluate", "probe")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished study, aggregated and published below its results."""
    study = small_study(tmp_path_factory.mktemp("one"), grid=GRID, claims=NO_CLAIMS)
    write_results(study)
    aggregate(study, study.folder / "tables")
    publish(study, Path(study.results) / "published")
    return study


def snakemake(study, folder, *arguments, continues=True, **changes):
    """The workflow of this checkout, at work in another folder on a changed study.

    continues: the published one.
    """
    config = study.model_dump(mode="json") | {"results": "results"} | changes
    (folder / "study.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    words = ["--directory", folder, "--cores", "1", "--nolock", *arguments]
    words += ["--configfile", folder / "study.yaml"]
    if continues:
        words += ["--config", f"continues={study.results}/published/fake"]
    return snakes.snakemake(*words)


def jobs(result):
    """(rule, its wildcards) -> how many, of all jobs of a dry run that compute."""
    assert result.returncode == 0, result.stdout + result.stderr
    found, rule = Counter(), None
    for line in map(str.strip, (result.stdout + result.stderr).splitlines()):
        if line.startswith(("rule ", "localrule ")):
            rule = line.split()[1].rstrip(":")
        if line.startswith("wildcards: ") and rule in JOBS:
            found[rule, line.removeprefix("wildcards: ")] += 1
    return found


@pytest.mark.slow
def test_a_study_that_is_all_there_is_aggregated_and_nothing_else(study, tmp_path):
    assert not jobs(snakemake(study, tmp_path, "--dry-run"))
    done = snakemake(study, tmp_path, "aggregate")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("accuracy", "claims", "probe_summary", "missing", "provenance"):
        file = f"tables/{name}.csv"
        assert (tmp_path / "results/fake" / file).read_bytes() == (study.folder / file).read_bytes()
    again = snakemake(study, tmp_path, "--dry-run", "aggregate")
    assert "Nothing to be done" in again.stdout + again.stderr


def test_only_what_is_new_has_jobs(study, tmp_path):
    """Another seed at one size: its base policy is made, and none of the other size."""
    small, grown = GRID | {"sizes": ["s"]}, GRID | {"sizes": ["xs"], "seeds": [1, 2]}
    found = jobs(snakemake(study, tmp_path, "--dry-run", grid=[small, grown]))
    cells = {f"algorithm={a}, size=xs, noise=0.25, seed=2" for a in GRID["algorithms"]}
    expected = {(rule, cell) for rule in ("train", "evaluate", "probe") for cell in cells}
    expected |= {(rule, "size=xs") for rule in ("pretrain", "evaluate_base", "cost")}
    assert found == dict.fromkeys(expected, 1)


def test_a_run_that_is_here_is_gone_on_with(study, tmp_path):
    """It was trained here, so its scores and probes are made here too."""
    cell = Cell("ppo", "s", "0.25", 1)
    here = study.model_copy(update={"results": str(tmp_path / "results")})
    shutil.copytree(study.base_folder("s"), here.base_folder("s"))
    shutil.copytree(study.run_folder(cell), here.run_folder(cell))
    (here.run_folder(cell) / "eval.json").unlink()
    found = jobs(snakemake(study, tmp_path, "--dry-run"))
    assert {words for rule, words in found if rule == "evaluate"} == {
        "algorithm=ppo, size=s, noise=0.25, seed=1"
    }
    assert not [words for _, words in found if "size=xs" in words or "algorithm=grpo" in words]


def test_a_base_policy_that_is_made_here_is_the_one_that_runs_here_started_from(study, tmp_path):
    """Even before it is evaluated: the published one has other weights."""
    published = str(Path(study.results) / "published/fake")
    here = study.model_copy(update={"results": str(tmp_path), "continues": published})
    assert "base/s" in taken_over(here).manifests
    shutil.copytree(study.base_folder("s"), here.base_folder("s"))
    (here.base_folder("s") / "eval.json").unlink()
    assert "base/s" not in taken_over(here).manifests


def test_tables_of_a_run_that_was_cut_off_are_no_run(study, tmp_path):
    """They grow while a run goes on; a complete one has checksums."""
    here = study.model_copy(update={"results": str(tmp_path / "results")})
    cells = [Cell("ppo", "s", "0.25", 1), Cell("grpo", "s", "0.25", 1)]
    shutil.copytree(study.base_folder("s"), here.base_folder("s"))
    for cell in cells:
        shutil.copytree(study.run_folder(cell), here.run_folder(cell))
    cut_off = here.run_folder(cells[0])
    for path in cut_off.iterdir():
        if path.suffix != ".csv":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert {path.name for path in cut_off.iterdir()} == {"metrics.csv", "timing.csv"}
    found = jobs(snakemake(study, tmp_path, "--dry-run", continues=False))
    trained = {words for rule, words in found if rule == "train" and "size=s," in words}
    assert trained == {f"algorithm={a}, size=s, noise=0.25, seed=1" for a in ("vimpo", "ppo")}


def test_a_damaged_file_is_one_error_before_anything_runs(study, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(Path(study.results) / "published/fake", copy / "published/fake")
    path = copy / "published/fake/cells/probes.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    damaged = study.model_copy(update={"results": str(copy)})
    result = snakemake(damaged, tmp_path)
    assert result.returncode != 0
    assert f"error: cells: '{path}' is damaged" in result.stderr + result.stdout
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "results").exists()
