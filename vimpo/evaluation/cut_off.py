"""How a response's text says that it was cut off at its limit: by a character at its end.

The character is one of those that Unicode reserves for use inside a program, and never a text's.
"""

from __future__ import annotations

CUT_OFF = "\ufdd0"
UNKNOWN = "\ufffd"  # stands for what a model writes of it


def marked(text: str) -> str:
    """The text of a response that was cut off."""
    return text.replace(CUT_OFF, UNKNOWN) + CUT_OFF


def unmarked(text: str) -> str:
    return text.removesuffix(CUT_OFF)


def is_cut_off(text: str) -> bool:
    return text.endswith(CUT_OFF)
