"""Can this Slurm cluster run this study? Checked once, before anything is submitted.

Snakemake's Slurm plugin finds out about a wrong partition job by job, after retries, and waits
silently forever if its status query can get no answer. Both are one clear error here.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from vimpo.config.jobs import Stage
from vimpo.errors import ConfigError
from vimpo.planning.jobs import CELL, JobRequest, cell_request, job_request

if TYPE_CHECKING:
    from vimpo.config import Study

NODE_FORMAT = "%P|%a|%l|%D|%c|%m|%G"
POLLS = 3  # the plugin abandons squeue if MinJobAge is below this many initial waits


@dataclass(frozen=True)
class Nodes:
    """Identical nodes of a partition. minutes: the longest job, None without a limit."""

    partition: str
    default: bool
    up: bool
    minutes: int | None
    count: int
    cpus: int
    memory_mb: int
    gpus: int


def parse_minutes(limit: str) -> int | None:
    """Slurm's `[days-]hours:minutes:seconds` in minutes; None for no limit."""
    if limit in ("infinite", "UNLIMITED"):
        return None
    days, _, clock = limit.rpartition("-")
    hours, minutes, _ = [0, 0, *map(int, clock.split(":"))][-3:]
    return (int(days or 0) * 24 + hours) * 60 + minutes


def parse_nodes(text: str) -> list[Nodes]:
    """Output of `sinfo -h -o NODE_FORMAT`: one line per kind of node and partition."""
    found = []
    for line in text.strip().splitlines():
        name, state, limit, count, cpus, memory, gres = line.strip().split("|")
        gpus = re.findall(r"gpu:(?:[^:,(]+:)?(\d+)", gres)
        found.append(
            Nodes(
                partition=name.rstrip("*"),
                default=name.endswith("*"),
                up=state == "up",
                minutes=parse_minutes(limit),
                count=int(count),
                cpus=int(cpus.rstrip("+")),
                memory_mb=int(memory.rstrip("+")),
                gpus=sum(map(int, gpus)),
            )
        )
    return found


def study_requests(study: Study) -> dict[tuple[str, str], JobRequest]:
    """Every kind of job that is submitted: (description, size) -> request."""
    shared = study.cluster.one_job_a_cell
    stages = [stage for stage in get_args(Stage) if not (shared and stage in CELL)]
    requests: dict[tuple[str, str], JobRequest] = {}
    for size in study.used_sizes():
        requests |= {(stage, size): job_request(study, stage, size) for stage in stages}
        if shared:
            requests["train, evaluate and probe", size] = cell_request(study, size)
    return requests


def misfit(what: str, size: str, request: JobRequest, nodes: Iterable[Nodes]) -> str | None:
    """Why this job can never run, naming what to change; None if it can."""
    nodes = list(nodes)
    names = list(dict.fromkeys(n.partition for n in nodes))
    wanted = request.partition or next((n.partition for n in nodes if n.default), None)
    if wanted is None:
        return f"cluster.partition: the cluster has no default; allowed: {', '.join(names)}"
    field = f"cluster.sizes.{size}.partition or cluster.partition"
    own = [n for n in nodes if n.partition == wanted]
    if not own:
        return f"{field}: '{wanted}' is unknown to Slurm; allowed: {', '.join(names)}"
    if not any(n.up for n in own):
        return f"{field}: '{wanted}' is not up; allowed: another of {', '.join(names)}"
    limit = own[0].minutes
    if limit is not None and request.minutes > limit:
        return (
            f"cluster.minutes: {what} of {size} requests {request.minutes}, partition '{wanted}' "
            f"allows {limit}; allowed: 1 to {limit}, a job resumes from its last checkpoint"
        )
    if request.nodes > sum(n.count for n in own):
        return f"runtime.nodes: {request.nodes} is more than partition '{wanted}' has"
    shares = {
        "runtime.processes": (request.gpus // request.nodes, max(n.gpus for n in own), "GPUs"),
        "runtime.threads": (request.threads // request.nodes, max(n.cpus for n in own), "CPUs"),
        f"sizes.{size}.memory_mb": (request.memory_mb, max(n.memory_mb for n in own), "MB"),
    }
    for name, (asked, there, unit) in shares.items():
        if asked > there:
            return (
                f"{name}: {what} of {size} requests {asked} {unit} per node, those of partition "
                f"'{wanted}' have at most {there}"
            )
    return None


def check_requests(requests: dict[tuple[str, str], JobRequest], nodes: list[Nodes]) -> None:
    """Raise ConfigError, one line per thing to change."""
    found = [misfit(what, size, request, nodes) for (what, size), request in requests.items()]
    if lines := list(dict.fromkeys(line for line in found if line)):
        raise ConfigError("\n".join(lines))


def check_status_command(command: str, initial_wait: int, config: str) -> None:
    """Refuse the two settings that make Snakemake wait forever. config: `scontrol show config`.

    Without accounting, sacct gives no answer; and the plugin abandons squeue for sacct if the
    cluster forgets finished jobs within three of the plugin's initial waits.
    """
    values = dict(re.findall(r"^(\w+)\s*= (.*?)\s*$", config, re.MULTILINE))
    if values.get("AccountingStorageType", "(null)") not in ("(null)", "accounting_storage/none"):
        return
    if command != "squeue":
        raise ConfigError(
            f"slurm-status-command: '{command}' queries an accounting database, this cluster keeps "
            "none, and Snakemake would wait forever; allowed: squeue"
        )
    age = re.match(r"\d+", values.get("MinJobAge", ""))
    if age and POLLS * initial_wait > int(age[0]):
        raise ConfigError(
            f"slurm-init-seconds-before-status-checks: {initial_wait} is too long for a cluster "
            f"that forgets finished jobs after MinJobAge = {age[0]} s and keeps no accounting; "
            f"allowed: 1 to {max(1, int(age[0]) // POLLS)}"
        )


def check_cluster(study: Study, status_command: str, initial_wait: int) -> None:
    """All checks above, on the cluster that this machine submits to. Raises ConfigError."""
    check_status_command(status_command, initial_wait, _ask("scontrol", "show", "config"))
    check_requests(study_requests(study), parse_nodes(_ask("sinfo", "-h", "-o", NODE_FORMAT)))


def check_one_machine(study: Study, runs_here: bool = True) -> None:
    """Check that there is one node, and one GPU per process on it.

    runs_here: jobs run on this machine. Raises ConfigError; imports torch only for a study on GPUs.
    """
    if study.runtime.nodes > 1:
        raise ConfigError(
            f"runtime.nodes: {study.runtime.nodes} needs --profile workflow/profiles/slurm; "
            "allowed without it: 1"
        )
    if runs_here and study.runtime.device != "cpu":
        from vimpo.models.distributed import check_devices

        check_devices(study.runtime)


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        words = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise ConfigError(
            f"slurm: `{' '.join(command)}` gave no answer ({words[0] if words else 'no message'}); "
            "allowed: a machine that submits to a running Slurm"
        ) from None
    return done.stdout
