"""GRPO (arXiv 2402.03300); its advantage is in vimpo/objectives/grpo.py.

Departures from the paper:

1. No KL penalty by default; ``grpo_kl`` has it.
2. A mean over tokens and a wider upper clip (the VIMPO paper's stronger baseline); ``grpo_naive``
   has the original mean per response and symmetric clip.

``dapo`` (arXiv 2503.14476) adds dynamic sampling (vimpo/training/resampling.py) and overlong
shaping: the reward falls by up to 1 over the last fifth of the limit. Departures from it:

3. A round samples as many prompts as a batch has, not three times as many, and a batch that is not
   full after `rounds` rounds is filled with groups of equal rewards; the authors' code stops there.
4. The reward of a response that reaches the limit falls by 1 as in the paper, and it is graded as
   `train.truncated` says.
"""

from __future__ import annotations

from torch import Tensor

from vimpo.algorithms.base import Algorithm, Batch, Share
from vimpo.config import GRPOConfig
from vimpo.objectives.common import clipped_surrogate, k3_kl, reduce_tokens
from vimpo.objectives.grpo import group_advantage, overlong_penalty


class Grpo(Algorithm):
    """GRPO: one advantage per response, relative to its group."""

    config: GRPOConfig

    def advantage(self, batch: Batch) -> Tensor:
        c, rewards = self.config, batch.rewards
        if c.overlong is not None:
            lengths = batch.mask.sum(1)
            rewards = rewards + overlong_penalty(lengths, self.setup.max_response, c.overlong)
        advantage = group_advantage(rewards, batch.groups, c.normalize_std)
        return advantage[:, None] * batch.mask

    def loss(self, logp: Tensor, rows: Batch, share: Share) -> Tensor:
        c = self.config
        part = share.tokens if c.reduction == "token-mean" else share.responses
        clip = (c.clip_low, c.clip_high, c.dual_clip)
        loss = clipped_surrogate(
            logp, rows.old_logp, rows.advantage, rows.mask, *clip, reduction=c.reduction
        )
        if c.kl_coef:
            penalty = reduce_tokens(k3_kl(logp, rows.ref_logp), rows.mask, c.reduction)
            loss = loss + c.kl_coef * penalty
        return part * loss

    def metrics(self, batch: Batch) -> dict[str, float]:
        if not self.config.needs_reference:
            return {}
        kl = k3_kl(batch.logp, batch.ref_logp) * batch.mask
        return {"reference_kl": float(kl.sum(1).mean())}
