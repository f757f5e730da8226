r"""Equations, inequalities and intervals, taken apart."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

from vimpo.tasks.equality.exact import number
from vimpo.tasks.equality.parts import group, split

EQUAL = frozenset(["=", r"\approx", r"\in"])
LESS = {"<": False, r"\leq": True}
MORE = {">": "<", r"\geq": r"\leq"}
RELATIONS = EQUAL | LESS.keys() | MORE.keys() | {r"\neq", r"\equiv"}
GREEK = r"\\(?:alpha|beta|gamma|delta|epsilon|theta|lambda|mu|nu|rho|sigma|tau|phi|omega|ell|Delta)"
VARIABLE = re.compile(rf"(?:[A-Za-z]|{GREEK}) ?(?:_ ?(?:\w|\{{[^{{}}]*\}}))?")
# A name: x, a_{n}, f(x), f^{-1}(2), AB, |AB|, (x, y), `area`, m∠ABC
NAME = re.compile(
    rf"(?:m ?)?(?:{VARIABLE.pattern}|\|?[A-Z]{{2,4}}\|?|(?:\"[^\"]*\"[ ()A-Z]*)+)'*"
    r"(?: ?\^ ?\{ ?-1 ?\})?(?: ?\( ?-?[\w\\, {}]{0,20}\))?"
    r"|\((?:[A-Za-z]|\\[a-z]+|_|\d|[, {}])+\)"
)
CALL = re.compile(r"([A-Za-z]) ?\( ?([a-z]) ?\)")
BUILDER = re.compile(r"\\\{ ?\(? ?([A-Za-z]) ?\)? ?(?:\\in ?\\mathbb ?\{? ?R ?\}? ?)?[|:](.*)\\\}")
REALS = re.compile(r"\\mathbb ?\{? ?[RZNQC] ?\}?|\\emptyset")
UNION = frozenset([r"\cup", '"or"', r"\lor", r"\vee"])


class Piece(NamedTuple):
    """An interval: is its low end in it, both ends as texts, is its high end in it."""

    from_low: bool
    low: str
    high: str
    to_high: bool


def relation(text: str) -> tuple[list[str], list[str]]:
    """Sides and signs, `>` turned into `<`; a single side for what is no relation."""
    sides, signs = split(text, RELATIONS)
    if signs and all(sign in MORE for sign in signs):
        return sides[::-1], [MORE[sign] for sign in signs[::-1]]
    return sides, signs


def named(text: str) -> tuple[str, list[str]]:
    r"""Name and values of `x = 2 + 3 = 5`, `x \approx 5` or `x \in \{5\}`; "" if it has no name.

    Neither if it is anything else. A value that another rounds is the only one of the two.
    """
    sides, signs = relation(text)
    if not signs or not set(signs) <= EQUAL or not all(sides):
        return "", []
    name, values = (sides[0], sides[1:]) if NAME.fullmatch(sides[0]) else ("", sides)
    if signs[-1] == r"\approx" and len(values) > 1:
        values.pop()  # said exactly before
    return name, values


def renamed(call: str, body: str, other: str) -> str | None:
    """The body of f(x) = body as one of f(t), the other: x is a dummy. None if it cannot be."""
    mine, theirs = CALL.fullmatch(call), CALL.fullmatch(other)
    if not mine or not theirs or mine[1] != theirs[1] or mine[2] == theirs[2]:
        return None
    if re.search(rf"(?<![a-zA-Z\\]){theirs[2]}(?![a-zA-Z])", body):
        return None  # it would be captured
    return re.sub(rf"(?<![a-zA-Z\\]){mine[2]}(?![a-zA-Z])", theirs[2], body)


def pieces(text: str) -> tuple[str, list[Piece]] | None:
    """Variable ("" if it has none) and intervals of a set of reals; None if it is no such."""
    if match := BUILDER.fullmatch(text):
        return pieces(match[2].strip())
    sides, signs = split(text, frozenset([r"\in"]))
    if signs and VARIABLE.fullmatch(sides[0]) and len(sides) == 2:
        found = pieces(sides[1])
        return found and (sides[0], found[1])
    variables, intervals = set(), []
    for part in split(text, UNION)[0]:
        one = _intervals(part)
        if one is None:
            return None
        variables.add(one[0])
        intervals += one[1]
    return (variables.pop(), intervals) if len(variables) == 1 else None


def _intervals(text: str) -> tuple[str, list[Piece]] | None:
    low, high = r"-\infty", r"\infty"
    compact = text.replace(" ", "")
    if compact in (r"\mathbb{R}", r"\mathbbR"):
        return "", [Piece(False, low, high, False)]
    if match := re.fullmatch(
        r"\\mathbb\{?R\}?(?:\\setminus|\\backslash|-|\\)(\\\{.*\\\})", compact
    ):
        points = group(match[1])
        return ("", _without(points.items)) if points else None
    whole = group(text)
    if whole and len(whole.items) == 2 and whole.opened in "([" and whole.closed in ")]":
        start, end = whole.items
        return "", [_piece(whole.opened == "[", start, end, whole.closed == "]")]
    sides, signs = relation(text)
    if signs == [r"\neq"] and VARIABLE.fullmatch(sides[0]):
        return sides[0], _without(sides[1:])
    if not signs or not set(signs) <= LESS.keys() or not all(sides):
        return None
    closed = [LESS[sign] for sign in signs]
    if len(sides) == 3 and VARIABLE.fullmatch(sides[1]):
        return sides[1], [_piece(closed[0], sides[0], sides[2], closed[1])]
    if len(sides) == 2 and VARIABLE.fullmatch(sides[0]) and not VARIABLE.fullmatch(sides[1]):
        return sides[0], [_piece(False, low, sides[1], closed[0])]
    if len(sides) == 2 and VARIABLE.fullmatch(sides[1]):
        return sides[1], [_piece(closed[0], sides[0], high, False)]
    return None


def _piece(from_low: bool, low: str, high: str, to_high: bool) -> Piece:
    return Piece(from_low and "infty" not in low, low, high, to_high and "infty" not in high)


def _without(points: list[str]) -> list[Piece]:
    """The real numbers but for some points, which are put in order if they are plain numbers."""
    if None not in map(number, points):
        points = sorted(points, key=lambda point: number(point) or 0)
    ends = [r"-\infty", *points, r"\infty"]
    return [Piece(False, low, high, False) for low, high in pairwise(ends)]
