"""Rows of single runs as Parquet, at full precision: what summaries were computed from.

`aggregate` leaves them in tables/cells/, `publish` copies them to cells/ of a published study, and
both vouch for them by checksums in provenance.csv. Other analyses start from them, `compare` holds
single runs against each other, and another study takes its finished cells from them.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from vimpo.errors import DamagedError
from vimpo.storage.columns import ARCHIVED, COLUMNS
from vimpo.storage.files import sha256, write_atomic
from vimpo.storage.manifests import ALLOWED, check_vouched
from vimpo.storage.tables import read_table, ten_digits

FOLDER = "cells"
CHECKSUM = "cells."  # provenance: sha256 of one of these files
COUNTS = ("params", "seed", "step", "problems", "samples", "n", "round")
MEASURES = ("noise_level", "value", "stderr")
TYPES = dict.fromkeys(COUNTS, pa.int64()) | dict.fromkeys(MEASURES, pa.float64())
# The bytes of a float are regrouped, which is what zstd needs to find them alike. The hardest level
# takes less than a second for a study of hundreds of runs.
ZSTD = {"compression": "zstd", "compression_level": 19, "write_page_checksum": True}


def write_archive(folder: Path, tables: dict[str, list[dict]]) -> list[dict]:
    """Write the rows; returns those of `provenance` that vouch for them."""
    for name in ARCHIVED:
        schema = pa.schema([(c, TYPES.get(c, pa.string())) for c in COLUMNS[name]])
        table = pa.Table.from_pylist([_without_gaps(row) for row in tables[name]], schema=schema)
        floats = [c for c in MEASURES if c in COLUMNS[name]]
        texts = [c for c in COLUMNS[name] if c not in floats]
        buffer = io.BytesIO()
        pq.write_table(
            table, buffer, use_dictionary=texts, use_byte_stream_split=floats or False, **ZSTD
        )
        write_atomic(_file(folder, name), buffer.getvalue())
    return [
        {"item": CHECKSUM + name, "value": sha256(_file(folder, name)), "count": 1}
        for name in ARCHIVED
    ]


def _without_gaps(row: dict) -> dict:
    """A row less the whole numbers that it has not: only floats know NaN."""
    return {k: v for k, v in row.items() if k not in COUNTS or (v is not None and v == v)}


def check_archive(folder: Path, provenance: pd.DataFrame) -> None:
    """Raise as :func:`check_vouched` where a file is not what was written."""
    for name in ARCHIVED:
        check_vouched("cells", _file(folder, name), CHECKSUM + name, provenance)


def read_archive(folder: Path, name: str) -> pa.Table:
    """One of the files. Raises DamagedError where it is no such table."""
    path = _file(folder, name)
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise DamagedError(
            f"cells: '{path}' is damaged: not a table: {reason}; {ALLOWED}"
        ) from None
    return table


def archived_rows(folder: Path, name: str) -> list[dict]:
    """The rows as `aggregate` had them: a number that a row has not is no field of it."""
    rows = read_archive(folder, name).to_pylist()
    return [{k: v for k, v in row.items() if v is not None} for row in rows]


def archived_frames(tables: Path, names: Iterable[str]) -> dict[str, pd.DataFrame]:
    """The named tables from the archive that belongs to a folder of tables, rounded as those are.

    Empty where there is none: a study that was published before there were archives, or whose
    tables of single cells were published instead. Raises ConfigError where one is damaged.
    """
    if (folder := archive_of(tables)) is None:
        return {}
    check_archive(folder, read_table(tables, "provenance"))
    return {name: ten_digits(read_archive(folder, name).to_pandas()) for name in names}


def archive_of(tables: Path) -> Path | None:
    """tables/cells/ of a results folder, or cells/ beside the tables of a published study."""
    return next((f for f in (tables / FOLDER, tables.parent / FOLDER) if f.is_dir()), None)


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.parquet"
