"""Numbers with words: `negative 5`, `2 million`, `5 cm`, `seven goats`, `9 percent`."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from vimpo.tasks.equality.units import (
    CHANGING,
    FILLERS,
    MULTIPLES,
    NUMBERS,
    SIGNS,
    UNITS,
    number_of,
    unit_of,
)

FIRST = re.compile(r'\s*"([^"]*)"\s*')
LAST = re.compile(r'\s*(/?)\s*"([^"]*)"\s*(?:\^ ?\{? ?(-?[1-9]) ?\}?)?\s*$')
CURRENCIES = frozenset(
    name for name, (kind, _) in UNITS.items() if kind.startswith(("dollar", "mon"))
)


class Quantity(NamedTuple):
    """`factor` times `core`, in units of `size`; `unit` has the power of every dimension."""

    core: str
    factor: Fraction
    size: Fraction
    unit: dict[str, int]
    percent: bool


def quantity(text: str) -> Quantity | None:
    """What a spelled answer measures; None if its words do more than that."""
    first: list[str] = []
    last: list[tuple[str, int]] = []
    while match := FIRST.match(text):
        first += re.split(r"[\s-]", match[1].lower())
        text = text[match.end() :]
    while match := LAST.search(text):
        power = int(match[3] or 1) * (-1 if match[1] else 1)
        last.insert(0, (match[2] if len(match[2]) < 3 else match[2].lower(), power))
        text = text[: match.start()]
    core = re.sub(r"^(?:\\approx|[:=]) ?", "", text.strip())
    factor = Fraction(1)
    while first and (first[0] in FILLERS or first[0] in SIGNS):
        factor *= SIGNS.get(first.pop(0), 1)
    if not core:  # the number is a word as well
        count = next((i for i, w in enumerate(first) if w not in NUMBERS | MULTIPLES), len(first))
        number = number_of(first[:count])
        if number is None:
            return None
        core, last, first = str(number), [(word, 1) for word in first[count:]] + last, []
    while last and last[0][0] in MULTIPLES:
        factor *= MULTIPLES[last.pop(0)[0]]
    percent = bool(last) and last[-1][0] == "percent"
    words = [(word, 1) for word in first] + (last[:-1] if percent else last)
    said = any(word == "is" for word, _ in last)  # `5 is too large` is a sentence about 5
    if '"' in core or said or not set(first) <= CURRENCIES or any(map(_changes, words)):
        return None
    return Quantity(core, factor, *unit_of(words), percent)


def _changes(word: tuple[str, int]) -> bool:
    """Does a word after a number make it another one: `3 squared`, `5 sixths`, `44 BC`?"""
    name = word[0]
    if name in UNITS:
        return False
    return name.lower() in CHANGING or name.endswith("ths") or (len(name) == 1 and name.islower())


def compatible(one: dict[str, int], other: dict[str, int]) -> bool:
    """Do two units agree? An unknown one, such as `stuffed goats`, may say more than the other."""
    if not one or not other:
        return True
    known = {dimension for dimension, _ in UNITS.values()}
    if (one.keys() | other.keys()) & known:
        return one == other
    return one.items() <= other.items() or other.items() <= one.items()
