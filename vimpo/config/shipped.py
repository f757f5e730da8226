"""The suite's own claims, C1 to C6: entries of claims.yaml, of the same kind as a study's own."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, TypeAdapter

from vimpo.config.hypotheses import Asked
from vimpo.config.judging import CLAIM_NAMES, ClaimName, Claims
from vimpo.config.load import read_yaml
from vimpo.config.types import Strict

Margin = Literal[
    "accuracy_margin",
    "time_ratio",
    "noise_margin",
    "value_accuracy",
    "value_order",
    "value_slope",
    "critic_margin",
    "credit_margin",
    "place_margin",
    "finer_margin",
]


class ClaimTest(Asked):
    """One tested part of a claim; its threshold is in the study's `claims`."""

    part: str = Field(description="stable within the claim")
    role: str = Field(description="how it is printed: vimpo/analysis/verdicts.py")
    statement: str
    metric: str
    threshold: float = 0.0
    plus: Margin | None = None
    less: Margin | None = None

    def target(self, claims: Claims) -> float:
        plus, less = (getattr(claims, name) if name else 0.0 for name in (self.plus, self.less))
        return self.threshold + plus - less


class Claim(Strict):
    """A claim: supported if all its parts are."""

    title: str
    parts: list[ClaimTest] = Field(min_length=1)


def shipped_claims() -> dict[ClaimName, Claim]:
    """The claims in the order of the report."""
    found = TypeAdapter(dict[ClaimName, Claim]).validate_python(
        read_yaml(Path(__file__).with_name("claims.yaml"))
    )
    return {name: found[name] for name in CLAIM_NAMES}
