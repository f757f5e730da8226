"""PPO (arXiv 1707.06347); its equations are in vimpo/objectives/ppo.py.

Departures from the paper:

1. The critic is a network of its own, with its own optimiser and rate.
2. Rewards are terminal, without a KL penalty, as for all algorithms here.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from vimpo.algorithms.base import Batch, PolicyGradient
from vimpo.config import PPOConfig
from vimpo.objectives.common import masked_mean
from vimpo.objectives.ppo import critic_loss, explained_variance, ppo_advantages


class Ppo(PolicyGradient):
    """PPO: whitened GAE over a critic's values."""

    config: PPOConfig
    needs_critic: ClassVar[bool] = True

    def advantage(self, batch: Batch) -> Tensor:
        return ppo_advantages(batch.rewards, batch.values, batch.mask, self.config.lam)[0]

    def returns(self, batch: Batch) -> Tensor:
        """The critic's targets. -> [B, T]"""
        return ppo_advantages(batch.rewards, batch.values, batch.mask, self.config.lam)[1]

    def critic_loss(self, values: Tensor, returns: Tensor, rows: Batch) -> Tensor:
        """Clipped value loss; differentiable in values [b, T]. -> scalar"""
        return critic_loss(values, returns, rows.values, rows.mask, self.config.value_clip)

    def metrics(self, batch: Batch) -> dict[str, float]:
        # Against the reward itself: with lambda < 1, returns contain the values being judged.
        outcome = batch.rewards[:, None].expand_as(batch.mask)
        return {
            "explained_variance": float(explained_variance(batch.values, outcome, batch.mask)),
            "value_mean": float(masked_mean(batch.values, batch.mask)),
        }
