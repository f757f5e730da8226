"""Prompts of real problems: a template, plain or inside the tokenizer's chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vimpo.config.task import BOXED_PROMPT, PROBLEM, DatasetTask, TaskConfig
from vimpo.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def fill(template: str, problem: str) -> str:
    """The template with the problem filled in; all other braces stay as they are."""
    return template.replace(PROBLEM, problem)


def as_chat(question: str, tokenizer: PreTrainedTokenizerBase, system: str | None = None) -> str:
    """`question` as a user's message that the assistant is about to answer."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": question})
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # templates are programs, which fail in any way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"task.chat_template: the tokenizer's chat template fails ({reason:.200}); allowed: "
            "false, or a model whose template takes these messages"
            + " (task.system: null leaves out the system's)"
            * (system is not None)
        ) from None
    return text  # type: ignore[return-value]  # no overload says: a text unless tokenized


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
        self.template, self.system = template or BOXED_PROMPT, None
        self.chat: PreTrainedTokenizerBase | None = None  # the tokenizer, if prompts are chats
        if not isinstance(task, DatasetTask):
            return
        self.template, self.system = template or task.prompt, task.system
        if task.chat_template:
            if tokenizer is None or tokenizer.chat_template is None:
                raise ConfigError(
                    "task.chat_template: true needs a tokenizer with a chat template, and the "
                    "model's has none; allowed: false, or a model whose tokenizer has one"
                )
            self.chat = tokenizer

    def __call__(self, problem: str) -> str:
        text = fill(self.template, problem)
        return text if self.chat is None else as_chat(text, self.chat, self.system)
