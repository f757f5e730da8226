"""How VIMPO's beta scales with what a response carries, and which betas are far from the paper's.

L_V drives the summed log-ratio of a response to (R - mean) / beta. What it has to go by is the
surprisal S of the response under the base policy, in nats: where KL vanishes, a right response's
log-ratio can be S at most (vimpo/storage/surprisal.py). So

    capacity = beta * S / reward range

stays the same if beta' = beta * (S / S') * (reward range' / reward range). Tokens can stand for
nats only between policies of equal entropy per token: the value loss of a response with every token
repeated is unchanged then, and rewards in other units only scale the loss. This is dimensional
analysis, not a result: a sweep must show how far it holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vimpo.config import Capacity, Study
from vimpo.storage.surprisal import Surprisal, betas_at

# arXiv 2606.20008: beta 5e-4, responses of at most 4096 tokens; their mean is not given and assumed
# to be at least the first of these.
PAPER_BETA, PAPER_TOKENS = 5e-4, (1000, 4096)
# Its beta * S at an entropy of .8 to 1.05 nats a token over some 1,000 tokens, both from secondary
# sources.
PAPER_CAPACITY = (0.4, 0.5)
SLACK = 10  # factor outside the range implied by the paper before a warning


def scaled_beta(beta: float, tokens: float, new_tokens: float, reward_scale: float = 1.0) -> float:
    """The beta that moves each of `new_tokens` tokens as far as `beta` moves each of `tokens`.

    With nats of surprisal in place of tokens, the capacity stays the same. reward_scale: new range
    of rewards over the old. Raises ValueError unless all are above 0.
    """
    if min(beta, tokens, new_tokens, reward_scale) <= 0:
        raise ValueError(
            f"beta {beta}, tokens {tokens} and {new_tokens}, reward_scale {reward_scale}: "
            "allowed: numbers above 0"
        )
    return beta * tokens / new_tokens * reward_scale


def unusual_betas(
    study: Study, tokens: float, found: Mapping[str, Surprisal] | None = None
) -> Iterator[str]:
    """A warning for each beta of the grid that is far from the paper's.

    By capacity at sizes whose surprisal is known (found); by tokens of a response for an algorithm
    whose surprisal is known at none.
    """
    judged: set[str] = set()
    others: dict[str, float] = {}
    for size in study.used_sizes():
        for name, beta in betas_at(study, size).items():
            if found and size in found:
                judged.add(name)
                yield from _far_in_nats(name, size, found[size], found[size].beta(beta, size))
            elif not isinstance(beta, Capacity):
                others[name] = beta
            elif name not in judged:
                judged.add(name)
                yield from _far(f"algorithms.{name}.beta: {beta}", beta.capacity)
    low, high = (scaled_beta(PAPER_BETA, paper, tokens) for paper in PAPER_TOKENS)
    for name, beta in others.items():
        if name not in judged and not low / SLACK <= beta <= high * SLACK:
            yield (
                f"algorithms.{name}.beta: {beta:g} for responses of {tokens:g} tokens; the paper's "
                f"{PAPER_BETA:g} scales to {low:.2g} to {high:.2g} at that length, if tokens carry "
                "as many nats"
            )


def _far_in_nats(name: str, size: str, found: Surprisal, beta: float) -> Iterator[str]:
    capacity = found.capacity(beta)
    where = f"base responses of {found.all.mean:.3g} nats at size {size}"
    yield from _far(
        f"algorithms.{name}.beta: {beta:.3g} gives {where} a capacity of {capacity:.2g}", capacity
    )


def _far(start: str, capacity: float) -> Iterator[str]:
    low, high = PAPER_CAPACITY
    if capacity < low / SLACK:
        yield (
            f"{start}; the implied value cannot rise by more than that share of the range of "
            f"rewards (paper: probably {low:g} to {high:g})"
        )
    elif capacity > high * SLACK:
        yield (
            f"{start}; the value loss then asks for little change (paper: probably {low:g} to "
            f"{high:g})"
        )
