"""Problems of reasoning-gym: its generators, and its own scores in guarded processes.

Every problem has a seed of its own (vimpo/tasks/gym_entries.py). Seeds of training and of held-out
problems are far apart, and a problem that a hash of its text puts on the other side of the split is
drawn again: small generators repeat themselves whatever the seed.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vimpo.config.asked import GymBenchmark
from vimpo.config.sources import GymSource
from vimpo.config.task import GymTask, TaskConfig, VerifierLimits
from vimpo.config.texts import Pattern
from vimpo.errors import ConfigError
from vimpo.tasks.chain import is_held_out
from vimpo.tasks.gym_entries import (
    HELD_OUT_SEEDS,
    TRAINING_SEEDS,
    canonical,
    data_set,
    fingerprint,
)
from vimpo.tasks.pool import GuardedPool
from vimpo.tasks.prompts import Prompter, check_room, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vimpo.tasks import Problem

PATIENCE = 200  # draws in a row that may bring no new problem
TRIED = 8  # problems of each generator, half of which must be judged before anything runs
SURVEYED = 128  # draws that show whether a generator repeats itself
SHOWN = 6  # names that a message suggests
# How a response that gives an answer may look, by rule.
ANSWERED = {
    "boxed": "\\boxed{%s}",
    "last_number": "The answer is %s",
    "library": "<answer>%s</answer>",
}
OWN_FIELDS = {"seed", "size"}  # of a data set's configuration; the suite sets them


@dataclass(frozen=True)
class Generator:
    """A data set of reasoning-gym with its settings; field: its place in the configuration."""

    name: str
    settings: str
    field: str

    def entry(self, seed: int) -> dict[str, Any]:
        """Raises ConfigError if the settings, though valid, let no problem be made."""
        try:
            return data_set(self.name, self.settings, seed)[0]
        except Exception as error:  # a generator may fail in any way
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"{self.field}.settings: {self.settings} give no problem ({reason:.100}); allowed: "
                f"settings with which {self.name} makes problems"
            ) from None


@dataclass(frozen=True)
class GymProblem:
    """A prompt, the answer that its generator gives, and where both come from."""

    id: str
    prompt: str
    answer: str
    text: str
    generator: Generator
    seed: int
    drawn: str


# --- Names and settings ---------------------------------------------------------------------------


def check_gym(task: TaskConfig) -> None:
    """Check names and settings of all that a task takes from reasoning-gym. Raises ConfigError."""
    if isinstance(task, GymTask):
        for i, source in enumerate(task.datasets):
            check_generator(generator_of(source, f"task.datasets[{i}]"), "name")
    for name, benchmark in task.benchmarks.items():
        if isinstance(benchmark, GymBenchmark):
            check_generator(generator_of(benchmark, f"task.benchmarks.{name}"), "dataset")


def generator_of(source: GymSource | GymBenchmark, field: str) -> Generator:
    """What a section of the configuration describes."""
    name = source.name if isinstance(source, GymSource) else source.dataset
    return Generator(name, canonical(source.settings), field)


def check_generator(generator: Generator, named: str) -> None:
    """Raise ConfigError unless reasoning-gym has this data set, and it takes these settings.

    named: the field of its name.
    """
    known = _data_sets(f"{generator.field}.{named}", generator.name)
    if generator.name not in known:
        near = difflib.get_close_matches(generator.name, known, n=SHOWN, cutoff=0.5)
        raise ConfigError(
            f"{generator.field}.{named}: '{generator.name}' is no data set of reasoning-gym; "
            f"allowed: {', '.join(near or sorted(known)[:SHOWN])}, ... ({len(known)} names: "
            "`reasoning_gym.factory.DATASETS`)"
        )
    fields = {f.name for f in dataclasses.fields(known[generator.name][1])} - OWN_FIELDS
    settings = _settings(generator)
    for name, value in settings.items():
        if name not in fields:
            raise ConfigError(
                f"{generator.field}.settings.{name}: {value!r:.80} is for a setting that "
                f"{generator.name} does not have; allowed: {', '.join(sorted(fields))}"
            )
    try:
        data_set(generator.name, generator.settings, 0)
    except Exception as error:  # `validate` asserts; values of a wrong type fail in other ways
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{generator.field}.settings: {generator.settings} is not allowed for "
            f"{generator.name}; allowed: {reason:.200}"
        ) from None


def _settings(generator: Generator) -> dict[str, Any]:
    return json.loads(generator.settings)


def _data_sets(field: str, name: str) -> dict[str, Any]:
    """The data sets that reasoning-gym has, but for mixtures. Raises ConfigError without it."""
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ConfigError(
            f"{field}: '{name}' needs the package reasoning-gym, which cannot be imported "
            f"({error}); allowed: after pip install -e '.[reasoning-gym]', or a task without it"
        ) from None
    # `composite` is a mixture: task.datasets is one already.
    return {name: found for name, found in DATASETS.items() if name != "composite"}


# --- Judging --------------------------------------------------------------------------------------


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
                f"{where} does not draw the same problem from the same seed in every process; "
                "allowed: a data set that does, or PYTHONHASHSEED=0 in the environment"
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
    return GuardedPool(limits, "vimpo.tasks.gym_judges")


# --- Drawing --------------------------------------------------------------------------------------


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


def all_of_them(problems: Sequence[GymProblem]) -> list[bool]:
    """Before it is known whether a generator's problems can be judged at all."""
    return [True] * len(problems)


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
        drawn = (Prompter(config, tokenizer), self._fits)
        for pair in self.generators:
            tried = Draws([pair], *drawn, all_of_them).distinct(TRIED, "check", held_out=False)
            self.judge.check(tried, "name")
        self._draws = Draws(self.generators, *drawn, self.judge.usable)
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

    def provenance(self, seed: int) -> dict:
        """The library's version, the data sets, and the digest of the first step's problems."""
        from importlib.metadata import version

        (problem,) = self.training_problems(seed, 0, 1)
        return {
            "reasoning_gym": version("reasoning-gym"),
            "sources": [generator.name for generator, _ in self.generators],
            "first_problem": problem.drawn,
        }
