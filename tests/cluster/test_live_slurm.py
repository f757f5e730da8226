"""The workflow on a live Slurm, started here on one machine: `pytest -n 0 -m cluster`.

Needs root and, on Debian, `apt-get install -y --no-install-recommends slurm-wlm munge
slurm-wlm-basic-plugins`; takes about five minutes on two cores. See tests/cluster/slurm.sh.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("slurm.sh")
TINY = "workflow/config/tiny.yaml"
# A toy cluster answers at once, and its file system is local.
QUICK = ["--slurm-init-seconds-before-status-checks", "2", "--seconds-between-status-checks", "2"]
QUICK += ["--latency-wait", "10"]
PATIENCE = 900  # seconds; a hang of Snakemake is a failure, not a wait

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not shutil.which("slurmctld"), reason="Slurm is not installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root starts a Slurm"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("slurm"))
    subprocess.run([SCRIPT, "start", folder], check=True, timeout=60)
    yield
    subprocess.run([SCRIPT, "stop", folder], check=True, timeout=60)


def command(profile, results, config=TINY, target=True):
    """A workflow up to its tables: figures are drawn beside Snakemake, not on the cluster."""
    words = [sys.executable, "-m", "snakemake", "--profile", f"workflow/profiles/{profile}"]
    words += ["--configfile", str(config), "--config", f"results={results}", "--nolock"]
    return [*words, "--", f"{results}/tiny/tables/accuracy.csv"] if target else words


def study(folder, name, **sections):
    """The tiny study with other sections, in a file."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load((ROOT / TINY).read_text()) | sections))
    return path


def squeue(states):
    """job id -> comment (the rule or group) of jobs in these states."""
    out = subprocess.run(
        ["squeue", "-h", "-t", states, "-o", "%i|%k"], capture_output=True, text=True, check=True
    ).stdout
    return dict(line.split("|", 1) for line in out.splitlines())


def cancel_a_cell_in_training(results, process):
    """Wait until a cell's job is training, cancel it, and return its id."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        training = list(results.glob("tiny/logs/train/**/*.log"))
        cells = [job for job, comment in squeue("R").items() if comment.startswith("rule_cell")]
        if training and cells:
            subprocess.run(["scancel", cells[0]], check=True)
            while cells[0] not in squeue("CA"):
                time.sleep(0.2)
            return cells[0]
        time.sleep(0.2)
    raise AssertionError("no cell was seen in training")


def outcome(results):
    """Bytes of what must repeat, by path: metrics, and the scores without their timing."""
    found = {}
    for path in sorted((results / "tiny").rglob("metrics.csv")):
        found[str(path.relative_to(results))] = path.read_bytes()
    for path in sorted((results / "tiny").rglob("eval.json")):
        found[str(path.relative_to(results))] = json.loads(path.read_text())["results"]
    return found


def test_a_grid_with_a_cancelled_job_ends_like_the_local_run(slurm, tmp_path):
    local, remote = tmp_path / "local", tmp_path / "remote"
    subprocess.run(command("local", local), cwd=ROOT, check=True, timeout=PATIENCE)

    words = command("slurm", remote)
    words[3:3] = QUICK
    log = tmp_path / "slurm.txt"
    with log.open("w") as file:
        process = subprocess.Popen(words, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        cancelled = cancel_a_cell_in_training(remote, process)
        assert process.wait(timeout=PATIENCE) == 0, log.read_text()

    text = log.read_text()
    print(text)
    submitted = re.findall(r"submitted with SLURM jobid (\d+)", text)
    # One job each for pretrain, evaluate_base, cost and every cell, and the cancelled one again.
    assert len(submitted) == len(set(submitted)) == 3 + 3 + 1
    assert cancelled in submitted
    assert text.count("Error in group cell") == text.count("Trying to restart job") == 1

    ours, theirs = outcome(remote), outcome(local)
    assert len(ours) == 4 + 4  # base and three cells
    assert ours == theirs


def test_two_nodes_train_a_cell_as_two_processes_on_one_node_do(slurm, tmp_path):
    found = {}
    for profile, nodes in (("local", 1), ("slurm", 2)):
        results, log = tmp_path / profile, tmp_path / f"{profile}.txt"
        config = study(tmp_path, profile, runtime={"processes": 2, "nodes": nodes})
        run = results / "tiny/runs/vimpo/nano/noise-0.25/seed-1"
        words = [*command(profile, results, config)[:-1], f"{run}/manifest.json"]
        words[3:3] = QUICK if profile == "slurm" else []
        with log.open("w") as file:
            done = subprocess.run(
                words, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, timeout=PATIENCE
            )
        assert done.returncode == 0, log.read_text()
        assert json.loads((run / "manifest.json").read_text())["processes"] == 2
        found[nodes] = (run / "metrics.csv").read_bytes()
    assert found[1] == found[2]


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ({"partition": "gpu"}, "'gpu' is unknown to Slurm; allowed: main, short"),
        ({"partition": "short"}, "partition 'short' allows 60; allowed: 1 to 60"),
    ],
)
def test_a_wrong_partition_is_one_error_and_nothing_is_submitted(slurm, tmp_path, cluster, message):
    path = study(tmp_path, "study", cluster=cluster)
    before = squeue("all")
    words = command("slurm", tmp_path / "results", path, target=False)
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    text = done.stdout + done.stderr
    assert done.returncode != 0
    assert message in text
    assert "Traceback" not in text
    assert squeue("all") == before


def test_a_status_command_without_accounting_is_refused(slurm, tmp_path):
    words = command("slurm", tmp_path / "results", target=False)
    words += ["--slurm-status-command", "sacct"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode != 0
    assert "allowed: squeue" in done.stdout + done.stderr
