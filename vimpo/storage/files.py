"""Writing to the disk: atomic files, rows as CSV, checksums, and one error if it is full."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vimpo.errors import DiskFullError

FULL = (errno.ENOSPC, errno.EDQUOT)


def is_disk_full(error: BaseException | None) -> bool:
    """Was a full disk the cause of this error? Libraries in Rust only say so in words."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(f"os error {number})" in str(error) for number in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def room_for(folder: Path | None = None) -> Iterator[None]:
    """Raise DiskFullError, which names `folder` if known, if a write finds no room."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskFullError) or not is_disk_full(error):
            raise
        place = f"in '{folder}'" if folder else f"({error})"
        raise DiskFullError(
            f"no room left to write {place}; what was finished or saved before is intact: "
            "make room, and the same command resumes from there"
        ) from error


def write_atomic(path: Path, content: str | bytes) -> None:
    """A whole file, by :func:`written_aside`."""
    data = content.encode() if isinstance(content, str) else content
    with written_aside(path) as aside:
        aside.write_bytes(data)


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Write aside, sync, rename: a reader sees the old file or the complete new one.

    The body writes the file whose path it is given. The folder is synced too, or a power cut could
    undo the rename. Raises DiskFullError.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with room_for(path.parent):
        make_folder(path.parent)
        try:
            yield aside
            sync(aside)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
        sync(path.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, and sync their names to the disk."""
    new = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in new:
        sync(path.parent)


def sync(path: Path) -> None:
    """Sync a file, or the names in a folder, to the disk; some file systems sync no folders."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def move_folder(source: Path, target: Path) -> None:
    """Replace `target` by a folder that others wrote, once all of it is on the disk."""
    for path in sorted(source.rglob("*")):
        sync(path)
    sync(source)
    shutil.rmtree(target, ignore_errors=True)
    source.rename(target)
    sync(target.parent)


def remove_leftovers(folder: Path, *names: str) -> None:
    """Remove what killed processes left of :func:`write_atomic`, for these files or for all.

    Only for a folder, or files, that no other process writes.
    """
    for path in folder.glob(".*.*") if folder.is_dir() else ():
        found = re.fullmatch(r"\.(.+)\.\d+", path.name)
        if found and (not names or found[1] in names):
            path.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    write_atomic(path, json.dumps(value, indent=2) + "\n")


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], columns: list[str]) -> None:
    """CSV with the first row's columns, or `columns` if there are no rows."""
    write_atomic(path, _table(rows, columns))


def _table(rows: Sequence[Mapping[str, Any]], columns: list[str]) -> str:
    columns = list(rows[0]) if rows else columns
    return _lines([dict(zip(columns, columns, strict=True)), *rows], columns)


def _lines(rows: Iterable[Mapping[str, Any]], columns: list[str]) -> str:
    """Floats are written by repr, so that equal numbers give equal bytes."""
    text = io.StringIO()
    csv.DictWriter(text, fieldnames=columns, lineterminator="\n").writerows(rows)
    return text.getvalue()


class GrowingTable:
    """A CSV file beside a list of rows that grows: what :func:`write_rows` would write so far.

    Rows are appended and not synced: what a power cut loses is written again by :meth:`finish`, or
    from a checkpoint.
    """

    def __init__(self, path: Path, rows: list[dict]) -> None:
        """Whatever the file held beside `rows` is dropped; without rows there is no file."""
        self.path, self.rows, self.written = path, rows, len(rows)
        if rows:
            write_rows(path, rows, [])
        else:
            path.unlink(missing_ok=True)

    def update(self) -> None:
        """Append what the list has gained. Raises DiskFullError, and may leave half a line."""
        new = self.rows[self.written :]
        if not new:
            return
        text = _lines(new, list(self.rows[0])) if self.written else _table(new, [])
        with room_for(self.path.parent), self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(text)
        self.written = len(self.rows)

    def finish(self, columns: list[str]) -> None:
        """On the disk, whole, with `columns` if there are no rows.

        The file is written again only if it is not right: a reader may be following it.
        """
        text = _table(self.rows, columns)
        if self.path.is_file() and self.path.read_bytes() == text.encode():
            sync(self.path)
            sync(self.path.parent)
        else:
            write_atomic(self.path, text)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(folder: Path, parts: Iterable[str]) -> dict[str, str]:
    """sha256 of each named file, and of each file below each named folder."""
    files = []
    for part in parts:
        path = folder / part
        files += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return {str(p.relative_to(folder)): sha256(p) for p in files}
