r"""Real problems from datasets: prompts with `\boxed{}`, answers judged by the verifier.

Problems with equal texts count as one. Each run goes through them epoch by epoch, each epoch in an
order of its own. The order depends on the order seed, the run's seed and the problems' texts, not
on the order of the files, and is the same for every algorithm. Problems left over at the end of an
epoch that do not fill a step are not used in that epoch, so the problems of a step are distinct.

Problems of validation are set aside of the same data: the order seed and the texts decide which.
Reinforcement learning never draws them; a supervised warm start, which is shared with studies that
set none aside, does.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vimpo.config.sources import DataSource, ProblemSource
from vimpo.config.task import DatasetTask
from vimpo.errors import ConfigError
from vimpo.storage.files import sha256
from vimpo.tasks.answers import answers
from vimpo.tasks.chats import Turn, read_chat, read_turn, until_question
from vimpo.tasks.golds import accepted, as_text, fault_of, no_text
from vimpo.tasks.noise import uniform
from vimpo.tasks.prompts import Prompter, check_room, encode
from vimpo.tasks.sources import column, local_file, read_rows
from vimpo.tasks.verifier import shared_verifier

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vimpo.tasks import Problem

SHOWN = 100  # characters of a faulty text in a message


@dataclass(frozen=True)
class DatasetProblem:
    """A prompt, its gold answer, the digest of the problem's text, and that text."""

    id: str
    prompt: str
    answer: str
    solution: str | None = None
    text: str = ""


@dataclass(frozen=True)
class Row:
    """A problem as its source gives it; turns: those before it if the source holds whole chats."""

    problem: str
    answer: str
    solution: str | None
    place: str
    turns: tuple[Turn, ...] = ()
    fault: str | None = None  # why the answer is no gold

    @property
    def id(self) -> str:
        text = json.dumps([*self.turns, self.problem]) if self.turns else self.problem
        return hashlib.sha256(text.encode()).hexdigest()[:32]


class DatasetProblems:
    """The task of kind `dataset`; see vimpo.tasks.Task."""

    grade_steps = None  # the verifier judges answers
    fork = None

    def __init__(
        self,
        config: DatasetTask,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 1,
        room: int | None = None,
        held_out: int = 0,
    ) -> None:
        """Read, check and filter the data.

        Raises ConfigError for a source without rows or columns, gold answers that the verifier
        cannot read, prompts that are too long, and fewer problems than a step needs.
        """
        self.config = config
        self.benchmarks = tuple(config.benchmarks)
        self.kept_prompt = config.max_prompt if config.long_prompts == "cut" else None
        self.verifier = shared_verifier(config.verifier)
        self._orders: dict[tuple, tuple[str, ...]] = {}
        prompter = Prompter(config, tokenizer)
        check_room(config.max_prompt, room)
        rows = [
            row
            for i, source in enumerate(config.datasets)
            for row in source_rows(source, f"task.datasets[{i}]")
        ]
        self.counts = {"rows": len(rows), "unreadable": 0}
        given = self._with_gold(rows, [row.fault is None for row in rows])
        distinct = {row.id: row for row in reversed(given)}
        self.counts["repeated"] = len(given) - len(distinct)
        self.counts["conflicting"] = self._conflicting(given, distinct)
        prompts = {row.id: prompter(row.problem, row.turns) for row in distinct.values()}
        short = self._short_enough(list(distinct.values()), prompts, tokenizer)
        golds = [row.answer for row in short]
        worked_out = self.verifier.evaluated(golds) if config.evaluated_only else {}
        verdicts = [
            readable and own and worked_out.get(gold, True)
            for gold, readable, own in zip(
                golds, self.verifier.readable(golds), accepted(golds, self.verifier), strict=True
            )
        ]
        readable = self._with_gold(short, verdicts)
        self.problems = {
            row.id: DatasetProblem(row.id, prompts[row.id], row.answer, row.solution, row.problem)
            for row in readable
        }
        self.counts["problems"] = len(self.problems)
        needed = batch_size + held_out
        if len(self.problems) < needed:
            validation = f" and the {held_out} of validation" if held_out else ""
            raise ConfigError(
                f"task.datasets: {len(self.problems)} problems remain of {len(rows)} rows, fewer "
                f"than the {batch_size} that a step needs{validation}; allowed: more problems, a "
                "longer task.max_prompt, or a smaller train.prompts_per_step"
                + " or train.validation.problems"
                * bool(held_out)
            )
        key = ("validation", config.order_seed)
        by_chance = sorted(self.problems if held_out else [], key=lambda p: uniform(*key, p))
        self._held_out = dict.fromkeys(by_chance[:held_out])
        self._drawn = [p for p in self.problems if p not in self._held_out]

    def _short_enough(
        self, rows: list[Row], prompts: dict[str, str], tokenizer: PreTrainedTokenizerBase
    ) -> list[Row]:
        self.counts["too_long"] = 0
        if not rows:
            return []
        limit = self.config.max_prompt
        lengths = [len(ids) for ids in encode(tokenizer, [prompts[row.id] for row in rows])]
        short = [row for row, length in zip(rows, lengths, strict=True) if length <= limit]
        self.counts["too_long"] = len(rows) - len(short)
        if self.kept_prompt:
            return rows
        if not short or (self.config.long_prompts == "refuse" and len(short) < len(rows)):
            row, length = next((r, n) for r, n in zip(rows, lengths, strict=True) if n > limit)
            raise ConfigError(
                f"task.max_prompt: {len(rows) - len(short)} of {len(rows)} prompts are longer than "
                f"{limit} tokens, such as {row.place} with {length}; allowed: at least "
                f"{max(lengths)}, or task.long_prompts: drop if shorter ones remain"
            )
        return short

    def _conflicting(self, rows: list[Row], kept: dict[str, Row]) -> int:
        """How many problems have several golds that differ in value; says so."""
        others = [row for row in rows if row.answer != kept[row.id].answer]
        alike = self.verifier.equivalent([(kept[row.id].answer, row.answer) for row in others])
        found = {row.id: row for row, same in zip(others, alike, strict=True) if not same}
        for row in list(found.values())[:1]:
            first = kept[row.id]
            print(
                f"warning: task.datasets: {len(found)} problems have different answers, such as "
                f"{first.answer[:SHOWN]!r} in {first.place} and {row.answer[:SHOWN]!r} in "
                f"{row.place}; the first is used",
                file=sys.stderr,
            )
        return len(found)

    def _with_gold(self, rows: list[Row], verdicts: list[bool]) -> list[Row]:
        """The rows whose gold answer can be judged; the others are refused, or dropped."""
        faulty = [row for row, verdict in zip(rows, verdicts, strict=True) if not verdict]
        self.counts["unreadable"] += len(faulty)
        if faulty and self.config.unreadable_answers == "refuse":
            row = faulty[0]
            what = "worked-out numbers" if self.config.evaluated_only else "mathematics"
            raise ConfigError(
                f"task.datasets: {len(faulty)} gold answers cannot be read as {what}, such as "
                f"{row.answer[:SHOWN]!r} in {row.place}{f', which {row.fault}' * bool(row.fault)}; "
                "allowed: an answer_pattern that finds the answer, another answer column, or "
                "task.unreadable_answers: drop"
            )
        return [row for row, verdict in zip(rows, verdicts, strict=True) if verdict]

    def order(self, seed: int, epoch: int, whole: bool = False) -> tuple[str, ...]:
        """The ids of the problems that are drawn, in the order of one epoch of one run.

        whole: those that are set aside too.
        """
        key = ("order", self.config.order_seed, seed, epoch)
        if (whole, key) not in self._orders:  # only the newest: a run never returns to an epoch
            drawn = self.problems if whole else self._drawn
            shuffled = sorted(drawn, key=lambda identity: uniform(*key, identity))
            self._orders = {(whole, key): tuple(shuffled)}
        return self._orders[whole, key]

    def training_problems(self, seed: int, step: int, count: int) -> list[DatasetProblem]:
        return self._of_step(seed, step, count)

    def _of_step(
        self, seed: int, step: int, count: int, whole: bool = False
    ) -> list[DatasetProblem]:
        steps = len(self.problems if whole else self._drawn) // count
        epoch, place = divmod(step, steps)
        chosen = self.order(seed, epoch, whole)[place * count : (place + 1) * count]
        return [self.problems[identity] for identity in chosen]

    def held_out(self, count: int) -> list[DatasetProblem]:
        if count > len(self._held_out):
            raise ValueError(f"{count} problems of {len(self._held_out)} that were set aside")
        return [self.problems[identity] for identity in [*self._held_out][:count]]

    def supply(self) -> int:
        return len(self._drawn)

    def texts(self) -> list[str]:
        """Texts of all problems."""
        return [problem.text for problem in self.problems.values()]

    def demonstrations(self, seed: int, step: int, count: int) -> list[tuple[str, str]]:
        problems = self._of_step(seed, step, count, whole=True)
        return [(problem.prompt, problem.solution or "") for problem in problems]

    def rewards(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[float]:
        golds = [problem.answer for problem in problems]
        how = (self.config.boxed_only, self.config.evaluated_only)
        return [float(mark) for mark in self.verifier.grade(golds, responses, *how)]

    def answered(self, responses: Sequence[str]) -> list[bool]:
        return [bool(answers(response, self.config.boxed_only)) for response in responses]

    def provenance(self, seed: int) -> dict:
        """Counts, files with their checksums, and the digest of the first epoch's order."""
        order = hashlib.sha256("\n".join(self.order(seed, 0)).encode()).hexdigest()
        return {
            **self.counts,
            "order_sha256": order,
            "sources": [_describe(source, i) for i, source in enumerate(self.config.datasets)],
        }


def source_rows(source: ProblemSource, field: str) -> list[Row]:
    """The rows of one source as text. Raises ConfigError for one without problem or answer.

    field: the source's place in the configuration, for messages.
    """
    raw = read_rows(
        source.path,
        f"{field}.path",
        subset=source.subset,
        split=source.split,
        file=source.file,
    )
    found = []
    for number, row in enumerate(raw, 1):
        place = f"row {number} of '{source.path}'"
        turns, problem = _question(
            column(row, source.problem, f"{field}.problem", source.path),
            f"{field}.problem: column '{source.problem}' of {place}",
        )
        given = _answer(column(row, source.answer, f"{field}.answer", source.path))
        answer, fault = as_text(given), fault_of(given)
        solution = None
        if worked_out := getattr(source, "solution", None):
            worked = column(row, worked_out, f"{field}.solution", source.path)
            solution = as_text(_answer(worked))
        if source.answer_pattern and fault is None:
            match = re.search(source.answer_pattern, answer)
            if match is None:
                raise ConfigError(
                    f"{field}.answer_pattern: {source.answer_pattern!r} is not in the answer of "
                    f"{place} ({answer[:SHOWN]!r}); allowed: a pattern that matches every answer"
                )
            answer = (match[1] or "").strip()
            fault = fault_of(answer)
        if not problem.strip():
            raise ConfigError(
                f"{field}.problem: column '{source.problem}' holds no text in {place}; allowed: a "
                "column of problem texts"
            )
        found.append(Row(problem, answer, solution, place, turns, fault))
    return found


def _question(value: object, where: str) -> tuple[tuple[Turn, ...], str]:
    """A cell's problem, and what a chat says before it; what it says after it is an answer."""
    chat = read_chat(value, where)
    if chat is None:
        return (), "" if no_text(value) else as_text(value)
    *before, (_, problem) = until_question(chat, where)
    return tuple(before), problem


def _answer(value: Any) -> Any:
    """A chat's last message; any other cell as it is."""
    chat = isinstance(value, list) and value and isinstance(value[-1], dict)
    return read_turn(value[-1], "an answer")[1] if chat and "content" in value[-1] else value


def _describe(source: DataSource, index: int) -> dict:
    local = local_file(source.path, f"task.datasets[{index}].path")
    if local:
        return {"path": source.path, "sha256": sha256(local)}
    return {"path": source.path, "subset": source.subset, "split": source.split}
