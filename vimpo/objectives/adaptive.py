"""VIMPO's adaptive c_A: sizes of the two losses' gradients, as the official code measures them.

    g_t     = |d L / d log pi(a_t|s_t)| * |d log pi(a_t|s_t) / d z_t|            z: logits
            = |d L / d log pi(a_t|s_t)| * sqrt(1 - 2 pi(a_t|s_t) + sum_a pi(a|s_t)^2)
    c_A     = share * ema(rms_t g_t of L_V) / (ema(rms_t g_t of L_A) + 1e-12)

rms over all tokens. The means start at zero and both lack the same factor, which the quotient takes
back. Source: backprop07/VIMPO, 2aa83bc, `compute_vimpo_adaptive_actor_coeff`; the paper has none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vimpo.objectives.common import LOG_RATIO_BOUND, check_rows, check_shapes, masked_mean

EPSILON = 1e-12


def logit_norm(logp: Tensor, squares: Tensor) -> Tensor:
    """Norm of d log pi(a) / d logits; squares = sum_a pi(a)^2. [B, T], [B, T] -> [B, T]."""
    check_shapes(logp=logp, squares=squares)
    return (1 - 2 * logp.exp() + squares).clamp(min=0).sqrt()


def value_gradient(
    residual: Tensor, norm: Tensor, mask: Tensor, beta: float, huber_delta: float | None = None
) -> Tensor:
    """rms over tokens of L_V's gradient in the logits.

    residual [B]; norm: of :func:`logit_norm`; mask; both [B, T] -> scalar.
    """
    check_shapes(norm=norm, mask=mask)
    check_rows(norm=norm, residual=residual)
    if huber_delta is not None:
        residual = residual.clamp(-huber_delta, huber_delta)
    scale = beta * residual[:, None] / len(residual)
    return masked_mean((scale * norm).square(), mask).sqrt()


def actor_gradient(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    norm: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float,
) -> Tensor:
    """rms over tokens of L_A's gradient in the logits, 0 where the clip holds a token.

    logp, old_logp, advantage, norm, mask [B, T] -> scalar.
    """
    check_shapes(logp=logp, old_logp=old_logp, advantage=advantage, norm=norm, mask=mask)
    gap = logp - old_logp
    ratio = gap.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
    plain = -advantage * ratio
    held = plain < -advantage * ratio.clamp(1 - clip_low, 1 + clip_high)
    held |= (advantage < 0) & (plain > -advantage * dual_clip)
    held |= gap.abs() >= LOG_RATIO_BOUND
    scale = torch.where(held, 0.0, ratio * advantage) / mask.sum().clamp(min=1)
    return masked_mean((scale * norm).square(), mask).sqrt()


def adaptive_coefficient(
    value: float, actor: float, means: tuple[float, float], share: float, decay: float
) -> tuple[float, tuple[float, float]]:
    """c_A, and the running means of both sizes; 0, and unchanged means, without an actor's."""
    if actor <= 0:
        return 0.0, means
    new = (
        decay * means[0] + (1 - decay) * value,
        decay * means[1] + (1 - decay) * actor,
    )
    return share * new[0] / (new[1] + EPSILON), new
