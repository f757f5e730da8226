"""The tidy tables: how they are written, read and told from those of another study.

One observation a row; columns.py has the columns. Numbers have ten significant digits, so
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
import yaml

from vimpo.config import ConfigError, Study, digest
from vimpo.errors import DamagedError
from vimpo.storage.columns import COLUMNS, OUTCOMES
from vimpo.storage.files import sha256, write_atomic

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
# Where results lie, and what spares their making, decides none of them.
NO_SETTING = ("results", "continues")


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


def ten_digits(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows at full precision as :func:`read_table` has them, once they were written."""
    found = {}
    for name, column in frame.items():
        if pd.api.types.is_float_dtype(column):
            found[name] = [float(f"{x:.10g}") for x in column]
        elif name in NUMBERS:
            found[name] = column.astype(float)
        else:
            found[name] = column.fillna("")
    return pd.DataFrame(found, columns=frame.columns)


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
    """Digest of each section of a resolved study that is a setting."""
    return {
        SECTION + name: digest(value) for name, value in study.items() if name not in NO_SETTING
    }


def check_tables(study: Study, frames: dict[str, pd.DataFrame], config: Path | None = None) -> None:
    """Refuse tables of another study: every cell must be in the grid, and accounted for.

    Raises ConfigError that names the first cells, or the sections of the study, at fault.
    """
    accuracy, summary = frames["accuracy"], frames["summary"]
    runs = accuracy[accuracy["algorithm"] != BASE].drop_duplicates(
        ["algorithm", "size", "noise", "seed"]
    )
    found = {
        f"{r.algorithm}/{r.size}/noise-{r.noise}/seed-{int(r.seed)}"
        for r in runs[["algorithm", "size", "noise", "seed"]].itertuples()
    }
    cells = {cell.name for cell in study.cells()}
    absent = cells - found - set(frames["missing"]["cell"])
    faults = {
        "not in the grid": sorted(found - cells),
        "neither in accuracy.csv nor in missing.csv": sorted(absent),
        "benchmarks not in the study": sorted(
            set(accuracy["benchmark"]) - set(study.task.benchmarks)
        ),
    }
    if wrong := set(summary["confidence"].dropna()) - {study.statistics.confidence}:
        faults["intervals of another confidence"] = sorted(map(str, wrong))
    faults["other settings than those"] = _other_sections(study, frames["provenance"], config)
    for fault, names in faults.items():
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
            raise ConfigError(
                f"tables: {shown}: {fault} of study '{study.study}'; "
                "allowed: tables that `aggregate` made from this configuration"
            )


def _other_sections(study: Study, provenance: pd.DataFrame, config: Path | None) -> list[str]:
    """Sections of the study that are not those which the tables were made from."""
    texts = [study.model_dump(mode="json")]
    if config is not None:
        texts.append(yaml.safe_load(Path(config).read_text()) or {})
    known = [section_digests(text) for text in texts]
    recorded = provenance.set_index("item")["value"]
    recorded = recorded[recorded.index.str.startswith(SECTION)]
    return [
        item.removeprefix(SECTION)
        for item, value in recorded.items()
        if all(digests.get(item) != value for digests in known)
    ]
