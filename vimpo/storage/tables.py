"""The tidy tables: how they are written, read and told from those of another study.

One observation per row; columns.py has the columns. Numbers have ten significant digits, so that
bytes repeat; a missing number is an empty field. Labels such as noise `0` and `0.25` are names and
stay text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from vimpo.config import ConfigError, Study, digest
from vimpo.config.load import read_file
from vimpo.config.study import PLACES, RESERVED
from vimpo.errors import DamagedError
from vimpo.storage.columns import ACROSS_STUDIES, COLUMNS, OPTIONAL_TABLES, OUTCOMES
from vimpo.storage.files import write_atomic
from vimpo.storage.integrity import check, sealed

# In column `algorithm`: the policy that all runs of a size start from.
BASE = RESERVED["algorithms"]
# In column `benchmark`: the mean over all benchmarks of the study.
MEAN = RESERVED["task.benchmarks"]
# In column `size`: the mean over all sizes of the study, each with equal weight.
ALL_SIZES = RESERVED["sizes"]
WHOLE = "all"  # in column `position`: the whole response

NUMBERS = {
    *("params", "noise_level", "seed", "step", "window", "value", "stderr", "problems", "samples"),
    *("mean", "low", "high", "confidence", "n", "expected", "count", "round", "parameters"),
    *("bytes", "ratio_to_ppo", "effect", "p", "p_holm", "threshold", "per_size"),
    *("needed_per_size", "at", "failed", "level", "kl"),
    *("responses", "tokens", "surprisal", "right_responses", "right_tokens", "right_surprisal"),
    *("right_stderr", "beta", "capacity", "units"),
    *OUTCOMES,
}
AGAIN = "`python -m vimpo aggregate` makes the tables again"
SECTION = "study."  # provenance: digest of a section of the study
NO_SETTING = PLACES | {"registered"}  # when a study was written decides nothing either


def _columns(name: str) -> list[str]:
    return COLUMNS[name] if name in COLUMNS else ACROSS_STUDIES[name]


def write_table(path: Path, rows: Iterable[dict]) -> None:
    """Write rows with the table's columns; absent ones are empty."""
    frame = pd.DataFrame(list(rows), columns=_columns(path.stem))
    for column in frame.columns:
        if pd.api.types.is_float_dtype(frame[column]):
            frame[column] = frame[column].map(lambda x: "" if math.isnan(x) else f"{x:.10g}")
    write_atomic(path, frame.to_csv(index=False, lineterminator="\n"))


def write_tables(folder: Path, tables: dict[str, list[dict]]) -> None:
    for name in COLUMNS:
        write_table(Path(folder) / f"{name}.csv", tables[name])


def read_csv(path: Path, numbers: Iterable[str] | None = ()) -> pd.DataFrame:
    """Rows of a CSV file; every one that the suite reads is read here.

    numbers: the columns that are not text, None for all; an empty field there is NaN. pandas would
    guess, and take the names `NA`, `None` and `nan` for nothing, and `1` and `02` for numbers.
    Texts are objects: reports compare few rows often, and a comparison of Arrow's strings costs
    more than its rows.
    """
    frame = pd.read_csv(path, dtype=object, keep_default_na=False)
    for column in frame.columns.intersection(list(frame.columns if numbers is None else numbers)):
        frame[column] = np.array([float(x or "nan") for x in frame[column]], float)
    return frame


def read_tables(folder: Path, names: Iterable[str]) -> dict[str, pd.DataFrame]:
    """Read tables that were written together, and `provenance`; one that is optional and was never
    written is empty.

    Raises DamagedError that names a table which is missing, damaged or of another study.
    """
    tables = {}
    for name in dict.fromkeys(("provenance", *names)):
        if not was_written(folder, name):
            tables[name] = empty_table(name)
            continue
        check("tables", Path(folder) / f"{name}.csv", AGAIN)
        tables[name] = read_table(folder, name)
    return tables


def was_written(folder: Path, name: str) -> bool:
    """Whether the folder has, or has lost, this table: false only for an optional one."""
    path = Path(folder) / f"{name}.csv"
    return name not in OPTIONAL_TABLES or path.is_file() or sealed(path)


def empty_table(name: str) -> pd.DataFrame:
    columns = {c: pd.Series(dtype=float if c in NUMBERS else str) for c in COLUMNS[name]}
    return pd.DataFrame(columns)


def read_table(folder: Path, name: str, file: str = "") -> pd.DataFrame:
    """Read one of the tables, from `file` if it has another name, and without its checksum.

    Raises ConfigError if it is missing or not such a table.
    """
    path = Path(folder) / (file or f"{name}.csv")
    if not path.is_file():
        raise ConfigError(f"tables: '{path}' is not a file; {AGAIN}")
    # versions and commits are values too, but not numbers
    numbers = NUMBERS - {"value"} if name == "provenance" else NUMBERS
    try:
        frame = read_csv(path, numbers)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DamagedError(f"tables: '{path}' is damaged: {error}; {AGAIN}") from None
    if absent := [c for c in _columns(name) if c not in frame.columns]:
        raise ConfigError(f"tables: '{path}' has no column {', '.join(absent)}; {AGAIN}")
    return frame


def ten_digits(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows at full precision as :func:`read_table` would return them from a file."""
    found = {}
    for name, column in frame.items():
        if pd.api.types.is_float_dtype(column):
            found[name] = [float(f"{x:.10g}") for x in column]
        elif name in NUMBERS:
            found[name] = column.astype(float)
        else:
            found[name] = column.fillna("")
    return pd.DataFrame(found, columns=frame.columns)


def section_digests(study: dict) -> dict[str, str]:
    """Digest of each section of a resolved study that is a setting."""
    return {
        SECTION + name: digest(value) for name, value in study.items() if name not in NO_SETTING
    }


def check_tables(study: Study, frames: dict[str, pd.DataFrame], config: Path | None = None) -> None:
    """Refuse tables of another study: every cell must be in the grid and accounted for.

    Raises ConfigError that names the first cells, or sections of the study, at fault.
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
    """Sections of the study that differ from those that the tables were made from."""
    texts = [study.model_dump(mode="json")]
    if config is not None:
        texts.append(read_file(Path(config)) or {})
    known = [section_digests(text) for text in texts]
    recorded = provenance.set_index("item")["value"]
    recorded = recorded[recorded.index.str.startswith(SECTION)]
    others = [
        item.removeprefix(SECTION)
        for item, value in recorded.items()
        if all(digests.get(item) != value for digests in known)
    ]
    # A section that tables do not know is newer than they are, but these were asked of runs.
    unasked = bool(study.hypotheses) and f"{SECTION}hypotheses" not in recorded.index
    return others + ["hypotheses"] * unasked
