"""Responses of a base policy to training problems, one to each, sampled as training does.

Problems are drawn and sampled as many at once as in a training step, so they fit the memory that
training needs. They are distinct within such a draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vimpo.config import Study
from vimpo.models.networks import load_policy, load_tokenizer
from vimpo.sampling import make_sampler
from vimpo.sampling.rollouts import Rollouts, micro_batches, sampling_of, step_seed
from vimpo.storage.surprisal import SEED
from vimpo.tasks import Problem, Task, make_task, prompt_room
from vimpo.tasks.noise import clean_rewards
from vimpo.tasks.prompts import encode


@dataclass(frozen=True)
class Answered:
    """A draw of problems, a response to each, its text, and whether it is right in training."""

    problems: Sequence[Problem]
    rollouts: Rollouts
    texts: list[str]
    right: list[bool]


class BasePolicy:
    """A policy before reinforcement learning, and the problems that it is to be trained on."""

    def __init__(self, study: Study, model: Path, task: Task | None = None) -> None:
        """model: a folder or a hub name; task: the size's dataset, if it was already read."""
        train, runtime = study.train, study.runtime
        self.study = study
        self.tokenizer = load_tokenizer(model, runtime.trust_remote_code)
        self.policy = load_policy(model, runtime).eval().requires_grad_(False)
        room = prompt_room(self.policy.config, train.max_response)
        batch = train.prompts_per_step
        self.task = task or make_task(study.task, self.tokenizer, batch_size=batch, room=room)
        sampling = sampling_of(train, self.policy, self.tokenizer, 1, train.max_response)
        self.sampler = make_sampler(self.policy, model, sampling, runtime)

    @torch.no_grad()
    def answers(self, count: int, use: str) -> Iterator[Answered]:
        """`count` responses in draws; use: what for, of which the random numbers depend."""
        together = min(self.study.rollouts_per_step, self.task.supply(), count)
        for number, rows in enumerate(micro_batches(count, together)):
            problems = self.task.training_problems(SEED, number, rows.stop - rows.start)
            prompts = encode(self.tokenizer, [p.prompt for p in problems], self.task.kept_prompt)
            rollouts = self.sampler.rollouts(prompts, step_seed(SEED, number, use))
            texts = rollouts.texts(self.tokenizer)
            marks = self.task.rewards(problems, texts)
            rewards = clean_rewards(marks, rollouts.finished.tolist(), self.study.train.truncated)
            yield Answered(problems, rollouts, texts, [reward > 0 for reward in rewards])
