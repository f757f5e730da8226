"""reasoning-gym's own scores, for the guarded workers of :mod:`vimpo.tasks.pool`.

Some of its data sets call `eval`, or sympy's parser, which does, on what a model wrote. Here only
arithmetic, lists and the numbers and functions that sympy writes are ever evaluated.
"""

from __future__ import annotations

import ast
import builtins
import functools
import sys
from typing import Any

import reasoning_gym  # noqa: F401  (registers its data sets)
import sympy.parsing.sympy_parser
from reasoning_gym.utils import extract_answer

from vimpo.tasks.extraction import extracted
from vimpo.tasks.gym.entries import data_set, fingerprint

HARMLESS = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Constant, ast.Load),
    *(ast.List, ast.Tuple, ast.Set, ast.Dict, ast.Name, ast.Call),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)
FUNCTIONS = {
    *("Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Abs", "sqrt", "exp", "log"),
    *("ln", "sin", "cos", "tan", "sec", "csc", "cot", "asin", "acos", "atan", "sinh", "cosh"),
}


def harmless(source: object) -> bool:
    """Does evaluating a text only compute: no attributes, no calls but of known functions?"""
    if not isinstance(source, str):
        return False
    try:
        nodes = list(ast.walk(ast.parse(source.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    return all(isinstance(node, HARMLESS) for node in nodes) and all(
        isinstance(call.func, ast.Name) and call.func.id in FUNCTIONS and not call.keywords
        for call in calls
    )


def guarded_eval(source: Any, names: dict | None = None, local: dict | None = None) -> Any:
    """`eval` of harmless texts. Raises ValueError for all others."""
    if not harmless(source):
        raise ValueError("not evaluated")
    return builtins.eval(source, {"__builtins__": {}} if names is None else names, local)


def guard() -> None:
    """From now on, reasoning-gym and sympy's parser call `guarded_eval` by the name of `eval`."""
    guarded = [m for name, m in sys.modules.items() if name.startswith("reasoning_gym")]
    for module in [sympy.parsing.sympy_parser, *guarded]:
        module.__dict__["eval"] = guarded_eval


@functools.lru_cache(maxsize=4096)
def _drawn(name: str, settings: str, seed: int) -> tuple[Any, dict[str, Any]]:
    made = data_set(name, settings, seed)
    return made, made[0]


def same_entry(name: str, settings: str, seed: int, drawn: str) -> bool:
    """Is the entry of this seed the one that another process drew?"""
    return fingerprint(_drawn(name, settings, seed)[1]) == drawn


def is_usable(
    name: str, settings: str, seed: int, drawn: str, rule: Any, right_from: float, gold: str | None
) -> bool:
    """Is the entry the same here, and is its own answer right?

    gold: a response that gives this answer; None where no rule says how one looks.
    """
    if not same_entry(name, settings, seed, drawn):
        return False
    if gold is None:
        return gold_is_right(name, settings, seed, right_from)
    return is_right(name, settings, seed, rule, right_from, gold)


def gold_is_right(name: str, settings: str, seed: int, right_from: float) -> bool:
    """Does an entry's own answer get full marks?"""
    made, entry = _drawn(name, settings, seed)
    return float(made.score_answer(entry["answer"], entry)) >= right_from


def is_right(
    name: str, settings: str, seed: int, rule: Any, right_from: float, response: str
) -> bool:
    """Does the answer that a response gives score at least `right_from`?"""
    answer = extract_answer(response) if rule == "library" else extracted(rule, response)
    if answer is None:
        return False
    made, entry = _drawn(name, settings, seed)
    return float(made.score_answer(answer.strip(), entry)) >= right_from


JUDGES = {
    "same_entry": same_entry,
    "gold_is_right": gold_is_right,
    "is_usable": is_usable,
    "is_right": is_right,
}
guard()
