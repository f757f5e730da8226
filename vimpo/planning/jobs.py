"""What the jobs of a study request from a scheduler.

Nothing here affects a result: partitions, minutes and memory may change between two runs of one
study, and no digest covers them. This module imports neither torch nor Snakemake.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vimpo.config.jobs import MINUTES, SizeJobs, Stage

if TYPE_CHECKING:
    from vimpo.config import Study


DISTRIBUTED: tuple[Stage, ...] = ("train", "cost")  # stages that start several processes
ONE_NODE: tuple[Stage, ...] = ("cost",)  # of those, with as many as training has on one node
CELL: tuple[Stage, ...] = ("train", "evaluate", "probe")  # consecutive in one Slurm job


@dataclass(frozen=True)
class JobRequest:
    """What one job requests. `gpus`, `processes` and `threads` are totals over its nodes."""

    partition: str | None
    memory_mb: int
    minutes: int
    threads: int
    processes: int = 1
    nodes: int = 1
    gpus: int = 0


def job_request(study: Study, stage: Stage, size: str) -> JobRequest:
    """What a job of this stage and size requests."""
    cluster = study.cluster
    own = cluster.sizes.get(size, SizeJobs())
    runtime = study.runtime
    nodes = runtime.nodes if stage in DISTRIBUTED and stage not in ONE_NODE else 1
    processes = nodes * (runtime.processes // runtime.nodes) if stage in DISTRIBUTED else 1
    return JobRequest(
        partition=own.partition or cluster.partition,
        memory_mb=study.sizes[size].memory_mb,
        minutes=(MINUTES | cluster.minutes | own.minutes)[stage],
        threads=runtime.threads * processes,
        processes=processes,
        nodes=nodes,
        gpus=processes if runtime.device != "cpu" else 0,
    )


def cell_request(study: Study, size: str) -> JobRequest:
    """What a whole cell requests if its stages run one after the other in one job."""
    parts = [job_request(study, stage, size) for stage in CELL]
    largest = ("memory_mb", "threads", "processes", "nodes", "gpus")
    return JobRequest(
        partition=parts[0].partition,
        minutes=sum(p.minutes for p in parts),
        **{name: max(getattr(p, name) for p in parts) for name in largest},
    )


def launcher(study: Study) -> str:
    """Prefix of the training command: `srun` with one task per node; empty for one node."""
    request = job_request(study, "train", study.used_sizes()[0])
    if request.nodes == 1:
        return ""
    threads = request.threads // request.nodes
    return (
        f"srun --nodes={request.nodes} --ntasks={request.nodes} --ntasks-per-node=1 "
        f"--cpus-per-task={threads} --kill-on-bad-exit=1 "
    )
