"""How a training run ends: at its last step, or where its numbers or its policy fail.

A failure is a result, not an accident: the run stops, keeps the weights that it has, and its
manifest says what happened (vimpo/training/runs.py). They are evaluated and probed like any others.

    finished    all steps were done
    not_finite  a loss, a gradient norm or a log-ratio is NaN or infinite; that update is not
                applied, so the weights are those before it
    collapsed   no right rollout in `train.collapse.steps` steps in a row, after there were some,
                and a KL to the base policy above `train.collapse.kl`. Rewards are those before
                noise: flips would hide it
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
    """What the manifest says of a run's end. step: the last one of metrics.csv."""

    kind: Literal["finished", "not_finite", "collapsed"]
    step: int
    reason: str = ""


class Watch:
    """Looks at the numbers of an update before it is applied; keeps the first fault."""

    def __init__(self) -> None:
        self.fault = ""

    def sound(self, what: str, value: float | Tensor) -> bool:
        """Was everything finite so far, this too? Every process must ask with the same value."""
        if not self.fault and not bool(torch.as_tensor(value).isfinite().all()):
            self.fault = f"{what} is not finite"
        return not self.fault

    def sound_ratios(self, mask: Tensor, logp: Tensor, *others: Tensor | None) -> None:
        """The same of log-ratios on mask, of logp to each of the others. All [B, T]."""
        for other in others:
            if other is not None:
                self.sound("a log-ratio", (logp - other)[mask.bool()])


def steps_without_reward(rows: Sequence[dict[str, float]]) -> int:
    """Rows at the end of metrics.csv without a right rollout; 0 where there never was one."""
    backwards = enumerate(reversed(rows))
    return next((i for i, row in backwards if row["accuracy"] > 0), 0)


def outcome_of(
    rows: Sequence[dict[str, float]],
    watch: Watch,
    limits: Collapse,
    reference_kl: Callable[[], float],
) -> Outcome | None:
    """Has a run failed at the last of its rows? None: it goes on.

    The KL to the base policy (nats a response) is measured once in `limits.steps` steps without
    reward, so that healthy runs pay nothing for it.
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
