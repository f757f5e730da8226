"""What a response answers by a rule of the configuration (vimpo/config/texts.py)."""

from __future__ import annotations

import re

from vimpo.tasks.answers import MINUS, last_boxed, last_number


def extracted(rule: str | dict[str, str], response: str) -> str | None:
    """The answer, or None if there is none: no box, no number, no match.

    rule: `boxed`, `last_number`, or {pattern: P}, whose last match's group is the answer. A pattern
    may take time without limit, so it is only tried in a guarded process.
    """
    response = response.translate(MINUS)
    if isinstance(rule, dict):
        *_, last = [None, *re.finditer(rule["pattern"], response)]
        return last and last[1]
    return {"boxed": last_boxed, "last_number": last_number}[rule](response)
