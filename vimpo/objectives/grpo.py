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
