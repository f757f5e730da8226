"""A user's own problems as a benchmark: a file, or a dataset of the hub, by its columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vimpo.config import ConfigError, OwnBenchmark, Study
from vimpo.config.task import VerifierLimits
from vimpo.config.texts import Pattern
from vimpo.evaluation.asked import BenchmarkTask
from vimpo.evaluation.benchmarks import load_definition
from vimpo.tasks.dataset import source_rows
from vimpo.tasks.golds import accepted
from vimpo.tasks.prompts import Prompter, unmarked
from vimpo.tasks.verifier import shared_verifier

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class OwnTask(BenchmarkTask):
    """Problems with gold answers, judged by the suite's verifier."""

    def __init__(
        self,
        study: Study,
        name: str,
        spec: OwnBenchmark,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.name, self.spec, self.field = name, spec, f"task.benchmarks.{name}"
        self.samples, self.pass_at = study.samples_of(name), study.evaluation.pass_at
        self.max_response = spec.max_response or study.train.max_response
        self.prompter = Prompter(study.task, tokenizer, spec.prompt)
        self.verifier = shared_verifier(getattr(study.task, "verifier", VerifierLimits()))
        of_training = getattr(study.task, "evaluated_only", False)
        asked = spec.evaluated_only
        self.evaluated_only = of_training if asked is None else asked
        self._rows: list[dict] | None = None

    def definition(self) -> dict:
        shared = self._with_rows_and_marks(load_definition("chain.yaml"))
        return shared | {"doc_to_text": lambda doc: doc["prompt"]}

    def rows(self) -> list[dict]:
        if self._rows is None:
            found = source_rows(self.spec, self.field)
            if self.spec.limit and self.spec.limit > len(found):
                raise ConfigError(
                    f"{self.field}.limit: {self.spec.limit} is more than the {len(found)} problems "
                    f"of the source; allowed: 1 to {len(found)}"
                )
            found = found[: self.spec.limit]
            golds = [row.answer for row in found]
            both = zip(accepted(golds, self.verifier), self.verifier.readable(golds), strict=True)
            right = [own and readable for own, readable in both]
            if self.evaluated_only:
                worked_out = self.verifier.evaluated(golds)
                right = [own and worked_out[g] for own, g in zip(right, golds, strict=True)]
            for row, is_right in zip(found, right, strict=True):
                if row.fault or not is_right:
                    raise ConfigError(
                        f"{self.field}.answer: the gold answer {row.answer[:80]!r} of {row.place} "
                        f"{row.fault or 'cannot be judged by the verifier'}; allowed: a column "
                        "whose answers can be judged, or an answer_pattern that finds them"
                    )
            self._rows = [
                {
                    "prompt": self.prompter(row.problem, row.turns),
                    "problem": row.problem,
                    "answer": row.answer,
                }
                for row in found
            ]
        return self._rows

    def describe(self, doc: dict) -> tuple[str, str]:
        return unmarked(doc["problem"]), doc["answer"]

    def marks(self, doc: dict, responses: Sequence[str]) -> list[bool]:
        golds = [doc["answer"]] * len(responses)
        rule = self.spec.extract
        plain = rule.model_dump() if isinstance(rule, Pattern) else rule
        return self.verifier.grade_by(plain, golds, responses, self.evaluated_only)
