"""What every algorithm is: a batch goes in; advantages, a loss and metrics come out."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from vimpo.config import Noise, PolicyUpdate
from vimpo.objectives.common import (
    clip_fraction,
    clipped_surrogate,
    clipped_terms,
    group_mean,
    response_logp,
)

# A tensor that the training loop fills in before anything reads it, None until then. Which ones are
# filled in depends on the algorithm, so a type checker cannot know.
Filled = Any


@dataclass(frozen=True)
class Batch:
    """What the algorithms read, all detached. [B, T] unless stated otherwise; None: not needed.

    logp: of the current policy; old_logp: of the policy before the first update; token_kl in nats;
    rewards, baseline [B]: noisy, and their group mean; values: the critic's, before its update.
    entropy: of the policy at each token, in nats. start [B]: logsumexp of the policy's logits at
    the first token, with its graph in a loss, for settings with `needs_start`; squares: of the
    policy's probabilities, summed over the vocabulary, for settings with `needs_squares`.

    steps (integers), grades (1 right, 0 wrong): each token's step, for algorithms with
    `needs_steps` (vimpo/tasks/steps.py); draws: random numbers in [0, 1), the same in every update
    of a batch, for algorithms with `needs_draws`.

    segments (integers), state_values: each token's segment, and the Monte Carlo value of the state
    in which that segment begins, for settings with continuations (vimpo/training/continuations.py).
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
    entropy: Filled = None
    start: Filled = None
    squares: Filled = None
    steps: Filled = None
    grades: Filled = None
    draws: Filled = None
    segments: Filled = None
    state_values: Filled = None

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


@dataclass(frozen=True)
class Setup:
    """What a run says besides the algorithm's own settings."""

    max_response: int
    noise: Noise


class Algorithm:
    """What the training loop needs from an algorithm.

    setup: of the run; set after construction, so that own files need not pass it on.
    """

    setup: Setup
    needs_critic: ClassVar[bool] = False
    has_value: ClassVar[bool] = False
    """Does it learn a value, so that :meth:`value_change` is measured?"""
    needs_steps: ClassVar[bool] = False
    """Fill `steps` and `grades` of the batch? Only some tasks can."""
    needs_draws: ClassVar[bool] = False
    """Fill `draws` of the batch?"""
    needs_continuations: ClassVar[bool] = False
    """Does it read `state_values`? The settings say how many continuations, and of which states."""
    advantage_reads_policy: ClassVar[bool] = False
    """Is the advantage computed from the policy's own log-probabilities?"""

    def __init__(self, config: PolicyUpdate) -> None:
        self.config = config

    def advantage(self, batch: Batch) -> Tensor:
        """Detached advantages over the whole batch, 0 off the mask. -> [B, T]"""
        raise NotImplementedError

    def prepared(self, batch: Batch, memory: dict[str, Any]) -> Batch:
        """The whole batch as the losses of its micro-batches read it; called before each update.

        batch: with its advantage. memory: numbers kept from step to step, in checkpoints too.
        """
        return batch

    def loss(self, logp: Tensor, rows: Batch, share: Share) -> Tensor:
        """The micro-batch's part of the batch's loss; differentiable in logp [b, T]. -> scalar"""
        raise NotImplementedError

    def clip_fraction(self, rows: Batch) -> Tensor:
        """Share of a micro-batch's tokens whose gradient the clip removes. -> scalar"""
        c = self.config
        tensors = (rows.logp, rows.old_logp, rows.advantage, rows.mask)
        return clip_fraction(*tensors, c.clip_low, c.clip_high)

    def value_change(self, batch: Batch) -> Tensor:
        """V(s_t) - V(s_0) before each token, for algorithms that learn a value. -> [B, T]"""
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


class ResponseGradient(Algorithm):
    """The clipped surrogate of whole responses; every token of one has the same advantage."""

    per_token: ClassVar[bool]
    """Is the ratio of a response taken to the power 1 / its length?"""

    def _responses(self, logp: Tensor, rows: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """log pi, log pi_old and advantage of each response, [B] each."""
        new = response_logp(logp, rows.mask, self.per_token)
        old = response_logp(rows.old_logp, rows.mask, self.per_token)
        return new, old, rows.advantage[:, 0]  # no response is empty

    def loss(self, logp: Tensor, rows: Batch, share: Share) -> Tensor:
        c = self.config
        responses = self._responses(logp, rows)
        terms = clipped_terms(*responses, c.clip_low, c.clip_high, c.dual_clip)
        return share.responses * terms.mean()

    def clip_fraction(self, rows: Batch) -> Tensor:
        c = self.config
        new, old, advantage = (
            x[:, None].expand_as(rows.mask) for x in self._responses(rows.logp, rows)
        )
        return clip_fraction(new, old, advantage, rows.mask, c.clip_low, c.clip_high)


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
