"""Rows of single runs as Parquet, at full precision: what summaries were computed from.

`aggregate` leaves them in tables/cells/, and `publish` copies them to cells/ of a published study.
Other analyses start from them, `compare` matches single runs, and another study takes over its
finished cells from them.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from vimpo.storage.columns import ARCHIVED, COLUMNS, SNAPSHOTS
from vimpo.storage.files import write_atomic
from vimpo.storage.integrity import check
from vimpo.storage.manifests import ALLOWED
from vimpo.storage.tables import ten_digits

FOLDER = "cells"
COUNTS = ("params", "seed", "step", "problems", "samples", "n", "round")
MEASURES = ("noise_level", "value", "stderr")
TYPES = dict.fromkeys(COUNTS, pa.int64()) | dict.fromkeys(MEASURES, pa.float64())
# The bytes of floats are regrouped, which lets zstd find repetitions. Its highest level takes less
# than a second for a study of hundreds of runs.
ZSTD = {"compression": "zstd", "compression_level": 19}


def archived(tables: dict[str, list[dict]]) -> list[str]:
    """Names of the tables that are kept."""
    return [*ARCHIVED, *(name for name in SNAPSHOTS if tables[name])]


def archive_files(folder: Path) -> list[str]:
    """Names of the files of an archive."""
    files = {name: f"{name}.parquet" for name in (*ARCHIVED, *SNAPSHOTS)}
    return [file for n, file in files.items() if n in ARCHIVED or (folder / file).is_file()]


def write_archive(folder: Path, tables: dict[str, list[dict]]) -> None:
    kept = archived(tables)
    for name in set(SNAPSHOTS).difference(kept):  # of an earlier configuration
        (folder / f"{name}.parquet").unlink(missing_ok=True)
    for name in kept:
        schema = pa.schema([(c, TYPES.get(c, pa.string())) for c in COLUMNS[name]])
        table = pa.Table.from_pylist([_without_gaps(row) for row in tables[name]], schema=schema)
        floats = [c for c in MEASURES if c in COLUMNS[name]]
        texts = [c for c in COLUMNS[name] if c not in floats]
        buffer = io.BytesIO()
        pq.write_table(
            table, buffer, use_dictionary=texts, use_byte_stream_split=floats or False, **ZSTD
        )
        write_atomic(folder / f"{name}.parquet", buffer.getvalue())


def _without_gaps(row: dict) -> dict:
    """A row without its missing whole numbers: only floats can be NaN."""
    return {k: v for k, v in row.items() if k not in COUNTS or (v is not None and v == v)}


def check_archive(folder: Path) -> None:
    """Raise DamagedError if a file is missing or not what was written."""
    for file in archive_files(folder):
        check("cells", folder / file, ALLOWED)


def archived_rows(folder: Path, name: str) -> list[dict]:
    """The rows as `aggregate` had them: a missing number is not a key of its row."""
    if f"{name}.parquet" not in archive_files(folder):
        return []
    rows = pq.read_table(folder / f"{name}.parquet").to_pylist()
    return [{k: v for k, v in row.items() if v is not None} for row in rows]


def archived_frames(tables: Path, names: Iterable[str]) -> dict[str, pd.DataFrame]:
    """The named tables from the archive that belongs to a folder of tables, rounded like those.

    Empty if there is none, as in a study published with its tables alone. Raises DamagedError.
    """
    if (folder := archive_of(tables)) is None:
        return {}
    check_archive(folder)
    return {n: ten_digits(pq.read_table(folder / f"{n}.parquet").to_pandas()) for n in names}


def archive_of(tables: Path) -> Path | None:
    """tables/cells/ of a results folder, or cells/ next to the tables of a published study."""
    return next((f for f in (tables / FOLDER, tables.parent / FOLDER) if f.is_dir()), None)
