"""Chains of integer arithmetic with written-out steps: `7+5-3=` -> `7+5=12;12-3=9#9`.

Problems are split into training and held-out ones by a hash of the prompt, so the two sets are
disjoint at every length and for every seed. Steps that carry or borrow are the hard ones: with
probability ``step_error`` a demonstration forgets the carry and continues from the wrong value, as
people and language models do. An oracle can grade every step of every response.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vimpo.config.asked import Benchmark
from vimpo.config.task import ChainTask, TaskConfig

if TYPE_CHECKING:
    from vimpo import tasks

ALPHABET = "0123456789+-*=;#"
HELD_OUT_SHARE = 5  # one prompt in five is held out
STEP = re.compile(r"(-?\d+)([+\-*])(\d+)=(-?\d+)")
SYMBOL = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


@dataclass(frozen=True)
class Problem:
    """A prompt and its right answer; the prompt is also the problem's identity."""

    prompt: str
    answer: str

    @property
    def id(self) -> str:
        return self.prompt

    @property
    def terms(self) -> tuple[int, list[tuple[str, int]]]:
        return terms_of(self.prompt)


@dataclass(frozen=True)
class Step:
    """A graded span of a response: characters [start, end)."""

    start: int
    end: int
    right: bool


@dataclass(frozen=True)
class Fork:
    """The start of a right response, and the character that goes on with it, or goes wrong."""

    prefix: str
    right: str
    wrong: str


def terms_of(prompt: str) -> tuple[int, list[tuple[str, int]]]:
    """First operand, then (operator, operand) pairs."""
    first, *rest = re.findall(r"^\d+|[+\-*]\d+", prompt)
    return int(first), [(term[0], int(term[1:])) for term in rest]


def is_held_out(prompt: str) -> bool:
    """True for the fifth of all prompts that training never sees."""
    return hashlib.blake2b(prompt.encode(), digest_size=8).digest()[0] % HELD_OUT_SHARE == 0


def draw_problem(task: ChainTask, operators: int, rng: random.Random) -> Problem:
    """Draw one problem of the given length uniformly, from either side of the split."""
    first = rng.randint(1, task.first_largest or task.largest)
    value, prompt = first, str(first)
    for _ in range(operators):
        symbol, operand = rng.choice(task.symbols), rng.randint(1, task.largest)
        value = SYMBOL[symbol](value, operand)
        prompt += f"{symbol}{operand}"
    return Problem(prompt + "=", str(value))


def training_problems(
    task: ChainTask, seed: int, step: int, count: int, operators: Sequence[int] | None = None
) -> list[Problem]:
    """Distinct training problems of one step: a pure function of its arguments.

    operators: the lengths to draw from; by default the task's `train_operators`.
    """
    lengths = operators or task.train_operators
    rng = random.Random(f"train:{seed}:{step}")
    problems: dict[str, Problem] = {}
    while len(problems) < count:
        problem = draw_problem(task, rng.choice(lengths), rng)
        if not is_held_out(problem.prompt):
            problems[problem.id] = problem
    return list(problems.values())


def held_out_problems(task: TaskConfig, benchmark: str) -> list[Problem]:
    """The fixed, distinct problems of a benchmark, none of which training ever sees.

    Raises TypeError for a published benchmark, whose problems are not drawn.
    """
    spec = task.benchmarks[benchmark]
    if not isinstance(task, ChainTask) or not isinstance(spec, Benchmark):
        raise TypeError(f"benchmark '{benchmark}' is a {type(spec).__name__}; allowed: Benchmark")
    rng = random.Random(f"test:{benchmark}")
    return _draw_held_out(task, [spec.operators], spec.problems, rng)


def validation_problems(task: ChainTask, count: int) -> list[Problem]:
    """Fixed, distinct problems of the lengths of training, none of which it ever sees.

    They are drawn from the same side of the split as benchmarks, and may be among theirs.
    """
    return _draw_held_out(task, task.train_operators, count, random.Random("validation"))


def _draw_held_out(
    task: ChainTask, operators: Sequence[int], count: int, rng: random.Random
) -> list[Problem]:
    problems: dict[str, Problem] = {}
    while len(problems) < count:
        # A single length takes no draw, which keeps the problems of benchmarks what they were.
        length = operators[0] if len(operators) == 1 else rng.choice(operators)
        problem = draw_problem(task, length, rng)
        if is_held_out(problem.prompt):
            problems[problem.id] = problem
    return list(problems.values())


def forgets_carry(value: int, symbol: str, operand: int) -> int | None:
    """The result with its carry or borrow forgotten; None if the step has neither."""
    right = SYMBOL[symbol](value, operand)
    if symbol == "-":
        return right + 10 if value % 10 < operand % 10 else None
    if symbol == "+":
        return right - 10 if value % 10 + operand % 10 >= 10 else None
    return right - 10 if abs(right) >= 10 else None


def demonstration(problem: Problem, step_error: float, rng: random.Random) -> str:
    """A written-out response; each step that carries is wrong with probability `step_error`."""
    value, terms = problem.terms
    steps = []
    for symbol, operand in terms:
        result = SYMBOL[symbol](value, operand)
        slip = forgets_carry(value, symbol, operand)
        if slip is not None and rng.random() < step_error:
            result = slip
        steps.append(f"{value}{symbol}{operand}={result}")
        value = result
    return ";".join(steps) + f"#{value}"


def fork(problem: tasks.Problem, rng: random.Random) -> Fork | None:
    """A place where a right response can forget a carry, drawn at random; None if no step has one.

    All before it is right. The two texts part at the first character in which the right result and
    the wrong one differ, a digit in most cases; where one result begins with the other, it is what
    ends the shorter one.
    """
    value, terms = terms_of(problem.prompt)
    written, found = "", []
    for i, (symbol, operand) in enumerate(terms):
        written += f"{value}{symbol}{operand}="
        result, slip = SYMBOL[symbol](value, operand), forgets_carry(value, symbol, operand)
        end = ";" if i + 1 < len(terms) else "#"
        if slip is not None:
            right, wrong = f"{result}{end}", f"{slip}{end}"
            shared = next(i for i, (a, b) in enumerate(zip(right, wrong, strict=False)) if a != b)
            found.append(Fork(written + right[:shared], right[shared], wrong[shared]))
        written, value = f"{written}{result}{end}", result
    return rng.choice(found) if found else None


def final_answer(response: str) -> str | None:
    """The integer after the last `#`; None if there is none."""
    _, mark, answer = response.rpartition("#")
    return answer if mark and re.fullmatch(r"-?\d+", answer) else None


def is_right(answer: str, response: str) -> bool:
    """Does the response end in the right answer?"""
    return final_answer(response) == answer


def grade_steps(problem: tasks.Problem, response: str) -> list[Step]:
    """Oracle: grade every step of a response, given the value that the previous step claimed.

    A step is right if it continues from the claimed value, uses the problem's next operator and
    operand, and computes correctly. The answer after `#` counts as the last step; it is right if
    all operators were used and it repeats the last claimed value. Text that is not a step, a
    missing step and a superfluous step are wrong. The response went wrong at its first wrong step.
    """
    value, terms = terms_of(problem.prompt)
    body, mark, answer = response.partition("#")
    graded, start = [], 0
    for i, text in enumerate(body.split(";")):
        match = STEP.fullmatch(text)
        right = False
        if match and i < len(terms):
            symbol, operand = terms[i]
            expected = SYMBOL[symbol](value, operand)
            right = text == f"{value}{symbol}{operand}={expected}"
        value = int(match[4]) if match else value
        graded.append(Step(start, start + len(text), right))
        start += len(text) + 1
    if mark:
        right = len(graded) == len(terms) and answer == str(value)
        graded.append(Step(len(body) + 1, len(response), right))
    return graded


class ChainProblems:
    """The task of kind `chain`; see vimpo.tasks.Task."""

    grade_steps = staticmethod(grade_steps)
    fork = staticmethod(fork)
    kept_prompt: int | None = None

    def __init__(self, config: ChainTask) -> None:
        self.config = config
        self.benchmarks = tuple(config.benchmarks)

    def training_problems(
        self, seed: int, step: int, count: int, operators: Sequence[int] | None = None
    ) -> list[Problem]:
        return training_problems(self.config, seed, step, count, operators)

    def held_out(self, count: int) -> list[Problem]:
        return validation_problems(self.config, count)

    def supply(self, operators: Sequence[int] | None = None) -> int:
        """Half of all problems of these lengths, so that distinct ones are found quickly."""
        lengths = set(operators or self.config.train_operators)
        return sum(self.config.problem_space(n) for n in lengths) // 2

    def demonstrations(self, seed: int, step: int, count: int) -> list[tuple[str, str]]:
        rng = random.Random(f"demonstration:{seed}:{step}")
        lengths = self.config.pretrain_operators
        return [
            (problem.prompt, demonstration(problem, self.config.step_error, rng))
            for problem in training_problems(self.config, seed, step, count, lengths)
        ]

    def rewards(self, problems: Sequence[tasks.Problem], responses: Sequence[str]) -> list[float]:
        return [
            float(is_right(problem.answer, response))
            for problem, response in zip(problems, responses, strict=True)
        ]

    def answered(self, responses: Sequence[str]) -> list[bool]:
        return [final_answer(response) is not None for response in responses]

    def provenance(self, seed: int) -> dict:
        return {}
