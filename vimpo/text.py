"""Numbers and columns as text, the same in plans, comparisons, tables and figures."""

from __future__ import annotations

import math
from collections.abc import Sequence

Units = Sequence[tuple[str, float]]

COUNTS: Units = (("B", 1e9), ("M", 1e6), ("k", 1e3), ("", 1))
BYTES: Units = ((" TB", 1e12), (" GB", 1e9), (" MB", 1e6), (" kB", 1e3), (" B", 1))


def short(number: float, units: Units = COUNTS) -> str:
    """Three digits and the largest unit that fits: `107k`, `4.02B`; `?` if it is not finite."""
    if not math.isfinite(number):
        return "?"
    unit, factor = next((u for u in units if number >= u[1]), units[-1])
    return f"{number / factor:.3g}{unit}"


def aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """One line per row, with columns two spaces apart; all but the first `left` align right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            text.ljust(width) if i < left else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
