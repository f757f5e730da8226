"""The functions that chain.yaml names: problems in, marks out."""

from __future__ import annotations

from datasets import Dataset

from vimpo.config import ChainTask
from vimpo.tasks.chain import held_out_problems, is_right


def load(benchmark: str, chain: dict, **_metadata) -> dict[str, Dataset]:
    """The problems of one benchmark. Both arguments come from the task's metadata."""
    problems = held_out_problems(ChainTask.model_validate(chain), benchmark)
    rows = [{"prompt": problem.prompt, "answer": problem.answer} for problem in problems]
    return {"test": Dataset.from_list(rows)}


def score(doc: dict, results: list[list[str]]) -> dict[str, float]:
    """avg@k of one problem: the share of its k responses that are right.

    The k responses arrive as one list, because the task's filter is take_first_k; with lm-eval's
    default filter this would be the first response, whose characters are no responses.
    """
    (responses,) = results
    if isinstance(responses, str):
        raise TypeError("score needs the k responses of a problem; the task lacks take_first_k")
    marks = [is_right(doc["answer"], response) for response in responses]
    return {"accuracy": sum(marks) / len(marks)}
