"""GSPO: group sequence policy optimisation (arXiv 2507.18071, eqs. 5 to 7).

    A_i = (R_i - mean_g) / std_g
    s_i = (pi(y_i) / pi_old(y_i))^(1 / |y_i|)
    L   = - mean_i min(s_i A_i, clip(s_i, 1 - clip_low, 1 + clip_high) A_i)

Departures from the paper:

1. The standard deviation has Bessel's correction and 1e-6 added, as in GRPO here.
2. A batch has one update by default, and then no ratio is clipped; the paper makes four.
"""

from __future__ import annotations

from torch import Tensor

from vimpo.algorithms.base import Batch, ResponseGradient
from vimpo.config import GSPOConfig
from vimpo.objectives.grpo import group_advantage


class Gspo(ResponseGradient):
    """GRPO's advantage with the ratio of a whole response, per token."""

    config: GSPOConfig
    per_token = True

    def advantage(self, batch: Batch) -> Tensor:
        return group_advantage(batch.rewards, batch.groups)[:, None] * batch.mask
