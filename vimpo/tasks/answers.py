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
SYMBOL = re.compile(r"\s*\\?[A-Za-z]+(?:\(\w\))?\s*")


def last_boxed(response: str) -> str | None:
    r"""Content of the last closed `\boxed{}` or `\fbox{}`; None if there is none."""
    return next(iter(_boxes(response, 1)), None)


def answers(response: str, boxed_only: bool = True) -> list[str]:
    r"""What a response can be taken to answer, likeliest first; empty if it answers nothing.

    The last box; then all boxes of its paragraph together, for problems with several answers
    ("p and q are \boxed{3} and \boxed{4}"). Without a box and with `boxed_only` false: what follows
    the last "answer is" or "####", the last formula, or the last number.
    """
    boxes = _boxes(response, BOXES_TRIED)
    if boxes:
        together = ",".join(reversed(boxes))
        return [boxes[0]] if len(boxes) == 1 else [boxes[0], together]
    return [] if boxed_only else _unboxed(response[-LONGEST_TAIL:])


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


def _unboxed(tail: str) -> list[str]:
    closing = tail[-LONGEST_STATEMENT:]
    if statements := list(STATEMENT.finditer(closing)):
        rest = closing[statements[-1].end() :].split("\n\n")[0].strip()
        said = re.split(r"\.\s|\.$|\n| I hope", rest)[0].strip(" *.$:")
        if values := _last_values(said if VALUE.search(said) else rest):
            return [said, *values]
        if said:
            return [said]
    return _last_values(tail.rstrip().split("\n\n")[-1])


def _last_values(text: str) -> list[str]:
    """The last value in running text, and the values linked to it by `and`, `or` or a comma."""
    found = [m for m in VALUE.finditer(text) if not SYMBOL.fullmatch(m[0].strip("$\\()[]"))]
    if not found:
        return []
    first = len(found) - 1
    while first and LINKED.fullmatch(text, found[first - 1].end(), found[first].start()):
        first -= 1
    values = ["".join(filter(None, m.groups())).strip(" *.,:") for m in found[first:]]
    last = values[-1]
    forms = [last] if "=" not in last else [last, last.rpartition("=")[2].strip()]
    return forms if len(values) == 1 else [*forms, ",".join(values)]
