"""A study with two small benchmarks, and the right answers to their problems."""

from __future__ import annotations

from vimpo.config import load_study


def make_study(**evaluation):
    return load_study(
        {
            "task": {
                "benchmarks": {
                    "chain_easy": {"operators": 2, "problems": 14},
                    "chain_hard": {"operators": 4, "problems": 10},
                }
            },
            "train": {"max_response": 24},
            "evaluation": {"samples": 3, "batch_size": 16} | evaluation,
        }
    )


def right_answer(prompt):
    return eval(prompt.removesuffix("="))  # independent of the task's own arithmetic
