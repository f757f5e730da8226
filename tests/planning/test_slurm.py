"""Slurm's own answers against what a study requests; tests/cluster has a live Slurm."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from vimpo.config import ConfigError, load_study
from vimpo.planning.jobs import JobRequest
from vimpo.planning.slurm import (
    check_one_machine,
    check_requests,
    check_status_command,
    parse_minutes,
    parse_nodes,
    study_requests,
)

# `sinfo -h -o "%P|%a|%l|%D|%c|%m|%G"`
SINFO = """\
main*|up|infinite|2|16|16000|(null)
gpu|up|2-00:00:00|4|64|512000+|gpu:h100:8(S:0-1)
gpu|up|2-00:00:00|1|64|1024000|gpu:h100:8(S:0-1),mps:100
old|drain|1:00:00|1|4|8000|gpu:2
"""
NODES = parse_nodes(SINFO)
WATCHDOG = Path(__file__).parents[2] / "workflow/profiles/slurm/watchdog.sh"
NO_ACCOUNTING = """\
AccountingStorageType   = accounting_storage/none
MinJobAge               = 300 sec
"""


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("infinite", None),
        ("30:00", 30),
        ("1:00:00", 60),
        ("2-00:00:00", 2880),
        ("1-12:30:00", 2190),
    ],
)
def test_time_limits(text, minutes):
    assert parse_minutes(text) == minutes


def test_partitions_and_their_nodes():
    assert [n.partition for n in NODES if n.default] == ["main"]
    assert [n.gpus for n in NODES] == [0, 8, 8, 2]
    assert NODES[1].memory_mb == 512000
    assert not NODES[3].up


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, None),
        ({"partition": "gpu", "gpus": 8, "processes": 8}, None),
        ({"partition": "gpu", "gpus": 16, "processes": 16, "nodes": 2}, None),
        ({"partition": "gqu"}, "'gqu' is unknown to Slurm; allowed: main, gpu, old"),
        ({"partition": "old"}, "'old' is not up; allowed: another of main, gpu, old"),
        (
            {"partition": "gpu", "minutes": 3000},
            "train of 8b requests 3000, partition 'gpu' allows 2880",
        ),
        (
            {"partition": "gpu", "gpus": 16, "processes": 16},
            "runtime.processes: train of 8b requests 16 GPUs per node, those of partition 'gpu' "
            "have at most 8",
        ),
        ({"gpus": 1}, "requests 1 GPUs per node, those of partition 'main' have at most 0"),
        ({"threads": 32}, "runtime.threads: train of 8b requests 32 CPUs"),
        ({"memory_mb": 32000}, "sizes.8b.memory_mb: train of 8b requests 32000 MB"),
        ({"nodes": 3}, "runtime.nodes: 3 is more than partition 'main' has"),
    ],
)
def test_a_job_that_could_never_run_is_one_clear_error(asked, message):
    base = {"partition": None, "memory_mb": 2000, "minutes": 60, "threads": 1}
    requests = {("train", "8b"): JobRequest(**base | asked)}
    if message is None:
        check_requests(requests, NODES)
        return
    with pytest.raises(ConfigError) as error:
        check_requests(requests, NODES)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_cluster_without_a_default_partition_needs_a_named_one():
    requests = study_requests(load_study())
    with pytest.raises(ConfigError, match=r"cluster.partition: the cluster has no default"):
        check_requests(requests, [n for n in NODES if not n.default])


def test_a_cell_asks_for_the_time_of_its_three_stages():
    one, three = (
        study_requests(load_study({"cluster": {"one_job_a_cell": flag}})) for flag in (True, False)
    )
    assert one["train, evaluate and probe", "xs"].minutes == 240 + 60 + 120
    assert ("train, evaluate and probe", "xs") not in three


@pytest.mark.parametrize(
    ("command", "wait", "config", "message"),
    [
        ("squeue", 20, NO_ACCOUNTING, None),
        ("sacct", 20, NO_ACCOUNTING, "Snakemake would wait forever; allowed: squeue"),
        ("sacct", 20, NO_ACCOUNTING.replace("accounting_storage/none", "(null)"), "squeue"),
        ("sacct", 40, NO_ACCOUNTING.replace("/none", "/slurmdbd"), None),
        ("squeue", 120, NO_ACCOUNTING, "allowed: 1 to 100"),
    ],
)
def test_settings_that_wait_for_ever_are_refused(command, wait, config, message):
    if message is None:
        check_status_command(command, wait, config)
        return
    with pytest.raises(ConfigError) as error:
        check_status_command(command, wait, config)
    assert message in str(error.value)


def test_one_machine_is_enough_for_one_node():
    check_one_machine(load_study())


# --- workflow/profiles/slurm/watchdog.sh ---------------------------------------------------------

HANGS_ONCE = """\
#!/usr/bin/env bash
echo "$*" >> calls
if [ "$*" = "work --unlock" ]; then exit 0; fi
if [ ! -e second ]; then touch second; sleep 600; fi
exit 3
"""


def watchdog(folder, queue):
    """Run the watchdog on a command that hangs at its first call; squeue prints `queue`."""
    for name, text in (("work.sh", HANGS_ONCE), ("squeue", f"#!/bin/sh\necho {queue}\n")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    settings = {
        "WATCHDOG_MINUTES": "0",
        "WATCHDOG_SECONDS": "1",
        "PATH": f"{folder}:{os.environ['PATH']}",
    }
    command = [str(WATCHDOG), "./work.sh", "work"]
    # A shell that was put into the background lets its children ignore Ctrl-C.
    options = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    options |= {"env": os.environ | settings, "start_new_session": True}
    return subprocess.Popen(command, cwd=folder, **options)


def test_the_watchdog_starts_a_waiting_snakemake_again(tmp_path):
    assert watchdog(tmp_path, "").wait(timeout=120) == 3  # the command's own exit code
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == ["work", "work --unlock", "work"]


def test_the_watchdog_leaves_a_snakemake_with_jobs_alone(tmp_path):
    process = watchdog(tmp_path, "rule_cell")
    try:
        while not (tmp_path / "calls").exists():
            time.sleep(0.05)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=3)
        assert (tmp_path / "calls").read_text() == "work\n"
    finally:
        # The command gets its own process group, as under job control.
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True
        ).stdout.split()
        process.kill()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(child), signal.SIGKILL)
