"""Expressions, read by latex2sympy and compared exactly.

Every numeral is an exact rational. Two constants are equal if 300 digits are; two expressions with
variables are if they are at several points, which are fixed.
"""

from __future__ import annotations

import functools
import re

import sympy
import sympy.parsing.sympy_parser
import sympy.physics.units  # parses texts while it is imported, so before parse_expr is replaced
from latex2sympy2_extended import latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from latex2sympy2_extended.math_normalization import NormalizationConfig

from vimpo.tasks.equality.exact import number

NUMERAL = re.compile(r"\s*[+-]?(\d+|\d*\.\d+|\d+\.\d*)\s*")
# What has no value, or one that the reader would drop.
OPAQUE = re.compile(
    r'"|\\(?:ldots|equiv|pmod|pm|mp|approx|parallel|perp|implies|to|Rightarrow|rightarrow|angle'
    r"|triangle|text|cases|forall|exists|cong|sim|neg|overline|bar|dot|prime|mathbb|begin\{cases)"
    r"(?![a-z])|[=<>'?:;&#@`]"
    r"|\\leq|\\geq|\\neq|\\in(?![a-z])|\d_|\^ ?\{? ?T(?![A-Za-z])"
    r"|\\(?:phantom|x?cancel|sout|not|bmod|transpose)(?![a-z])"
)
LETTERS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{7,}")
NORMAL = NormalizationConfig(boxed="none")
EXACT = ConversionConfig(lowercase_symbols=False)
DIGITS = 60
MORE_DIGITS = 300
POINTS = (17, 101, 257, 401, 523, 743)  # seeds of the values that variables are given
HEAVY = (sympy.Sum, sympy.Product, sympy.Integral, sympy.Derivative, sympy.Limit)


def numeral(text: str, *_args, **_options) -> sympy.Rational:
    """A numeral as an exact number; raises SympifyError for all other text."""
    if not NUMERAL.fullmatch(text):
        raise sympy.SympifyError(text)
    return sympy.Rational(text.strip())


# sympy turns every text into a number, even the grammar's own digits, by evaluating it as Python.
# In a process that imports this module no text is ever evaluated; reading is also faster.
sympy.parsing.sympy_parser.parse_expr = numeral


@functools.lru_cache(maxsize=256)
def read(text: str) -> sympy.Expr | None:
    """The value of a spelled expression; None if it is none."""
    if (exact := number(text)) is not None:
        return sympy.Rational(exact.numerator, exact.denominator)
    if not text or OPAQUE.search(text) or LETTERS.search(text):
        return None
    try:
        value = latex2sympy(text, normalization_config=NORMAL, conversion_config=EXACT)
        if not isinstance(value, sympy.Expr):
            return None
        return value.doit().subs(sympy.Symbol("i"), sympy.I).subs(sympy.Symbol("e"), sympy.E)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return None
    except Exception as error:  # the grammar's own errors derive from nothing narrower
        if type(error) is not Exception and not isinstance(error, sympy.SympifyError):
            raise
        return None


def same(one: str, other: str) -> bool:
    """Do two texts have the same value, for all values of their variables?"""
    left, right = read(one), read(other)
    return left is not None and right is not None and _equal(left, right)


def is_constant(texts: list[str]) -> bool:
    """Is each text an expression without variables?"""
    return all((value := read(text)) is not None and value.is_number for text in texts)


def proportional(one: tuple[str, str], other: tuple[str, str], positive: bool = False) -> bool:
    """Do two equations, each of two sides, differ by a constant factor? Neither may be empty."""
    sides = [side for text in (*one, *other) if (side := read(text)) is not None]
    if len(sides) < 4:
        return False
    first, second = sides[0] - sides[1], sides[2] - sides[3]
    if first.free_symbols != second.free_symbols or not first.free_symbols:
        return False
    ratios = []
    for values in _points(first.free_symbols):
        top, bottom = _value(first.subs(values), DIGITS), _value(second.subs(values), DIGITS)
        if top is not None and bottom is not None and bottom != 0:
            ratios.append(top / bottom)
    if len(ratios) < 3 or abs(ratios[0]) < sympy.Float(10) ** -40:
        return False
    factor = ratios[0]
    return all(_close(ratio, factor) for ratio in ratios) and (not positive or bool(factor > 0))


def decimal(text: str) -> sympy.Float | None:
    """The value of a real constant, to many digits; None if it is none."""
    value = read(text)
    found = None if value is None or value.free_symbols else _value(value, DIGITS)
    return found if found is not None and found.is_real else None


def _equal(left: sympy.Expr, right: sympy.Expr) -> bool:
    if left == right:
        return True
    if isinstance(left, sympy.Rational) and isinstance(right, sympy.Rational):
        return False
    infinite = [v.has(sympy.oo, -sympy.oo, sympy.zoo, sympy.nan) for v in (left, right)]
    if any(infinite):
        return False
    if left.has(*HEAVY) or right.has(*HEAVY):
        return sympy.simplify(left - right) == 0
    symbols = left.free_symbols | right.free_symbols
    if not symbols:
        return _close_at(left, right, DIGITS) and _close_at(left, right, MORE_DIGITS)
    real: list[bool] = []
    unreal: list[bool] = []
    for values in _points(symbols):
        one, other = (_value(side.subs(values), DIGITS) for side in (left, right))
        if one is not None and other is not None:
            (real if one.is_real and other.is_real else unreal).append(_close(one, other))
    return all(real) if len(real) > 1 else len(unreal) > 1 and all(unreal + real)


def _points(symbols: set[sympy.Symbol]):
    """Fixed values of both signs, small and large, for variables in the order of their names."""
    ordered = sorted(symbols, key=str)
    for n, seed in enumerate(POINTS):
        yield {
            symbol: sympy.Rational((seed * (i + 3) ** 2) % 997 + 1, (97, 997, 1009)[n % 3])
            * (-1 if n == 4 or (n == 5 and i % 2) else 1)
            for i, symbol in enumerate(ordered)
        }


def _value(expression: sympy.Expr, digits: int) -> sympy.Expr | None:
    value = sympy.N(expression, digits)
    return value if value.is_number and value.is_finite else None


def _close_at(left: sympy.Expr, right: sympy.Expr, digits: int) -> bool:
    one, other = _value(left, digits), _value(right, digits)
    return one is not None and other is not None and _close(one, other, digits - 15)


def _close(one: sympy.Expr, other: sympy.Expr, digits: int = DIGITS - 15) -> bool:
    """Equal to so many digits; of a complex number both parts together."""
    return bool(abs(one - other) <= sympy.Float(10, 15) ** -digits * max(abs(one), abs(other)))
