"""Reward noise: flips of binary training rewards.

A flip is a pure function of (seed, step, prompt id, rollout index): it is the same for every
algorithm, repeats exactly, and does not depend on the order of a batch. One uniform number decides
at every rate: what flips at 0.1 also flips at 0.25, which keeps comparisons across rates paired.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from vimpo.config import Noise


def uniform(*key: int | str) -> float:
    """A number in [0, 1) that depends only on `key`."""
    text = "\x1f".join(map(str, key)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) / 2**64


def clean_rewards(
    marks: Sequence[float], finished: Sequence[bool], truncated: str = "wrong"
) -> list[float]:
    """Rewards before noise, from the verifier's marks.

    truncated: a response that was cut off is `wrong` whatever it holds, or `graded` as the others.
    """
    if truncated == "graded":
        return list(marks)
    return [mark * done for mark, done in zip(marks, finished, strict=True)]


def noisy_rewards(
    noise: Noise,
    rewards: Sequence[float],
    prompt_ids: Sequence[str],
    rollout_indices: Sequence[int],
    *,
    seed: int,
    step: int,
) -> list[float]:
    """Flip 0/1 rewards. rollout_indices: of each, its index within the group of its prompt.

    `group`: all labels of a prompt flip together (as in the official code); `rollout`: each label
    flips on its own; `asymmetric`: each on its own, at the rate of its clean label. Raises
    ValueError for a reward that is neither 0 nor 1, and if the three sequences differ in length.
    """
    result = []
    for reward, prompt, index in zip(rewards, prompt_ids, rollout_indices, strict=True):
        if reward not in (0, 1):
            raise ValueError(f"reward noise flips labels 0 and 1, not {reward!r}")
        key = (seed, step, prompt) if noise.mode == "group" else (seed, step, prompt, index)
        rate = noise.rate
        if noise.mode == "asymmetric":
            rate = noise.false_negative if reward else noise.false_positive
        result.append(float(1 - reward if uniform(*key) < rate else reward))
    return result
