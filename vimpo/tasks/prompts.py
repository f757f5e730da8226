"""Prompts of real problems, and the one way in which all stages turn prompts into tokens.

A prompt is a text. What a problem spells like a control token (`</s>`) is marked in it by invisible
characters, so that `encode` reads it as text and only what a template writes as control tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from vimpo.config.task import TaskConfig, TextTask
from vimpo.config.texts import BOXED_PROMPT, PROBLEM
from vimpo.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vimpo.tasks.chats import Turn

# Those of transformers.utils.chat_template_utils, whose functions put them in and read them.
START, END = "\U000f0000", "\U000f0001"
# A message's content is a text for most chat templates, and a list of parts for others.
CONTENTS: tuple[Callable[[str], object], ...] = (
    lambda text: text,
    lambda text: [{"type": "text", "text": text}],
)


# --- from prompts to tokens -----------------------------------------------------------------------


def encode(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], keep: int | None = None
) -> list[list[int]]:
    """Tokens of whole prompts, the same in training, evaluation, probes and checks.

    They start as the tokenizer starts a text, usually with BOS or nothing, once even if the prompt
    says so itself, and have nothing added at their end, where the response goes on. keep: how many
    of the last tokens to keep; default: all.
    """
    start = opening(tokenizer)
    found = tokenizer(list(prompts), add_special_tokens=False)["input_ids"] if prompts else []
    for i, prompt in enumerate(prompts):
        if START in prompt:
            found[i] = _encode_marked(tokenizer, prompt)
    whole = [list(ids) if ids[: len(start)] == start else [*start, *ids] for ids in found]
    return whole if keep is None else [ids[-keep:] for ids in whole]


def check_room(max_prompt: int, room: int | None) -> None:
    """Raise ConfigError if prompts may be longer than the `room` that a model has for them."""
    if room is not None and max_prompt > room:
        raise ConfigError(
            f"task.max_prompt: {max_prompt} leaves no room for train.max_response in the model's "
            f"positions; allowed: 1 to {room}"
        )


def opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that the tokenizer puts before any text."""
    plain = tokenizer("0", add_special_tokens=False)["input_ids"]
    whole = tokenizer("0")["input_ids"]
    places = range(len(whole) - len(plain) + 1)
    found = next((i for i in places if whole[i : i + len(plain)] == plain), 0)
    return list(whole[:found])


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokens of a worked solution, which holds no special tokens, with nothing added."""
    text = marked(text, control_tokens(tokenizer, ""))
    if START in text:
        return _encode_marked(tokenizer, text)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _encode_marked(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    from transformers.utils.chat_template_utils import encode_marked_chat

    try:
        return encode_marked_chat(tokenizer, prompt)
    except ValueError:
        # The vocabulary's pieces include this token. A mark inside it keeps it from being whole.
        broken = re.sub(f"{START}(.)", rf"\1{START}", prompt, flags=re.DOTALL)
        return encode_marked_chat(tokenizer, broken)


def control_tokens(tokenizer: PreTrainedTokenizerBase, template: str) -> re.Pattern:
    """Matches special tokens, and whatever other added tokens a chat template writes."""
    found = {
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special or (token.content in template and not token.content.isspace())
    }
    found.update(tokenizer.all_special_tokens)  # not all of them are always called special
    longest_first = sorted(found - {""}, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def marked(text: str, control: re.Pattern) -> str:
    """The same with marks around what only looks like control tokens; marking twice is once."""
    from transformers.utils.chat_template_utils import mark_control_tokens

    return mark_control_tokens(text, control)


def unmarked(text: str) -> str:
    """The text without marks, for people."""
    return text.replace(START, "").replace(END, "")


# --- from problems to prompts ---------------------------------------------------------------------


def fill(template: str, problem: str) -> str:
    """The template with the problem filled in; all other braces stay as they are."""
    return template.replace(PROBLEM, problem)


def as_chat(turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase) -> str:
    """The turns, the last of them a user's, as a chat that the assistant is about to continue.

    Raises ConfigError if the chat template fails, or leaves out what one of them says.
    """
    faults = []
    for content in CONTENTS:
        messages: list[Any] = [{"role": role, "content": content(text)} for role, text in turns]
        try:
            chat = str(
                tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            )
        except Exception as error:  # a template may fail in any way, as any program may
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            faults.append(f"fails: {reason}")
            continue
        lost = [turn for turn, m in zip(turns, messages, strict=True) if not _says(chat, turn, m)]
        if not lost:
            return chat
        ((role, text), *_) = lost
        faults.append(f"leaves out what the {role} says ({unmarked(text)!r:.80})")
    raise ConfigError(
        f"task.chat_template: the chat template of the model's tokenizer {faults[0]}; allowed: "
        "false, or a template that writes every message's text"
    )


def _says(chat: str, turn: Turn, message: dict[str, Any]) -> bool:
    """Does the chat hold the turn's text, and not only as part of an object written out?"""
    objects = message["content"] if isinstance(message["content"], list) else []
    written = [form(part) for part in objects for form in (str, json.dumps)]
    return turn[1].strip() in chat and not any(text in chat for text in written)


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
        self._control: re.Pattern | None = None
        if tokenizer is not None:
            self._control = control_tokens(tokenizer, str(tokenizer.chat_template or ""))
        if not isinstance(task, TextTask):
            return
        self.template, self.system = template or task.prompt, task.system
        if task.chat_template:
            if tokenizer is None or tokenizer.chat_template is None:
                raise ConfigError(
                    "task.chat_template: true needs a tokenizer with a chat template, and the "
                    "model's has none; allowed: false, or a model whose tokenizer has one"
                )
            self.chat = tokenizer

    def as_text(self, text: str) -> str:
        """A problem's words, which `encode` reads as text whatever they spell."""
        return text if self._control is None else marked(text, self._control)

    def __call__(self, problem: str, turns: Sequence[Turn] = ()) -> str:
        """turns: what comes before the problem if the data holds whole chats.

        Without a chat template their texts are paragraphs before the problem. Raises ConfigError
        for two system turns, and if the chat template leaves a turn out.
        """
        before = [(role, self.as_text(text)) for role, text in turns]
        problem = self.as_text(problem)
        if self.chat is None:
            return fill(self.template, "\n\n".join([*(text for _, text in before), problem]))
        if self.system is not None:
            if any(role == "system" for role, _ in before):
                raise ConfigError(
                    f"task.system: {self.system!r:.80} is a second system turn for data that has "
                    "its own; allowed: null"
                )
            before.insert(0, ("system", self.system))
        return as_chat([*before, ("user", fill(self.template, problem))], self.chat)
