"""VIMPO: the value function is read out of the policy (arXiv 2606.20008).

    rho_t   = beta * (log pi(a_t|s_t) - log pi_ref(a_t|s_t))
    kappa_t = beta * KL(pi(.|s_t) || pi_ref(.|s_t))
    td_t    = rho_t - kappa_t                       = V(s_{t+1}) - V(s_t)        (eq. 4)
    L_V     = mean_i 1/2 [sum_t (rho_t - sg[kappa_t]) - (R_i - mean_group(R))]^2
    A_t     = whiten(GAE_lambda(sg[td]))
    L       = L_V + c_A * clipped_surrogate(A)

No critic is trained: if pi is proportional to pi_ref exp(Q / beta), L_V is zero on every
trajectory. sg is the stop-gradient. Checked against the official code (backprop07/VIMPO, 2aa83bc).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vimpo.objectives import common
from vimpo.objectives.common import check_rows, check_shapes, clipped_surrogate, gae


def implied_td(
    logp: Tensor, ref_logp: Tensor, token_kl: Tensor, mask: Tensor, beta: float
) -> Tensor:
    """td_t = beta * (log-ratio_t - KL_t), the change in the implied value at token t (eq. 4).

    logp, ref_logp, token_kl (nats), mask [B, T] -> [B, T], 0 off mask, in units of reward.
    """
    check_shapes(logp=logp, ref_logp=ref_logp, token_kl=token_kl, mask=mask)
    # where(), not a product with mask: a log-ratio off mask may be infinite, and inf * 0 is NaN.
    return torch.where(mask.bool(), beta * (logp - ref_logp - token_kl), 0.0)


def implied_values(td: Tensor, baseline: Tensor, mask: Tensor) -> Tensor:
    """V(s_t) = baseline + sum_{k<t} td_k: summed forward, so it never uses the rollout's reward.

    td, mask [B, T], baseline [B] = V(s_0) -> [B, T+1]; constant after the last token.
    """
    check_shapes(td=td, mask=mask)
    check_rows(td=td, baseline=baseline)
    steps = torch.cat([baseline[:, None], td * mask], dim=1)
    return steps.cumsum(1)


def value_loss(
    logp: Tensor,
    ref_logp: Tensor,
    token_kl: Tensor,
    rewards: Tensor,
    baseline: Tensor,
    mask: Tensor,
    beta: float,
    huber_delta: float | None = None,
) -> Tensor:
    """The terminal-anchor loss L_V, which pulls sum_t td_t towards R - mean_group(R).

    token_kl is detached here, so the gradient flows only through the sampled log-ratio.
    logp, ref_logp, token_kl, mask [B, T]; rewards, baseline [B] -> scalar. huber_delta: residuals e
    beyond it count delta (|e| - delta / 2) instead of e^2 / 2.
    """
    residual = terminal_residual(logp, ref_logp, token_kl.detach(), rewards, baseline, mask, beta)
    if huber_delta is not None:
        size = residual.abs()
        linear = huber_delta * (size - 0.5 * huber_delta)
        return torch.where(size <= huber_delta, 0.5 * residual.square(), linear).mean()
    return 0.5 * residual.square().mean()


def start_values(
    rewards: Tensor,
    groups: Tensor,
    costs: Tensor | None = None,
    cap: float | None = None,
) -> Tensor:
    """V(s_0) = min(mean_group(R - cost), cap); rewards, groups, costs [B] -> [B].

    costs: beta sum_t KL_t of the policy that sampled, for soft values; default: none.
    """
    if costs is not None:
        check_shapes(rewards=rewards, costs=costs)
        rewards = rewards - costs
    found = common.group_mean(rewards, groups)
    return found if cap is None else found.clamp(max=cap)


def terminal_residual(
    logp: Tensor,
    ref_logp: Tensor,
    token_kl: Tensor,
    rewards: Tensor,
    baseline: Tensor,
    mask: Tensor,
    beta: float,
) -> Tensor:
    """sum_t td_t - (R - baseline), which L_V squares. Shapes as in :func:`value_loss` -> [B]."""
    check_rows(logp=logp, rewards=rewards, baseline=baseline)
    check_shapes(rewards=rewards, baseline=baseline)
    return implied_td(logp, ref_logp, token_kl, mask, beta).sum(1) - (rewards - baseline)


def actor_advantage(td: Tensor, mask: Tensor, lam: float, whiten: bool = True) -> Tensor:
    """A_t = GAE_lambda(sg[td]), whitened over all valid tokens. td, mask [B, T] -> [B, T].

    Detached, so that no gradient reaches the log-ratios through the advantage.
    """
    advantage = gae(td.detach(), mask, lam)
    return common.whiten(advantage, mask) if whiten else advantage


def vimpo_loss(
    logp: Tensor,
    old_logp: Tensor,
    ref_logp: Tensor,
    token_kl: Tensor,
    rewards: Tensor,
    baseline: Tensor,
    mask: Tensor,
    beta: float,
    actor_coef: float,
    lam: float,
    clip_low: float,
    clip_high: float,
    dual_clip: float = 10.0,
    *,
    advantage: Tensor | None = None,
    value_share: float = 1.0,
    actor_share: float = 1.0,
    huber_delta: float | None = None,
) -> Tensor:
    """L = L_V + c_A * L_A. Shapes as in :func:`value_loss`; old_logp [B, T] -> scalar.

    For a micro-batch, pass the `advantage` whitened over the whole batch, and the micro-batch's
    shares of its responses and of its tokens: L_V is a mean over responses, L_A one over tokens.
    """
    value = value_loss(logp, ref_logp, token_kl, rewards, baseline, mask, beta, huber_delta)
    if actor_coef == 0:
        return value_share * value
    if advantage is None:
        td = implied_td(logp, ref_logp, token_kl, mask, beta)
        advantage = actor_advantage(td, mask, lam)
    actor = clipped_surrogate(logp, old_logp, advantage, mask, clip_low, clip_high, dual_clip)
    return value_share * value + actor_share * actor_coef * actor
