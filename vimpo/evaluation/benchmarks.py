r"""Benchmarks in lm-eval's format: what each asks, where its problems are, how it is judged.

Generated chains come from chain.yaml. Published ones (vimpo/config/benchmarks.py) are built on
lm-eval's own definitions, or on ours in the same format if it has none. Two styles: `stock` keeps
the definition's prompt, shots and stop texts; `boxed` asks zero-shot for a `\boxed{}` answer with
the prompt of training. Both are judged by the suite's verifier, which finds 025 equal to 25; the
stock style also reports the definition's own metric (minerva_math500: `math_verify`; aime:
`exact_match`, which compares texts).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vimpo.config import (
    ConfigError,
    GymBenchmark,
    OwnBenchmark,
    RealBenchmark,
    RegisteredBenchmark,
    Study,
)
from vimpo.config.task import VerifierLimits
from vimpo.evaluation.asked import BenchmarkTask
from vimpo.tasks.answers import last_boxed
from vimpo.tasks.chain import Problem, grade_steps, held_out_problems, is_right
from vimpo.tasks.golds import accepted, as_text, fault_of, no_text
from vimpo.tasks.prompts import Prompter, unmarked
from vimpo.tasks.sources import column, local_file, read_rows
from vimpo.tasks.steps import flawless_among
from vimpo.tasks.verifier import shared_verifier

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OURS = Path(__file__).parent / "definitions"


def benchmark_task(
    study: Study, name: str, tokenizer: PreTrainedTokenizerBase | None = None
) -> BenchmarkTask:
    """The named benchmark. Raises ConfigError if its prompts cannot be built."""
    spec = study.task.benchmarks[name]
    if isinstance(spec, RealBenchmark):
        return RealTask(study, name, spec, tokenizer)
    if isinstance(spec, OwnBenchmark):  # these modules read definitions by this one
        from vimpo.evaluation.own import OwnTask

        return OwnTask(study, name, spec, tokenizer)
    if isinstance(spec, GymBenchmark):
        from vimpo.evaluation.gym import GymBenchmarkTask

        return GymBenchmarkTask(study, name, spec, tokenizer)
    if isinstance(spec, RegisteredBenchmark):
        from vimpo.evaluation.registered import RegisteredTask

        return RegisteredTask(study, name, spec)
    return ChainBenchmarkTask(study, name)


def needs_hub(study: Study, names: Sequence[str]) -> bool:
    """Does one of the benchmarks come from the hub, and not from a file or a generator?"""
    specs = [study.task.benchmarks[name] for name in names]
    # Where the problems of lm-eval's own tasks are, only their definitions say.
    return any(isinstance(spec, RegisteredBenchmark) for spec in specs) or any(
        isinstance(spec, RealBenchmark | OwnBenchmark)
        and not (spec.path and local_file(spec.path, "path"))
        for spec in specs
    )


class ChainBenchmarkTask(BenchmarkTask):
    """Held-out arithmetic chains."""

    grades_steps = True

    def __init__(self, study: Study, name: str) -> None:
        self.name, self.task = name, study.task
        self.samples, self.pass_at = study.evaluation.samples, study.evaluation.pass_at
        self.max_response = study.train.max_response

    def definition(self) -> dict:
        return self._with_rows_and_marks(load_definition("chain.yaml"))

    def rows(self) -> list[dict]:
        problems = held_out_problems(self.task, self.name)
        return [{"prompt": problem.prompt, "answer": problem.answer} for problem in problems]

    def prompts(self) -> list[str]:
        return [row["prompt"] for row in self.rows()]

    def describe(self, doc: dict) -> tuple[str, str]:
        return doc["prompt"], doc["answer"]

    def marks(self, doc: dict, responses: Sequence[str]) -> list[bool]:
        return [is_right(doc["answer"], response) for response in responses]

    def flawless(self, doc: dict, responses: Sequence[str]) -> list[bool]:
        problems = [Problem(doc["prompt"], doc["answer"])] * len(responses)
        right = [float(mark) for mark in self.marks(doc, responses)]
        return [mark > 0 for mark in flawless_among(grade_steps, problems, responses, right)]


class RealTask(BenchmarkTask):
    """A published benchmark."""

    def __init__(
        self,
        study: Study,
        name: str,
        spec: RealBenchmark,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.name, self.spec = name, spec
        self.field = f"task.benchmarks.{name}"
        self.samples, self.pass_at = study.samples_of(name), study.evaluation.pass_at
        self.max_response = self.spec.max_response or study.train.max_response
        self.prompter = Prompter(study.task, tokenizer, self.spec.prompt)
        self.verifier = shared_verifier(getattr(study.task, "verifier", VerifierLimits()))
        self.boxed_only = self.spec.style == "boxed" and getattr(study.task, "boxed_only", True)
        self.published = self.spec.published
        self.stock_metric = self.published.stock_metric if self.spec.style == "stock" else None
        self._rows: list[dict] | None = None

    def definition(self) -> dict:
        shared = self._with_rows_and_marks(load_definition(self.published.definition))
        for key in ("tag", "filter_list", "dataset_kwargs"):
            shared.pop(key, None)
        if self.stock_metric:
            return shared
        for key in ("fewshot_config", "process_docs", "training_split", "fewshot_split"):
            shared.pop(key, None)
        prompter, question, gold = self.prompter, self.published.question, self.gold
        return shared | {
            "num_fewshot": 0,
            "doc_to_text": lambda doc: prompter(doc[question]),
            "doc_to_target": lambda doc: gold(doc),
        }

    def rows(self) -> list[dict]:
        if self._rows is None:
            stock = load_definition(self.published.definition)
            source, field = self.spec.path or stock["dataset_path"], f"{self.field}.path"
            raw = read_rows(
                source,
                field,
                subset=None if self.spec.path else stock.get("dataset_name"),
                split=self.spec.split or stock["test_split"],
            )
            if self.spec.limit and self.spec.limit > len(raw):
                raise ConfigError(
                    f"{self.field}.limit: {self.spec.limit} is more than the {len(raw)} problems "
                    f"of the source; allowed: 1 to {len(raw)}"
                )
            found = [
                {name: column(row, name, field, source) for name in self.spec.columns}
                for row in raw[: self.spec.limit]
            ]
            # All as text: lm-eval's data sets take one type per column.
            rows = [{name: as_text(value) for name, value in row.items()} for row in found]
            self._check(found, rows)
            self._rows = rows
        return self._rows

    def _check(self, found: list[dict], rows: list[dict]) -> None:
        """Raise ConfigError for a problem without text, and for a gold that cannot be judged.

        found: cells as the source has them; rows: the same as text.
        """
        question, answer = self.published.question, self.published.answer
        golds = [self.gold(row) for row in rows]
        right = accepted(golds, self.verifier)
        for i, (cells, row, gold) in enumerate(zip(found, rows, golds, strict=True)):
            if no_text(cells[question]) or not row[question].strip():
                raise ConfigError(
                    f"{self.field}: column '{question}' holds no text in row {i + 1}; allowed: a "
                    "source of problems"
                )
            fault = fault_of(cells[answer] if gold == row[answer] else gold)
            # Some published answers are prose, of which only the same text is right.
            if fault or not right[i]:
                raise ConfigError(
                    f"{self.field}: the gold answer {gold[:80]!r} of row {i + 1} "
                    f"{fault or 'is not accepted as its own answer'}; allowed: a source whose "
                    "answers can be judged"
                )

    def gold(self, doc: dict) -> str:
        """The gold answer of a problem."""
        row, answer = self.published, doc[self.published.answer]
        if row.stock_solution and self.stock_metric:
            return last_boxed(doc[row.stock_solution]) or answer
        if row.answer_mark:
            return answer.rpartition(row.answer_mark)[2].strip().replace(",", "")
        return answer

    def asked(self) -> list[dict]:
        question = self.published.question
        return [row | {question: self.prompter.as_text(row[question])} for row in self.rows()]

    def describe(self, doc: dict) -> tuple[str, str]:
        return unmarked(doc[self.published.question]), self.gold(doc)

    def marks(self, doc: dict, responses: Sequence[str]) -> list[bool]:
        golds = [self.gold(doc)] * len(responses)
        return self.verifier.grade(golds, responses, self.boxed_only)

    def stock_marks(self, doc: dict, responses: Sequence[str]) -> list[bool]:
        if self.stock_metric is None:
            return super().stock_marks(doc, responses)
        utilities = _definition_file(self.published.definition).with_name("utils.py")
        return self.verifier.stock(str(utilities), self.stock_metric, doc, responses)


def _definition_file(name: str) -> Path:
    """A definition of ours (or one given by its whole path); else one that lm-eval ships."""
    if (ours := OURS / name).is_file():
        return ours
    package = importlib.util.find_spec("lm_eval")
    if package is None or package.submodule_search_locations is None:
        raise ModuleNotFoundError("lm-eval is not installed", name="lm_eval")
    (folder,) = package.submodule_search_locations
    return Path(folder) / "tasks" / name


def load_definition(name: str) -> dict:
    """A definition of ours (or one given by its whole path), or one that lm-eval ships."""
    from lm_eval.tasks._yaml_loader import load_yaml

    return load_yaml(_definition_file(name))
