"""Prompts of real problems: a template, plain or inside the tokenizer's chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from vimpo.config.task import BOXED_PROMPT, PROBLEM, TaskConfig
from vimpo.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def fill(template: str, problem: str) -> str:
    """The template with the problem filled in; all other braces stay as they are."""
    return template.replace(PROBLEM, problem)


def as_chat(text: str, tokenizer: PreTrainedTokenizerBase, system: str | None = None) -> str:
    """`text` as a user's message that the assistant is about to answer."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": text})
    found = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return cast(str, found)  # as `tokenize=False` says


class Prompter:
    """Problem -> prompt, by the settings of a task.

    Raises ConfigError if a chat is asked for and the tokenizer has no chat template.
    """

    def __init__(
        self,
        task: TaskConfig,
        tokenizer: PreTrainedTokenizerBase | None,
        template: str | None = None,
    ) -> None:
        self.template: str = template or str(getattr(task, "prompt", BOXED_PROMPT))
        self.chat = getattr(task, "chat_template", False)
        self.system = getattr(task, "system", None)
        self.tokenizer = tokenizer
        if self.chat and getattr(tokenizer, "chat_template", None) is None:
            raise ConfigError(
                "task.chat_template: true needs a tokenizer with a chat template, and the model's "
                "has none; allowed: false, or a model whose tokenizer has one"
            )

    def __call__(self, problem: str) -> str:
        text = fill(self.template, problem)
        if not self.chat or self.tokenizer is None:
            return text
        return as_chat(text, self.tokenizer, self.system)
