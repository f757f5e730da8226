"""Dr. GRPO: GRPO without its two biases (arXiv 2503.20783, section 3.2).

    A_i = R_i - mean_g
    L   = - mean_i 1 / M sum_t min(r_it A_i, clip(r_it) A_i)        M = train.max_response

Departures from the paper:

1. A dual clip bounds the loss where A < 0, as for all clipped surrogates here.
"""

from __future__ import annotations

from torch import Tensor

from vimpo.algorithms.base import Algorithm, Batch, Share
from vimpo.config import DrGRPOConfig
from vimpo.objectives.common import clipped_terms
from vimpo.objectives.grpo import group_advantage


class DrGrpo(Algorithm):
    """No standard deviation, and a constant normaliser instead of the response's length."""

    config: DrGRPOConfig

    def advantage(self, batch: Batch) -> Tensor:
        centred = group_advantage(batch.rewards, batch.groups, normalize_std=False)
        return centred[:, None] * batch.mask

    def loss(self, logp: Tensor, rows: Batch, share: Share) -> Tensor:
        c = self.config
        terms = clipped_terms(
            logp, rows.old_logp, rows.advantage, c.clip_low, c.clip_high, c.dual_clip
        )
        return share.responses * (terms * rows.mask).sum(1).mean() / self.setup.max_response
