"""What the jobs of a study request from a scheduler; no digest covers it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vimpo.config.types import Count, Name, Strict

Stage = Literal["pretrain", "critic", "train", "evaluate", "probe", "cost"]


MINUTES: dict[Stage, int] = {
    "pretrain": 120,
    "critic": 120,
    "train": 240,
    "evaluate": 60,
    "probe": 120,
    "cost": 60,
}


class SizeJobs(Strict):
    """Exceptions for the jobs of one size."""

    partition: Name | None = Field(None, description="default: as in `cluster`")
    minutes: dict[Stage, Count] = Field({}, description="by stage; default: as in `cluster`")


class Cluster(Strict):
    """What jobs request from a scheduler; changing it reruns nothing."""

    partition: Name | None = Field(
        None, description="Slurm partition of every job; default: the cluster's own default"
    )
    minutes: dict[Stage, Count] = Field(
        {},
        description="wall time per job, by stage; default: "
        + ", ".join(f"{stage} {minutes}" for stage, minutes in MINUTES.items())
        + "; a job that is cut off resumes from its last checkpoint",
    )
    one_job_a_cell: bool = Field(
        True,
        description="train, evaluate and probe a cell in one job; false if training holds many "
        "GPUs that the other two would leave idle",
    )
    sizes: dict[Name, SizeJobs] = Field({}, description="exceptions, mostly for larger sizes")
