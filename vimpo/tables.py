"""The tidy tables: how they are written, read and told from those of another study.

One observation a row; vimpo/contents.py has the columns. Numbers have ten significant digits, so
that bytes repeat; a missing number is an empty field. Labels such as noise `0` and `0.25` are names
and stay text. `provenance.csv` is written last and vouches for the others by their digests.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from vimpo.config import ConfigError, digest
from vimpo.contents import COLUMNS, OUTCOMES
from vimpo.records import sha256, write_atomic

BASE = "base"  # in column `algorithm`: the policy that all runs of a size start from
MEAN = "mean"  # in column `benchmark`: the mean over all benchmarks of the study
ALL_SIZES = "all"  # in column `size`: the mean over all sizes of the study, each with equal weight
WHOLE = "all"  # in column `position`: the whole response

NUMBERS = {
    *("params", "noise_level", "seed", "step", "window", "value", "stderr", "problems", "samples"),
    *("mean", "low", "high", "confidence", "n", "expected", "count", "round", "parameters"),
    *("bytes", "ratio_to_ppo", "effect", "p", "p_holm", "threshold", "per_size"),
    "needed_per_size",
    *OUTCOMES,
}
DIGEST = "table."  # provenance: sha256 of a table
SECTION = "study."  # provenance: digest of a section of the study


def write_table(path: Path, rows: Iterable[dict]) -> None:
    """Write rows with the table's columns; absent ones are empty."""
    frame = pd.DataFrame(list(rows), columns=COLUMNS[path.stem])
    for column in frame.columns:
        if pd.api.types.is_float_dtype(frame[column]):
            frame[column] = frame[column].map(lambda x: "" if math.isnan(x) else f"{x:.10g}")
    write_atomic(path, frame.to_csv(index=False, lineterminator="\n"))


def write_tables(folder: Path, tables: dict[str, list[dict]]) -> None:
    """Write all tables, and into `provenance` the digest of each of the others."""
    for name in COLUMNS:
        if name != "provenance":
            write_table(Path(folder) / f"{name}.csv", tables[name])
    digests = [
        {"item": DIGEST + name, "value": sha256(Path(folder) / f"{name}.csv"), "count": 1}
        for name in COLUMNS
        if name != "provenance"
    ]
    write_table(Path(folder) / "provenance.csv", tables["provenance"] + digests)


def read_tables(folder: Path, names: Iterable[str]) -> dict[str, pd.DataFrame]:
    """Read tables that were written together.

    A table that provenance.csv does not know is younger than these: it is empty. Raises ConfigError
    that names a table which is missing or of another study than the rest.
    """
    provenance = read_table(folder, "provenance")
    recorded = provenance.set_index("item")["value"]
    tables = {"provenance": provenance}
    for name in dict.fromkeys(names):
        item, path = DIGEST + name, Path(folder) / f"{name}.csv"
        if item not in recorded and not path.exists():
            tables[name] = empty_table(name)
            continue
        tables[name] = read_table(folder, name)
        if name != "provenance" and sha256(path) != recorded.get(item):
            raise ConfigError(
                f"tables: '{path}' is not the {name} table that provenance.csv beside it was "
                "written with; allowed: tables that `aggregate` made together"
            )
    return tables


def empty_table(name: str) -> pd.DataFrame:
    """A table of these columns without rows."""
    columns = {c: pd.Series(dtype=float if c in NUMBERS else object) for c in COLUMNS[name]}
    return pd.DataFrame(columns)


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """Read one of the tables. Raises ConfigError where file or column is missing."""
    path = Path(folder) / f"{name}.csv"
    if not path.is_file():
        raise ConfigError(f"tables: '{path}' is not a file; allowed: the output of `aggregate`")
    frame = pd.read_csv(io.BytesIO(path.read_bytes()), dtype=str, keep_default_na=False)
    if absent := [c for c in COLUMNS[name] if c not in frame.columns]:
        raise ConfigError(f"tables: '{path}' has no column {', '.join(absent)}")
    # versions and commits are values too, but not numbers
    numbers = NUMBERS - {"value"} if name == "provenance" else NUMBERS
    for column in numbers.intersection(frame.columns):
        frame[column] = np.array([float(x or "nan") for x in frame[column]], float)
    return frame


def section_digests(study: dict) -> dict[str, str]:
    """Digest of each section of a resolved study. Where its results lie is no setting."""
    return {SECTION + name: digest(value) for name, value in study.items() if name != "results"}
