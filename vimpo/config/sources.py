"""Where problems come from: columns of a data set, or a generator of reasoning-gym."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator, model_validator

from vimpo.config.contents import ContentDigest
from vimpo.config.texts import one_group
from vimpo.config.types import Positive, Strict


class ProblemSource(Strict):
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
    answer_pattern: str | None = Field(
        None, description="regular expression whose first group is the gold (GSM8K: `#### (.+)`)"
    )

    @model_validator(mode="after")
    def _file_is_of_the_hub(self) -> ProblemSource:
        if self.file and (self.subset or self.split != type(self).model_fields["split"].default):
            raise ValueError(
                f"file: '{self.file}' replaces subset and split; allowed: without these two"
            )
        return self

    @field_validator("answer_pattern")
    @classmethod
    def _pattern_has_a_group(cls, value: str | None) -> str | None:
        return None if value is None else one_group(value)


class DataSource(ProblemSource):
    """Problems to train on."""

    solution: str | None = Field(
        None, description="column of a worked solution, for sizes that are pretrained on it"
    )


def _without_seeds(settings: dict[str, Any]) -> dict[str, Any]:
    for name in ("seed", "size"):
        if name in settings:
            raise ValueError(f"{name} is decided by the suite; allowed: settings without it")
    return settings


GymSettings = Annotated[dict[str, Any], AfterValidator(_without_seeds)]


class GymSource(Strict):
    """One generator of reasoning-gym."""

    name: str = Field(min_length=1, description="name of a data set, such as `chain_sum`")
    settings: GymSettings = Field(
        {}, description="fields of the data set's own configuration, but for seed and size"
    )
    weight: Positive = Field(1.0, description="problems are drawn in proportion to it")
