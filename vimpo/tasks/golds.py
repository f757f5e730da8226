"""Gold answers: cells of a dataset as text, and what cannot be a gold answer.

A gold that means nothing must not reach the verifier: null as text would be the word `None`, and a
response that says None would be right.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from vimpo.tasks.verifier import Verifier

NULLS = {"", "nan", "null", "none", "nil", "na", "n/a", "<na>", "nat"}
# The verifier would read a date as a subtraction, and quotes as primes of a symbol.
DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d.*)?")
STRUCTURE = re.compile(r"[\[{(]\s*b?(['\"]).*\1.*[\]})]|b(['\"]).*\2", re.DOTALL)
SCIENTIFIC = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)[eE][+-]?\d{1,3}")


def as_text(value: Any) -> str:
    """A cell as text: a number in plain digits, a list as its elements; null is an empty text."""
    if isinstance(value, list):
        return ", ".join(map(as_text, value))
    if isinstance(value, float | Decimal) and math.isfinite(value):
        return plain(value)
    return "" if value is None else str(value)


def plain(number: float | Decimal | str) -> str:
    """Digits without exponent: 1e-05 as 0.00001, which is not e - 5; 27.0 as 27."""
    exact = Decimal(str(number))
    if exact == exact.to_integral_value():
        return f"{exact:.0f}" if exact else "0"
    return f"{exact:f}"


def no_text(value: Any) -> bool:
    """Is the cell of a problem of a kind that is no text, such as null, NaN or bytes?"""
    return not isinstance(value, str | list) and fault_of(value) is not None


def fault_of(value: Any) -> str | None:
    """Why the value of a cell is no gold answer; None if it may be one."""
    if isinstance(value, list):
        return next(filter(None, map(fault_of, value)), None) if value else "is an empty list"
    if value is None:
        return "is null"
    if isinstance(value, str):
        text = value.strip()
        if text.lower() in NULLS:
            return "says that there is none"
        if DATE.fullmatch(text):
            return "is a date"
        return "is a data structure written as text" if STRUCTURE.fullmatch(text) else None
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return f"is of type {type(value).__name__}"
    return None if math.isfinite(value) else "is not finite"


def accepted(golds: Sequence[str], verifier: Verifier) -> list[bool]:
    r"""Does the verifier accept each gold's own value?

    That is the gold in a box, and for `1e-10`, which LaTeX reads as e - 10, the number in plain
    digits.
    """
    boxed = verifier.grade(golds, [f"\\boxed{{{gold}}}" for gold in golds])
    values = [plain(gold) if SCIENTIFIC.fullmatch(gold.strip()) else gold for gold in golds]
    alike = verifier.equivalent(list(zip(golds, values, strict=True)))
    return [one and other for one, other in zip(boxed, alike, strict=True)]
