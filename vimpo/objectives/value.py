"""How much of what happens along a response does a value function know?

The question of the value probe (vimpo/probes/value.py), asked of the rollouts of a training step:

    x_t = V(s_t) - V(s_0)           the change that a value function claims
    y_t                             the change that took place
    explained = 1 - Var(y - x) / Var(y)

over the proper prefixes s_t of all responses, those that hold a token and are not the whole, with
equal weight for every response. A constant, such as the group's mean, explains 0.

The probe takes the true change, from many continuations of each prefix; a training step knows only
how its responses ended, so y_t = R - mean_group(R) at every t (`outcome_explained`). R - V(s_t) is
noise that no prefix predicts, so Var(y) - Var(y - x) stays as it is in expectation while Var(y)
grows: the result is the probe's number times the share of the outcomes' variance that prefixes
decide, and a perfect value stays below 1. Two others come close to 1 for a perfect value:

    end_explained      at the last proper prefix alone, which holds the answer
    graded_explained   y_t = V_graded(s_t) - V_graded(s_0) at the starts of steps, where steps are
                       graded (`graded_values` in steps.py)
"""

from __future__ import annotations

import torch
from torch import Tensor

from vimpo.objectives.common import check_rows, check_shapes, group_mean
from vimpo.objectives.steps import graded_values

FLAT = 1e-12  # a variance below this is rounding


def explained(change: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """1 - Var(truth - change) / Var(truth) by weights >= 0; NaN if the truth does not vary.

    Any common shape -> scalar.
    """
    check_shapes(change=change, truth=truth, weights=weights)
    total = weights.sum().clamp(min=FLAT)

    def variance(x: Tensor) -> Tensor:
        mean = (x * weights).sum() / total
        return ((x - mean).square() * weights).sum() / total

    spread = variance(truth)
    return torch.where(spread > FLAT, 1 - variance(truth - change) / spread, torch.nan)


def outcome_explained(change: Tensor, rewards: Tensor, groups: Tensor, mask: Tensor) -> Tensor:
    """How much of R - mean_group(R) the change V(s_t) - V(s_0) before each token explains.

    change, mask (right-padded) [B, T]; rewards, groups [B] -> scalar; NaN if every group has equal
    rewards.
    """
    check_shapes(change=change, mask=mask)
    weights = _equal_weights(_later(mask))
    return explained(change, _outcome(rewards, groups, mask), weights)


def end_explained(change: Tensor, rewards: Tensor, groups: Tensor, mask: Tensor) -> Tensor:
    """The same at each response's last token alone, before which all but the end is known."""
    check_shapes(change=change, mask=mask)
    later = _later(mask)
    last = later * (1 - torch.cat([later[:, 1:], torch.zeros_like(later[:, :1])], 1))
    return explained(change, _outcome(rewards, groups, mask), last)


def _outcome(rewards: Tensor, groups: Tensor, mask: Tensor) -> Tensor:
    """R - mean_group(R) for every token. rewards, groups [B]; mask [B, T] -> [B, T]"""
    check_rows(mask=mask, rewards=rewards, groups=groups)
    return (rewards - group_mean(rewards, groups))[:, None] * torch.ones_like(mask)


def graded_explained(
    change: Tensor, steps: Tensor, grades: Tensor, rewards: Tensor, groups: Tensor, mask: Tensor
) -> Tensor:
    """The same of the value by graded steps, at the first token of every step but the first.

    steps, grades [B, T], as in :func:`vimpo.objectives.steps.graded_values` -> scalar.
    """
    values = graded_values(steps, grades, rewards, groups, mask)
    begins = torch.cat([torch.zeros_like(mask[:, :1]), (steps[:, 1:] != steps[:, :-1])], 1)
    return explained(change, values - values[:, :1], _equal_weights(begins * mask))


def _later(mask: Tensor) -> Tensor:
    """The mask without each response's first token, before which nothing has changed."""
    return torch.cat([torch.zeros_like(mask[:, :1]), mask[:, 1:]], 1)


def _equal_weights(mask: Tensor) -> Tensor:
    """Weights of one for each row of a mask, spread over what it holds. [B, T] -> [B, T]"""
    return mask / mask.sum(1, keepdim=True).clamp(min=1)
