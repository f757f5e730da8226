"""PPO with a learned critic (arXiv 1707.06347): its advantages and its clipped value loss."""

from __future__ import annotations

import torch
from torch import Tensor

from vimpo.objectives.common import check_rows, check_shapes, gae, masked_mean, whiten


def terminal_rewards(rewards: Tensor, mask: Tensor) -> Tensor:
    """Each response's reward on its last token. rewards [B], right-padded mask [B, T] -> [B, T]."""
    check_rows(mask=mask, rewards=rewards)
    later = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    return rewards[:, None] * mask * (1 - later)


def critic_td(rewards: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """td_t = r_t + V(s_{t+1}) - V(s_t), with V = 0 after the last token.

    rewards [B]; values, mask [B, T] -> [B, T], 0 off mask.
    """
    check_shapes(values=values, mask=mask)
    values = values * mask
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    return (terminal_rewards(rewards, mask) + next_values - values) * mask


def ppo_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, lam: float
) -> tuple[Tensor, Tensor]:
    """Whitened GAE and the critic's targets.

    rewards [B]; values, mask [B, T] -> (advantage [B, T], returns [B, T]), both 0 off mask;
    returns = unwhitened GAE + values.
    """
    advantage = gae(critic_td(rewards, values, mask), mask, lam)
    return whiten(advantage, mask), (advantage + values) * mask


def critic_loss(
    values: Tensor, returns: Tensor, old_values: Tensor, mask: Tensor, value_clip: float | None
) -> Tensor:
    """1/2 token-mean of max((V - ret)^2, (clip(V, old +- value_clip) - ret)^2); None: no clip.

    values, returns, old_values, mask [B, T] -> scalar.
    """
    check_shapes(values=values, returns=returns, old_values=old_values, mask=mask)
    error = (values - returns).square()
    if value_clip is not None:
        clipped = old_values + (values - old_values).clamp(-value_clip, value_clip)
        error = torch.maximum(error, (clipped - returns).square())
    return 0.5 * masked_mean(error, mask)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over mask; NaN if the returns do not vary.

    values, returns, mask [B, T] -> scalar.
    """
    check_shapes(values=values, returns=returns, mask=mask)

    def variance(x: Tensor) -> Tensor:
        return masked_mean((x - masked_mean(x, mask)).square(), mask)

    spread = variance(returns)
    unexplained = variance(returns - values)
    return torch.where(spread > 0, 1 - unexplained / spread, torch.nan)
