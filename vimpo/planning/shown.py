"""What `check` shows of a model and its data: one prompt, the ends of responses, and warnings."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from vimpo.tasks.prompts import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prompt_lines(size: str, tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[str]:
    """A prompt as the model reads it: decoded from its tokens."""
    (ids,) = encode(tokenizer, [prompt])
    text = str(tokenizer.decode(ids))
    return [f"{size}: a prompt of {len(ids)} tokens:", *(f"  | {x}" for x in text.split("\n"))]


def ends_line(size: str, tokenizer: PreTrainedTokenizerBase, ends: Iterable[int]) -> str:
    """The tokens that end a response, by text and number."""
    named = ", ".join(f"{tokenizer.convert_ids_to_tokens(i)} ({i})" for i in ends)
    return f"{size}: responses end at {named}"


def unwritten(tokenizer: PreTrainedTokenizerBase, prompt: str, problem: str) -> bool:
    """Do letters or digits of the problem get lost between the prompt and its tokens?"""
    (ids,) = encode(tokenizer, [prompt])
    return _letters(problem) not in _letters(str(tokenizer.decode(ids)))


def shared_problems(
    training: Iterable[str], benchmarks: Mapping[str, Iterable[str]]
) -> dict[str, tuple[int, int]]:
    """Benchmarks that share problems with training: how many of how many, spaces and case aside."""
    trained = set(map(_plain, training))
    counts = {}
    for name, problems in benchmarks.items():
        asked = [_plain(problem) for problem in problems]
        if found := sum(problem in trained for problem in asked):
            counts[name] = found, len(asked)
    return counts


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _letters(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())
