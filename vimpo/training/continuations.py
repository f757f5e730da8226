"""Monte Carlo values of states within responses: each is continued k times, and graded.

A response is split into segments, at the beginnings of its steps or every so many tokens. The state
in which a segment begins, which is the prompt and all tokens before it, is continued by the policy
that sampled the response, with the sampler of training, up to the same limit of tokens. V is the
mean reward of these continuations. It does not read the response that it judges.

Draws are a function of (seed, step, prompt, place of the state among those of the prompt), whatever
else is sampled at once. Nothing here knows an algorithm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from vimpo.sampling.rollouts import Rollouts, Sampler, micro_batches

Response = tuple[list[int], bool]
"""Its tokens, ends included, and whether it has one."""


@dataclass(frozen=True)
class Continuer:
    """How the states of one step are continued.

    sampler: makes k responses to each prompt, of up to max_response tokens; together: responses
    that are sampled at once.
    """

    sampler: Sampler
    k: int
    max_response: int
    together: int

    def values(
        self,
        prompt: Sequence[int],
        prefixes: Sequence[tuple[int, ...]],
        seed: int,
        rewards: Callable[[list[Response]], list[float]],
    ) -> tuple[list[float], int]:
        """V of the states after these prefixes of responses to one prompt, and tokens sampled.

        rewards: of whole responses, k of the first state, then k of the second, and so on.
        """
        found: list[Response] = []
        sampled = 0
        for part in micro_batches(len(prefixes), max(1, self.together // self.k)):
            rollouts = self.sampler.rollouts(
                [[*prompt, *prefix] for prefix in prefixes[part]],
                seed,
                part.start,
                len(prefixes),
                [self.max_response - len(prefix) for prefix in prefixes[part]],
            )
            found += self._whole(prefixes[part], rollouts)
            sampled += int(rollouts.mask.sum())
        marks = rewards(found)
        return [sum(marks[s]) / self.k for s in micro_batches(len(marks), self.k)], sampled

    def _whole(self, prefixes: Sequence[tuple[int, ...]], rollouts: Rollouts) -> list[Response]:
        tokens, done = rollouts.token_lists(), rollouts.finished.tolist()
        return [
            ([*prefixes[i // self.k], *ids], end)
            for i, (ids, end) in enumerate(zip(tokens, done, strict=True))
        ]


def starts(segments: Sequence[int]) -> list[int]:
    """Tokens with which a segment of a response begins; the first always does."""
    return [0] + [t for t, (a, b) in enumerate(pairwise(segments), 1) if a != b]


def group_values(
    continuer: Continuer,
    prompt: Sequence[int],
    responses: Sequence[Sequence[int]],
    segments: Sequence[Sequence[int]],
    seed: int,
    rewards: Callable[[list[Response]], list[float]],
) -> tuple[list[list[float]], int]:
    """For every token of the responses to one prompt, V where its segment begins; tokens sampled.

    segments: index of each token's segment. A state that several responses share is continued once.
    """
    places = [starts(index) for index in segments]
    prefixes = dict.fromkeys(
        tuple(ids[:place]) for ids, own in zip(responses, places, strict=True) for place in own
    )
    values, sampled = continuer.values(prompt, list(prefixes), seed, rewards)
    known = dict(zip(prefixes, values, strict=True))
    found = []
    for ids, own in zip(responses, places, strict=True):
        row: list[float] = []
        for start, end in pairwise([*own, len(ids)]):
            row += [known[tuple(ids[:start])]] * (end - start)
        found.append(row)
    return found, sampled


def continued(
    continuer: Continuer,
    rollouts: Rollouts,
    segments: Sequence[Sequence[int]],
    seeds: Sequence[int],
    rewards: Callable[[int, list[Response]], list[float]],
) -> tuple[dict[str, Tensor], int]:
    """`segments` and `state_values` [B, T] of a batch of rollouts, and the tokens that they cost.

    Rows of one prompt are adjacent. segments: as in :func:`group_values`; seeds: one for each
    prompt; rewards: of responses to the prompt in this place.
    """
    values = torch.zeros_like(rollouts.mask)
    index = torch.zeros_like(rollouts.response_ids)
    responses, total = rollouts.token_lists(), 0
    for group, rows in enumerate(micro_batches(len(responses), len(responses) // len(seeds))):
        first = rows.start
        prompt = rollouts.prompt_ids[first][rollouts.prompt_mask[first].bool()].tolist()
        graded = partial(rewards, group)
        found, sampled = group_values(
            continuer, prompt, responses[rows], segments[rows], seeds[group], graded
        )
        for i, row in enumerate(found, first):
            values[i, : len(row)] = torch.tensor(row)
            index[i, : len(row)] = torch.tensor(segments[i])
        total += sampled
    return {"segments": index, "state_values": values}, total
