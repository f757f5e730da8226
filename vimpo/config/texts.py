"""Settings of texts: the template of a prompt, and the rule that finds the answer of a response."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator

from vimpo.config.types import Strict

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


def one_group(value: str) -> str:
    """A regular expression with one group. Raises ValueError for anything else."""
    try:
        groups = re.compile(value).groups
    except re.error as error:
        raise ValueError(
            f"{value!r} is not a regular expression ({error}); allowed: one with one group"
        ) from None
    if groups != 1:
        raise ValueError(f"{value!r} has {groups} groups; allowed: one, around the answer")
    return value


class Pattern(Strict):
    """The group of the last match of a regular expression in a response is its answer."""

    pattern: str = Field(description="regular expression with one group, around the answer")

    @field_validator("pattern")
    @classmethod
    def _pattern_has_a_group(cls, value: str) -> str:
        return one_group(value)


Named = Literal["boxed", "last_number"]
NamedOrLibrary = Literal["boxed", "last_number", "library"]


def _rule(names: Any) -> BeforeValidator:
    def check(value: Any) -> Any:
        if not isinstance(value, dict | Pattern) and value not in get_args(names):
            raise ValueError(
                f"{value!r:.80} is no rule; allowed: {', '.join(get_args(names))}, or "
                "{pattern: a regular expression with one group}"
            )
        return value

    return BeforeValidator(check)


_BY_TYPE = Discriminator(lambda value: "by" if isinstance(value, dict | Pattern) else "named")
# The last box; the last number; or the last match of a regular expression.
Extraction = Annotated[
    Annotated[Named, Tag("named")] | Annotated[Pattern, Tag("by")], _BY_TYPE, _rule(Named)
]
# Or what reasoning-gym itself looks for, `<answer>...</answer>`.
GymExtraction = Annotated[
    Annotated[NamedOrLibrary, Tag("named")] | Annotated[Pattern, Tag("by")],
    _BY_TYPE,
    _rule(NamedOrLibrary),
]
