"""Units of measurement, number words, and words that leave a number as it is."""

from __future__ import annotations

from fractions import Fraction

_SIZES = {
    "length": {
        "mm millimeter millimetre": "1/1000", "cm centimeter centimetre": "1/100",
        "dm decimeter decimetre": "1/10", "m meter metre": "1", "km kilometer kilometre": "1000",
        "in inch inches": "0.0254", "ft foot feet": "0.3048", "yd yard": "0.9144",
        "mi mile": "1609.344",
    },
    "time": {
        "ms millisecond": "1/1000", "s sec second": "1", "min minute": "60", "h hr hour": "3600",
        "day": "86400", "week": "604800",
    },
    "mass": {
        "mg milligram": "1/1000", "g gram": "1", "kg kilogram": "1000", "lb lbs": "453.59237",
        "oz ounce": "28.349523125",
    },
    "volume": {"ml mL milliliter millilitre": "1/1000", "l L liter litre": "1"},
    "dollar": {"cent": "1/100", "dollar usd": "1"},
    "angle": {"degree deg": "1"},
    "money (€)": {"euro eur": "1"},
    "money (£)": {"pound gbp": "1"},
    "money (¥)": {"yen": "1"},
}  # fmt: skip
# name -> (dimension, size); plurals in s are added
UNITS = {
    name: (dimension, Fraction(size))
    for dimension, table in _SIZES.items()
    for names, size in table.items()
    for name in (*names.split(), *(f"{n}s" for n in names.split() if len(n) > 2))
}
_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
NUMBERS = {word: n for n, word in enumerate(f"{_ONES} fifteen sixteen seventeen eighteen".split())}
NUMBERS |= {"nineteen": 19} | {word: 10 * n for n, word in enumerate(_TENS.split(), 2)}
MULTIPLES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9}
MULTIPLES |= {"trillion": 10**12, "dozen": 12}
MULTIPLES |= {f"{word}s": size for word, size in MULTIPLES.items()} | {"tens": 10}
SIGNS = {"negative": -1, "minus": -1, "positive": 1, "plus": 1}
# Words before or after a number that change nothing.
_FILLERS = "approximately about roughly around exactly the answer is a an of only"
# Words after a number that are no unit of it.
_CHANGING = """
not or and less more fewer greater least most than squared cubed factorial over times plus minus
half third quarter halves thirds quarters double twice divided multiplied without except no by
to from mod modulo root if when where otherwise remainder north south east west up down left
right am pm bc ad bce ce percent below above under before after wrong false incorrect never none
nothing loss debt too are was were
"""
FILLERS = frozenset(_FILLERS.split())
CHANGING = frozenset(_CHANGING.split()) | MULTIPLES.keys()
KNOWN_WORDS = (
    UNITS.keys() | NUMBERS.keys() | MULTIPLES.keys() | SIGNS.keys() | FILLERS | CHANGING
) - {"s", "m", "g", "h", "l", "L", "in", "a"}


def number_of(words: list[str]) -> int | None:
    """`twenty five` -> 25, `two hundred` -> 200; None if a word is none of a number."""
    total = 0
    for word in words:
        if word in NUMBERS:
            total += NUMBERS[word]
        elif word in MULTIPLES:
            total = (total or 1) * MULTIPLES[word]
        else:
            return None
    return total if words else None


def unit_of(words: list[tuple[str, int]]) -> tuple[Fraction, dict[str, int]]:
    """(word, power) pairs -> size, and the power of every dimension; unknown words are their own.

    `square` and `cubic` raise the next word, `per` divides by it.
    """
    size, powers = Fraction(1), dict[str, int]()
    raised, sign = 1, 1
    for word, power in words:
        if word in ("square", "sq", "cubic"):
            raised = 3 if word == "cubic" else 2
        elif word in ("per", "/"):
            sign = -1
        elif word not in FILLERS:
            power *= raised * sign
            raised = 1
            dimension, one = UNITS.get(word, (word.removesuffix("s"), Fraction(1)))
            powers[dimension] = powers.get(dimension, 0) + power
            size *= one ** max(-9, min(9, power))
    return size, powers
