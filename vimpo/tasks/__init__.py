"""Maths problems: generators, datasets, prompts, answer checking, reward noise.

A task is what a learner trains on; trainers see only :class:`Task`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from vimpo.config.task import DatasetTask, GymTask, TaskConfig
from vimpo.config.training import Train

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from vimpo.config import CellConfig
    from vimpo.tasks.chain import Fork, Step


class Problem(Protocol):
    """A prompt as the policy reads it, its right answer, and an identity that never changes."""

    @property
    def id(self) -> str: ...

    @property
    def prompt(self) -> str: ...

    @property
    def answer(self) -> str: ...


class Task(Protocol):
    """Where problems come from and how responses are judged.

    All draws are pure functions of their arguments, and the problems of one step are distinct.
    `benchmarks` names the held-out problem sets, which training never draws from. A response ends
    at a token that its model declares to be an end, or at its limit; in evaluation also at the stop
    texts of the benchmark's lm-eval definition. `grade_steps` is the oracle that grades each step
    of a response, `fork` draws a place where a right one may go wrong, None if a task has none;
    `kept_prompt` is how many of a prompt's last tokens are read, None for all.
    """

    benchmarks: tuple[str, ...]
    kept_prompt: int | None

    @property
    def grade_steps(self) -> Callable[[Problem, str], list[Step]] | None: ...

    @property
    def fork(self) -> Callable[[Problem, random.Random], Fork | None] | None: ...

    def training_problems(self, seed: int, step: int, count: int) -> Sequence[Problem]:
        """The `count` distinct problems of one step of reinforcement learning."""

    def held_out(self, count: int) -> Sequence[Problem]:
        """`count` fixed, distinct problems that :meth:`training_problems` never draws."""

    def supply(self) -> int:
        """How many distinct problems a step can draw."""

    def demonstrations(self, seed: int, step: int, count: int) -> list[tuple[str, str]]:
        """`count` (prompt, response) pairs of one step of the supervised warm start."""

    def rewards(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[float]:
        """1 for each right response, else 0. responses: texts without ends and padding."""

    def answered(self, responses: Sequence[str]) -> list[bool]:
        """Does each response hold anything that could be its answer, right or wrong?"""

    def provenance(self, seed: int) -> dict:
        """What the manifest records of the data; empty if the configuration says it all."""


def make_task(
    config: TaskConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 1,
    room: int | None = None,
    held_out: int = 0,
) -> Task:
    """The task that a configuration describes, with its data read and checked.

    batch_size: problems per step; room: tokens that a model has for a prompt; held_out: problems
    to set aside of a dataset. Raises ConfigError for data that cannot be trained on.
    """
    if isinstance(config, DatasetTask):
        from vimpo.tasks.dataset import DatasetProblems

        return DatasetProblems(
            config, tokenizer, batch_size=batch_size, room=room, held_out=held_out
        )
    if isinstance(config, GymTask):
        from vimpo.tasks.gym.problems import GymProblems

        return GymProblems(config, tokenizer, batch_size=batch_size, room=room, held_out=held_out)
    from vimpo.tasks.chain import ChainProblems

    return ChainProblems(config)


def load_task(
    config: CellConfig, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Task:
    """The task of a run, whose prompts and responses fit into the policy's positions.

    Raises ConfigError for data that cannot be trained on.
    """
    return make_task(
        config.task,
        tokenizer,
        batch_size=config.train.prompts_per_step,
        room=prompt_room(policy.config, config.train.max_response),
        held_out=set_aside(config.train),
    )


def set_aside(train: Train) -> int:
    """Problems that a run needs for validation."""
    return train.validation.problems if train.validation else 0


def prompt_room(model: PreTrainedConfig, max_response: int) -> int | None:
    """Tokens that a model has for a prompt; None if its configuration sets no limit."""
    positions = getattr(model, "max_position_embeddings", None)
    return positions and positions - max_response
