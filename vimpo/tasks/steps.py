"""Which tokens of a response belong to which graded step."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias, cast

import numpy as np

from vimpo.tasks.chain import Step

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vimpo.tasks import Problem

# Grades the steps of a response to a problem.
Grader: TypeAlias = "Callable[[Problem, str], list[Step]]"
NO_STEP = -1


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of one response, without special tokens."""
    # A list of strings only for a batch.
    return cast(str, tokenizer.decode(list(ids), skip_special_tokens=True))


def token_spans(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[tuple[int, int]]:
    """Characters [start, end) of each token in the decoded response; empty for special tokens.

    Tokens are decoded one by one if the pieces join to the whole text, else prefix by prefix, for
    tokenizers whose pieces depend on their neighbours.
    """

    def decode(part: Sequence[int]) -> str:
        return decoded(tokenizer, part)

    pieces = {token: decode([token]) for token in set(ids)}
    if "".join(pieces[token] for token in ids) == decode(ids):
        ends = np.cumsum([len(pieces[token]) for token in ids]).tolist()
    else:
        ends = [len(decode(ids[: i + 1])) for i in range(len(ids))]
        # An unfinished character is a placeholder that may shrink; offsets must never decrease.
        ends = np.minimum.accumulate(ends[::-1])[::-1].tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def step_tokens(steps: Sequence[Step], spans: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Tokens of each step: those that share a character with it.

    A step without characters was decided by the token in its place: the separator, or EOS. It has
    no token if the response was cut off there.
    """
    starts = [start for start, _ in spans]
    found = []
    for step in steps:
        if step.start < step.end:
            shared = [
                i for i, (start, end) in enumerate(spans) if start < step.end and end > step.start
            ]
        else:
            first = bisect.bisect_left(starts, step.start)
            shared = [first] if first < len(spans) else []
        found.append(shared)
    return found


def flawless_among(
    grade_steps: Grader | None,
    problems: Sequence[Problem],
    texts: Sequence[str],
    right: Sequence[float],
) -> list[float]:
    """1 for each right response without a wrong step, else 0; 0 for all if nothing grades steps."""
    if grade_steps is None:
        return [0.0] * len(right)
    return [
        float(mark > 0 and all(step.right for step in grade_steps(problem, text)))
        for problem, text, mark in zip(problems, texts, right, strict=True)
    ]


def graded_tokens(
    steps: Sequence[Step], spans: Sequence[tuple[int, int]], right: bool
) -> tuple[list[int], list[float]]:
    """Step index and grade (1 right, 0 wrong) of every token of a response, for training on them.

    Every token has a step. A separator belongs to the step that it opens: to open one, and of which
    kind, is a decision that the step's grade judges. What follows the last step, the end of the
    response, is a step of its own, right if the response is: a response that stops before its
    answer has no wrong step otherwise. A token of two steps counts for the later.
    """
    index = [NO_STEP] * len(spans)
    for i, tokens in enumerate(step_tokens(steps, spans)):
        for token in tokens:
            index[token] = i
    following = len(steps)
    for token in reversed(range(len(spans))):
        if index[token] == NO_STEP:
            index[token] = following
        following = index[token]
    grades = [*(float(step.right) for step in steps), float(right)]
    return index, [grades[i] for i in index]
