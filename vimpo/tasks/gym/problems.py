"""The task of kind `reasoning_gym`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from vimpo.config.task import GymTask
from vimpo.config.texts import Pattern
from vimpo.tasks.extraction import extracted
from vimpo.tasks.gym.draws import SURVEYED, checked_draws
from vimpo.tasks.gym.generators import GymProblem, check_gym, generator_of
from vimpo.tasks.gym.judging import gym_judge
from vimpo.tasks.prompts import Prompter, check_room, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vimpo.tasks import Problem


class GymProblems:
    """The task of kind `reasoning_gym`; see vimpo.tasks.Task."""

    grade_steps = None  # answers are judged
    fork = None
    kept_prompt: int | None = None

    def __init__(
        self,
        config: GymTask,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 1,
        room: int | None = None,
        held_out: int = 0,
    ) -> None:
        """Check generators, and that they give enough problems that can be scored.

        Raises ConfigError.
        """
        check_gym(config)
        check_room(config.max_prompt, room)
        self.config = config
        self.benchmarks = tuple(config.benchmarks)
        self.judge = gym_judge(config.verifier, config.extract, config.right_from)
        self.generators = [
            (generator_of(source, f"task.datasets[{i}]"), source.weight)
            for i, source in enumerate(config.datasets)
        ]
        self._tokenizer = tokenizer
        prompter = Prompter(config, tokenizer)
        self._draws = checked_draws(
            self.generators, self.judge, prompter, named="name", fits=self._fits
        )
        self.training_problems(0, 0, batch_size)
        self.held_out(held_out)

    def _fits(self, prompt: str) -> bool:
        (ids,) = encode(self._tokenizer, [prompt])
        return len(ids) <= self.config.max_prompt

    def training_problems(self, seed: int, step: int, count: int) -> list[GymProblem]:
        return self._draws.distinct(count, f"train:{seed}:{step}", held_out=False)

    def held_out(self, count: int) -> list[GymProblem]:
        return self._draws.distinct(count, "validation", held_out=True)

    def texts(self) -> list[str]:
        """Texts of some training problems."""
        return [p.text for p in self.training_problems(0, 0, min(SURVEYED, self.supply()))]

    def supply(self) -> int:
        return self._supply

    @functools.cached_property
    def _supply(self) -> int:
        return self._draws.supply()

    def demonstrations(self, seed: int, step: int, count: int) -> list[tuple[str, str]]:
        raise TypeError("reasoning-gym has no worked solutions; the configuration refuses this")

    def rewards(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[float]:
        ours = [problem for problem in problems if isinstance(problem, GymProblem)]
        if len(ours) < len(problems):
            raise TypeError(f"{len(problems) - len(ours)} problems are not of this task")
        return [float(mark) for mark in self.judge.grade(ours, responses)]

    def answered(self, responses: Sequence[str]) -> list[bool]:
        """For a pattern, which only a guarded process may try, any text may hold an answer."""
        rule = self.config.extract
        if rule == "library":
            return ["<answer>" in response for response in responses]
        if isinstance(rule, Pattern):
            return [bool(response.strip()) for response in responses]
        return [extracted(rule, response) is not None for response in responses]

    def provenance(self, seed: int) -> dict:
        """The library's version, the data sets, and the digest of the first step's problems."""
        (problem,) = self.training_problems(seed, 0, 1)
        return {
            "reasoning_gym": version("reasoning-gym"),
            "sources": [generator.name for generator, _ in self.generators],
            "first_problem": problem.drawn,
        }
