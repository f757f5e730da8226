"""Measures how surprised a base policy is by its own responses (vimpo/storage/surprisal.py)."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from vimpo.config import GRPOConfig, Study
from vimpo.models.networks import load_policy, load_tokenizer, set_up_torch
from vimpo.models.scoring import Scorer
from vimpo.sampling import make_sampler
from vimpo.sampling.rollouts import Rollouts, micro_batches, sampling_of, step_seed
from vimpo.storage.files import write_json
from vimpo.storage.integrity import beside, check_model, sealing
from vimpo.storage.surprisal import (
    FILE,
    RESPONSES,
    SEED,
    Nats,
    Surprisal,
    read_surprisal,
    surprisal_digest,
    surprisal_file,
)
from vimpo.tasks import Task, make_task, prompt_room
from vimpo.tasks.noise import clean_rewards
from vimpo.tasks.prompts import encode


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
    """Samples and scores as training does, but one response to each prompt.

    Problems are drawn and sampled as many at once as in a training step, so they fit the memory
    that training needs. They are distinct within such a draw.
    """
    train, runtime = study.train, study.runtime
    tokenizer = load_tokenizer(base, runtime.trust_remote_code)
    policy = load_policy(base, runtime).eval().requires_grad_(False)
    room = prompt_room(policy.config, train.max_response)
    task = task or make_task(study.task, tokenizer, batch_size=train.prompts_per_step, room=room)
    sampling = sampling_of(train, policy, tokenizer, 1, train.max_response)
    sampler = make_sampler(policy, base, sampling, runtime)
    # The objective only says what else to read: GRPO's needs nothing.
    scorer = Scorer(policy, GRPOConfig(), train.temperature, runtime.logit_chunk)
    together = min(study.rollouts_per_step, task.supply(), RESPONSES)
    surprisals: list[float] = []
    lengths: list[int] = []
    right: list[bool] = []
    for number, rows in enumerate(micro_batches(RESPONSES, together)):
        problems = task.training_problems(SEED, number, rows.stop - rows.start)
        prompts = encode(tokenizer, [p.prompt for p in problems], task.kept_prompt)
        rollouts = sampler.rollouts(prompts, step_seed(SEED, number, "surprisal"))
        for part in micro_batches(len(problems), train.micro_batch):
            surprisals += (-summed_logp(scorer, rollouts.rows(part))).tolist()
        lengths += [len(tokens) for tokens in rollouts.token_lists()]
        marks = task.rewards(problems, rollouts.texts(tokenizer))
        # A response that was cut off is wrong, whatever it holds.
        ended = rollouts.finished.tolist()
        right += [reward > 0 for reward in clean_rewards(marks, ended, train.truncated)]
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
