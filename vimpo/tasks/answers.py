r"""What a response answers: its last `\boxed{}`, or what its text can be taken to answer.

Extraction takes time linear in the length of the text, even if the text is hostile.
"""

from __future__ import annotations

import re

LONGEST_ANSWER = 1000  # characters; anything longer is not an answer
LONGEST_TAIL = 2000  # characters at the end of an unboxed response that are searched
LONGEST_STATEMENT = 300  # characters from "the answer is" to the end
BOXES_TRIED = 20  # boxes looked at, from the end, unclosed ones included

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
BARE = re.compile(
    r"\\(?:boxed|fbox)(?![A-Za-z])\s*((?:\\[A-Za-z]+(?:\{[^{}\n]{0,100}\})*|[^\s{}$\\])+)"
)
STATEMENT = re.compile(
    r"(?:final answer|answer)(?:\s+is)?\s*:?\s*(?:is\b)?\s*|^\s*A\s*:\s*|####\s*",
    re.IGNORECASE | re.MULTILINE,
)
FORMULA = r"\$\$(.+?)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]"
NUMBER = r"-?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?\s*\\?%?"
# What may be an answer in running text: a formula, something in bold, a number.
VALUE = re.compile(rf"{FORMULA}|\*\*([^*\n]+)\*\*|({NUMBER})", re.DOTALL)
LINKED = re.compile(r"\s*(?:,|,?\s*and|,?\s*or)\s*")
MINUS = str.maketrans({"−": "-", "﹣": "-", "－": "-"})
SIGNED = re.compile(r"[=:(,<>]|\bis")  # what a sign, and no operator, follows
OPERATOR = re.compile(r"[-+/^×÷·]|(?<!\*)\*|\d ?\*\*|\\(?:times|cdot|div)|\d *[xX]")
OPERAND = re.compile(r"[\d)\]}]|(?<![A-Za-z])[A-Za-z]")  # what an operator follows
NEAR = 20  # characters before a value that decide whether it has a sign, or is an operand
SYMBOL = re.compile(r"\s*\\?[A-Za-z]+(?:\(\w\))?\s*")


def last_boxed(response: str) -> str | None:
    r"""Content of the last closed `\boxed{}` or `\fbox{}`; None if there is none."""
    return next(iter(_boxes(response, 1)), None)


def answers(response: str, boxed_only: bool = True, evaluated: bool = False) -> list[str]:
    r"""What a response can be taken to answer, likeliest first; empty if it answers nothing.

    The last box; then all boxes of its paragraph together, for problems with several answers
    ("p and q are \boxed{3} and \boxed{4}"). Without a box and with `boxed_only` false: what follows
    the last "answer is" or "####", the last formula, or the last number. evaluated: the last number
    is none if it is an operand, as the 3 of `4 + 3`.
    """
    boxes = _boxes(response, BOXES_TRIED)
    if boxes:
        together = ",".join(reversed(boxes))
        return [boxes[0]] if len(boxes) == 1 else [boxes[0], together]
    return [] if boxed_only else _unboxed(response[-LONGEST_TAIL:].translate(MINUS), evaluated)


def last_number(response: str) -> str | None:
    """The last number of a text, without its commas; None if it is an operand, as in `4 + 3`."""
    tail = response[-LONGEST_TAIL:].translate(MINUS)
    *_, last = [None, *re.finditer(NUMBER, tail)]
    if last is None or _is_operand(tail, last):
        return None
    return _with_sign(tail, last, last[0]).replace(",", "").rstrip("\\% ")


def _boxes(response: str, most: int) -> list[str]:
    """The last box and the ones before it in the same paragraph, from right to left."""
    found: list[str] = []
    end = len(response)
    for _ in range(BOXES_TRIED):
        start = max(response.rfind("\\boxed", 0, end), response.rfind("\\fbox", 0, end))
        if start < 0 or len(found) == most:
            break
        content, close = _braced(response, start)
        if found and "\n\n" in response[start:end]:
            break
        if content is not None and (not found or close <= end):
            found.append(content)
        end = start
    return found


def _braced(text: str, start: int) -> tuple[str | None, int]:
    """Content of the box at `start`, and its end; None if it does not close soon enough."""
    match = BOX.match(text, start)
    if not match:  # `\boxed 5`
        bare = BARE.match(text, start, start + LONGEST_ANSWER)
        return (bare[1].rstrip(".,;:"), bare.end()) if bare else (None, start)
    depth = 1
    for i in range(match.end(), min(len(text), match.end() + LONGEST_ANSWER)):
        if text[i] in "{}" and text[i - 1] != "\\":
            depth += 1 if text[i] == "{" else -1
            if depth == 0:
                return text[match.end() : i], i
    return None, start


def _unboxed(tail: str, evaluated: bool) -> list[str]:
    closing = tail[-LONGEST_STATEMENT:]
    if statements := list(STATEMENT.finditer(closing)):
        rest = closing[statements[-1].end() :].split("\n\n")[0].strip()
        said = re.split(r"\.\s|\.$|\n| I hope", rest)[0].strip(" *.$:")
        in_line = "\n" not in statements[-1][0]  # a hyphen at the start of a line is a bullet
        if values := _last_values(said if VALUE.search(said) else rest, evaluated, in_line):
            return [said, *values]
        if said:
            return [said]
    return _last_values(tail.rstrip().split("\n\n")[-1], evaluated)


def _last_values(text: str, evaluated: bool, in_line: bool = False) -> list[str]:
    """The last value in running text, and the values linked to it by `and`, `or` or a comma.

    in_line: the text goes on with a sentence, so a hyphen at its start is a sign.
    """
    found = [m for m in VALUE.finditer(text) if not SYMBOL.fullmatch(m[0].strip("$\\()[]"))]
    if not found or (evaluated and _is_operand(text, found[-1], in_line)):
        return []
    first = len(found) - 1
    while first and LINKED.fullmatch(text, found[first - 1].end(), found[first].start()):
        first -= 1
    values = [
        _with_sign(text, m, "".join(filter(None, m.groups())).strip(" *.,:"), in_line)
        for m in found[first:]
    ]
    last = values[-1]
    forms = [last] if "=" not in last else [last, last.rpartition("=")[2].strip()]
    return forms if len(values) == 1 else [*forms, ",".join(values)]


def _with_sign(text: str, value: re.Match, written: str, in_line: bool = False) -> str:
    """The value with a sign that stands apart from it: `= - 4`."""
    return f"-{written}" if _has_sign(_before(text, value), in_line) else written


def _is_operand(text: str, value: re.Match, in_line: bool = False) -> bool:
    """Does an operation end in the value: is it the 3 of `4 + 3`, `4 -3` or `4 / 3`?"""
    before = _before(text, value)
    if value[0].startswith("-"):
        return _ending(OPERAND, before)
    before = before.rstrip("$\\( ")
    bullet = before.rpartition("\n")[2] in ("-", "*", "+") and not in_line
    return _ending(OPERATOR, before) and not _has_sign(before, in_line) and not bullet


def _before(text: str, value: re.Match) -> str:
    return text[max(0, value.start() - NEAR) : value.start()].rstrip(" ")


def _has_sign(before: str, in_line: bool) -> bool:
    """Does a text end in a minus sign, and not in an operator or a bullet?"""
    rest = before[:-1].rstrip(" ")
    return before.endswith("-") and (_ending(SIGNED, rest) or (in_line and not rest))


def _ending(pattern: re.Pattern, text: str) -> bool:
    """Does the text, which is short, end in the pattern?"""
    return any(pattern.fullmatch(text, start) for start in range(len(text)))
