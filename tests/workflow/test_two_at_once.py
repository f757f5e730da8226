"""Two workflows in one checkout: the same study is refused, another one runs beside it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
REFUSED = "Error: Directory cannot be locked."


class Checkout:
    """Snakemake, with its lock, in a folder of its own."""

    def __init__(self, folder):
        self.folder = folder
        self.started = []

    def command(self, study, *arguments):
        config = yaml.safe_load((ROOT / "workflow/config/tiny.yaml").read_text())
        path = self.folder / f"{study}.yaml"
        if not path.exists():
            path.write_text(yaml.safe_dump(config | {"study": study}))
        words = [sys.executable, "-m", "snakemake", "-s", ROOT / "Snakefile", "--cores", "1"]
        words += ["--directory", self.folder, "--configfile", path, *arguments]
        return [str(word) for word in words]

    def run(self, study, *arguments):
        speech = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.run(self.command(study, *arguments), **speech, check=False)

    def start(self, study, *arguments):
        """A workflow in its own session, once it holds its lock."""
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(self.command(study, *arguments), start_new_session=True, **quiet)
        self.started.append(process)
        deadline = time.monotonic() + 120
        while not list(self.folder.glob(".snakemake/locks/*.output.lock")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return process

    def end(self):
        for process in self.started:
            kill(process)


def kill(process):
    """Snakemake and its jobs, at once."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def checkout(tmp_path):
    folder = Checkout(tmp_path)
    yield folder
    folder.end()


@pytest.mark.slow
def test_one_study_runs_once_at_a_time_and_goes_on_after_an_unlock(checkout):
    first = checkout.start("mine")
    second = checkout.run("mine")
    assert second.returncode == 1
    assert REFUSED in second.stdout
    assert first.poll() is None  # not disturbed
    # A kill leaves the lock.
    kill(first)
    assert REFUSED in checkout.run("mine", "--rerun-incomplete").stdout
    unlocked = checkout.run("mine", "--unlock")
    assert unlocked.returncode == 0, unlocked.stdout
    assert "Unlocked working directory." in unlocked.stdout
    # Another study has other files, and needs no lock of this one.
    first = checkout.start("mine", "--rerun-incomplete", "train_all")
    beside = checkout.run("yours", "--", "results/yours/base/nano/manifest.json")
    assert beside.returncode == 0, beside.stdout
    assert first.wait(timeout=120) == 0
    assert len(list(checkout.folder.glob("results/mine/runs/*/*/*/*/manifest.json"))) == 3
    made, other = (
        (checkout.folder / f"results/{study}/base/nano/model/model.safetensors").read_bytes()
        for study in ("mine", "yours")
    )
    assert made == other
