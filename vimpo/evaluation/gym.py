"""Held-out problems of a generator of reasoning-gym as a benchmark: a level of difficulty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vimpo.config import GymBenchmark, GymTask, Study
from vimpo.config.task import VerifierLimits
from vimpo.evaluation.asked import BenchmarkTask
from vimpo.evaluation.benchmarks import load_definition
from vimpo.tasks.gym.draws import checked_draws
from vimpo.tasks.gym.generators import GymProblem, check_generator, generator_of
from vimpo.tasks.gym.judging import gym_judge
from vimpo.tasks.prompts import Prompter, unmarked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class GymBenchmarkTask(BenchmarkTask):
    """Problems that training never draws, judged by reasoning-gym's own `score_answer`."""

    def __init__(
        self,
        study: Study,
        name: str,
        spec: GymBenchmark,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        task = study.task
        self.name, self.spec = name, spec
        self.samples, self.pass_at = study.samples_of(name), study.evaluation.pass_at
        self.max_response = spec.max_response or study.train.max_response
        self.prompter = Prompter(task, tokenizer, spec.prompt)
        limits = getattr(task, "verifier", VerifierLimits())
        usual = (task.extract, task.right_from) if isinstance(task, GymTask) else ("boxed", 1.0)
        self.judge = gym_judge(limits, spec.extract or usual[0], usual[1])
        self._problems: list[GymProblem] | None = None

    def problems(self) -> list[GymProblem]:
        """The same for every run. Raises ConfigError if they cannot be drawn or scored."""
        if self._problems is None:
            generator = generator_of(self.spec, f"task.benchmarks.{self.name}")
            check_generator(generator, "dataset")
            draws = checked_draws(
                [(generator, 1.0)], self.judge, self.prompter, named="dataset", held_out=True
            )
            self._problems = draws.distinct(self.spec.problems, f"test:{self.name}", held_out=True)
        return self._problems

    def definition(self) -> dict:
        shared = self._with_rows_and_marks(load_definition("chain.yaml"))
        return shared | {"doc_to_text": lambda doc: doc["prompt"]}

    def rows(self) -> list[dict]:
        return [
            {"prompt": p.prompt, "problem": p.text, "answer": p.answer, "number": i}
            for i, p in enumerate(self.problems())
        ]

    def describe(self, doc: dict) -> tuple[str, str]:
        return unmarked(doc["problem"]), doc["answer"]

    def marks(self, doc: dict, responses: Sequence[str]) -> list[bool]:
        problem = self.problems()[doc["number"]]
        return self.judge.grade([problem] * len(responses), responses)
