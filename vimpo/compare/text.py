"""What `python -m vimpo compare` prints and writes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import cast

import pandas as pd

from vimpo.compare.agreement import ALARM
from vimpo.compare.compare import Comparison
from vimpo.compare.scores import GROUP, Side
from vimpo.config import ConfigError
from vimpo.storage.files import write_atomic
from vimpo.text import aligned

JUDGEMENTS = ("equal", "inside", "outside", "no yardstick")


def describe(a: Side, b: Side, found: Comparison) -> str:
    """One line per group, then digits, machine and verdict."""
    lines = [f"A  {a.path} ({a.source})", f"B  {b.path} ({b.source})", *found.notes, ""]
    table = _table(found.rows)
    lines += aligned(table, left=len(table[0]))
    lines += ["", "to the last digit:"]
    lines += [
        f"  {name}: {'all' if not unequal else count - unequal} of {count} equal"
        for name, (count, unequal) in found.digits.items()
    ]
    if found.machine:
        lines += ["", "the machine, not judged:"]
        lines += [f"  {row['item']}: {row['a']} | {row['b']}" for row in found.machine]
    return "\n".join([*lines, "", f"verdict: {found.verdict} ({_reason(found)})"])


def _table(rows: pd.DataFrame) -> list[list[str]]:
    table = [[*GROUP, "numbers", *JUDGEMENTS, "largest difference, in yardsticks"]]
    for group, frame in rows.groupby(GROUP, sort=False):
        counts = [str(int((frame["judgement"] == j).sum())) for j in JUDGEMENTS]
        judged = frame[~frame["equal"] & frame["standardised"].notna()]
        largest = "–"
        if len(judged):
            row = judged.loc[judged["standardised"].abs().idxmax()]
            where = f", seed {row['seed']}" if row["seed"] not in ("", "mean") else ""
            largest = f"{row['standardised']:+.2f} ({row['number']}{where})"
        table.append([*group, str(len(frame)), *counts, largest])
    return table


def _reason(found: Comparison) -> str:
    if found.verdict == "byte-equal":
        means = found.rows["judgement"].isin(["inside", "outside"]).sum()
        rest = f"; {means} more have no exact counterpart, and none of them is far off"
        return "every number that both sides have" + (rest if means else "")
    result = found.agreement
    share = f"mean sampled accuracy: {result.outside} of {result.headlines} cells are outside their"
    share += f" 95 % interval, chance allows {result.allowed}"
    far = f"smallest p of any policy, by Holm: {result.p_largest:.2g}"
    if result.largest and result.p_largest < 1:
        far += f" ({'/'.join(map(str, cast(tuple, result.largest)))})"
    return f"{share}; {far}; overall p = {result.p:.2g}, threshold {ALARM:g}"


def check_output(path: str) -> None:
    """Raise ConfigError for a name that ends in neither .csv nor .json."""
    if Path(path).suffix not in (".csv", ".json"):
        raise ConfigError(f"output: '{path}' is not allowed; allowed: a name in .csv or .json")


def write_comparison(a: Side, b: Side, found: Comparison, path: Path) -> None:
    """Rows as CSV, or everything as JSON, depending on the suffix."""
    if path.suffix == ".csv":
        write_atomic(path, found.rows.to_csv(index=False, lineterminator="\n"))
        return
    rows = found.rows.astype(object).where(found.rows.notna(), None).to_dict("records")
    content = {
        "verdict": found.verdict,
        "a": str(a.path),
        "b": str(b.path),
        "notes": found.notes,
        "digits": {n: {"numbers": c, "unequal": u} for n, (c, u) in found.digits.items()},
        "agreement": {k: _plain(v) for k, v in vars(found.agreement).items()}
        | {"p": found.agreement.p},
        "machine": found.machine,
        "rows": [{k: _plain(v) for k, v in row.items()} for row in rows],
    }
    write_atomic(path, json.dumps(content, indent=1) + "\n")


def _plain(value: object) -> object:
    """JSON has no NaN and no infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return list(value) if isinstance(value, tuple) else value
