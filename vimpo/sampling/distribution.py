"""From logits to the distribution that a token is drawn from: temperature, top-p, greedy."""

from __future__ import annotations

import torch
from torch import Tensor


def plain_logp(logits: Tensor, temperature: float) -> Tensor:
    """Log-probabilities at a temperature. [N, V] -> [N, V], float32."""
    return (logits.float() / temperature).log_softmax(-1)


def decoded_logp(logits: Tensor, temperature: Tensor, top_p: Tensor) -> Tensor:
    """The same where each row has a decoder of its own. [N, V], [N], [N] -> [N, V], float32.

    Temperature 0 gives the likeliest token probability 1, and the first of several equal ones.
    """
    if not len(logits) == len(temperature) == len(top_p):
        shapes = ", ".join(str(tuple(x.shape)) for x in (logits, temperature, top_p))
        raise ValueError(f"logits, temperature and top_p have shapes {shapes}")
    greedy = torch.full_like(logits, -torch.inf, dtype=torch.float32)
    greedy.scatter_(-1, logits.argmax(-1, keepdim=True), 0.0)
    still = (temperature == 0)[:, None]
    logp = (logits.float() / temperature[:, None].masked_fill(still, 1.0)).log_softmax(-1)
    return torch.where(still, greedy, nucleus(logp, top_p))


def nucleus(logp: Tensor, top_p: Tensor) -> Tensor:
    """The smallest set of the likeliest tokens whose probability reaches top_p, renormalised.

    logp [N, V], top_p [N] -> [N, V], -inf outside of the set; a row whose top_p is 1 stays as it is
    (Holtzman et al., arXiv 1904.09751).
    """
    ordered, index = logp.sort(dim=-1, descending=True, stable=True)
    probability = ordered.exp()
    # In the set: tokens before which less than top_p was reached.
    inside = probability.cumsum(-1) - probability < top_p[:, None]
    kept = torch.where(inside.gather(-1, index.argsort(-1)), logp, -torch.inf)
    return torch.where((top_p == 1)[:, None], logp, kept.log_softmax(-1))
