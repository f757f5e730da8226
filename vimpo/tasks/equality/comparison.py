r"""Does an answer say the same as the gold answer? The cheap and exact stages come first.

Spelling, numbers, choices, lists and tuples, intervals, equations, quantities and words, ratios;
sympy only sees what is left, if both are expressions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction

from vimpo.tasks.equality import symbolic
from vimpo.tasks.equality.exact import number, places, rounds_to
from vimpo.tasks.equality.parts import COMMAS, Group, group, items, split, unwrapped
from vimpo.tasks.equality.quantities import Quantity, compatible, quantity
from vimpo.tasks.equality.relations import LESS, Piece, named, pieces, relation, renamed
from vimpo.tasks.equality.spelling import tokens

DEEPEST = 8
CHOICE = re.compile(r'(?:\(\s*"?([A-J])"?\s*\)|"?([A-J])"?\s*[.:)])\s*(.*)')
LABEL = re.compile(r'\(?\s*"?([A-J])"?\s*\)?')
BASED = re.compile(r'"?([0-9A-Z]+)"?\s*_\s*\{?\s*(\d{1,2})\s*\}?')
WORDS = re.compile(r'(?:"[^"]*"|[\s.,:;()\'-])+')
ARTICLES = frozenset(["a", "an", "the"])
DEGREE = r"\frac{\pi}{180}"


def same(gold: str, answer: str, depth: int = 0) -> bool:
    """Are two spelled answers the same?"""
    if depth > DEEPEST or not gold or not answer:
        return False
    one, other = number(gold), number(answer)
    if one is not None and other is not None:
        return one == other or _rounded(gold, answer)
    if tokens(gold) == tokens(answer):
        return True
    for stage in (_choices, _sequences, _sets_of_reals, _relations, _based, _quantities, _ratios):
        verdict = stage(gold, answer, lambda g, a: same(g, a, depth + 1))
        if verdict is not None:
            return verdict
    return symbolic.same(gold, answer) or _rounded(gold, answer)


Same = Callable[[str, str], bool]


def _rounded(gold: str, answer: str) -> bool:
    """Is the answer exact, and does it round to a decimal gold of two places or more?"""
    count, value = places(gold), number(gold)
    if count is None or count < 2 or not value or "." in answer:
        return False
    exact: Fraction | Decimal | None = number(answer)
    if exact is None and (found := symbolic.decimal(answer)) is not None:
        exact = Decimal(str(found))
    return exact is not None and rounds_to(exact, value, count)


def _choices(gold: str, answer: str, same: Same) -> bool | None:
    """`(C) 12` is the choice C, and 12."""
    ours, theirs = CHOICE.fullmatch(gold), CHOICE.fullmatch(answer)
    label, other = LABEL.fullmatch(gold), LABEL.fullmatch(answer)
    if label and other:
        return label[1] == other[1]
    if label and theirs:
        return label[1] == (theirs[1] or theirs[2])
    if ours and other:
        return other[1] == (ours[1] or ours[2])
    if ours and theirs:
        return (ours[1] or ours[2]) == (theirs[1] or theirs[2])
    if ours or theirs:
        return same(ours[3] if ours else gold, theirs[3] if theirs else answer)
    return None


def _sequences(gold: str, answer: str, same: Same) -> bool | None:
    """Lists and sets have no order, tuples and intervals do; one is not the other."""
    ours, theirs = _sequence(gold), _sequence(answer)
    if ours is None and theirs is None:
        return None
    if ours is None or theirs is None:
        # one value: in a set of its own, or `(x, y) = (1, 2)`
        whole = ours or theirs
        assert whole is not None
        if not whole.opened and _is_relation(answer if ours else gold):
            return None
        if whole.opened in ("", r"\{") and len(whole.items) == 1:
            return same(whole.items[0], answer) if ours else same(gold, whole.items[0])
        single = answer if ours else gold
        return None if _is_relation(single) or pieces(single) else False
    if not theirs.opened and not any(map(group, ours.items)):
        sets = [whole for item in theirs.items if (whole := group(item)) and whole.opened == r"\{"]
        if len(sets) == len(theirs.items):
            theirs = Group("", "", [item for whole in sets for item in whole.items])
    if len(ours.items) != len(theirs.items):
        return _sets(ours, theirs, same)
    if ours.opened in ("(", "matrix") or theirs.opened in ("(", "matrix", "["):
        one, other = _values(ours), _values(theirs)
        alike = ours[:2] == theirs[:2] or one[1] != other[1]
        return alike and all(map(same, one[0], other[0]))
    if ours.opened == "[" or {'"and"', '"or"'} <= _conditions(gold) | _conditions(answer):
        return False
    one, other = _values(ours), _values(theirs)
    ordered = one[1] != other[1] or all(
        WORDS.fullmatch(i) or LABEL.fullmatch(i) for i in ours.items
    )
    if ordered and r"\{" not in (ours.opened, theirs.opened):
        return all(map(same, one[0], other[0]))
    return matched(ours.items, theirs.items, same)


def _sets(ours: Group, theirs: Group, same: Same) -> bool:
    """A set may name a member twice."""
    if not ours.opened == theirs.opened == r"\{" or not ours.items or not theirs.items:
        return False
    return all(any(same(g, a) for a in theirs.items) for g in ours.items) and all(
        any(same(g, a) for g in ours.items) for a in theirs.items
    )


def is_empty_set(text: str) -> bool:
    return text.replace(" ", "") in (r"\emptyset", "{}", r"\{\}")


def _sequence(text: str) -> Group | None:
    """A tuple, set or interval, or a bare list of two or more; `\\pm` is a list of two."""
    if is_empty_set(text):
        return Group(r"\{", r"\}", [])
    whole = group(text)
    if whole and (len(whole.items) > 1 or whole.opened == r"\{" or whole.opened == "matrix"):
        if whole.opened == r"\{" and re.search(r"[|:]|\\in(?![a-z])", text):
            return None  # defined by a condition
        signed = [one for item in whole.items for one in _signed(item)]
        opened, closed = (r"\{", r"\}") if whole.opened == "{" else whole[:2]
        return Group(opened, closed, signed if opened == r"\{" else whole.items)
    found = items(text)
    if not whole:
        found = [one for item in found for one in _signed(item)]
    if len(found) > 1 and not any(s in text for s in (r"\forall", "where")):
        return Group("", "", found)
    return None


def _signed(text: str) -> list[str]:
    r"""`1 \pm x` -> `1 + x`, `1 - x`."""
    if text.count(r"\pm") != 1:
        return [text]
    return [text.replace(r"\pm", "+").lstrip("+ "), text.replace(r"\pm", "-")]


def _conditions(text: str) -> set[str]:
    """What joins inequalities."""
    parts, signs = split(text, COMMAS)
    return set(signs) if any(set(relation(part)[1]) & LESS.keys() for part in parts) else set()


def _is_relation(text: str) -> bool:
    return bool(relation(text)[1])


def _values(whole: Group) -> tuple[list[str], bool]:
    """The items; without their names, and true, if all have different ones: `x = 1, y = 2`."""
    found = [named(item) for item in whole.items]
    names = {name for name, values in found if name and len(values) == 1}
    if len(names) == len(whole.items):
        return [values[0] for _, values in found], True
    return list(whole.items), False


def matched(golds: Sequence[str], answers: Sequence[str], same: Same) -> bool:
    """Can every gold be given an answer of its own, in any order?"""
    left = list(answers)
    for gold in golds:
        found = next((answer for answer in left if same(gold, answer)), None)
        if found is None:
            return False
        left.remove(found)
    return not left


def _sets_of_reals(gold: str, answer: str, same: Same) -> bool | None:
    """Intervals, inequalities in one variable, and unions of them."""
    ours, theirs = pieces(gold), pieces(answer)
    if ours is None or theirs is None:
        return None
    if ours[0] and theirs[0] and tokens(ours[0]) != tokens(theirs[0]):
        return None

    def equal(one: Piece, other: Piece) -> bool:
        ends = (one.from_low, one.to_high) == (other.from_low, other.to_high)
        return ends and same(one.low, other.low) and same(one.high, other.high)

    left = list(theirs[1])
    for piece in ours[1]:
        found = next((other for other in left if equal(piece, other)), None)
        if found is None:
            return False
        left.remove(found)
    return not left


def _relations(gold: str, answer: str, same: Same) -> bool | None:
    """`x = 4` is 4, but `2x = 4` is not; two equations may differ by a factor."""
    (sides, signs), (others, marks) = relation(gold), relation(answer)
    if not signs and not marks:
        return None
    name, values = named(gold)
    label, found = named(answer)
    if name and label and tokens(name) != tokens(label):
        body = renamed(label, found[-1], name)
        if body is not None:
            return same(values[-1], body)
    elif all(
        n or len(v) == 1 or not s for n, v, s in ((name, values, signs), (label, found, marks))
    ) or (found and not label and not signs and symbolic.is_constant(found)):
        values, found = values or [gold], found or [answer]
        return same(values[-1], found[-1]) and all(same(found[-1], v) for v in found[:-1])
    if not signs or not marks or len(sides) != len(others) or not (all(sides) and all(others)):
        return False
    if signs == marks and all(map(same, sides, others)):
        return True
    if (name and symbolic.is_constant(values)) or pieces(gold):
        return False  # the gold is solved for its variable, the answer is not
    if signs == marks and set(signs) <= {"=", r"\neq"}:
        if matched(sides, others, same):
            return True
        return len(sides) == 2 and symbolic.proportional(
            (sides[0], sides[1]), (others[0], others[1])
        )
    if signs == marks and len(sides) == 2 and signs[0] in LESS:
        return symbolic.proportional((sides[0], sides[1]), (others[0], others[1]), positive=True)
    return False


def _based(gold: str, answer: str, same: Same) -> bool | None:
    """`2516_8` may be written `2516`; two bases that are given must agree."""
    ours, theirs = BASED.fullmatch(gold), BASED.fullmatch(answer)
    if ours and theirs:
        return ours.groups() == theirs.groups()
    if not ours and not theirs:
        return None
    return tokens(ours[1] if ours else gold) == tokens(theirs[1] if theirs else answer)


def _quantities(gold: str, answer: str, same: Same) -> bool | None:
    """Numbers with words and units, and other words."""
    if '"' not in gold + answer:
        return None
    if WORDS.fullmatch(gold) and WORDS.fullmatch(answer) and _words(gold) == _words(answer):
        return True
    ours, theirs = quantity(gold), quantity(answer)
    if ours is None or theirs is None or not compatible(ours.unit, theirs.unit):
        return False
    if ours.percent != theirs.percent and any(
        same(_scaled(q.core, Fraction(1, 100)), other.core) or _rounds_percent(ours, theirs)
        for q, other in ((ours, theirs), (theirs, ours)) if q.percent
    ):  # fmt: skip
        return True
    for q, other in ((ours, theirs), (theirs, ours)):
        if q.unit == {"angle": 1} and not other.unit and r"\pi" in other.core:
            return same(rf"{DEGREE} \cdot ({q.core})", other.core)
    both = bool(ours.unit and theirs.unit)
    sizes = [q.factor * (q.size if both else 1) for q in (ours, theirs)]
    if sizes[0] == sizes[1]:
        return same(ours.core, theirs.core)
    return same(_scaled(ours.core, sizes[0]), _scaled(theirs.core, sizes[1]))


def _rounds_percent(ours: Quantity, theirs: Quantity) -> bool:
    """Is the answer exact, and does it round to a gold percentage? `41.4 %` and `\\sqrt{2} - 1`."""
    value, count = number(ours.core), places(ours.core)
    if not ours.percent or count is None or value is None or "." in theirs.core:
        return False
    exact = symbolic.decimal(theirs.core)
    return exact is not None and rounds_to(Decimal(str(exact * 100)), value, count)


def _scaled(core: str, factor: Fraction) -> str:
    if factor == 1:
        return core
    if (value := number(core)) is not None:
        value *= factor
        return f"{value.numerator}/{value.denominator}"
    return rf"\frac{{{factor.numerator}}}{{{factor.denominator}}} \cdot ({core})"


def _words(text: str) -> list[str]:
    found = re.findall(r"[^\W_]+", text.replace("'", ""))
    return [w.lower() if len(w) > 1 else w for w in found if w.lower() not in ARTICLES]


def _ratios(gold: str, answer: str, same: Same) -> bool | None:
    """`2:3` is `4:6`; a time, with two digits after the colon, is only itself."""
    ours, theirs = (split(unwrapped(text), frozenset(":"))[0] for text in (gold, answer))
    if len(ours) == 1 and len(theirs) == 1:
        return None
    if len(ours) + len(theirs) == 3:  # 1:2 is 1/2
        ratio, value = (ours, answer) if len(ours) == 2 else (theirs, gold)
        clock = re.fullmatch(r"\d\d", ratio[1])
        return not clock and same(rf"\frac{{{ratio[0]}}}{{{ratio[1]}}}", value)
    if len(ours) != len(theirs) or all(re.fullmatch(r"\d\d", p[-1]) for p in (ours, theirs)):
        return False
    one, other = [number(unwrapped(p)) for p in ours], [number(unwrapped(p)) for p in theirs]
    known, given = [v for v in one if v], [v for v in other if v]
    if len(known) < len(ours) or len(given) < len(theirs):
        return all(map(same, ours, theirs))
    return [v / known[0] for v in known] == [v / given[0] for v in given]
