"""TBRM's residual (arXiv 2505.15311): logits are action values."""

from __future__ import annotations

import torch
from torch import Tensor

from vimpo.objectives.common import check_rows, check_shapes


def trajectory_residual(
    logp: Tensor, ref_logp: Tensor, start: Tensor, rewards: Tensor, mask: Tensor, beta: float
) -> Tensor:
    """beta (start + sum_t [logp_t - ref_logp_t]) - R, the sum of a response's Bellman residuals.

    start [B]: logsumexp of the policy's logits at the first token; logp, ref_logp, mask [B, T];
    rewards [B] -> [B], differentiable in logp and start.
    """
    check_shapes(logp=logp, ref_logp=ref_logp, mask=mask)
    check_rows(logp=logp, start=start, rewards=rewards)
    ratio = torch.where(mask.bool(), logp - ref_logp, 0.0).sum(1)
    return beta * (start + ratio) - rewards
