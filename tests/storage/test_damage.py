"""Damaged files and full disks: noticed, named, and never a traceback from some library."""

from __future__ import annotations

import errno
import io
import os
import shutil
import subprocess

import pandas as pd
import pytest
import yaml
from fake_results import NO_CLAIMS

from vimpo.analysis.aggregate import aggregate
from vimpo.cli import main
from vimpo.config import Cell, ConfigError
from vimpo.errors import DamagedError, DiskFullError
from vimpo.probes.cost import COLUMNS as COST_COLUMNS
from vimpo.storage import files as records
from vimpo.storage.files import is_disk_full, write_rows
from vimpo.storage.integrity import beside, check_model, fault_of, read_sums, seal, sealing
from vimpo.training.runs import train_cell

CELL = Cell("ppo", "tiny", "rollout-0.25", 1)
COST_ROWS = [
    dict(zip(COST_COLUMNS, ("measured", "ppo", "tiny", turn, "step_total", "s", 0.5), strict=True))
    for turn in (1, 2)
]


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(bytes(content))


def emptied(path):
    path.write_bytes(b"")


def missing(path):
    path.unlink()


DAMAGES = (truncated, flipped, emptied, missing)


@pytest.fixture(scope="module")
def finished(tiny_base, tmp_path_factory):
    """A study whose one cell went through every stage."""
    from tiny import TINY, merged

    from vimpo.config import load_study

    results = tmp_path_factory.mktemp("finished")
    grid = {"algorithms": ["ppo"]}
    probes = {"problems": 2, "continuations": 4, "baseline_continuations": 4, "credit_rollouts": 4}
    changes = {"grid": grid, "claims": NO_CLAIMS, "evaluation": {"samples": 2}, "probes": probes}
    changes["task"] = {"benchmarks": {"chain_easy": {"operators": 4, "problems": 4}}}
    study = load_study(merged(TINY, changes) | {"results": str(results)})
    shutil.copytree(tiny_base, study.base_folder("tiny"))
    config = results / "study.yaml"
    config.write_text(yaml.safe_dump(study.model_dump(mode="json")))
    named = ["--config", str(config), "--size", "tiny"]
    cell = ["--algorithm", "ppo", "--noise", "rollout-0.25"]
    assert main(["train", *named, *cell, "--quiet"]) == 0
    assert main(["evaluate", *named, *cell]) == main(["evaluate", *named, "--base"]) == 0
    assert main(["probe", *named, *cell]) == 0
    write_rows(study.cost_file("tiny"), COST_ROWS, COST_COLUMNS)
    seal(beside(study.cost_file("tiny")), ["tiny.csv"])
    aggregate(study, study.folder / "tables")
    return study


@pytest.fixture
def study(finished, tmp_path):
    """A copy to damage."""
    shutil.copytree(finished.folder, tmp_path / "tiny")
    return finished.model_copy(update={"results": str(tmp_path)})


@pytest.fixture
def command(study, tmp_path, capsys):
    """Runs a command on the cell: exit code and standard error."""
    config = tmp_path / "study.yaml"
    config.write_text(yaml.safe_dump(study.model_dump(mode="json")))
    cell = ["--algorithm", "ppo", "--noise", "rollout-0.25"]

    def give(name):
        of_cell = cell if name in ("train", "evaluate", "probe") else []
        size = ["--size", "tiny"] if name in ("train", "evaluate", "probe", "cost") else []
        code = main([name, "--config", str(config), *size, *of_cell])
        return code, capsys.readouterr().err

    return give


# --- Files that a later stage reads --------------------------------------------------------------

BASE, RUN = "base/tiny", f"runs/{CELL.name}"
# file: the commands that read it
READ = {
    f"{BASE}/model/model.safetensors": ("train", "probe", "cost"),
    f"{BASE}/model/tokenizer.json": ("train",),
    f"{BASE}/manifest.json": ("train",),
    f"{RUN}/model/model.safetensors": ("evaluate", "probe"),
    f"{RUN}/model/config.json": ("evaluate",),
    f"{RUN}/model/critic/critic.safetensors": ("probe",),
    f"{RUN}/manifest.json": ("evaluate", "probe"),
    "tables/summary.csv": ("plot", "report", "publish"),
    "tables/provenance.csv": ("plot", "report"),
}
# checksums: the commands that read them; the error names the first file whose checksum is lost
SUMS = {
    f"{BASE}/SHA256SUMS": ("train",),
    f"{RUN}/SHA256SUMS": ("evaluate", "probe"),
    "tables/SHA256SUMS": ("plot", "report", "publish"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", READ | SUMS)
def test_a_damaged_input_is_one_error_that_names_it(study, command, file, damage):
    if file.startswith(BASE):  # only a cell that is not trained yet reads its base
        (study.run_folder(CELL) / "manifest.json").rename(study.folder / "kept.json")
    if file in (f"{BASE}/manifest.json", f"{BASE}/SHA256SUMS") and damage is missing:
        pytest.skip("a base policy without either is unfinished, and is made again")
    damage(study.folder / file)
    for name in (READ | SUMS)[file]:
        if name == "probe" and file.startswith(BASE):
            (study.folder / "kept.json").rename(study.run_folder(CELL) / "manifest.json")
        code, error = command(name)
        assert code == 2, (name, error)
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        named = study.folder / file if file in READ else "is not the one in SHA256SUMS; "
        assert str(named) in error
        assert "again" in error


# file: the stage that counts as missing, the file that is named, what is to be removed
COLLECTED = {
    f"{RUN}/manifest.json": ("train", "manifest.json", RUN),
    f"{RUN}/metrics.csv": ("train", "metrics.csv", RUN),
    f"{RUN}/timing.csv": ("timing", "timing.csv", RUN),
    f"{RUN}/SHA256SUMS": ("train", "manifest.json", RUN),
    f"{RUN}/eval.json": ("evaluate", "eval.json", f"{RUN}/eval.json"),
    f"{RUN}/samples.jsonl.gz": ("evaluate", "samples.jsonl.gz", f"{RUN}/eval.json"),
    f"{RUN}/eval.sha256": ("evaluate", "eval.json", f"{RUN}/eval.json"),
    f"{RUN}/probes.parquet": ("probe", "probes.parquet", f"{RUN}/probes.parquet"),
    f"{RUN}/probes.sha256": ("probe", "probes.parquet", f"{RUN}/probes.parquet"),
    f"{BASE}/manifest.json": ("pretrain", "manifest.json", BASE),
    f"{BASE}/eval.json": ("evaluate", "eval.json", f"{BASE}/eval.json"),
    "cost/tiny.csv": ("cost", "tiny.csv", "cost/tiny.csv"),
    "cost/tiny.sha256": ("cost", "tiny.csv", "cost/tiny.csv"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", COLLECTED)
def test_a_damaged_result_enters_no_table_and_is_listed_with_its_remedy(study, file, damage):
    damage(study.folder / file)
    aggregate(study, study.folder / "tables")
    listed = pd.read_csv(study.folder / "tables/missing.csv").set_index("stage")["reason"]
    stage, name, remedy = COLLECTED[file]
    reason = listed[stage]
    assert reason.startswith(f"{name} is ")
    lost = damage is missing and file.endswith(name)
    assert ("is missing" if lost else "is damaged: its checksum is not the one in ") in reason
    if not lost:
        assert f"'{study.folder / remedy}'" in reason
        assert "makes" in reason


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path):
    """Of a file, of its checksums, and of a name in them."""
    path, sums = tmp_path / "rows.csv", tmp_path / "rows.sha256"
    write_rows(path, COST_ROWS[:1], COST_COLUMNS)
    (tmp_path / "other").write_text("x")
    with sealing(sums, [path.name, "other"]):
        pass
    expected = read_sums(sums)
    assert set(expected) == {"rows.csv", "other"}
    for damaged in (path, sums):
        content = damaged.read_bytes()
        flips = (
            content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]
            for place in range(len(content))
            for bit in range(8)
        )
        for bad in (*flips, *(content[:end] for end in range(len(content)))):
            damaged.write_bytes(bad)
            assert fault_of(path, sums).startswith("is damaged: its checksum is not"), bad
        damaged.write_bytes(content)
        assert fault_of(path, sums) is None


def test_what_was_killed_while_it_wrote_has_no_checksums(tmp_path):
    path, sums = tmp_path / "eval.json", tmp_path / "eval.sha256"
    path.write_text("old")
    seal(sums, [path.name])
    with pytest.raises(KeyboardInterrupt), sealing(sums, [path.name]):
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert fault_of(path, sums) is not None


def test_checksums_are_those_of_coreutils(study):
    for sums in (*study.folder.rglob("SHA256SUMS"), *study.folder.rglob("*.sha256")):
        check = ["sha256sum", "-c", "--strict", sums.name]
        done = subprocess.run(check, cwd=sums.parent, capture_output=True, text=True, check=True)
        assert done.stdout.count(": OK\n") == len(read_sums(sums)) > 0


def test_a_model_is_read_whole_and_only_the_model(study):
    folder = study.run_folder(CELL)
    check_model(folder)
    flipped(folder / "metrics.csv")
    check_model(folder)
    weights = folder / "model/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 128
    weights.write_bytes(bytes(content))
    with pytest.raises(DamagedError, match="safetensors' is damaged: its checksum is not the one"):
        check_model(folder)


# --- Full disks ----------------------------------------------------------------------------------


def outcome(folder):
    files = [folder / "metrics.csv", *(p for p in (folder / "model").rglob("*") if p.is_file())]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_write_costs_no_more_than_that_write(
    tiny_study, monkeypatch, capsys, tmp_path
):
    expected = outcome(train_cell(tiny_study("roomy"), CELL, quiet=True))
    study = tiny_study("full")
    config = tmp_path / "study.yaml"
    config.write_text(yaml.safe_dump(study.model_dump(mode="json")))
    arguments = ["--config", str(config), "--size", "tiny", "--algorithm", "ppo", "--quiet"]
    sync, folder, full = os.fsync, study.run_folder(CELL), 0
    base = outcome(study.base_folder("tiny"))
    for last in range(100):
        calls = []

        def failing(descriptor, last=last, calls=calls):
            calls.append(descriptor)
            if len(calls) > last:
                raise OSError(errno.ENOSPC, "No space left on device")
            sync(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing)
            code = main(["train", *arguments, "--noise", "rollout-0.25"])
        error = capsys.readouterr().err
        assert outcome(study.base_folder("tiny")) == base
        if code == 0:
            break
        full += 1
        assert code == 74
        assert error.startswith(f"error: no room left to write in '{folder}")
        assert error.count("\n") == 1
        assert "make room, and the same command resumes from there" in error
        # Complete or not there: a manifest whose last sync failed is complete.
        assert not (folder / "manifest.json").exists() or outcome(folder) == expected
        assert not list(folder.rglob(".*.[0-9]*"))
    assert full > 10
    assert outcome(folder) == expected


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk")
def test_a_small_disk_is_filled_to_every_page(tiny_study, tmp_path, capsys):
    """The kernel's own refusals, which also reach what libraries write by themselves."""
    expected = outcome(train_cell(tiny_study("roomy"), CELL, quiet=True))
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        study = tiny_study("roomy").model_copy(update={"results": str(disk)})
        shutil.copytree(tiny_study("roomy").base_folder("tiny"), study.base_folder("tiny"))
        config = tmp_path / "study.yaml"
        config.write_text(yaml.safe_dump(study.model_dump(mode="json")))
        named = ["--config", str(config), "--size", "tiny", "--algorithm", "ppo", "--quiet"]
        ballast, full = disk / "ballast", 0
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize
        for room in range(0, free, 4096):
            with ballast.open("wb") as file:
                file.write(bytes(max(0, free - room - used(study))))
            code = main(["train", *named, "--noise", "rollout-0.25"])
            error = capsys.readouterr().err
            if code == 0:
                break
            full += 1
            assert code == 74, error
            assert error.count("\n") == 1
            assert "no room left to write in" in error
        assert full > 10
        assert outcome(study.run_folder(CELL)) == expected
        with capsys.disabled():
            print(f"\nfull at {full} sizes, up to {room} bytes of room")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def used(study):
    """Bytes, in whole pages, of the run's files."""
    files = [p for p in study.run_folder(CELL).rglob("*") if p.is_file()]
    return sum(-(-p.stat().st_size // 4096) * 4096 for p in files)


def test_what_libraries_say_of_a_full_disk_is_understood():
    assert is_disk_full(OSError(errno.ENOSPC, "x"))
    assert is_disk_full(OSError(errno.EDQUOT, "x"))
    assert is_disk_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not is_disk_full(OSError(errno.EIO, "x"))
    assert not is_disk_full(ConfigError("x"))
    with pytest.raises(DiskFullError, match="no room left to write in 'within'") as caught:  # noqa: SIM117
        with records.room_for("there"), records.room_for("within"):
            raise RuntimeError("torn") from OSError(errno.ENOSPC, "x")
    assert is_disk_full(caught.value)
    with pytest.raises(io.UnsupportedOperation), records.room_for("there"):
        raise io.UnsupportedOperation
