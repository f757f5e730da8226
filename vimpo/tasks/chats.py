"""Chats as data: lists of messages with a role and a content, as columns of datasets hold them."""

from __future__ import annotations

from typing import Any

from vimpo.errors import ConfigError

Turn = tuple[str, str]  # role and text

# The other common way to write messages, {from: human, value: ...}.
ROLES = {"human": "user", "gpt": "assistant"}


def read_chat(value: Any, where: str) -> list[Turn] | None:
    """The turns of a list of messages, or of a single one; None for anything else.

    Raises ConfigError for objects that are no messages, and for contents that are no text.
    """
    messages = [value] if isinstance(value, dict) else value
    if not isinstance(messages, list) or not any(isinstance(m, dict) for m in messages):
        return None
    return [read_turn(message, where) for message in messages]


def until_question(turns: list[Turn], where: str) -> list[Turn]:
    """The turns up to the last of a user, which is what the model is to answer.

    Raises ConfigError if no turn is a user's.
    """
    asked = [i for i, (role, _) in enumerate(turns) if role == "user"]
    if not asked:
        raise ConfigError(
            f"{where} holds a chat without a user's turn; allowed: text, or messages of which the "
            "last of role `user` is the problem"
        )
    return turns[: asked[-1] + 1]


def read_turn(message: Any, where: str) -> Turn:
    """A message without a role is a user's. Raises ConfigError if it is none, or holds no text."""
    content = None
    if isinstance(message, dict):
        content = message.get("content", message.get("value"))
        role = str(message.get("role", message.get("from", "user")))
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        content = "".join(texts) if len(texts) == len(parts) else None
    if not isinstance(content, str):
        raise ConfigError(
            f"{where} holds {str(message)[:100]!r}, which is neither text nor a message of text; "
            "allowed: text, or messages {role, content}"
        )
    return ROLES.get(role, role), content
