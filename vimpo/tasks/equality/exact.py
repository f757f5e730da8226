"""Numbers as they are written, as exact fractions: no floating point, no sympy."""

from __future__ import annotations

import math
import re
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Context, Decimal
from fractions import Fraction

MOST_DIGITS = 400  # of a power of ten; anything larger is not written out
INTEGER = r"\d{1,1000}"
DECIMAL = re.compile(rf"(?:{INTEGER}(?:\.\d*)?|\.\d+)")
POWER = r"(?:[eE]([+-]?\d{1,4})| ?(?:\\times|\\cdot) ?10 ?\^ ?(?:\{ ?([+-]? ?\d{1,4}) ?\}|(\d)))"
SCIENTIFIC = re.compile(rf"({DECIMAL.pattern}){POWER}")
TEN = re.compile(r"10 ?\^ ?(?:\{ ?([+-]? ?\d{1,4}) ?\}|(\d))")
GROUPED = re.compile(r"\d{1,3}(?: \d{3})+")
OVERLINED = re.compile(r"(\d*)\.(\d*?) ?(?:\\(?:overline|bar|dot) ?\{? ?(\d+) ?\}?|\((\d+)\))")
ENDLESS = re.compile(r"(\d*)\.(\d*?)(\d+?)\3{2,} ?\\ldots")
OVER = re.compile(r"(?:\\frac ?\{([^{}]*)\} ?\{([^{}]*)\}|([^/\\]*[^/\\ ]) ?/ ?([^/\\]*))")
MIXED = re.compile(rf"({INTEGER}) ?(?:(\\frac ?\{{ ?\d+ ?\}} ?\{{ ?\d+ ?\}})| (\d+ ?/ ?\d+))")


def number(text: str) -> Fraction | None:
    """The value of a decimal, fraction, mixed number, 3e8 or 0.(3); None if it is no number."""
    text = text.strip()
    sign = -1 if text.startswith("-") else 1
    bare = text[1:].strip() if text[:1] in ("-", "+") else text
    if bare != text and bare[:1] in ("-", "+"):
        return None
    value = _positive(bare)
    return None if value is None else sign * value


def _positive(text: str) -> Fraction | None:
    if DECIMAL.fullmatch(text):
        return Fraction(text)
    if GROUPED.fullmatch(text):
        return Fraction(text.replace(" ", ""))
    if match := SCIENTIFIC.fullmatch(text):
        return _scaled(Fraction(match[1]), match[2] or match[3] or match[4])
    if match := TEN.fullmatch(text):
        return _scaled(Fraction(1), match[1] or match[2])
    if match := OVERLINED.fullmatch(text):
        return _repeating(match[1], match[2], match[3] or match[4])
    if match := ENDLESS.fullmatch(text):
        return _repeating(*match.groups())
    if match := MIXED.fullmatch(text):
        part = _positive(match[2] or match[3])
        return None if part is None or part >= 1 else int(match[1]) + part
    if match := OVER.fullmatch(text):
        top, bottom = number(match[1] or match[3] or ""), number(match[2] or match[4] or "")
        return top / bottom if top is not None and bottom else None
    return None


def is_worked_out(text: str) -> bool:
    """Is a text a number on which nothing is left to compute?

    So is 3/4; 14/2, 6/8 and 10^2 are not.
    """
    if number(text) is None or "^" in text:
        return False
    bare = text.strip().lstrip("+-").strip()
    match = OVER.fullmatch(bare)
    if match is None or MIXED.fullmatch(bare):
        return True
    top, bottom = (match[1] or match[3] or "").strip(), (match[2] or match[4] or "").strip()
    if not (re.fullmatch(INTEGER, top) and re.fullmatch(INTEGER, bottom)):
        return False
    return int(bottom) > 1 and math.gcd(int(top), int(bottom)) == 1


def _scaled(value: Fraction, exponent: str) -> Fraction | None:
    power = int(exponent.replace(" ", ""))
    return value * Fraction(10) ** power if abs(power) <= MOST_DIGITS else None


def _repeating(whole: str, fixed: str, block: str) -> Fraction:
    scale = 10 ** len(fixed)
    return (int(whole + fixed or "0") + Fraction(int(block), 10 ** len(block) - 1)) / scale


def places(text: str) -> int | None:
    """Decimal places of a plain decimal; None for any other number."""
    match = re.fullmatch(r"[+-]? ?\d*\.(\d{1,30})", text.strip())
    return len(match[1]) if match else None


def rounds_to(value: Fraction | Decimal, decimal: Fraction, count: int) -> bool:
    """Is the decimal the value, rounded to `count` places?"""
    context = Context(prec=400)
    if isinstance(value, Fraction):
        value = context.divide(Decimal(value.numerator), Decimal(value.denominator))
    if abs(value) >= Decimal(10) ** 300:
        return False
    step = Decimal(1).scaleb(-count)
    modes = (ROUND_HALF_UP, ROUND_HALF_EVEN)
    return any(Fraction(value.quantize(step, mode, context)) == decimal for mode in modes)
