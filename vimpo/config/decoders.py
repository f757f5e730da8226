"""Decoders: how answers are drawn from a policy, in evaluation and in validation.

A decoder has a name, which is a metric of the table of accuracy. Every evaluation has `sampled`,
and `greedy` unless that is switched off; a study may name more.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from vimpo.config.types import Name, Strict

SAMPLED, GREEDY = "sampled", "greedy"


class Decoder(Strict):
    """Draws each token from the likeliest ones that together have probability `top_p`."""

    temperature: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="0: always the likeliest token; default: train.temperature",
    )
    top_p: float = Field(1.0, gt=0, le=1, description="1: all tokens, as in training")

    @property
    def is_greedy(self) -> bool:
        """Does it give one answer, however often it is asked?"""
        return self.temperature == 0

    def at(self, training: float) -> float:
        """Its temperature, given that of training."""
        return training if self.temperature is None else self.temperature


def _not_taken(decoders: dict[str, Decoder]) -> dict[str, Decoder]:
    for name in decoders:
        if name in (SAMPLED, GREEDY):
            raise ValueError(
                f"'{name}' is the decoder that temperature, top_p and greedy describe; allowed: "
                "another name"
            )
    return decoders


MoreDecoders = Annotated[dict[Name, Decoder], AfterValidator(_not_taken)]
