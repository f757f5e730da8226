"""Reward noise: how often training rewards are flipped, and its name in paths."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from vimpo.config.types import Probability, Strict, explain
from vimpo.errors import ConfigError


def _plain(rate: float) -> str:
    """The shortest decimal that reads back as this rate, without exponent or sign: `0.00001`."""
    text = f"{Decimal(repr(abs(rate))):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


class Noise(Strict):
    """Flips of training rewards. `group` (the official code) flips all labels of a prompt."""

    mode: Literal["group", "rollout", "asymmetric"] = "group"
    rate: Probability = Field(0.0, description="flip probability (group and rollout modes)")
    false_positive: Probability = Field(0.0, description="wrong -> right (asymmetric mode)")
    false_negative: Probability = Field(0.0, description="right -> wrong (asymmetric mode)")

    @model_validator(mode="after")
    def _one_kind_of_rate(self) -> Noise:
        if self.mode == "asymmetric" and self.rate:
            raise ValueError(
                f"rate: {self.rate} has no meaning in asymmetric mode; "
                "allowed: false_positive and false_negative"
            )
        if self.mode != "asymmetric" and (self.false_positive or self.false_negative):
            raise ValueError(
                f"false_positive, false_negative: only in asymmetric mode, not in {self.mode}"
            )
        return self

    @property
    def label(self) -> str:
        """Name used in paths and tables: `0.25`, `rollout-0.25`, `asymmetric-0.1-0.3`."""
        if self.mode == "asymmetric":
            return f"asymmetric-{_plain(self.false_positive)}-{_plain(self.false_negative)}"
        return _plain(self.rate) if self.mode == "group" else f"rollout-{_plain(self.rate)}"

    @property
    def level(self) -> float:
        """Mean flip rate, the x axis of noise figures."""
        if self.mode == "asymmetric":
            return (self.false_positive + self.false_negative) / 2
        return self.rate

    @classmethod
    def parse(cls, label: str) -> Noise:
        """Inverse of :attr:`label`. Raises ConfigError for anything else."""
        mode, _, rates = label.partition("-")
        try:
            if mode == "asymmetric":
                positive, negative = rates.split("-")
                return cls(
                    mode=mode, false_positive=float(positive), false_negative=float(negative)
                )
            if mode == "rollout":
                return cls(mode=mode, rate=float(rates))
            return cls(rate=float(label))
        except ValidationError as error:
            raise ConfigError(explain(error, cls, prefix="noise")) from None
        except ValueError:
            raise ConfigError(
                f"noise: '{label}' is not a noise level; allowed: a number in [0, 1], "
                "rollout-<number> or asymmetric-<false positive>-<false negative>"
            ) from None
