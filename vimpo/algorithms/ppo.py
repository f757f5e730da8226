"""PPO (arXiv 1707.06347); its equations are in vimpo/objectives/ppo.py.

Its critic can be fitted to the base policy first, with a lambda of its own (VC-PPO, arXiv
2503.01491), make several updates on replayed batches (vimpo/training/critic.py), and be left out
of the advantage where it explains nothing (EVPO, arXiv 2604.19485).

Departures from the paper:

1. The critic is a network of its own, with its own optimiser and rate.
2. Rewards are terminal, without a KL penalty, as for all algorithms here.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from vimpo.algorithms.base import Batch, PolicyGradient
from vimpo.config import PPOConfig
from vimpo.objectives.common import masked_mean, whiten
from vimpo.objectives.ppo import critic_loss, explained_variance, ppo_advantages


class Ppo(PolicyGradient):
    """PPO: whitened GAE over a critic's values."""

    config: PPOConfig
    needs_critic: ClassVar[bool] = True
    has_value: ClassVar[bool] = True

    def advantage(self, batch: Batch) -> Tensor:
        if self._is_gated(batch):
            group = self.config.gate == "group"
            baseline = batch.baseline if group else batch.rewards.mean()
            centred = (batch.rewards - baseline)[:, None].expand_as(batch.mask)
            return whiten(centred, batch.mask)
        return ppo_advantages(batch.rewards, batch.values, batch.mask, self.config.lam)[0]

    def _is_gated(self, batch: Batch) -> bool:
        """Does the critic explain none of the outcomes, for a configuration that asks?"""
        return self.config.gate != "off" and not self._explained(batch) > 0  # NaN explains nothing

    def _explained(self, batch: Batch) -> float:
        # Against the reward itself: with lambda < 1, returns contain the values being judged.
        outcome = batch.rewards[:, None].expand_as(batch.mask)
        return float(explained_variance(batch.values, outcome, batch.mask))

    def returns(self, batch: Batch) -> Tensor:
        """The critic's targets. -> [B, T]"""
        lam = self.config.lam if self.config.critic_lam is None else self.config.critic_lam
        return ppo_advantages(batch.rewards, batch.values, batch.mask, lam)[1]

    def critic_loss(self, values: Tensor, returns: Tensor, rows: Batch) -> Tensor:
        """Clipped value loss; differentiable in values [b, T]. -> scalar"""
        return critic_loss(values, returns, rows.values, rows.mask, self.config.value_clip)

    def value_change(self, batch: Batch) -> Tensor:
        return (batch.values - batch.values[:, :1]) * batch.mask

    def metrics(self, batch: Batch) -> dict[str, float]:
        found = {
            "explained_variance": self._explained(batch),
            "value_mean": float(masked_mean(batch.values, batch.mask)),
        }
        if self.config.gate != "off":
            found["gated"] = float(self._is_gated(batch))
        return found
