"""RLOO: REINFORCE with a leave-one-out baseline (arXiv 2402.14740, section 3.2).

    A_i = R_i - mean of the other rewards of its group
    L   = - mean_i A_i log pi(y_i)                 a whole response is one action

Departures from the paper:

1. The loss is the clipped surrogate of the response's ratio, as in TRL. Its gradient is the
   paper's in the first update of a batch, and a batch has one update by default.
2. No KL penalty in the reward, as for all algorithms here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vimpo.algorithms.base import Batch, ResponseGradient
from vimpo.config import RLOOConfig
from vimpo.objectives.grpo import group_advantage


class Rloo(ResponseGradient):
    """One advantage and one ratio per response."""

    config: RLOOConfig
    per_token = False

    def advantage(self, batch: Batch) -> Tensor:
        centred = group_advantage(batch.rewards, batch.groups, normalize_std=False)
        _, index, sizes = batch.groups.unique(return_inverse=True, return_counts=True)
        n = sizes[index].to(centred.dtype)
        # R_i - (n m - R_i) / (n - 1) = n / (n - 1) (R_i - m), m the mean of all n
        return torch.where(batch.mask.bool(), (n / (n - 1) * centred)[:, None], 0.0)
