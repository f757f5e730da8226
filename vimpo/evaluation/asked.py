"""What every benchmark of a study is to lm-eval."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from vimpo.evaluation import cut_off
from vimpo.evaluation.estimators import pass_at, pass_name, share_of_right

MEAN = {"aggregation": "mean", "higher_is_better": True}


class BenchmarkTask(ABC):
    """One benchmark of a study as lm-eval is to see it."""

    name: str
    samples: int  # per problem
    max_response: int  # tokens
    stock_metric: str | None = None
    pass_at: Sequence[int] = ()  # k of pass@k
    grades_steps = False

    @abstractmethod
    def definition(self) -> dict:
        """lm-eval's task, without what the study's evaluation settings decide."""

    @abstractmethod
    def rows(self) -> list[dict]:
        """The problems, with the columns that the definition reads. Raises ConfigError."""

    def asked(self) -> list[dict]:
        """The same as lm-eval is to see them."""
        return self.rows()

    @abstractmethod
    def describe(self, doc: dict) -> tuple[str, str]:
        """A problem's text and its gold answer, for the log."""

    @abstractmethod
    def marks(self, doc: dict, responses: Sequence[str]) -> list[bool]:
        """Is each response right?"""

    def judged(self, doc: dict, responses: Sequence[str]) -> list[bool]:
        """The same, but a response that says that it was cut off is wrong."""
        marks = self.marks(doc, [cut_off.unmarked(response) for response in responses])
        ended = [not cut_off.is_cut_off(response) for response in responses]
        return [mark and done for mark, done in zip(marks, ended, strict=True)]

    def scores(self, doc: dict, responses: Sequence[str], marks: Sequence[bool]) -> Sequence[float]:
        """What each response counts in the mean: 1 if it is right, unless a metric says more."""
        return marks

    def stock_marks(self, doc: dict, responses: Sequence[str]) -> list[bool]:
        """Is each response right by the definition's own metric, if it has one?"""
        raise NotImplementedError

    def flawless(self, doc: dict, responses: Sequence[str]) -> list[bool]:
        """Is each response right, and none of its steps wrong? If the task grades steps."""
        raise NotImplementedError

    def prompts(self) -> list[str]:
        """All prompts as lm-eval builds them, shots included."""
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_defaults=False)
        (task,) = manager.load([self.definition() | {"task": self.name}])["tasks"].values()
        shots = task.config.num_fewshot or 0
        return [task.fewshot_context(doc, num_fewshot=shots) for doc in task.test_docs()]

    def _with_rows_and_marks(self, template: dict) -> dict:
        """A definition whose problems and scores are those of this benchmark."""

        def load(**_metadata) -> dict:
            from datasets import Dataset

            return {template["test_split"]: Dataset.from_list(self.asked())}

        def score(doc: dict, results: list[list[str]]) -> dict[str, Any]:
            """avg@k of one problem, whose k responses arrive as one list, and what else is asked"""
            (responses,) = results
            if isinstance(responses, str):
                raise TypeError("score needs all responses to a problem: take_first_k is missing")
            marks, n = self.judged(doc, responses), len(responses)
            texts = [cut_off.unmarked(response) for response in responses]
            values = self.scores(doc, texts, marks)
            ended = [not cut_off.is_cut_off(response) for response in responses]
            counted = [value * done for value, done in zip(values, ended, strict=True)]
            scores: dict[str, Any] = {"accuracy": _share(counted)}
            if self.stock_metric:
                scores["stock"] = _share(self.stock_marks(doc, texts))
            if self.grades_steps:
                right = [text for text, mark in zip(texts, marks, strict=True) if mark]
                scores["flawless"] = (sum(self.flawless(doc, right)), sum(marks))
            passes = {pass_name(k): pass_at(k, n, sum(marks)) for k in self.pass_at if k <= n}
            return scores | passes

        means = ["accuracy", *["stock"] * bool(self.stock_metric), *map(pass_name, self.pass_at)]
        metrics: list[dict] = [{"metric": metric, **MEAN} for metric in means]
        if self.grades_steps:
            metrics.append(
                {"metric": "flawless", "aggregation": share_of_right, "higher_is_better": True}
            )
        return template | {
            "custom_dataset": load,
            "process_results": score,
            "metric_list": metrics,
        }


def _share(marks: Sequence[float]) -> float:
    return sum(marks) / len(marks)
