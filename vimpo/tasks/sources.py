"""Rows of problems from local Parquet and JSONL files, or from the hub.

Local files are read here and not by `datasets`, whose cache is keyed by path and time and can
return stale rows. Every fault is a ConfigError that names the field to change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimpo.config.asked import OwnBenchmark, RealBenchmark
from vimpo.config.sources import ProblemSource
from vimpo.config.task import DatasetTask, TaskConfig
from vimpo.config.types import local_path, once_each
from vimpo.errors import ConfigError

if TYPE_CHECKING:
    from pyarrow import RecordBatch

SUFFIXES = (".jsonl", ".parquet")


def local_file(path: str, field: str) -> Path | None:
    """The file that `path` means; None for a hub name (`owner/name`).

    Raises ConfigError for a path that looks like a file but is not one, and for other file types.
    """
    local, there = local_path(path, field)
    looks_local = local.suffix in SUFFIXES or path.startswith((".", "/", "~")) or there
    if not looks_local:
        return None
    if not local.is_file():
        raise ConfigError(
            f"{field}: '{path}' is not a file; allowed: a .jsonl or .parquet file, or a hub name"
        )
    if local.suffix not in SUFFIXES:
        raise ConfigError(
            f"{field}: '{path}' ends in '{local.suffix}'; allowed: .jsonl or .parquet, or a hub "
            "name"
        )
    return local


def read_rows(
    path: str,
    field: str,
    *,
    subset: str | None = None,
    split: str = "train",
    file: str | None = None,
) -> list[dict]:
    """All rows of a local file, or of a hub dataset's split or file.

    Raises ConfigError if there are none: no file, no network, no such split, not JSON, empty.
    """
    local = local_file(path, field)
    rows = list(_file_rows(local, field)) if local else _hub_rows(path, field, subset, split, file)
    if not rows:
        raise _no_rows(path, field)
    return rows


def _file_rows(path: Path, field: str) -> Iterator[dict]:
    if path.suffix == ".parquet":
        import pyarrow.parquet
        from pyarrow import ArrowException

        try:
            for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
                yield from _shortest_floats(batch).to_pylist()
        except (ArrowException, OSError, ValueError) as error:  # ValueError: text that is not UTF-8
            raise ConfigError(f"{field}: '{path}' is not a Parquet file: {error}") from None
        return
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _object(line, f"{field}: line {number} of '{path}'")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{field}: '{path}' is not UTF-8 text ({error.reason} {error.object[error.start]:#04x}"
            "); allowed: one JSON object per line, in UTF-8 and not compressed"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{field}: '{path}' cannot be read ({error.strerror}); allowed: a file that can be read"
        ) from None


def _object(line: str, place: str) -> dict:
    """A line of a JSONL file. Raises ConfigError for anything but one object, each key once."""
    try:
        row = json.loads(line, object_pairs_hook=once_each)
        if "\\u" in line:  # half of a character, as \ud83d alone, is valid JSON and no text
            json.dumps(row, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place} is not JSON ({error}); allowed: one object per line") from None
    if not isinstance(row, dict):
        raise ConfigError(f"{place} is not an object; allowed: one object per line")
    return row


def _shortest_floats(batch: RecordBatch) -> RecordBatch:
    """A float32 of 0.1 as 0.1 and not as 0.10000000149011612."""
    import pyarrow as pa

    columns = [
        column.cast(pa.string()).cast(pa.float64()) if column.type == pa.float32() else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, batch.schema.names)


def quiet_datasets() -> None:
    """No bars of the datasets library: what is on stderr is for the user to read."""
    from datasets.utils import disable_progress_bars

    disable_progress_bars()


def _hub_rows(
    path: str, field: str, subset: str | None, split: str, file: str | None
) -> list[dict]:
    from datasets import load_dataset

    quiet_datasets()
    try:
        return load_dataset(path, subset, split=split, data_files=file).to_list()
    except Exception as error:  # its errors have no common type: network, name, split, format
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{field}: '{path}' could not be loaded from the hub ({reason}); allowed: a hub name "
            "and split that exist, with network or a filled cache, or a local .jsonl or .parquet "
            "file"
        ) from None


def column(row: dict, name: str, field: str, path: str) -> Any:
    """The value of a column; dots reach into structs, numbers into lists (`reward.truth.0`).

    Raises ConfigError if there is no such column.
    """
    value: Any = row
    for part in [name] if name in row else name.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise ConfigError(
                f"{field}: '{path}' has no column '{name}'; allowed: {', '.join(row)}"
            )
    return value


def check_sources(task: TaskConfig) -> None:
    """Check that the local files of a task exist, are readable and have rows and columns.

    Reads one row per file and needs neither network nor torch; vimpo/planning/preflight.py checks
    all rows and hub names. Raises ConfigError.
    """
    for name, benchmark in task.benchmarks.items():
        if isinstance(benchmark, OwnBenchmark):
            field = f"task.benchmarks.{name}"
            if row := _first_row(benchmark.path, f"{field}.path"):
                check_columns(benchmark, row, field)
        if isinstance(benchmark, RealBenchmark) and benchmark.path:
            field = f"task.benchmarks.{name}.path"
            if row := _first_row(benchmark.path, field):
                for required in benchmark.columns:
                    column(row, required, field, benchmark.path)
    if isinstance(task, DatasetTask):
        for i, source in enumerate(task.datasets):
            field = f"task.datasets[{i}]"
            if row := _first_row(source.path, f"{field}.path"):
                check_columns(source, row, field)


def check_columns(source: ProblemSource, row: dict, field: str) -> None:
    """Raise ConfigError if the row lacks a column that the source names."""
    for role in ("problem", "answer", "solution"):
        if name := getattr(source, role, None):
            column(row, name, f"{field}.{role}", source.path)


def _first_row(path: str, field: str) -> dict | None:
    """The first row of a local file; None for a hub name."""
    local = local_file(path, field)
    if local is None:
        return None
    for row in _file_rows(local, field):
        return row
    raise _no_rows(path, field)


def _no_rows(path: str, field: str) -> ConfigError:
    return ConfigError(f"{field}: '{path}' holds no rows; allowed: a dataset with problems")
