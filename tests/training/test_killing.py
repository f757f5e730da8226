"""Real processes that are killed, or asked to stop: every run ends with the bytes of a quiet one.

The whole of it, 20 kills an algorithm, takes four minutes:

    pytest -n 0 -m slow -s tests/training/test_killing.py
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from vimpo import forkserver
from vimpo.config import Cell
from vimpo.training.runs import pretrain_base, train_cell
from vimpo.training.telemetry import seconds_since_process_start

ROOT = Path(__file__).parents[2]
PATIENCE = 300  # seconds until something that should happen is a failure
INTERVAL = 4  # steps between two checkpoints


def cell(algorithm):
    return Cell(algorithm, "tiny", "rollout-0.25", 1)


def outcome(folder):
    """Bytes of what a run leaves, but for the times that it took."""
    files = [folder / "metrics.csv", *(p for p in (folder / "model").rglob("*") if p.is_file())]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


class Run:
    """A cell, or a base policy, that processes of the command line work on."""

    def __init__(self, study, tmp_path, algorithm=None):
        self.study, self.algorithm = study, algorithm
        self.config = tmp_path / f"{study.folder.parent.name}.yaml"
        self.config.write_text(yaml.safe_dump(study.model_dump(mode="json")))
        if algorithm:
            self.folder = study.run_folder(cell(algorithm))
            digest = study.cell_digest(cell(algorithm))
        else:
            self.folder, digest = study.base_folder("tiny"), study.base_digest("tiny")
        self.checkpoints = self.folder / f"checkpoint-{digest}"

    def start(self):
        command = [sys.executable, "-m", "vimpo", "train" if self.algorithm else "pretrain"]
        command += ["--config", self.config, "--size", "tiny", "--quiet"]
        if self.algorithm:
            command += ["--algorithm", self.algorithm, "--noise", "rollout-0.25"]
        # A shell that was put into the background lets its children ignore Ctrl-C.
        handlers = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
        environment = dict(os.environ)
        environment.pop(
            forkserver.VARIABLE, None
        )  # the process that is killed is the one that runs
        speech = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=ROOT, env=environment, **speech, **handlers)

    def names(self):
        """Of checkpoints and of what is aside."""
        found = []
        for folder in (self.folder, self.checkpoints):
            try:
                found += os.listdir(folder)
            except FileNotFoundError:
                continue
        return found

    def saved(self):
        """Steps of the newest checkpoint."""
        return max((int(n[5:11]) for n in self.names() if n.startswith("step-")), default=0)

    def saving(self):
        """Is a checkpoint half written? A file lies aside, or the tensors have no checksums."""
        names = self.names()
        bare = {n for n in names if n.endswith(".safetensors") and n.startswith("step-")}
        return any(n.startswith(".step-") for n in names) or any(
            n.replace(".safetensors", ".sha256") not in names for n in bare
        )

    def finishing(self):
        """Are the outputs being written?"""
        names = self.names()
        return "SHA256SUMS" not in names and not {".model", "config.yaml"}.isdisjoint(names)


def when(process, condition):
    """Poll for a state that lasts milliseconds; False if the process ended first."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        if process.poll() is not None:
            return False
        time.sleep(0.0002)
    return True


def kill(run, moment, after):
    """Start a process and kill it at a moment, `after` steps or later; returns what was hit."""
    process = run.start()
    began = time.monotonic()
    if moment == "anywhere":  # from the first import on
        when(process, lambda: time.monotonic() - began > after)
    elif moment == "end":
        when(process, run.finishing)
    else:
        goal = run.saved() + after
        when(process, lambda: run.saved() >= goal and (moment == "step" or run.saving()))
    if moment == "step":
        time.sleep(random.uniform(0, 0.1))
    process.kill()
    error = process.communicate()[1]
    assert process.returncode in (0, -signal.SIGKILL), error
    if process.returncode == 0:
        return None
    hit = "final writing" if run.finishing() else "save" if run.saving() else "elsewhere"
    return hit


def check_damage_free(run, algorithm, expected):
    """Finish what was killed, and compare."""
    train_cell(run.study, cell(algorithm), quiet=True)
    assert outcome(run.folder) == expected
    left = ["SHA256SUMS", "config.yaml", "manifest.json", "metrics.csv", "model", "timing.csv"]
    assert sorted(p.name for p in run.folder.iterdir()) == left


def quiet_and_killed(tiny_study, tmp_path, algorithm, steps):
    train = {"steps": steps, "checkpoint_every": INTERVAL}
    quiet = tiny_study("quiet", train=train)
    expected = outcome(train_cell(quiet, cell(algorithm), quiet=True))
    return expected, Run(tiny_study("killed", train=train), tmp_path, algorithm)


@pytest.mark.slow
def test_a_run_killed_inside_saves_ends_with_the_bytes_of_a_quiet_one(tiny_study, tmp_path):
    expected, run = quiet_and_killed(tiny_study, tmp_path, "ppo", 24)
    assert kill(run, "save", INTERVAL) == "save"
    assert 0 < run.saved() < 24
    # What a killed process left aside is no file of the next one, and does not stay.
    (run.folder / ".metrics.csv.123456").write_text("half")
    (run.checkpoints / ".step-000999.safetensors.123456").write_text("half")
    assert kill(run, "end", 0) == "final writing"
    check_damage_free(run, "ppo", expected)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["vimpo", "ppo", "grpo"])
def test_twenty_kills_change_no_byte(tiny_study, tmp_path, algorithm, capsys):
    steps, random_moment = 400, random.Random(algorithm)
    expected, run = quiet_and_killed(tiny_study, tmp_path, algorithm, steps)
    moments = ["anywhere"] * 4 + ["save"] * 6 + ["step"] * 7
    random_moment.shuffle(moments)
    tally = {"save": 0, "final writing": 0, "elsewhere": 0}
    redone = 0.0
    for moment in [*moments, "end", "end", "end"]:
        after = random_moment.uniform(0, 4) if moment == "anywhere" else INTERVAL
        after += random_moment.randrange(4) * INTERVAL if moment in ("save", "step") else 0
        began = time.time()
        tally[kill(run, moment, after)] += 1
        redone += lost(run, began)
    with capsys.disabled():
        print(f"\n{algorithm}: 20 kills, {tally}, about {redone:.0f} of {steps} steps redone")
    assert tally["save"] >= 3
    assert tally["final writing"] >= 1
    check_damage_free(run, algorithm, expected)


def lost(run, began):
    """Steps since the last complete save of a process started at `began` and just killed.

    By the clock: what passed since, by the time of the steps between its last two saves.
    """
    done = sorted(p.stat().st_mtime for p in run.checkpoints.glob("step-*.json"))
    if len(done) < 2 or done[-2] < began:
        return 0.0
    return min(INTERVAL, INTERVAL * (time.time() - done[-1]) / (done[-1] - done[-2]))


# --- Asked to stop -------------------------------------------------------------------------------


def stop(run, number):
    """Tell a process to stop after two saves; returns its exit code and last lines."""
    process = run.start()
    assert when(process, lambda: run.saved() >= 2 * INTERVAL)
    process.send_signal(number)
    return process, process.communicate(timeout=PATIENCE)[1]


@pytest.mark.slow
def test_sigterm_saves_the_step_that_was_done(tiny_study, tmp_path):
    expected, run = quiet_and_killed(tiny_study, tmp_path, "vimpo", 80)
    process, error = stop(run, signal.SIGTERM)
    assert process.returncode == 143
    assert "Traceback" not in error
    name = cell("vimpo").name
    step = run.saved()
    words = f"{name}: stopped by SIGTERM after step {step} of 80, which is saved; the same command"
    assert words in error
    (record,) = run.checkpoints.glob(f"step-{step:06d}.json")
    state = json.loads(record.read_text())["state"]
    assert len(state["metrics"]) == step
    # The manifest counts what the stopped process took, too.
    here = seconds_since_process_start()
    train_cell(run.study, cell("vimpo"), quiet=True)
    assert outcome(run.folder) == expected
    manifest = json.loads((run.folder / "manifest.json").read_text())
    assert state["wall_s"] > 1
    assert manifest["wall_s"] > state["wall_s"] + here - 0.1  # clocks of processes are coarse
    assert 0 < state["phases_s"]["startup"] < manifest["phases_s"]["startup"]
    assert 0 < state["phases_s"]["checkpoint"] < manifest["phases_s"]["checkpoint"]
    assert 100 < state["peak_memory_mb"] <= manifest["peak_memory_mb"]


@pytest.mark.slow
def test_ctrl_c_saves_too_and_so_does_pretraining(tiny_study, tmp_path):
    expected, run = quiet_and_killed(tiny_study, tmp_path, "grpo", 300)
    process, error = stop(run, signal.SIGINT)
    assert process.returncode == 130
    assert "stopped by SIGINT after step" in error
    check_damage_free(run, "grpo", expected)

    changes = {"pretrain": {"checkpoint_every": INTERVAL, "seed": 3}}
    changes["sizes"] = {"tiny": {"pretrain_steps": 400}}
    studies = [tiny_study(name, **changes | {"study": name}) for name in ("calm", "stopped")]
    for study in studies:
        shutil.rmtree(study.base_folder("tiny"))
    expected = outcome(pretrain_base(studies[0], "tiny", quiet=True))
    run = Run(studies[1], tmp_path)
    process, error = stop(run, signal.SIGTERM)
    assert process.returncode == 143
    assert "base/tiny: stopped by SIGTERM after step" in error
    pretrain_base(run.study, "tiny", quiet=True)
    assert outcome(run.folder) == expected


@pytest.mark.slow
def test_all_of_several_processes_stop_at_the_same_step(tiny_study, tmp_path):
    train = {"steps": 3000, "checkpoint_every": INTERVAL}
    run = Run(tiny_study(train=train, runtime={"processes": 2}), tmp_path, "vimpo")
    process, error = stop(run, signal.SIGTERM)
    step = run.saved()
    assert process.returncode not in (0, -signal.SIGKILL)
    assert f"stopped by SIGTERM after step {step} of 3000, which is saved" in error
    assert error.count("stopped by SIGTERM") == 1
    assert not run.saving()
    # Both go on together from there.
    process = run.start()
    assert when(process, lambda: run.saved() >= step + INTERVAL)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=PATIENCE)[1]
    assert f"after step {run.saved()} of 3000" in error
