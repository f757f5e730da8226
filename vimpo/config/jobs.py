"""What the jobs of a study ask a scheduler for; no digest covers it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vimpo.config.types import Count, Name, Strict

Stage = Literal["pretrain", "train", "evaluate", "probe", "cost"]


MINUTES: dict[Stage, int] = {
    "pretrain": 120,
    "train": 240,
    "evaluate": 60,
    "probe": 120,
    "cost": 60,
}


class SizeJobs(Strict):
    """Exceptions for the jobs of one size."""

    partition: Name | None = Field(None, description="default: that of `cluster`")
    minutes: dict[Stage, Count] = Field({}, description="default: those of `cluster`, by stage")


class Cluster(Strict):
    """What jobs ask a scheduler for; changing it runs nothing again."""

    partition: Name | None = Field(
        None, description="Slurm partition of every job; default: the cluster's own default"
    )
    minutes: dict[Stage, Count] = Field(
        {},
        description="wall time of a job by stage; default: "
        + ", ".join(f"{stage} {minutes}" for stage, minutes in MINUTES.items())
        + "; a job that is cut off goes on from its last checkpoint",
    )
    one_job_a_cell: bool = Field(
        True,
        description="train, evaluate and probe of a cell in one job; false where training holds "
        "many GPUs that the other two would leave idle",
    )
    sizes: dict[Name, SizeJobs] = Field({}, description="exceptions by size, larger ones mostly")
