"""Measures how surprised a base policy is by its own responses (vimpo/storage/surprisal.py)."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from vimpo.config import GRPOConfig, Study
from vimpo.models.networks import set_up_torch
from vimpo.models.scoring import Scorer
from vimpo.sampling.rollouts import Rollouts, micro_batches
from vimpo.storage.files import write_json
from vimpo.storage.integrity import beside, check_model, sealing
from vimpo.storage.surprisal import (
    FILE,
    RESPONSES,
    Nats,
    Surprisal,
    read_surprisal,
    surprisal_digest,
    surprisal_file,
)
from vimpo.tasks import Task
from vimpo.training.base_responses import BasePolicy


def measured_surprisal(study: Study, size: str, *, task: Task | None = None) -> Surprisal:
    """Of the base policy of a size, measured now unless it has been.

    task: the size's dataset, if it was already read. Raises DamagedError if the base policy is
    missing or not what was written.
    """
    if found := read_surprisal(study, size):
        return found
    started = time.perf_counter()
    base = study.base_folder(size)
    check_model(base)
    set_up_torch(study.runtime)
    surprisal = _measure(study, base / "model", task)
    path = surprisal_file(study, size)
    seconds = round(time.perf_counter() - started, 3)
    record = {"digest": surprisal_digest(study, size), "size": size, "seconds": seconds}
    with sealing(beside(path), [FILE]):
        write_json(path, record | surprisal.to_json())
    return surprisal


@torch.no_grad()
def _measure(study: Study, base: Path, task: Task | None) -> Surprisal:
    """Of right responses by the rule of training."""
    train, found = study.train, BasePolicy(study, base, task)
    # The objective only says what else to read: GRPO's needs nothing.
    scorer = Scorer(found.policy, GRPOConfig(), train.temperature, study.runtime.logit_chunk)
    surprisals: list[float] = []
    lengths: list[int] = []
    right: list[bool] = []
    for answered in found.answers(RESPONSES, "surprisal"):
        rollouts = answered.rollouts
        for part in micro_batches(len(answered.problems), train.micro_batch):
            surprisals += (-summed_logp(scorer, rollouts.rows(part))).tolist()
        lengths += [len(tokens) for tokens in rollouts.token_lists()]
        right += answered.right
    chosen = [i for i, is_right in enumerate(right) if is_right]
    return Surprisal(
        Nats.of(surprisals, lengths),
        Nats.of([surprisals[i] for i in chosen], [lengths[i] for i in chosen]) if chosen else None,
    )


def summed_logp(scorer: Scorer, rollouts: Rollouts) -> Tensor:
    """log pi(y | x) of whole responses at the scorer's temperature. -> [B], float64"""
    logp, *_ = scorer(*rollouts.inputs(), rollouts.response_ids, rollouts.mask)
    assert logp is not None  # the first of what a scorer returns always is there
    on: Tensor = rollouts.mask.bool()
    return torch.where(on, logp.double(), 0.0).sum(1)
