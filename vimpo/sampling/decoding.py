"""From logits to the distribution that a token is drawn from: temperature, top-p, greedy."""

from __future__ import annotations

import torch
from torch import Tensor


def token_logp(logits: Tensor, temperature: float, top_p: float = 1.0) -> Tensor:
    """Log-probabilities that tokens are drawn with. [N, V] -> [N, V], float32.

    Temperature 0 gives the likeliest token probability 1, and the first of several equal ones.
    """
    if temperature == 0:
        greedy = torch.full_like(logits, -torch.inf, dtype=torch.float32)
        return greedy.scatter(-1, logits.argmax(-1, keepdim=True), 0.0)
    logp = (logits.float() / temperature).log_softmax(-1)
    return nucleus(logp, top_p) if top_p < 1 else logp


def nucleus(logp: Tensor, top_p: float) -> Tensor:
    """The smallest set of the likeliest tokens whose probability reaches top_p, renormalised.

    logp [N, V] -> [N, V], -inf outside of the set. (Holtzman et al., arXiv 1904.09751.)
    """
    ordered, index = logp.sort(dim=-1, descending=True, stable=True)
    probability = ordered.exp()
    # In the set: tokens before which less than top_p was reached.
    inside = probability.cumsum(-1) - probability < top_p
    kept = torch.where(inside.gather(-1, index.argsort(-1)), logp, -torch.inf)
    return kept.log_softmax(-1)
