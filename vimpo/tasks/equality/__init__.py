r"""Is this answer the gold answer? Equality of two mathematical answers, LaTeX or plain text.

Only :mod:`vimpo.tasks.verifier_worker` calls this, inside a guarded process: sympy may need
unlimited time or memory.

spelling     one spelling for what can be written in many ways
exact        numbers as exact fractions
units        units of measurement and number words
quantities   numbers with words and units
parts        lists, tuples, sets and matrices, taken apart
relations    equations, inequalities and intervals, taken apart
symbolic     everything else, as sympy expressions
comparison   the stages in their order
"""

from __future__ import annotations

import re

from vimpo.tasks.equality import comparison, symbolic
from vimpo.tasks.equality.exact import is_worked_out, number
from vimpo.tasks.equality.parts import group, items, split, unwrapped
from vimpo.tasks.equality.quantities import quantity
from vimpo.tasks.equality.relations import BUILDER, NAME, REALS, RELATIONS, UNION
from vimpo.tasks.equality.spelling import spelled
from vimpo.tasks.equality.units import KNOWN_WORDS

MOST_WORDS = 3  # of a gold answer that is not prose: `2 stuffed goats`


def is_equivalent(gold: str, answer: str) -> bool:
    """Does `answer`, the content of a box, say the same as `gold`?"""
    return comparison.same(unwrapped(spelled(gold)), unwrapped(spelled(answer)))


def is_evaluated(answer: str) -> bool:
    """Is an answer a number that is worked out, maybe with a unit or after `4 + 3 =`?"""
    value = unwrapped(spelled(answer)).rpartition("=")[2].strip()
    if is_worked_out(value):
        return True
    measured = quantity(value)
    return measured is not None and is_worked_out(measured.core)


def is_readable(gold: str) -> bool:
    """Can this gold answer be judged: is it an expression, not prose or a fragment?"""
    text = spelled(gold)
    words = [w for w in re.findall(r'"([^"]*)"', text) if len(w) > 2 and w not in KNOWN_WORDS]
    return comparison.is_empty_set(text) or (
        any(c.isalnum() for c in text) and len(words) <= MOST_WORDS and _readable(unwrapped(text))
    )


def _readable(text: str, depth: int = 0) -> bool:
    """Is a text words, a number, a quantity or an expression, or are all of its parts?"""
    if depth > comparison.DEEPEST or not text:
        return False
    if number(text) is not None or any(
        pattern.fullmatch(text)
        for pattern in (comparison.WORDS, comparison.BASED, NAME, BUILDER, REALS)
    ):
        return True
    whole = group(text)
    parts = whole.items if whole else items(text)
    for separators in (UNION, RELATIONS, frozenset(":")):
        if len(parts) < 2 and not whole:
            parts = split(text, separators)[0]
    if len(parts) > 1 or (whole and parts):
        return all(_readable(part, depth + 1) for part in parts)
    if '"' in text:
        measured = quantity(text)
        core = measured.core if measured else re.sub(r'"[^"]*"', "", text).strip()
        return _readable(core, depth + 1)
    return symbolic.read(text.replace(r"\pm", "+")) is not None
