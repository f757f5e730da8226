"""The grid: its blocks, its cells, and a digest of everything that determines a cell's result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from vimpo.config.algorithms import AlgorithmConfig
from vimpo.config.models import NO_RECIPE, NO_RESULT, ModelSpec, Pretrain
from vimpo.config.noise import Noise
from vimpo.config.task import TaskConfig
from vimpo.config.training import PLACEMENT, Collapse, Runtime, Train, check_together
from vimpo.config.types import Name, Positive, Seed, Strict, digest


class GridBlock(Strict):
    """A product of cells; a study is the union of its blocks."""

    algorithms: list[Name] = Field(["vimpo", "ppo", "grpo"], min_length=1)
    sizes: list[Name] = Field(["xs", "s"], min_length=1)
    noise: list[Noise] = Field(
        [Noise(rate=0.0), Noise(rate=0.25)],
        min_length=1,
        description="numbers are flip rates in `noise_mode`; mappings give their own mode",
    )
    noise_mode: Literal["group", "rollout"] = "group"
    seeds: list[Seed] = Field([1, 2], min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_rates(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("noise"), list):
            return data
        mode = data.get("noise_mode", "group")
        noise = [
            n if isinstance(n, dict | Noise) else {"mode": mode, "rate": n} for n in data["noise"]
        ]
        return data | {"noise": noise}


@dataclass(frozen=True)
class Cell:
    """One training run of the grid."""

    algorithm: str
    size: str
    noise: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.algorithm}/{self.size}/noise-{self.noise}/seed-{self.seed}"


class CellConfig(Strict):
    """Everything that determines the result of one training run; written next to its metrics."""

    algorithm: Name
    size: Name
    noise: Noise
    seed: Seed
    objective: AlgorithmConfig
    model: ModelSpec
    task: TaskConfig
    pretrain: Pretrain
    train: Train
    runtime: Runtime
    capacity: Positive | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="what objective.beta was resolved from; filled in before training",
    )

    @model_validator(mode="after")
    def _can_be_spread(self) -> CellConfig:
        check_together(self.algorithm, self.model, self.objective, self.train, self.runtime)
        return self


def cell_digest(config: CellConfig) -> str:
    """Digest of what a training run depends on; the task's held-out benchmarks are not part of it.

    The limits of a collapse determine the results of runs that fail, so other limits are another
    run. Default limits are left out, so that digests older than these limits stay valid.
    """
    fields = config.model_dump(
        exclude={"task": True, "runtime": True, "model": NO_RESULT, "pretrain": NO_RECIPE}
    )
    if config.train.collapse == Collapse():
        del fields["train"]["collapse"]
    fields["runtime"] = result_fields(config.runtime)
    return digest([fields, training_fields(config.task)])


def result_fields(runtime: Runtime) -> dict:
    """The part of the runtime that determines a result."""
    return runtime.model_dump(exclude=PLACEMENT)


def training_fields(task: TaskConfig) -> dict:
    """Without what training does not read; workers only change how fast answers are judged."""
    plain = task.model_dump(exclude={"benchmarks"})
    plain.get("verifier", {}).pop("workers", None)
    return plain
