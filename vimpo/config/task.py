"""Configuration of tasks: what is trained on, and which held-out benchmarks judge it.

A task is either `chain`, generated arithmetic, or `dataset`, real problems from the hub or from
files. Benchmarks are generated chains or, by name, published ones (vimpo/config/benchmarks.py).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from vimpo.config.benchmarks import BENCHMARKS, Published, with_stock_style
from vimpo.config.contents import ContentDigest
from vimpo.config.types import Count, Name, Positive, Seed, Strict
from vimpo.errors import ConfigError

BOXED_PROMPT = (
    "{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{}.\n\n"
)
PROBLEM = "{problem}"


def _has_problem(template: str) -> str:
    if PROBLEM not in template:
        raise ValueError(f"{template!r} does not contain {PROBLEM}; allowed: a text with {PROBLEM}")
    return template


Template = Annotated[
    str,
    BeforeValidator(lambda value: _has_problem(value) if isinstance(value, str) else value),
    Field(description="text of the prompt; {problem} becomes the problem, other braces stay"),
]


# --- Benchmarks ----------------------------------------------------------------------------------


class Benchmark(Strict):
    """A fixed set of held-out chains, evaluated by lm-eval."""

    operators: int = Field(ge=1, le=12, description="operators in a chain: 2 is `7+5-3=`")
    problems: int = Field(200, ge=1, le=5000, description="held-out problems")


def _is_published(name: Any) -> Any:
    if not isinstance(name, str) or name not in BENCHMARKS:
        raise ValueError(f"{name!r:.80} is unknown; allowed: {', '.join(BENCHMARKS)}")
    return name


PublishedName = Annotated[
    str, BeforeValidator(_is_published), Field(json_schema_extra={"enum": list(BENCHMARKS)})
]


class RealBenchmark(Strict):
    """A published benchmark by its name, from the hub or from a local copy."""

    task: PublishedName
    style: Literal["boxed", "stock"] = Field(
        "boxed",
        description="boxed: zero-shot, the prompt below, the last box is the answer; stock: "
        f"prompt, shots and stop texts of lm-eval's own task ({', '.join(with_stock_style())})",
    )
    path: str | None = Field(
        None, description="local Parquet or JSONL file, or hub name; default: its own hub name"
    )
    sha256: ContentDigest = None
    split: str | None = Field(None, description="split on the hub; default: its own")
    samples: Count | None = Field(
        None,
        description="k of avg@k; default: "
        + ", ".join(f"{row.samples} for {name}" for name, row in BENCHMARKS.items()),
    )
    limit: Count | None = Field(None, description="only the first problems, to try things out")
    max_response: int | None = Field(
        None, ge=2, le=65536, description="response tokens; default: train.max_response"
    )
    prompt: Template | None = Field(None, description="boxed style; default: the task's own")

    @property
    def problems(self) -> int | None:
        """How many problems are scored; None for all that the source has."""
        return self.limit

    @property
    def published(self) -> Published:
        """Its row of the registry."""
        return BENCHMARKS[self.task]

    @property
    def k(self) -> int:
        """Responses per problem."""
        return self.samples or self.published.samples

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the source must have: those of the published files."""
        row = self.published
        worked = row.stock_solution if self.style == "stock" else None
        return (row.question, row.answer, *([worked] if worked else []))

    @model_validator(mode="after")
    def _style_exists(self) -> RealBenchmark:
        if self.style == "stock" and not self.published.stock_metric:
            raise ValueError(
                f"style: {self.task} has no 'stock' style; allowed: boxed, or stock with "
                f"{', '.join(with_stock_style())}"
            )
        if self.style == "stock" and self.prompt is not None:
            raise ValueError(
                f"prompt: {self.prompt!r:.80} is not used by the stock style, which has its own; "
                "allowed: null, or with style: boxed"
            )
        return self


def _benchmark_kind(value: Any) -> str:
    """A mapping that names a published task is a real benchmark."""
    named = isinstance(value, dict) and "task" in value
    return "real" if named or isinstance(value, RealBenchmark) else "chain"


AnyBenchmark = Annotated[
    Annotated[Benchmark, Tag("chain")] | Annotated[RealBenchmark, Tag("real")],
    Discriminator(_benchmark_kind),
]


# --- Tasks ---------------------------------------------------------------------------------------


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
    pretrain_operators: list[Annotated[int, Field(ge=1, le=12)]] = Field(
        [2, 3, 4, 5], min_length=1, description="chain lengths that the base policy learns"
    )
    train_operators: list[Annotated[int, Field(ge=1, le=12)]] = Field(
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
            if isinstance(benchmark, RealBenchmark):
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


class DataSource(Strict):
    """Problems with answers, from the hub or from a file."""

    path: str = Field(min_length=1, description="hub name, or local .jsonl or .parquet file")
    sha256: ContentDigest = None
    subset: str | None = Field(None, description="configuration of a hub dataset, such as `main`")
    split: str = Field("train", description="split of a hub dataset")
    file: str | None = Field(
        None, description="one data file of a hub dataset, instead of subset and split"
    )
    problem: str = Field("problem", description="column of the problem; dots reach into structs")
    answer: str = Field("answer", description="column of the gold answer")
    solution: str | None = Field(
        None, description="column of a worked solution, for sizes that are pretrained on it"
    )
    answer_pattern: str | None = Field(
        None, description="regular expression whose first group is the gold (GSM8K: `#### (.+)`)"
    )

    @model_validator(mode="after")
    def _file_is_of_the_hub(self) -> DataSource:
        if self.file and (self.subset or self.split != "train"):
            raise ValueError(
                f"file: '{self.file}' replaces subset and split; allowed: without these two"
            )
        return self

    @field_validator("answer_pattern")
    @classmethod
    def _pattern_has_a_group(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            groups = re.compile(value).groups
        except re.error as error:
            raise ValueError(
                f"{value!r} is not a regular expression ({error}); allowed: one with one group"
            ) from None
        if groups != 1:
            raise ValueError(f"{value!r} has {groups} groups; allowed: one, around the answer")
        return value


class VerifierLimits(Strict):
    """What judging one answer may cost; an answer that costs more counts as wrong."""

    workers: Count = Field(2, description="guarded processes")
    seconds: Positive = Field(5.0, description="CPU seconds per answer")
    memory_mb: int = Field(1024, ge=128, description="memory per answer, beyond the worker's own")


class DatasetTask(Strict):
    r"""Real problems: prompts that ask for a `\boxed{}` answer, judged by the verifier."""

    kind: Literal["dataset"]
    datasets: list[DataSource] = Field(min_length=1, description="joined; equal ones count once")
    prompt: Template = BOXED_PROMPT
    chat_template: bool = Field(
        False, description="wrap the prompt as a user's message by the tokenizer's chat template"
    )
    system: str | None = Field(None, description="system message of chats, for data that has none")
    max_prompt: Count = Field(2048, description="in tokens; for longer prompts see long_prompts")
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
        description="an answer must be a number that is worked out: 4 + 3, 14/2 and 10^2 are wrong. "
        "For problems that are expressions, whose echo would otherwise be right",
    )
    verifier: VerifierLimits = VerifierLimits()
    benchmarks: dict[Name, RealBenchmark] = Field(
        {
            "math500": RealBenchmark(task="math500"),
            "aime24": RealBenchmark(task="aime24"),
            "aime25": RealBenchmark(task="aime25"),
            "olympiadbench": RealBenchmark(task="olympiadbench"),
        },
        min_length=1,
        description="lm-eval benchmarks; the paper's four by default",
    )

    @model_validator(mode="after")
    def _system_needs_a_chat(self) -> DatasetTask:
        if self.system is not None and not self.chat_template:
            raise ValueError(
                f"system: {self.system!r:.80} is part of a chat; allowed: null, or with "
                "chat_template: true"
            )
        return self


def _with_kind(value: Any) -> Any:
    """A task without a kind is a chain task."""
    return {"kind": "chain"} | value if isinstance(value, dict) else value


TaskConfig = Annotated[
    ChainTask | DatasetTask, Field(discriminator="kind"), BeforeValidator(_with_kind)
]


def check_step_grades(field: str, task: ChainTask | DatasetTask) -> None:
    """Raise ConfigError unless the task grades the steps of responses, which `field` reads."""
    if task.kind != "chain":
        raise ConfigError(
            f"{field}: reads grades of steps, which task.kind = '{task.kind}' does not have; "
            "allowed: kind: chain, or an algorithm that reads only rewards"
        )


def check_splitting(field: str, interval: int | None, task: ChainTask | DatasetTask) -> None:
    """Raise ConfigError unless something says where `field` splits responses into states."""
    if interval is None and task.kind != "chain":
        raise ConfigError(
            f"{field}.interval: null leaves it without a splitting rule, because responses of "
            f"task.kind = '{task.kind}' have no steps; allowed: a number of tokens, at least 1, or "
            "kind: chain"
        )
