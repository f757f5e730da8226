"""What the objectives share: group statistics, GAE, whitening, the clipped surrogate, exact KL.

All functions are pure, take float32 or float64, and raise a ValueError that names both shapes if
two inputs do not match.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["token-mean", "seq-mean"]
LOG_RATIO_BOUND = 20.0  # exp() of more would make products overflow in float32


def check_shapes(**tensors: Tensor) -> None:
    """Raise ValueError with both shapes unless all tensors have the shape of the first."""
    (first, expected), *rest = tensors.items()
    for name, tensor in rest:
        if tensor.shape != expected.shape:
            raise ValueError(
                f"{first} {tuple(expected.shape)} does not match {name} {tuple(tensor.shape)}"
            )


def check_rows(**tensors: Tensor) -> None:
    """Raise ValueError with both shapes unless the others are [B], B = rows of the first."""
    (first, expected), *rest = tensors.items()
    for name, tensor in rest:
        if tensor.shape != expected.shape[:1]:  # [B, 1] would broadcast to [B, B]
            raise ValueError(
                f"rows of {first} {tuple(expected.shape)} do not match {name} {tuple(tensor.shape)}"
            )


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x over mask; 0 if the mask is empty. Any common shape -> scalar."""
    return (x * mask).sum() / mask.sum().clamp(min=1)


def group_mean(rewards: Tensor, groups: Tensor) -> Tensor:
    """Mean reward of each response's group. [B], [B] -> [B]."""
    check_shapes(rewards=rewards, groups=groups)
    _, index = groups.unique(return_inverse=True)
    count = int(index.max()) + 1 if index.numel() else 0
    total = rewards.new_zeros(count).index_add(0, index, rewards)
    size = rewards.new_zeros(count).index_add(0, index, torch.ones_like(rewards))
    return (total / size)[index]


def gae(td: Tensor, mask: Tensor, lam: float) -> Tensor:
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16) with gamma = 1.

    A_t = sum_{k >= t} lam^(k-t) td_k over the response. td, mask [B, T] -> [B, T], 0 off mask.
    """
    check_shapes(td=td, mask=mask)
    advantage = torch.zeros_like(td)
    running = td.new_zeros(td.shape[0])
    for t in reversed(range(td.shape[1])):
        running = (td[:, t] + lam * running) * mask[:, t]
        advantage[:, t] = running
    return advantage


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """(x - mean) * rsqrt(var + 1e-8) over mask, var with Bessel's correction; 0 off mask.

    x, mask [B, T] -> [B, T]. A mask of one token or none gives zeros.
    """
    check_shapes(x=x, mask=mask)
    centred = (x - masked_mean(x, mask)) * mask
    variance = centred.square().sum() / (mask.sum() - 1).clamp(min=1)
    return centred * torch.rsqrt(variance + 1e-8)


def reduce_tokens(x: Tensor, mask: Tensor, reduction: Reduction) -> Tensor:
    """Mean over all tokens, or mean over responses of their token means. [B, T] -> scalar.

    Raises ValueError for any other reduction.
    """
    if reduction == "token-mean":
        return masked_mean(x, mask)
    if reduction == "seq-mean":
        return ((x * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()
    raise ValueError(f"reduction: {reduction!r} is unknown; allowed: token-mean, seq-mean")


def clipped_surrogate(
    logp: Tensor,
    old_logp: Tensor,
    adv: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float = 10.0,
    reduction: Reduction = "token-mean",
) -> Tensor:
    """PPO's clipped loss (arXiv 1707.06347, eq. 7) with a dual clip (arXiv 1912.09729, eq. 5).

    r = exp(logp - old_logp); l = max(-A r, -A clamp(r, 1 - clip_low, 1 + clip_high)), and for
    A < 0 at most -A dual_clip. logp, old_logp, adv, mask [B, T] -> scalar.
    """
    check_shapes(logp=logp, mask=mask)
    loss = clipped_terms(logp, old_logp, adv, clip_low, clip_high, dual_clip)
    return reduce_tokens(loss, mask, reduction)


def clipped_terms(
    logp: Tensor, old_logp: Tensor, adv: Tensor, clip_low: float, clip_high: float, dual_clip: float
) -> Tensor:
    """l of :func:`clipped_surrogate`, before its mean. Any common shape -> the same."""
    check_shapes(logp=logp, old_logp=old_logp, adv=adv)
    ratio = (logp - old_logp).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
    loss = torch.maximum(-adv * ratio, -adv * ratio.clamp(1 - clip_low, 1 + clip_high))
    return torch.where(adv < 0, torch.minimum(loss, -adv * dual_clip), loss)


def response_logp(logp: Tensor, mask: Tensor, per_token: bool = False) -> Tensor:
    """log pi(y) of whole responses, or its mean per token. [B, T] -> [B]."""
    check_shapes(logp=logp, mask=mask)
    total = torch.where(mask.bool(), logp, 0.0).sum(1)
    return total / mask.sum(1).clamp(min=1) if per_token else total


def clip_fraction(
    logp: Tensor, old_logp: Tensor, adv: Tensor, mask: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """Share of tokens whose gradient the clip removes, given the sign of A. [B, T] -> scalar."""
    check_shapes(logp=logp, old_logp=old_logp, adv=adv, mask=mask)
    ratio = (logp - old_logp).exp()
    held = ((adv > 0) & (ratio > 1 + clip_high)) | ((adv < 0) & (ratio < 1 - clip_low))
    return masked_mean(held.to(mask.dtype), mask)


def exact_kl(policy_logits: Tensor, ref_logits: Tensor) -> Tensor:
    """KL(pi || pi_ref) over the whole vocabulary. [..., V], [..., V] -> [...], in nats."""
    check_shapes(policy_logits=policy_logits, ref_logits=ref_logits)
    log_p, log_q = policy_logits.log_softmax(-1), ref_logits.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def top_k_kl(policy_logits: Tensor, ref_logits: Tensor, k: int) -> Tensor:
    """KL(pi || pi_ref) with all but pi's k likeliest tokens merged into one.

    Merging can only lower the divergence (log-sum inequality), so this is a lower bound on
    :func:`exact_kl`, and equal to it for k >= V - 1. [..., V], [..., V] -> [...], in nats.
    """
    check_shapes(policy_logits=policy_logits, ref_logits=ref_logits)
    log_p, log_q = policy_logits.log_softmax(-1), ref_logits.log_softmax(-1)
    if k >= log_p.shape[-1]:
        return (log_p.exp() * (log_p - log_q)).sum(-1)
    top_p, index = log_p.topk(k, dim=-1)
    top_q = log_q.gather(-1, index)
    # Summed over the other tokens: 1 - (sum of the top ones) would lose all digits if it is small.
    rest_p = log_p.scatter(-1, index, -torch.inf).logsumexp(-1)
    rest_q = log_q.scatter(-1, index, -torch.inf).logsumexp(-1)
    return (top_p.exp() * (top_p - top_q)).sum(-1) + rest_p.exp() * (rest_p - rest_q)


def k2_kl(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """k2 estimate of KL(pi || pi_ref) from a token of pi: 1/2 (log-ratio)^2. [...] -> [...].

    Source: Schulman, "Approximating KL divergence" (2020).
    """
    check_shapes(logp=logp, ref_logp=ref_logp)
    return 0.5 * (logp - ref_logp).square()


def k3_kl(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """k3 estimate of KL(pi || pi_ref) from a token of pi: e^-x - 1 + x, x the log-ratio.

    Unbiased and never negative. [...], [...] -> [...]. Source as in :func:`k2_kl`.
    """
    check_shapes(logp=logp, ref_logp=ref_logp)
    x = (logp - ref_logp).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    return (-x).exp() - 1 + x


def response_kl(logp: Tensor, ref_logp: Tensor, mask: Tensor) -> float:
    """KL(pi || pi_ref) in nats, summed over a response, mean over responses, by k3. All [B, T]."""
    check_shapes(logp=logp, ref_logp=ref_logp, mask=mask)
    per_token = torch.where(mask.bool(), k3_kl(logp, ref_logp), 0.0)
    return float(per_token.sum(1).mean())
