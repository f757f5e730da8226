"""The tidy tables: their columns, and how they are written and read.

One observation a row. Numbers have ten significant digits, so that bytes repeat; a missing number
is an empty field. Labels such as noise `0` and `0.25` are names and stay text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from vimpo.config import ConfigError
from vimpo.records import write_atomic

BASE = "base"  # in column `algorithm`: the policy that all runs of a size start from
MEAN = "mean"  # in column `benchmark`: the mean over all benchmarks of the study
ALL_SIZES = "all"  # in column `size`: the mean over all sizes of the study, each with equal weight

CELL = ["algorithm", "size", "params", "noise", "noise_mode", "noise_level"]
RUN = ["algorithm", "size", "params", "noise", "noise_mode", "seed"]
INTERVAL = ["mean", "low", "high", "confidence", "n", "expected", "method", "reason"]
SCORE = ["benchmark", "metric", "value", "stderr", "problems", "samples"]
COLUMNS = {
    "accuracy": [*CELL, "seed", *SCORE],
    "curves": [*RUN, "step", "metric", "value"],
    "cost": [*RUN, "metric", "unit", "value"],
    "missing": ["cell", "stage", "reason"],
    "summary": [*CELL, "benchmark", "metric", *INTERVAL],
    "curves_summary": [*CELL, "step", "window", "metric", *INTERVAL],
    "cost_summary": ["algorithm", "size", "params", "metric", "unit", *INTERVAL],
    "provenance": ["item", "value", "count"],
}
NUMBERS = {
    *("params", "noise_level", "seed", "step", "window", "value", "stderr", "problems", "samples"),
    *("mean", "low", "high", "confidence", "n", "expected", "count"),
}


def write_table(path: Path, rows: Iterable[dict]) -> None:
    """Write rows with the table's columns; absent ones are empty."""
    frame = pd.DataFrame(list(rows), columns=COLUMNS[path.stem])
    for column in frame.columns:
        if pd.api.types.is_float_dtype(frame[column]):
            frame[column] = frame[column].map(lambda x: "" if math.isnan(x) else f"{x:.10g}")
    write_atomic(path, frame.to_csv(index=False, lineterminator="\n"))


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """Read one of the tables. Raises ConfigError where file or column is missing."""
    path = Path(folder) / f"{name}.csv"
    if not path.is_file():
        raise ConfigError(f"tables: '{path}' is not a file; allowed: the output of `aggregate`")
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    if absent := [c for c in COLUMNS[name] if c not in frame.columns]:
        raise ConfigError(f"tables: '{path}' has no column {', '.join(absent)}")
    # versions and commits are values too, but not numbers
    numbers = NUMBERS - {"value"} if name == "provenance" else NUMBERS
    for column in numbers.intersection(frame.columns):
        frame[column] = np.array([float(x or "nan") for x in frame[column]], float)
    return frame
