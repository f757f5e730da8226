"""Benchmarks of a study: generated chains, published ones by name, any of lm-eval's, a user's own
problems, and generators of reasoning-gym.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from vimpo.config.benchmarks import BENCHMARKS, Published, with_stock_style
from vimpo.config.contents import ContentDigest, DefinitionsDigest
from vimpo.config.sources import GymSettings, ProblemSource
from vimpo.config.texts import Extraction, GymExtraction, Template, one_group
from vimpo.config.types import Count, Strict

LONGEST_CHAIN = 32  # operators: about 400 tokens of prompt and response


class Benchmark(Strict):
    """A fixed set of held-out chains, evaluated by lm-eval."""

    operators: int = Field(ge=1, le=LONGEST_CHAIN, description="of a chain: 2 is `7+5-3=`")
    problems: int = Field(200, ge=1, le=5000, description="held-out problems")


def _is_published(name: Any) -> Any:
    if not isinstance(name, str) or name not in BENCHMARKS:
        raise ValueError(
            f"{name!r:.80} is unknown; allowed: {', '.join(BENCHMARKS)}; or any task of lm-eval, "
            "with the `metric` that counts"
        )
    return name


PublishedName = Annotated[
    str, BeforeValidator(_is_published), Field(json_schema_extra={"enum": list(BENCHMARKS)})
]


class Limited(Strict):
    """Benchmarks whose source has a number of problems."""

    limit: Count | None = Field(None, description="only the first problems, to try things out")

    @property
    def problems(self) -> int | None:
        """How many problems are scored; None for all that the source has."""
        return self.limit


class RealBenchmark(Limited):
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
    max_response: int | None = Field(
        None, ge=2, le=65536, description="response tokens; default: train.max_response"
    )
    prompt: Template | None = Field(None, description="boxed style; default: the task's own")

    @property
    def published(self) -> Published:
        """Its row of the registry."""
        return BENCHMARKS[self.task]

    @property
    def k(self) -> int | None:
        """Responses per problem; None: evaluation.samples."""
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


class FreeBenchmark(Strict):
    """What all other benchmarks of texts can be asked for."""

    samples: Count | None = Field(None, description="k of avg@k; default: evaluation.samples")
    max_response: int | None = Field(
        None, ge=2, le=65536, description="response tokens; default: train.max_response"
    )

    @property
    def k(self) -> int | None:
        """Responses per problem; None: evaluation.samples."""
        return self.samples


class RegisteredBenchmark(Limited, FreeBenchmark):
    """Any task of lm-eval by its name, or one that a YAML file of the user's defines.

    Prompt, shots, stop texts and problems are those of its definition.
    """

    task: str = Field(min_length=1, description="name of a task that lm-eval has, or include_path")
    include_path: str | None = Field(
        None, description="folder with definitions (YAML) in lm-eval's format, beside its own"
    )
    sha256: DefinitionsDigest = None
    metric: str = Field(
        min_length=1, description="the metric that counts: a mean of the task's, such as `acc`"
    )
    filter: str | None = Field(
        None, description="which of the task's filters it is computed after; default: the first"
    )
    extract: Extraction | None = Field(
        None,
        description="free answers: let the suite's verifier judge what this rule finds instead; "
        "`metric` is then reported beside it",
    )
    answer_pattern: str | None = Field(
        None, description="with extract: what in the task's target is the gold (gsm8k: `#### (.+)`)"
    )

    @field_validator("answer_pattern")
    @classmethod
    def _pattern_has_a_group(cls, value: str | None) -> str | None:
        return None if value is None else one_group(value)

    @model_validator(mode="after")
    def _golds_are_for_the_verifier(self) -> RegisteredBenchmark:
        if self.answer_pattern and self.extract is None:
            raise ValueError(
                f"answer_pattern: {self.answer_pattern!r:.80} finds a gold for the verifier, which "
                "is not asked; allowed: null, or with extract"
            )
        return self


class OwnBenchmark(Limited, ProblemSource, FreeBenchmark):
    """A user's own problems; columns are named as for training data."""

    split: str = Field("test", description="split of a hub dataset")
    prompt: Template | None = Field(None, description="default: the task's own")
    extract: Extraction = Field("boxed", description="what in a response is its answer")
    evaluated_only: bool | None = Field(
        None, description="an answer must be a worked-out number; default: as in training"
    )


class GymBenchmark(FreeBenchmark):
    """Held-out problems of a generator of reasoning-gym, such as one level of difficulty."""

    dataset: str = Field(min_length=1, description="name of a data set, such as `chain_sum`")
    settings: GymSettings = Field({}, description="as in task.datasets")
    problems: int = Field(200, ge=1, le=5000, description="held-out problems")
    prompt: Template | None = Field(None, description="default: the task's own")
    extract: GymExtraction | None = Field(
        None, description="what in a response is its answer; default: the task's own, or boxed"
    )


KINDS = {
    "chain": Benchmark,
    "real": RealBenchmark,
    "registered": RegisteredBenchmark,
    "own": OwnBenchmark,
    "gym": GymBenchmark,
}
TEXTS = (RealBenchmark, RegisteredBenchmark, OwnBenchmark, GymBenchmark)


def _benchmark_kind(value: Any) -> str:
    """By the field that only its kind needs; what has none of them is a chain."""
    if not isinstance(value, dict):
        return next((kind for kind, model in KINDS.items() if type(value) is model), "chain")
    if "task" in value:
        named = {"metric", "include_path"} & set(value)
        return "registered" if named else "real"
    return "gym" if "dataset" in value else "own" if "path" in value else "chain"


TextBenchmark = RealBenchmark | RegisteredBenchmark | OwnBenchmark | GymBenchmark
AnyTextBenchmark = (
    Annotated[RealBenchmark, Tag("real")]
    | Annotated[RegisteredBenchmark, Tag("registered")]
    | Annotated[OwnBenchmark, Tag("own")]
    | Annotated[GymBenchmark, Tag("gym")]
)
AnyBenchmark = Annotated[
    Annotated[Benchmark, Tag("chain")] | AnyTextBenchmark, Discriminator(_benchmark_kind)
]


def _text_kind(value: Any) -> str:
    """As above, where chains cannot be asked: what is not named is taken for a published one."""
    kind = _benchmark_kind(value)
    return "real" if kind == "chain" else kind


OnlyText = Annotated[AnyTextBenchmark, Discriminator(_text_kind)]
