"""The registry of published benchmarks: one row per benchmark, read wherever one is named.

To add a benchmark, add a row; if lm-eval has no task for it, also put a YAML file in lm-eval's
format into vimpo/evaluation/definitions. That file says where the problems are on the hub.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """What the suite must know of a published benchmark.

    definition: a file in vimpo/evaluation/definitions, or else one below lm_eval/tasks.
    problems: how many it has; samples: k of avg@k unless a study says otherwise (the paper's k).
    question, answer: columns of the published files.
    stock_metric: the metric that lm-eval's own task scores by; None if there is no stock style.
    stock_solution: column of the worked solution, if the stock style finds its gold answer there.
    answer_mark: the text before the gold answer, a number, if its column holds more than that.
    """

    definition: str
    problems: int
    samples: int
    question: str
    answer: str
    stock_metric: str | None = None
    stock_solution: str | None = None
    answer_mark: str | None = None


BENCHMARKS = {
    "math500": Published(
        definition="minerva_math/minerva_math500.yaml",
        problems=500,
        samples=1,
        question="problem",
        answer="answer",
        stock_metric="math_verify",
        stock_solution="solution",  # the stock definition normalises `answer`
    ),
    "aime24": Published(
        definition="aime/aime24.yaml",
        problems=30,
        samples=32,
        question="Problem",
        answer="Answer",
        stock_metric="exact_match",
    ),
    "aime25": Published(
        definition="aime/aime25.yaml",
        problems=30,
        samples=32,
        question="problem",
        answer="answer",
        stock_metric="exact_match",
    ),
    "olympiadbench": Published(
        definition="olympiadbench.yaml",
        problems=675,
        samples=1,
        question="question",
        answer="final_answer",
    ),
    "amc23": Published(
        definition="amc23.yaml",
        problems=40,
        samples=32,  # as AIME; the paper does not use it
        question="question",
        answer="answer",
    ),
    "gsm8k": Published(
        definition="gsm8k/gsm8k.yaml",
        problems=1319,
        samples=1,
        question="question",
        answer="answer",
        answer_mark="####",
    ),
}


def with_stock_style() -> list[str]:
    """The benchmarks that can be scored by lm-eval's own prompt and metric as well."""
    return [name for name, row in BENCHMARKS.items() if row.stock_metric]
