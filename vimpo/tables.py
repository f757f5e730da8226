"""The tidy tables: how they are written, read and told from those of another study.

One observation a row; vimpo/contents.py has the columns. Numbers have ten significant digits, so
that bytes repeat; a missing number is an empty field. Labels such as noise `0` and `0.25` are names
and stay text. `provenance.csv` is written last and vouches for the others by their digests.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from vimpo.config import ConfigError, digest
from vimpo.config_types import DamagedError
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
    *("needed_per_size", "at", "failed"),
    *OUTCOMES,
}
AGAIN = "`python -m vimpo aggregate` makes the tables again"
DIGEST = "table."  # provenance: sha256 of a table
CHECKSUM = 64  # digits
SEAL = DIGEST + "provenance"
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
    path = Path(folder) / "provenance.csv"
    write_table(path, tables["provenance"] + digests)
    # Nothing beside it vouches for it, so its last row has the digest of those before.
    text = path.read_text()
    write_atomic(path, f"{text}{SEAL},{hashlib.sha256(text.encode()).hexdigest()},1\n")


def read_tables(folder: Path, names: Iterable[str]) -> dict[str, pd.DataFrame]:
    """Read tables that were written together.

    A table that provenance.csv does not know is younger than these: it is empty. Raises ConfigError
    that names a table which is missing or of another study than the rest.
    """
    provenance = read_table(folder, "provenance")
    recorded = provenance.set_index("item")["value"].to_dict()
    tables = {"provenance": provenance}
    for name in names:
        item, path = DIGEST + name, Path(folder) / f"{name}.csv"
        if name == "provenance":
            continue
        if item not in recorded and not path.exists():
            tables[name] = empty_table(name)
            continue
        _check_exists(path)
        if len(recorded.get(item, "")) != CHECKSUM:
            known = path.with_name("provenance.csv")
            raise DamagedError(f"tables: '{known}' is damaged: no {name} table in it; {AGAIN}")
        if sha256(path) != recorded[item]:
            raise ConfigError(
                f"tables: '{path}' is not the {name} table that provenance.csv beside it was "
                f"written with: one of them is damaged or of another study; {AGAIN}"
            )
        tables[name] = read_table(folder, name)
    return tables


def empty_table(name: str) -> pd.DataFrame:
    """A table of these columns without rows."""
    columns = {c: pd.Series(dtype=float if c in NUMBERS else object) for c in COLUMNS[name]}
    return pd.DataFrame(columns)


def read_table(folder: Path, name: str, file: str = "") -> pd.DataFrame:
    """Read one of the tables, from `file` if not from that of its name.

    Raises ConfigError where it is missing or not what was written.
    """
    path = Path(folder) / (file or f"{name}.csv")
    _check_exists(path)
    content = path.read_bytes()
    try:
        frame = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DamagedError(f"tables: '{path}' is damaged: {error}; {AGAIN}") from None
    if name == "provenance":
        _check_seal(path, content)
    if absent := [c for c in COLUMNS[name] if c not in frame.columns]:
        raise ConfigError(f"tables: '{path}' has no column {', '.join(absent)}; {AGAIN}")
    # versions and commits are values too, but not numbers
    numbers = NUMBERS - {"value"} if name == "provenance" else NUMBERS
    for column in numbers.intersection(frame.columns):
        frame[column] = np.array([float(x or "nan") for x in frame[column]], float)
    return frame


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise ConfigError(f"tables: '{path}' is not a file; {AGAIN}")


def _check_seal(path: Path, content: bytes) -> None:
    """Raise DamagedError where the last row is not the digest of the rest, if it is one."""
    last = content.rfind(b"\n", 0, -1) + 1
    item, _, value = content[last:].decode().partition(",")
    if item == SEAL and value != f"{hashlib.sha256(content[:last]).hexdigest()},1\n":
        raise DamagedError(f"tables: '{path}' is damaged: its checksum differs; {AGAIN}")


def section_digests(study: dict) -> dict[str, str]:
    """Digest of each section of a resolved study. Where its results lie is no setting."""
    return {SECTION + name: digest(value) for name, value in study.items() if name != "results"}
