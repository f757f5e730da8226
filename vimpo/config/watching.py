"""What is looked at while a policy trains: held-out accuracy, and the policy at chosen steps.

Steps are counted as updates: 0 is the base policy, `train.steps` the end of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from vimpo.config.decoders import GREEDY, SAMPLED, Decoder
from vimpo.config.types import Count, Name, Strict

TRAINING = "training"


class Validation(Strict):
    """Held-out accuracy along training, on problems that training never draws."""

    every: Count = Field(20, description="steps from one to the next; also at step 0 and the last")
    problems: Count = Field(40, description="held-out problems, the same for every run and step")
    samples: Count = Field(1, description="responses per problem; a greedy decoder gives one")
    decoders: dict[Name, Decoder] = Field(
        {
            TRAINING: Decoder(),
            SAMPLED: Decoder(temperature=1.0, top_p=0.7),
            GREEDY: Decoder(temperature=0.0),
        },
        min_length=1,
        description="how each problem is answered, by name",
    )

    def due(self, updates: int, steps: int) -> bool:
        """Is the policy to be looked at after so many updates, of `steps`?"""
        return updates % self.every == 0 or updates == steps

    def samples_of(self, decoder: str) -> int:
        """Responses per problem."""
        return 1 if self.decoders[decoder].is_greedy else self.samples


def snapshot_folder(run: Path, step: int) -> Path:
    """Where a run keeps its policy of a step."""
    return run / "snapshots" / f"step-{step}"


def check_snapshots(snapshots: Sequence[int], steps: int) -> None:
    """Raise ValueError for a snapshot that training does not reach, or that is asked for twice."""
    for i, step in enumerate(snapshots):
        if step > steps:
            raise ValueError(
                f"snapshots.{i}: {step} is beyond the last step; allowed: 1 to steps = {steps}"
            )
        if step in snapshots[:i]:
            raise ValueError(f"snapshots.{i}: {step} is repeated; allowed: each step once")
