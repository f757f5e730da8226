"""Dynamic sampling: prompts whose responses all earn the same give way to others (DAPO).

A round samples as many new prompts as the step has. The batch is made of the groups whose rewards
differ, in the order in which they were sampled; rounds end when there are enough of them, or at the
cap. What is then missing is filled with groups of the first rounds whose rewards are equal, so that
every batch has the same size. Source: arXiv 2503.14476, eq. 11.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from vimpo.sampling.rollouts import Rollouts, joined_rollouts, micro_batches
from vimpo.tasks import Problem


@dataclass(frozen=True)
class Sampled:
    """Responses to problems, as many adjacent ones to each: texts, clean and noisy rewards."""

    problems: Sequence[Problem]
    rollouts: Rollouts
    texts: list[str]
    clean: list[float]
    rewards: list[float]

    @property
    def _size(self) -> int:
        return len(self.rewards) // len(self.problems)

    def signals(self) -> list[bool]:
        """For each problem: do the rewards of its responses differ?"""
        return [len(set(self.rewards[s])) > 1 for s in micro_batches(len(self.rewards), self._size)]

    def groups(self, places: Sequence[int]) -> Sampled:
        """Those of the problems in these places."""
        rows = [place * self._size + i for place in places for i in range(self._size)]
        return Sampled(
            [self.problems[place] for place in places],
            self.rollouts.rows(self.rollouts.mask.new_tensor(rows, dtype=torch.long)),
            [self.texts[i] for i in rows],
            [self.clean[i] for i in rows],
            [self.rewards[i] for i in rows],
        )


def joined_rounds(rounds: Sequence[Sampled], pad: int) -> Sampled:
    """All problems and responses, in order."""
    return Sampled(
        [problem for found in rounds for problem in found.problems],
        joined_rollouts([found.rollouts for found in rounds], pad),
        [text for found in rounds for text in found.texts],
        [mark for found in rounds for mark in found.clean],
        [reward for found in rounds for reward in found.rewards],
    )


def with_signal(
    first: Sampled, rounds: int, another: Callable[[int, set[str]], Sampled | None], pad: int
) -> tuple[Sampled, int, int]:
    """As many problems as `first` has, with a signal if they can be found; rounds, tokens sampled.

    another: samples the round of this number, without the problems of these ids; None if no other
    is left.
    """
    found = [first]
    while sum(sum(sampled.signals()) for sampled in found) < len(first.problems):
        known = {problem.id for sampled in found for problem in sampled.problems}
        new = another(len(found), known) if len(found) < rounds else None
        if new is None:
            break
        found.append(new)
    whole = joined_rounds(found, pad)
    signals = whole.signals()
    places = sorted(range(len(signals)), key=lambda place: not signals[place])
    chosen = whole.groups(places[: len(first.problems)])
    return chosen, len(found), int(whole.rollouts.mask.sum())
