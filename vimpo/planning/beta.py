"""How VIMPO's beta scales with response length and reward range.

L_V drives the summed log-ratio of a response to (R - mean) / beta. A token's share of that,

    reward range / (beta * tokens)       in nats,

is how far the policy has to move there, and it stays the same if

    beta' = beta * (tokens / tokens') * (reward range' / reward range).

The value loss of a response with every token repeated is then unchanged, and rewards in other units
only scale the loss. This is dimensional analysis, not a result: a sweep must show how far it
holds.
"""

from __future__ import annotations

from collections.abc import Iterator

from vimpo.config import Study

# arXiv 2606.20008: beta 5e-4, responses of at most 4096 tokens; their mean is not given and assumed
# to be at least the first of these.
PAPER_BETA, PAPER_TOKENS = 5e-4, (1000, 4096)
SLACK = 10  # factor outside the range implied by the paper before a warning


def scaled_beta(beta: float, tokens: float, new_tokens: float, reward_scale: float = 1.0) -> float:
    """The beta that moves each of `new_tokens` tokens as far as `beta` moves each of `tokens`.

    reward_scale: new range of rewards over the old. Raises ValueError unless all are above 0.
    """
    if min(beta, tokens, new_tokens, reward_scale) <= 0:
        raise ValueError(
            f"beta {beta}, tokens {tokens} and {new_tokens}, reward_scale {reward_scale}: "
            "allowed: numbers above 0"
        )
    return beta * tokens / new_tokens * reward_scale


def unusual_betas(study: Study, tokens: float) -> Iterator[str]:
    """A warning for each beta of the grid that is far from the paper's at this response length."""
    low, high = (scaled_beta(PAPER_BETA, paper, tokens) for paper in PAPER_TOKENS)
    for name in dict.fromkeys(cell.algorithm for cell in study.cells()):
        beta = getattr(study.algorithms[name], "beta", low)
        if not low / SLACK <= beta <= high * SLACK:
            yield (
                f"algorithms.{name}.beta: {beta:g} for responses of {tokens:g} tokens; the paper's "
                f"{PAPER_BETA:g} scales to {low:.2g} to {high:.2g} at that length"
            )
