"""GRPO: the advantage of a response within its group (arXiv 2402.03300, sec. 4.1.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from vimpo.objectives.common import check_shapes, group_mean


def group_advantage(
    rewards: Tensor, groups: Tensor, normalize_std: bool = True, eps: float = 1e-6
) -> Tensor:
    """A = (R - mean_g) / (std_g + eps), std with Bessel's correction. [B], [B] -> [B].

    A group whose rewards are all equal gets 0. Raises ValueError for a group of one response,
    which has nothing to be compared with.
    """
    check_shapes(rewards=rewards, groups=groups)
    _, index, sizes = groups.unique(return_inverse=True, return_counts=True)
    if sizes.numel() and int(sizes.min()) < 2:
        raise ValueError("groups: a group of 1 response has no advantage; allowed: >= 2")
    centred = rewards - group_mean(rewards, groups)
    if not normalize_std:
        return centred
    squares = rewards.new_zeros(len(sizes)).index_add(0, index, centred.square())
    std = torch.sqrt(squares / (sizes - 1))
    return centred / (std[index] + eps)


def overlong_penalty(lengths: Tensor, limit: int, share: float) -> Tensor:
    """min(0, (1 - share) limit - length) / (share limit): from 0 to -1 over the last tokens.

    lengths in tokens, ends included, up to `limit`; [B] -> [B]. Source: arXiv 2503.14476, eq. 13.
    """
    buffer = share * limit
    return (limit - buffer - lengths).clamp(max=0) / buffer


def corrected_advantage(
    rewards: Tensor, groups: Tensor, false_positive: float, false_negative: float
) -> Tensor:
    """A = (R - mean_g) / (k sqrt(q (1 - q))), k = 1 - p+ - p-, q = (mean_g - p+) / k.

    q, the group's clean accuracy as estimated from noisy rewards in {0, 1}, is kept half a response
    away from 0 and 1. [B], [B] -> [B]. Source: arXiv 2510.18924.
    """
    centred = group_advantage(rewards, groups, normalize_std=False)
    _, index, sizes = groups.unique(return_inverse=True, return_counts=True)
    keep = 1 - false_positive - false_negative
    margin = 0.5 / sizes[index].to(rewards.dtype)
    q = ((rewards - centred) - false_positive) / keep
    q = torch.minimum(torch.maximum(q, margin), 1 - margin)
    return centred / (keep * torch.sqrt(q * (1 - q)))
