"""What a step trains on: prompts drawn, rollouts sampled and graded, rewards flipped, one batch.

Every draw is a pure function of (seed, step).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vimpo.algorithms import Batch, make_batch
from vimpo.algorithms.base import Algorithm
from vimpo.config import CellConfig
from vimpo.models.distributed import Alone, named_weights
from vimpo.models.memory import continued_together
from vimpo.sampling.rollouts import Rollouts, Sampler, Sampling, seed_of, step_seed
from vimpo.tasks import Problem, Task
from vimpo.tasks.noise import clean_rewards, noisy_rewards
from vimpo.tasks.prompts import encode
from vimpo.tasks.steps import Grader, decoded, flawless_among, graded_tokens, token_spans
from vimpo.training.continuations import Continuer, Response, continued
from vimpo.training.resampling import Sampled, with_signal


@dataclass(frozen=True)
class Collected:
    """This process's rollouts; the clean rewards of all, and their batch with noisy ones.

    metrics: for the row of metrics.csv.
    """

    rollouts: Rollouts
    clean: list[float]
    batch: Batch
    metrics: dict[str, float]


@dataclass(frozen=True)
class Collector:
    """Samples from the policy as it is, grades, and makes a batch. sampling: of the rollouts."""

    config: CellConfig
    algorithm: Algorithm
    task: Task
    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sampler: Sampler
    sampling: Sampling
    world: Alone

    def collect(self, step: int) -> Collected:
        """All that step number `step` trains on."""
        c, size = self.config, self.config.train.group_size
        # Each response is graded once, for all who ask within the step.
        grade = self.task.grade_steps and cast("Grader", cache(self.task.grade_steps))
        found = self._sample_round(step, 0, self._problems(step, 0))
        own, right = self._own(found)
        metrics = self._flawless_share(grade, own, found.texts, right)
        tokens = float(found.rollouts.mask.sum())
        if (rounds := getattr(c.objective, "rounds", 1)) > 1:
            # The batch's groups are chosen by their rewards, so accuracy is that of a first round.
            metrics["accuracy"] = sum(found.clean) / len(found.clean)
            found, metrics["rounds"], tokens = with_signal(
                found, rounds, partial(self._another_round, step), self.tokenizer.pad_token_id
            )
            own, right = self._own(found)
        rollouts, mine = found.rollouts, self.world.share(len(found.problems))
        # Rows of similar length next to each other: less padding in a forward pass.
        order = rollouts.by_length()
        extra = self._step_grades(grade, own, found.texts, right, rollouts)
        values, more = self._state_values(grade, step, own, found.texts, rollouts)
        extra |= values
        rollouts = rollouts.rows(order)
        whole = self.world.gather(order + mine.start * size).cpu()
        clean, rewards = ([x[i] for i in whole.tolist()] for x in (found.clean, found.rewards))
        batch = make_batch(rewards, whole // size, self.world.gather(rollouts.mask))
        batch = batch.with_(**{name: self.world.gather(x[order]) for name, x in extra.items()})
        (metrics["sampled_tokens"],) = self.world.total(tokens + more)
        if self.algorithm.needs_draws:
            batch = batch.with_(draws=self._draws(step, whole, batch.mask))
        return Collected(rollouts, clean, batch, metrics)

    # --- rounds of sampling -----------------------------------------------------------------------

    def _problems(self, step: int, number: int) -> Sequence[Problem]:
        """Those of a round of sampling; later ones are drawn as those of steps beyond the last."""
        train = self.config.train
        place = step + number * train.steps
        return self.task.training_problems(self.config.seed, place, train.prompts_per_step)

    def _another_round(self, step: int, number: int, known: Collection[str]) -> Sampled | None:
        """A later round, without the problems that are known; None if no other is left."""
        new = [p for p in self._problems(step, number) if p.id not in known]
        return self._sample_round(step, number, new) if new else None

    def _sample_round(self, step: int, number: int, problems: Sequence[Problem]) -> Sampled:
        """Rollouts and texts of this process; problems and rewards of all."""
        c, size = self.config, self.config.train.group_size
        mine = self.world.share(len(problems))
        seed = step_seed(c.seed, step, "rollout")
        if number:
            seed = seed_of("rollout", c.seed, step, number)
        prompts = [p.prompt for p in problems[mine]]
        rollouts = self._sample(prompts, seed, mine.start, len(problems))
        own = [p for p in problems[mine] for _ in range(size)]
        texts = rollouts.texts(self.tokenizer)
        right = self._clean(own, texts, rollouts.finished.tolist())
        clean = self.world.gather(torch.tensor(right)).tolist()
        rewards = noisy_rewards(
            c.noise,
            clean,
            [p.id for p in problems for _ in range(size)],
            list(range(size)) * len(problems),
            seed=c.seed,
            step=step,
        )
        return Sampled(problems, rollouts, texts, clean, rewards)

    def _sample(self, prompts: list[str], seed: int, first: int, total: int) -> Rollouts:
        """Rollouts of prompts `first`, `first` + 1, ... of a round's `total`.

        Padded to the widest of all processes, whose rows are put together later.
        """
        tokens = encode(self.tokenizer, prompts, self.task.kept_prompt)
        self.sampler.sync(lambda: named_weights(self.policy))
        rollouts = self.sampler.rollouts(tokens, seed, first, total)
        width = int(self.world.largest(rollouts.width))
        return rollouts.widened(width, self.tokenizer.pad_token_id)

    def _clean(
        self, problems: Sequence[Problem], texts: list[str], finished: Sequence[bool]
    ) -> list[float]:
        """Rewards before noise."""
        marks = self.task.rewards(problems, texts)
        return clean_rewards(marks, finished, self.config.train.truncated)

    def _own(self, found: Sampled) -> tuple[list[Problem], list[float]]:
        """Problem and clean reward of each of this process's rollouts."""
        mine, size = self.world.share(len(found.problems)), self.config.train.group_size
        own = [p for p in found.problems[mine] for _ in range(size)]
        return own, found.clean[self.world.share(len(found.clean))]

    # --- grades of steps --------------------------------------------------------------------------

    def _flawless_share(
        self,
        grade: Grader | None,
        problems: Sequence[Problem],
        texts: list[str],
        right: list[float],
    ) -> dict[str, float]:
        """Share of all processes' right responses without a wrong step; NaN if none is right."""
        if grade is None:
            return {}
        found = flawless_among(grade, problems, texts, right)
        clean, count = self.world.total(sum(found), sum(right))
        return {"flawless": clean / count if count else math.nan}

    def _step_grades(
        self,
        grade: Grader | None,
        problems: Sequence[Problem],
        texts: list[str],
        right: list[float],
        rollouts: Rollouts,
    ) -> dict[str, Tensor]:
        """`steps` and `grades` [b, T] of this process's rollouts, where they are read and known."""
        read = self.algorithm.needs_steps or self.algorithm.has_value
        if not read or grade is None:
            return {}
        steps = torch.zeros_like(rollouts.response_ids)
        grades = torch.zeros_like(rollouts.mask)
        for i, ids in enumerate(rollouts.token_lists()):
            found = self._grade_tokens(grade, problems[i], texts[i], ids, right[i] > 0)
            steps[i, : len(ids)], grades[i, : len(ids)] = map(torch.tensor, found)
        return {"steps": steps, "grades": grades}

    def _grade_tokens(
        self, grade: Grader, problem: Problem, text: str, ids: list[int], right: bool
    ) -> tuple[list[int], list[float]]:
        """Step and grade of every token of a response, for a task that grades steps."""
        return graded_tokens(grade(problem, text), token_spans(self.tokenizer, ids), right)

    # --- what some algorithms ask for -------------------------------------------------------------

    def _state_values(
        self,
        grade: Grader | None,
        step: int,
        problems: Sequence[Problem],
        texts: list[str],
        rollouts: Rollouts,
    ) -> tuple[dict[str, Tensor], float]:
        """`segments` and `state_values` [b, T] of this process's rollouts, if settings ask for it.

        Also the tokens that this sampled. The rewards of continuations have the cell's noise, as
        those of rollouts have.
        """
        c, states = self.config, self.config.objective.continued
        if states is None:
            return {}, 0.0
        size, together = c.train.group_size, continued_together(c.train, len(problems))
        sampler = self.sampler.with_(replace(self.sampling, group_size=states.k))
        continuer = Continuer(sampler, states.k, c.train.max_response, together)

        def rewards(group: int, responses: list[Response]) -> list[float]:
            problem, count = problems[group * size], len(responses)
            ended = [ids[: len(ids) - done] for ids, done in responses]
            found = [decoded(self.tokenizer, ids) for ids in ended]
            clean = self._clean([problem] * count, found, [done for _, done in responses])
            places = range(size, size + count)  # after those of the rollouts
            return noisy_rewards(
                c.noise, clean, [problem.id] * count, places, seed=c.seed, step=step
            )

        if states.interval is None:
            assert grade is not None  # the trainer refuses tasks without steps
            segments = [
                self._grade_tokens(grade, problem, text, ids, False)[0]
                for problem, text, ids in zip(problems, texts, rollouts.token_lists(), strict=True)
            ]
        else:
            segments = [
                [t // states.interval for t in range(len(ids))] for ids in rollouts.token_lists()
            ]
        seeds = [seed_of("continuations", c.seed, step, problem.id) for problem in problems[::size]]
        return continued(continuer, rollouts, segments, seeds, rewards)

    def _draws(self, step: int, rows: Tensor, mask: Tensor) -> Tensor:
        """Numbers in [0, 1) per token: a function of seed, step, and place in the step's rollouts.

        rows [B]: each row's place; mask [B, T] -> [B, T].
        """
        generator = torch.Generator().manual_seed(step_seed(self.config.seed, step, "draws"))
        train = self.config.train
        everything = (train.prompts_per_step * train.group_size, train.max_response)
        draws = torch.rand(everything, generator=generator)
        return draws[rows, : mask.shape[1]].to(mask)
