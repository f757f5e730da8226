"""Consistency probe: does the implied value obey its own equations?

Measured on fresh groups of rollouts with clean rewards: the mean of td over the policy's own
tokens, which the exact KL makes zero in expectation for any policy; and the terminal residual
sum_t td_t - (R - mean_group(R)) that VIMPO's value loss squares, next to its target. A policy equal
to the base has a residual ratio of 1; the fixed point is 0.
"""

from __future__ import annotations

import numpy as np
import torch

from vimpo.objectives.common import group_mean
from vimpo.probes.measures import (
    bootstrap_stderr,
    cluster_mean,
    pearson,
    ratio,
    resampling,
    root_mean,
    row,
)
from vimpo.probes.subject import Subject, responses
from vimpo.storage.codes import NO_REASON, Reason, Why

PURPOSE = 0  # the value probe's problems
REASONS = {
    "residual_ratio": Why(
        Reason.NO_VARIATION, "every group has equal rewards, so the target is zero"
    ),
    "pearson": Why(Reason.NO_VARIATION, "rewards or summed td do not vary"),
}


def consistency_probe(subject: Subject) -> list[dict]:
    """One group of the training size per problem. -> rows of probes.parquet"""
    size = max(2, subject.train.group_size)
    problems = subject.problems(subject.probes.problems, PURPOSE)
    chunks = subject.sample([subject.encode(p) for p in problems], "consistency", size)
    tokens, finished = responses(chunks)
    owners = [p for p in problems for _ in range(size)]
    rewards = torch.tensor(subject.rewards(owners, tokens, finished), dtype=torch.float64)
    groups = torch.arange(len(problems)).repeat_interleave(size)
    target = (rewards - group_mean(rewards, groups)).numpy().reshape(-1, size)
    td = [
        row_td[row_mask.bool()].double().numpy()
        for reading in map(subject.read, chunks)
        for row_td, row_mask in zip(reading.td, reading.mask, strict=True)
    ]
    return consistency_rows(td, target, subject.probes.seed)


def consistency_rows(td: list[np.ndarray], target: np.ndarray, seed: int) -> list[dict]:
    """td: of the tokens of each of P G rollouts; target [P, G] = R - mean_group(R)."""
    problems, size = target.shape
    tokens = np.concatenate(td)
    clusters = np.repeat(np.arange(len(td)) // size, [len(x) for x in td])
    sums = np.array([x.sum() for x in td]).reshape(problems, size)
    bad = int((~np.isfinite(tokens)).sum())
    reason = NO_REASON
    if bad:
        reason = Why(Reason.NOT_FINITE, f"{bad} of {len(tokens)} td are not finite")
        tokens, sums = np.full_like(tokens, np.nan), np.full_like(sums, np.nan)
    rows = [
        row("consistency", "policy", "td", "all", metric, *found, len(tokens), "reward", reason)
        for metric, found in (
            ("mean", cluster_mean(tokens, clusters)),
            ("rms", root_mean(tokens, clusters)),
        )
    ]
    index = resampling(problems, seed)
    estimates, replicates = _terminal(sums, target), _terminal(sums[index], target[index])
    for metric, value in estimates.items():
        unit = "1" if metric in ("residual_ratio", "pearson") else "reward"
        why = reason if bad else REASONS.get(metric, NO_REASON)
        stderr = bootstrap_stderr(replicates[metric])
        labels = ("consistency", "policy", "terminal", "all", metric)
        rows.append(row(*labels, value, stderr, target.size, unit, why))
    return rows


def _terminal(sums: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
    """Summed td against its target, over the last two axes. [..., P, G] -> [...]"""

    def rms(x: np.ndarray) -> np.ndarray:
        return np.sqrt(np.square(x).mean((-2, -1)))

    return {
        "residual_rms": rms(sums - target),
        "target_rms": rms(target),
        "residual_ratio": ratio(rms(sums - target), rms(target)),
        "pearson": pearson(sums, target),
    }
