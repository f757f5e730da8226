"""How VIMPO's beta goes with the length of responses and the scale of rewards.

L_V lets the summed log-ratio of a response reach (R - mean) / beta. A token's share of that,

    reward range / (beta * tokens)       in nats,

is how far the policy is asked to move there, and it stays the same where

    beta' = beta * (tokens / tokens') * (reward range' / reward range).

With it the value loss of a response whose tokens are all repeated is unchanged, and rewards in
other units scale the loss and nothing else. It is a rule of dimensions, not a result: how far it
holds is for a sweep to say.
"""

from __future__ import annotations

from collections.abc import Iterator

from vimpo.config import Study

# arXiv 2606.20008: beta 5e-4, responses of at most 4096 tokens; their mean is not given, and it is
# taken to be no shorter than the first of these.
PAPER_BETA, PAPER_TOKENS = 5e-4, (1000, 4096)
SLACK = 10  # a factor beyond the range that follows from the paper, before it is worth a word


def scaled_beta(beta: float, tokens: float, new_tokens: float, reward_scale: float = 1.0) -> float:
    """The beta that asks of each of `new_tokens` tokens what `beta` asks of each of `tokens`.

    reward_scale: the new range of rewards over the old. Raises ValueError unless all are above 0.
    """
    if min(beta, tokens, new_tokens, reward_scale) <= 0:
        raise ValueError(
            f"beta {beta}, tokens {tokens} and {new_tokens}, reward_scale {reward_scale}: "
            "allowed: numbers above 0"
        )
    return beta * tokens / new_tokens * reward_scale


def unusual_betas(study: Study, tokens: float) -> Iterator[str]:
    """A warning for each beta of the grid that is far from the paper's at `tokens` a response."""
    low, high = (scaled_beta(PAPER_BETA, paper, tokens) for paper in PAPER_TOKENS)
    for name in dict.fromkeys(cell.algorithm for cell in study.cells()):
        beta = getattr(study.algorithms[name], "beta", low)
        if not low / SLACK <= beta <= high * SLACK:
            yield (
                f"algorithms.{name}.beta: {beta:g} for responses of {tokens:g} tokens; the paper's "
                f"{PAPER_BETA:g}, scaled to that length, is {low:.2g} to {high:.2g}"
            )
