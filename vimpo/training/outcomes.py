"""How a training run ends: at its last step, or when its numbers or its policy fail.

A failure is a result, not an accident: the run stops, keeps its weights, and its manifest says what
happened (vimpo/training/runs.py). The weights are evaluated and probed like any others.

    finished    all steps were done
    not_finite  a loss, a gradient norm or a log-ratio is NaN or infinite; that update is not
                applied, so the weights are those before it
    collapsed   no correct rollout for `train.collapse.steps` steps in a row, after there had been
                some, and a KL to the base policy above `train.collapse.kl`. Rewards are taken
                before noise, because flips would hide a collapse
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vimpo.config import Collapse


@dataclass(frozen=True)
class Outcome:
    """What the manifest says about a run's end. step: the last one in metrics.csv."""

    kind: Literal["finished", "not_finite", "collapsed"]
    step: int
    reason: str = ""


class Watch:
    """Checks the numbers of an update before it is applied; keeps the first fault."""

    def __init__(self) -> None:
        self.fault = ""

    def sound(self, what: str, value: float | Tensor) -> bool:
        """Is everything finite so far, `value` included? All processes must pass the same value."""
        if not self.fault and not bool(torch.as_tensor(value).isfinite().all()):
            self.fault = f"{what} is not finite"
        return not self.fault

    def sound_ratios(self, mask: Tensor, logp: Tensor, *others: Tensor | None) -> None:
        """The same for the log-ratios of logp to each of the others, on mask. All [B, T]."""
        for other in others:
            if other is not None:
                self.sound("a log-ratio", (logp - other)[mask.bool()])


def steps_without_reward(rows: Sequence[dict[str, float]]) -> int:
    """Rows at the end of metrics.csv without a correct rollout; 0 if there never was one."""
    backwards = enumerate(reversed(rows))
    return next((i for i, row in backwards if row["accuracy"] > 0), 0)


def outcome_of(
    rows: Sequence[dict[str, float]],
    watch: Watch,
    limits: Collapse,
    reference_kl: Callable[[], float],
) -> Outcome | None:
    """How a run failed in the last of its rows; None if it did not.

    The KL to the base policy (nats per response) is measured once every `limits.steps` steps
    without reward, so healthy runs pay nothing for it.
    """
    step = int(rows[-1]["step"])
    if watch.fault:
        return Outcome("not_finite", step, f"{watch.fault} at step {step}")
    count = steps_without_reward(rows)
    if count == 0 or count % limits.steps:
        return None
    kl = reference_kl()
    if kl <= limits.kl:
        return None
    reason = f"no right rollout in {count} steps up to step {step}; KL to the base: {kl:.3g} nats"
    return Outcome("collapsed", step, reason)
