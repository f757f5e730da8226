"""Distinct problems of generators, on their side of the split.

Every problem has a seed of its own (vimpo/tasks/gym/entries.py). Seeds of training and of held-out
problems are far apart, and a problem that a hash of its text puts on the other side of the split is
drawn again: small generators repeat themselves whatever the seed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vimpo.errors import ConfigError
from vimpo.tasks.chain import is_held_out
from vimpo.tasks.gym.entries import HELD_OUT_SEEDS, TRAINING_SEEDS, fingerprint
from vimpo.tasks.gym.generators import Generator, GymProblem
from vimpo.tasks.gym.judging import GymJudge
from vimpo.tasks.prompts import Prompter

PATIENCE = 200  # draws in a row that may bring no new problem
TRIED = 8  # problems of each generator, half of which must be judged before anything runs
SURVEYED = 128  # draws that show whether a generator repeats itself


@dataclass(frozen=True)
class Draws:
    """Problems of some generators, drawn by their weights.

    fits: is a prompt short enough? usable: which of some problems can be judged?
    """

    generators: Sequence[tuple[Generator, float]]
    prompter: Prompter
    fits: Callable[[str], bool]
    usable: Callable[[Sequence[GymProblem]], list[bool]]

    def one(self, rng: random.Random, held_out: bool) -> GymProblem | None:
        """One problem; None if it is of the other side of the split, or too long."""
        weights = [weight for _, weight in self.generators]
        ((generator, _),) = rng.choices(self.generators, weights)
        seed = rng.choice(HELD_OUT_SEEDS if held_out else TRAINING_SEEDS)
        entry = generator.entry(seed)
        text = str(entry["question"])
        if is_held_out(text) != held_out or not self.fits(prompt := self.prompter(text)):
            return None
        identity = hashlib.sha256(text.encode()).hexdigest()[:32]
        answer, drawn = str(entry["answer"]), fingerprint(entry)
        return GymProblem(identity, prompt, answer, text, generator, seed, drawn)

    def distinct(self, count: int, key: str, held_out: bool) -> list[GymProblem]:
        """`count` distinct problems, a pure function of the arguments.

        Raises ConfigError if the generators give no more new ones.
        """
        rng = random.Random(key)
        found: dict[str, GymProblem] = {}
        in_vain = 0
        while len(found) < count:
            drawn = [self.one(rng, held_out) for _ in range(count - len(found))]
            new: dict[str, GymProblem] = {}
            for problem in drawn:
                if problem is not None and problem.id not in found:
                    new.setdefault(problem.id, problem)
            usable = zip(new.items(), self.usable(list(new.values())), strict=True)
            kept = {identity: problem for (identity, problem), is_usable in usable if is_usable}
            found |= kept
            in_vain = 0 if kept else in_vain + len(drawn)
            if in_vain >= PATIENCE:
                side = "held-out" if held_out else "training"
                raise ConfigError(
                    f"{self.generators[0][0].field}: only {len(found)} of {count} distinct {side} "
                    f"problems found, and none in {PATIENCE} more draws; allowed: settings that "
                    "give more, fewer problems, or a longer task.max_prompt"
                )
        return list(found.values())

    def supply(self) -> int:
        """An estimate, from below, of how many distinct training problems are found quickly.

        n draws without a repeat hint at n^2 / 2 problems or more, of which a quarter is counted;
        with repeats, half of those found.
        """
        rng = random.Random("survey")
        drawn = [self.one(rng, held_out=False) for _ in range(SURVEYED)]
        ids = [problem.id for problem in drawn if problem is not None]
        distinct = len(set(ids))
        return len(ids) ** 2 // 8 if distinct == len(ids) else max(1, distinct // 2)


def checked_draws(
    generators: Sequence[tuple[Generator, float]],
    judge: GymJudge,
    prompter: Prompter,
    *,
    named: str,
    held_out: bool = False,
    fits: Callable[[str], bool] = lambda prompt: True,
) -> Draws:
    """Draws of generators whose problems can be judged; the few that cannot are drawn again.

    named: the field of a generator's name; held_out: the side of the split that is tried. Raises
    ConfigError.
    """

    def untested(problems: Sequence[GymProblem]) -> list[bool]:
        return [True] * len(problems)

    for pair in generators:
        tried = Draws([pair], prompter, fits, untested).distinct(TRIED, "check", held_out)
        judge.check(tried, named)
    return Draws(generators, prompter, fits, judge.usable)
