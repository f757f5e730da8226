"""Asks guarded workers (vimpo/tasks/gym/judges.py) for reasoning-gym's own scores."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vimpo.config.task import VerifierLimits
from vimpo.config.texts import Pattern
from vimpo.errors import ConfigError
from vimpo.tasks.gym.generators import GymProblem
from vimpo.tasks.pool import GuardedPool

# How a response that gives an answer may look, by rule.
ANSWERED = {
    "boxed": "\\boxed{%s}",
    "last_number": "The answer is %s",
    "library": "<answer>%s</answer>",
}


@dataclass(frozen=True)
class GymJudge:
    """reasoning-gym's own scores, in guarded processes that draw each entry again.

    rule: what in a response is its answer; right_from: the lowest score that is right.
    """

    pool: GuardedPool
    rule: str | Pattern
    right_from: float

    @property
    def _rule(self) -> Any:
        return self.rule.model_dump() if isinstance(self.rule, Pattern) else self.rule

    def grade(self, problems: Sequence[GymProblem], responses: Sequence[str]) -> list[bool]:
        """Is what each response answers right?"""
        asked = (self._rule, self.right_from)
        both = zip(problems, responses, strict=True)
        return self.pool.run([("is_right", *place(p), *asked, text) for p, text in both])

    def usable(self, problems: Sequence[GymProblem]) -> list[bool]:
        """Is each problem the same in another process, and its own answer right?"""
        asked = (self._rule, self.right_from)
        return self.pool.run(
            [("is_usable", *place(p), p.drawn, *asked, self._answered(p)) for p in problems]
        )

    def _answered(self, problem: GymProblem) -> str | None:
        """A response that gives a problem's own answer; None for patterns."""
        return None if isinstance(self.rule, Pattern) else ANSWERED[self.rule] % problem.answer

    def check(self, problems: Sequence[GymProblem], named: str) -> None:
        """Raise ConfigError if a problem is not drawn again, or if most cannot be scored.

        named: the field of the generator's name.
        """
        first = problems[0]
        where = f"{first.generator.field}.{named}: '{first.generator.name}'"
        if not all(self.pool.run([("same_entry", *place(p), p.drawn) for p in problems])):
            raise ConfigError(
                f"{where} does not draw the same problem from the same seed in every process, or "
                "not within the limits of task.verifier; allowed: a data set that does, or "
                "PYTHONHASHSEED=0 in the environment"
            )
        scored = self.pool.run([("gold_is_right", *place(p), self.right_from) for p in problems])
        if 2 * sum(scored) < len(problems):
            faulty = problems[scored.index(False)]
            raise ConfigError(
                f"{where} cannot be scored: its own answer {faulty.answer[:80]!r} scores below "
                f"{self.right_from:g} or takes longer than task.verifier allows; allowed: a data "
                "set that accepts its own answers"
            )
        usable = self.usable(problems)
        if 2 * sum(usable) < len(problems):
            text = self._answered(problems[usable.index(False)])
            others = ", ".join(name for name in ANSWERED if name != self.rule)
            raise ConfigError(
                f"{where} cannot be scored with extract: {self.rule}, which finds no right answer "
                f"in {text!r:.120}; allowed: {others} or a pattern"
            )


def place(problem: GymProblem) -> tuple[str, str, int]:
    """Where a worker finds a problem."""
    return problem.generator.name, problem.generator.settings, problem.seed


def gym_judge(limits: VerifierLimits, rule: str | Pattern, right_from: float) -> GymJudge:
    """Judges of one set of limits share their processes."""
    return GymJudge(_shared_pool(limits), rule, right_from)


@functools.cache
def _shared_pool(limits: VerifierLimits) -> GuardedPool:
    return GuardedPool(limits, "vimpo.tasks.gym.judges")
