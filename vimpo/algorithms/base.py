"""What every algorithm is: a batch goes in; advantages, a loss and metrics come out."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from vimpo.config import PolicyUpdate
from vimpo.objectives.common import clipped_surrogate, group_mean

# A tensor that the training loop fills in before anything reads it, None until then. Which ones are
# filled in depends on the algorithm, so a type checker cannot know.
Filled = Any


@dataclass(frozen=True)
class Batch:
    """What the algorithms read, all detached. [B, T] unless stated otherwise; None: not needed.

    logp: of the current policy; old_logp: of the policy before the first update; token_kl in nats;
    rewards, baseline [B]: noisy, and their group mean; values: the critic's, before its update.
    """

    mask: Tensor
    rewards: Tensor
    groups: Tensor
    baseline: Tensor
    logp: Filled = None
    old_logp: Filled = None
    ref_logp: Filled = None
    token_kl: Filled = None
    values: Filled = None
    advantage: Filled = None

    def rows(self, index: slice) -> Batch:
        tensors: dict[str, Filled] = {f.name: getattr(self, f.name) for f in fields(self)}
        rows: dict[str, Filled] = {k: None if v is None else v[index] for k, v in tensors.items()}
        return Batch(**rows)

    def with_(self, **tensors: Tensor) -> Batch:
        return replace(self, **tensors)


@dataclass(frozen=True)
class Share:
    """A micro-batch's share of its batch, for losses that average over responses or tokens."""

    responses: float
    tokens: float


class Algorithm:
    """What the training loop needs from an algorithm."""

    needs_critic: ClassVar[bool] = False
    advantage_reads_policy: ClassVar[bool] = False
    """Is the advantage computed from the policy's own log-probabilities?"""

    def __init__(self, config: PolicyUpdate) -> None:
        self.config = config

    def advantage(self, batch: Batch) -> Tensor:
        """Detached advantages over the whole batch, 0 off the mask. -> [B, T]"""
        raise NotImplementedError

    def loss(self, logp: Tensor, rows: Batch, share: Share) -> Tensor:
        """The micro-batch's part of the batch's loss; differentiable in logp [b, T]. -> scalar"""
        raise NotImplementedError

    def metrics(self, batch: Batch) -> dict[str, float]:
        """Columns that this algorithm adds to metrics.csv."""
        return {}


class PolicyGradient(Algorithm):
    """The clipped surrogate, averaged over tokens; subclasses say of which advantage.

    The base class of a user-supplied algorithm (:class:`vimpo.config.OwnConfig`), which must define
    `advantage` and may override anything else.
    """

    def loss(self, logp: Tensor, rows: Batch, share: Share) -> Tensor:
        """The micro-batch's part of the batch's loss; differentiable in logp [b, T]. -> scalar"""
        c = self.config
        return share.tokens * clipped_surrogate(
            logp, rows.old_logp, rows.advantage, rows.mask, c.clip_low, c.clip_high, c.dual_clip
        )


def make_batch(rewards: list[float], groups: Tensor, mask: Tensor) -> Batch:
    """A batch before any forward pass. rewards: B numbers; groups [B]; mask [B, T]."""
    reward_tensor = torch.tensor(rewards, dtype=torch.float32, device=mask.device)
    groups = groups.to(mask.device)
    return Batch(
        mask=mask,
        rewards=reward_tensor,
        groups=groups,
        baseline=group_mean(reward_tensor, groups),
    )
