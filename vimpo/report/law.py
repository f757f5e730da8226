"""The capacity law over several studies: its tables and figure, and what pages say of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from vimpo.analysis import law
from vimpo.report.figures import print_figures
from vimpo.report.tables import Entry, Table, estimate_entry, only
from vimpo.storage.tables import read_table
from vimpo.text import aligned

FIGURE = law.POINTS
NAMES = {
    law.ACCURACY: "explained variance",
    law.RESCALED: "after best rescaling",
    law.ORDER: "rank correlation",
    law.SCALE: "scale s",
}
SAID = (law.ACCURACY, law.ORDER)  # measures that a sentence tells, and that are drawn
COLUMNS = ["measure", "per tenfold size", "per tenfold length", "units", "curve"]


def write_law(rows: Sequence[dict], output: Path) -> list[Path]:
    """Write tables and figure of these points (vimpo/analysis/law.py); returns all paths."""
    tables = law.law(rows, output)

    def drawn() -> Any:
        from vimpo.report.figures.law import capacity_law

        return capacity_law(tables[law.POINTS], tables[law.REMAINDER])

    return [*(output / f"{name}.csv" for name in tables), *print_figures({FIGURE: drawn}, output)]


def remainder_table(remainder: pd.DataFrame) -> Table:
    """One line per measure: what of size and length remains, with interval and counts."""
    lines = []
    for measure, name in NAMES.items():
        size, length = (only(remainder, measure=measure, term=term) for term in law.AXES)
        if size is None or length is None:
            continue
        found = [estimate_entry(row, digits="+.2f") for row in (size, length)]
        lines.append([Entry(name), *found, Entry(f"{size['units']:.0f}"), Entry(size["curve"])])
    return Table(COLUMNS, lines)


def scale_table(remainder: pd.DataFrame) -> Table:
    """s / capacity at the lowest capacities."""
    rows = remainder[remainder["term"] == law.PER_CAPACITY]
    lines = [
        [Entry(f"{row['capacity']:g}"), estimate_entry(row, digits=".2f")]
        for _, row in rows.iterrows()
    ]
    return Table(["capacity", "s / capacity"], lines)


def law_content(folder: Path) -> dict:
    """What a page says of the law in `folder`; `studies` is empty where there is none.

    Studies, base policies and runs are those of the fits, which may be fewer than are drawn.
    """
    if not (folder / f"{law.REMAINDER}.csv").is_file():
        return {"studies": []}
    points, remainder = (read_table(folder, name) for name in (law.POINTS, law.REMAINDER))
    verdicts = {key: part["verdict"] for key, part in remainder.groupby(["measure", "term"])}
    found = {
        NAMES[measure]: str(law.Finding.of(*(verdicts[measure, term].iloc[0] for term in law.AXES)))
        for measure in SAID
    }
    fitted = pd.concat([law.fitted(points, measure) for measure in SAID])
    return {
        "studies": list(dict.fromkeys(fitted["study"])),
        "bases": fitted["base"].nunique(),
        "runs": len(fitted.drop_duplicates(["study", "algorithm", "size", "seed"])),
        "common": set(fitted["prefixes"]) == {"common"},
        "found": found,
        "remainder": remainder_table(remainder),
        "scale": scale_table(remainder),
        "figure": FIGURE,
    }


def described(output: Path) -> str:
    """The tables as text, for the terminal."""
    content = law_content(output)
    blocks = []
    for table in (content["remainder"], content["scale"]):
        rows = [[f"{e.text} {e.detail}".strip() for e in row] for row in table.rows]
        blocks.append("\n".join(aligned([table.columns, *rows], left=1)))
    return "\n\n".join(blocks)
