r"""Where an answer falls apart: its lists, tuples, sets, intervals and relations.

Everything is split at the top level only, never inside brackets, braces or environments.
"""

from __future__ import annotations

import re
from typing import NamedTuple

TOKEN = re.compile(r'"[^"]*"|\\(?:begin|end)\{\w+\*?\}|\\[A-Za-z]+|\\.|\s+|.', re.DOTALL)
OPEN = {
    "(": ")",
    "[": "]",
    "{": "}",
    r"\{": r"\}",
    r"\langle": r"\rangle",
    r"\lfloor": "",
    r"\lceil": "",
}
CLOSE = frozenset([")", "]", "}", r"\}", r"\rangle", r"\rfloor", r"\rceil"])
COMMAS = frozenset([",", ";", r"\\", '"and"', '"or"', '"And"', '"Or"'])
MATRIX = re.compile(r"\\begin\{([pbB]?matrix|array)\}(?:\{[^{}]*\})?(.*)\\end\{\1\}")


class Group(NamedTuple):
    """A bracketed sequence: `(1, 2]` is opened by `(`, closed by `]`, and has two items."""

    opened: str
    closed: str
    items: list[str]


def split(text: str, separators: frozenset[str]) -> tuple[list[str], list[str]]:
    """The pieces between separators at the top level, and the separators."""
    pieces, found, depth = [""], [], 0
    for token in TOKEN.findall(text):
        if token in OPEN or token.startswith(r"\begin"):
            depth += 1
        elif token in CLOSE or token.startswith(r"\end"):
            depth -= 1
        if depth == 0 and token in separators:
            pieces.append("")
            found.append(token)
        else:
            pieces[-1] += token
    return [piece.strip() for piece in pieces], found


def items(text: str) -> list[str]:
    """The members of a bare list: `1, 2 "and" 3` -> 1, 2, 3; one that is empty is left out."""
    return [piece for piece in split(text, COMMAS)[0] if piece]


def group(text: str) -> Group | None:
    """The tuple, set or interval that a text as a whole is; a column is a tuple."""
    if match := MATRIX.fullmatch(text):
        rows = [row for row in split(match[2], frozenset([r"\\"]))[0] if row]
        cells = [split(row, frozenset("&"))[0] for row in rows]
        if all(len(row) == 1 for row in cells):
            return Group("(", ")", [row[0] for row in cells])
        return Group("matrix", "", [f"({','.join(row)})" for row in cells])
    found = [token for token in TOKEN.findall(text) if not token.isspace()]
    if len(found) < 2 or found[0] not in OPEN or found[-1] not in CLOSE:
        return None
    depth = 0
    for i, token in enumerate(found):
        depth += (token in OPEN) - (token in CLOSE)
        if depth == 0 and i < len(found) - 1:
            return None
    inside = text[len(found[0]) : len(text) - len(found[-1])].strip()
    opened, closed = found[0], found[-1]
    if opened == r"\langle":
        opened, closed = "(", ")"
    return Group(opened, closed, items(inside))


def unwrapped(text: str) -> str:
    """Without braces or parentheses around a single whole."""
    while (whole := group(text)) and whole.opened in "({" and len(whole.items) == 1:
        if whole.closed not in ")}" or text[:1] not in ("(", "{"):
            break
        text = text[1:-1].strip()
    return text
