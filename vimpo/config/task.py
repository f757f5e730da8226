"""Configuration of tasks: what is trained on, and which held-out benchmarks judge it.

A task is `chain`, generated arithmetic; `dataset`, real problems from the hub or from files; or
`reasoning_gym`, problems of that library's generators. Benchmarks: vimpo/config/asked.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from vimpo.config.asked import (
    LONGEST_CHAIN,
    AnyBenchmark,
    Benchmark,
    GymBenchmark,
    OnlyText,
    RealBenchmark,
)
from vimpo.config.sources import DataSource, GymSource
from vimpo.config.texts import BOXED_PROMPT, GymExtraction, Template
from vimpo.config.types import Count, Name, Positive, Seed, Strict
from vimpo.errors import ConfigError


class ChainTask(Strict):
    """Integer arithmetic with written-out steps: `7+5-3=` -> `7+5=12;12-3=9#9`."""

    kind: Literal["chain"] = "chain"
    symbols: Annotated[str, Field(pattern=r"^[+*-]+$")] = Field("+-", description="operators used")
    largest: int = Field(9, ge=2, le=999, description="operands are drawn from 1..largest")
    first_largest: int | None = Field(
        None,
        ge=2,
        le=999,
        # Left out where it is not set, so that digests older than this field stay valid.
        exclude_if=lambda value: value is None,
        description="the first operand is drawn from 1..first_largest; default: largest. Sums of "
        "short operands are narrow, and a policy that guesses the commonest is often right",
    )
    pretrain_operators: list[Annotated[int, Field(ge=1, le=LONGEST_CHAIN)]] = Field(
        [2, 3, 4, 5], min_length=1, description="chain lengths that the base policy learns"
    )
    train_operators: list[Annotated[int, Field(ge=1, le=LONGEST_CHAIN)]] = Field(
        [2, 3, 4], min_length=1, description="chain lengths used in reinforcement learning"
    )
    step_error: float = Field(
        0.35,
        ge=0,
        lt=1,
        description="probability that a pretraining demonstration forgets a carry or borrow and "
        "continues from the wrong value, so that the base policy samples errors that reward can "
        "remove (above 0.3 they survive top-p 0.7)",
    )
    benchmarks: dict[Name, AnyBenchmark] = Field(
        {
            "chain_easy": Benchmark(operators=2),
            "chain_medium": Benchmark(operators=3),
            "chain_hard": Benchmark(operators=4),
            "chain_beyond": Benchmark(operators=5),
        },
        min_length=1,
        description="lm-eval benchmarks of rising difficulty; `beyond` is longer than RL trains on",
    )

    def problem_space(self, operators: int) -> int:
        """How many problems of this length exist, training and held out together."""
        later = (self.largest * len(set(self.symbols))) ** operators
        return (self.first_largest or self.largest) * later

    @model_validator(mode="after")
    def _enough_held_out_problems(self) -> ChainTask:
        for name, benchmark in self.benchmarks.items():
            if not isinstance(benchmark, Benchmark):
                continue
            space = self.problem_space(benchmark.operators)
            # One problem in five is held out; at most half of those may be used, so that distinct
            # ones are found quickly.
            if benchmark.problems > space // 10:
                raise ValueError(
                    f"benchmarks.{name}.problems: {benchmark.problems} is more than this task "
                    f"holds out; allowed: 1 to {space // 10} (more operands or operators give more)"
                )
        return self


class VerifierLimits(Strict):
    """What judging one answer may cost; an answer that costs more counts as wrong."""

    workers: Count = Field(2, description="guarded processes")
    seconds: Positive = Field(5.0, description="CPU seconds per answer")
    memory_mb: int = Field(1024, ge=128, description="memory per answer, beyond the worker's own")


class TextTask(Strict):
    """What tasks of texts share: prompts, and what judging may cost."""

    kind: str
    prompt: Template = BOXED_PROMPT
    chat_template: bool = Field(
        False, description="wrap the prompt as a user's message by the tokenizer's chat template"
    )
    system: str | None = Field(None, description="system message of chats, for data that has none")
    max_prompt: Count = Field(2048, description="in tokens; for longer prompts see long_prompts")
    verifier: VerifierLimits = VerifierLimits()

    @model_validator(mode="after")
    def _system_needs_a_chat(self) -> TextTask:
        if self.system is not None and not self.chat_template:
            raise ValueError(
                f"system: {self.system!r:.80} is part of a chat; allowed: null, or with "
                "chat_template: true"
            )
        return self


class DatasetTask(TextTask):
    r"""Real problems: prompts that ask for a `\boxed{}` answer, judged by the verifier."""

    kind: Literal["dataset"]
    datasets: list[DataSource] = Field(min_length=1, description="joined; equal ones count once")
    long_prompts: Literal["drop", "refuse", "cut"] = Field(
        "drop",
        description="drop: leave them out and count them; refuse: an error; cut: keep their last "
        "max_prompt tokens (the official code)",
    )
    unreadable_answers: Literal["refuse", "drop"] = Field(
        "refuse", description="gold answers that the verifier cannot read: an error, or left out"
    )
    order_seed: Seed = Field(0, description="with the run's seed, decides the order of problems")
    boxed_only: bool = Field(True, description="a response without a box is wrong")
    evaluated_only: bool = Field(
        False,
        exclude_if=lambda value: not value,
        description="an answer must be a number that is worked out: 4 + 3, 14/2, 10^2 are wrong. "
        "For problems that are expressions, whose echo would otherwise be right",
    )
    benchmarks: dict[Name, OnlyText] = Field(
        {
            "math500": RealBenchmark(task="math500"),
            "aime24": RealBenchmark(task="aime24"),
            "aime25": RealBenchmark(task="aime25"),
            "olympiadbench": RealBenchmark(task="olympiadbench"),
        },
        min_length=1,
        description="lm-eval benchmarks; the paper's four by default",
    )


class GymTask(TextTask):
    """Problems of reasoning-gym's generators, judged by its own `score_answer`."""

    kind: Literal["reasoning_gym"]
    datasets: list[GymSource] = Field(min_length=1, description="drawn from by their weights")
    max_prompt: Count = Field(2048, description="in tokens; longer ones are drawn again")
    extract: GymExtraction = Field(
        "boxed",
        description="what in a response is its answer: the last box, the last number, the group of "
        "a regular expression, or what the library itself looks for (`<answer>...</answer>`)",
    )
    right_from: float = Field(
        1.0, gt=0, le=1, description="scores of `score_answer` from here on are right, 0 otherwise"
    )
    benchmarks: dict[Name, OnlyText] = Field(
        min_length=1, description="lm-eval benchmarks, such as levels: {dataset: chain_sum, ...}"
    )


def _with_kind(value: Any) -> Any:
    """A task without a kind is a chain task."""
    return {"kind": "chain"} | value if isinstance(value, dict) else value


TaskConfig = Annotated[
    ChainTask | DatasetTask | GymTask, Field(discriminator="kind"), BeforeValidator(_with_kind)
]


def grades_steps(task: TaskConfig) -> bool:
    """Does an oracle grade each step of a response?"""
    return task.kind == "chain"


def uses_gym(task: TaskConfig) -> bool:
    """Does a task take problems from reasoning-gym?"""
    levels = (isinstance(found, GymBenchmark) for found in task.benchmarks.values())
    return isinstance(task, GymTask) or any(levels)


def check_step_grades(field: str, task: TaskConfig) -> None:
    """Raise ConfigError unless the task grades the steps of responses, which `field` reads."""
    if not grades_steps(task):
        raise ConfigError(
            f"{field}: reads grades of steps, which task.kind = '{task.kind}' does not have; "
            "allowed: kind: chain, or an algorithm that reads only rewards"
        )


def check_splitting(field: str, interval: int | None, task: TaskConfig) -> None:
    """Raise ConfigError unless something says where `field` splits responses into states."""
    if interval is None and task.kind != "chain":
        raise ConfigError(
            f"{field}.interval: null leaves it without a splitting rule, because responses of "
            f"task.kind = '{task.kind}' have no steps; allowed: a number of tokens, at least 1, or "
            "kind: chain"
        )
