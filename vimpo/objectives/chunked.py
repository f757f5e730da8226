"""Log-probabilities, entropy and exact KL from hidden states, without ever holding [N, V].

The logits z = h W^T / temperature are computed, reduced and dropped a few tokens at a time; the
backward pass computes them again. Beyond inputs and gradients this holds O(chunk * V), whatever N
is. With p = softmax(z) of the policy, q of the reference and a_t the sampled token:

    logp_t    = log p(a_t)               d logp / dz    = onehot(a_t) - p
    entropy_t = -sum_v p log p           d entropy / dz = -p (log p + entropy)
    kl_t      =  sum_v p (log p - log q)  d kl / dz      =  p (log p - log q - kl)

The recipe is that of gradient checkpointing (arXiv 1604.06174) for the output layer; gradients are
those of the policy alone. Logits are formed in the dtype of the inputs, as the model's own head
does; everything after them, and the sum of the weight's gradient over chunks, is float32 (float64
for float64 inputs).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from vimpo.objectives.common import check_rows


class Head(NamedTuple):
    """Hidden states and the layer that makes logits: hidden [N, H], weight [V, H], bias [V]."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None


class TokenScores(NamedTuple):
    """Each [N], float32, in nats; ref_logp and kl are None if no reference is given."""

    logp: Tensor
    entropy: Tensor
    ref_logp: Tensor | None
    kl: Tensor | None


def chunked_scores(
    policy: Head,
    targets: Tensor,
    reference: Head | None = None,
    *,
    temperature: float = 1.0,
    chunk: int = 256,
) -> TokenScores:
    """Score N tokens, `chunk` at a time. targets [N]: the sampled tokens -> :class:`TokenScores`.

    logp, entropy and kl are differentiable in the policy's hidden states, weight and bias; ref_logp
    has no graph. Raises ValueError with both shapes if policy, targets and reference do not match,
    and for a chunk below 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk: {chunk} is not a number of tokens; allowed: >= 1")
    check_rows(hidden=policy.hidden, targets=targets)
    if reference is None:
        logp, entropy = _Scores.apply(*policy, targets, temperature, chunk, None)
        return TokenScores(logp, entropy, None, None)
    check_rows(hidden=policy.hidden, ref_rows=reference.hidden[:, 0])
    if reference.weight.shape[0] != policy.weight.shape[0]:
        raise ValueError(
            f"weight {tuple(policy.weight.shape)} does not match ref_weight "
            f"{tuple(reference.weight.shape)}: two vocabularies"
        )
    hidden, weight, bias = reference
    reference = Head(hidden.detach(), weight.detach(), bias if bias is None else bias.detach())
    logp, entropy, ref_logp, kl = _Scores.apply(*policy, targets, temperature, chunk, reference)
    return TokenScores(logp, entropy, ref_logp, kl)


def _log_probs(head: Head, rows: slice, temperature: float) -> Tensor:
    """log softmax of the logits of a few rows -> [n, V], at least float32, a new tensor."""
    logits = linear(head.hidden[rows], head.weight, head.bias)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if temperature != 1.0:
        logits /= temperature
    return logits.sub_(logits.logsumexp(-1, keepdim=True))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """sum_v a b without holding the product. [n, V], [n, V] -> [n]."""
    return torch.linalg.vecdot(a, b)


class _Scores(torch.autograd.Function):
    """The loop over chunks, forward and backward."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, temperature, chunk, reference):
        policy = Head(hidden, weight, bias)
        count = len(targets)
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        out = [hidden.new_empty(count, dtype=wide) for _ in range(2 if reference is None else 4)]
        for start in range(0, count, chunk):
            rows = slice(start, start + chunk)
            index = targets[rows, None]
            log_p = _log_probs(policy, rows, temperature)
            p = log_p.exp()
            out[0][rows] = log_p.gather(1, index).squeeze(1)
            out[1][rows] = -_dot(p, log_p)
            if reference is not None:
                log_q = _log_probs(reference, rows, temperature)
                out[2][rows] = log_q.gather(1, index).squeeze(1)
                # The difference first: two sums, of p log p and of p log q, would cancel digits.
                out[3][rows] = _dot(p, log_p.sub_(log_q))
        ctx.save_for_backward(
            hidden, weight, bias, targets, out[1], *out[3:], *(reference or (None,) * 3)
        )
        ctx.temperature, ctx.chunk, ctx.has_reference = temperature, chunk, reference is not None
        ctx.set_materialize_grads(False)
        if reference is not None:
            ctx.mark_non_differentiable(out[2])
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, g_logp, g_entropy, _=None, g_kl=None):
        hidden, weight, bias, targets, entropy, *rest = ctx.saved_tensors
        kl = rest.pop(0) if ctx.has_reference else None
        policy, reference = Head(hidden, weight, bias), Head(*rest) if ctx.has_reference else None
        wide = entropy.dtype
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        d_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        d_bias = torch.zeros_like(bias, dtype=wide) if needs_bias else None
        for start in range(0, len(targets), ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            log_p = _log_probs(policy, rows, ctx.temperature)
            p = log_p.exp()
            # Gathers the factors of p, then adds the one-hot part: one buffer for d loss / dz.
            factor = torch.zeros_like(entropy[rows])[:, None]
            slope = None
            if g_logp is not None:
                factor = factor - g_logp[rows, None]
            if g_entropy is not None:
                factor = factor - (g_entropy * entropy)[rows, None]
                slope = log_p * -g_entropy[rows, None]
            if g_kl is not None:
                factor = factor - (g_kl * kl)[rows, None]
                log_ratio = log_p.sub_(_log_probs(reference, rows, ctx.temperature))
                log_ratio *= g_kl[rows, None]
                slope = log_ratio if slope is None else slope.add_(log_ratio)
            d_logits = p.mul_(factor if slope is None else slope.add_(factor))
            if g_logp is not None:
                d_logits[torch.arange(len(p), device=p.device), targets[rows]] += g_logp[rows]
            d_logits /= ctx.temperature
            narrow = d_logits.to(weight.dtype)
            if needs_hidden:
                d_hidden[rows] = narrow @ weight
            if needs_weight:
                _add_product(d_weight, narrow.t(), hidden[rows])
            if needs_bias:
                d_bias += d_logits.sum(0)
        narrowed = [
            d if d is None else d.to(like.dtype)
            for d, like in ((d_hidden, hidden), (d_weight, weight), (d_bias, bias))
        ]
        return (*narrowed, None, None, None, None)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b in place, without a buffer of total's size if the dtypes agree."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
