"""What a job leaves behind: atomic files, tables of rows, and the manifest with its provenance."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vimpo.errors import DiskFullError

FULL = (errno.ENOSPC, errno.EDQUOT)
SEAL = "checksum"


def is_disk_full(error: BaseException | None) -> bool:
    """Did a write that found no room cause this error? Libraries in Rust only say so in words."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(f"os error {number})" in str(error) for number in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def room_for(folder: Path | None = None) -> Iterator[None]:
    """Raise DiskFullError, which names `folder` where it is known, where a write finds no room."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskFullError) or not is_disk_full(error):
            raise
        place = f"in '{folder}'" if folder else f"({error})"
        raise DiskFullError(
            f"no room left to write {place}; what was finished or saved before is intact: "
            "make room, and the same command goes on from there"
        ) from error


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write beside, sync, rename: a reader sees the old file or the whole new one.

    The folder is synced too, or a power cut could undo the rename. Raises DiskFullError.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    data = content.encode() if isinstance(content, str) else content
    with room_for(path.parent):
        make_folder(path.parent)
        try:
            with aside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
        sync(path.parent)


def make_folder(folder: Path) -> None:
    """A folder and those above it, whose names are brought to the disk."""
    new = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in new:
        sync(path.parent)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk; some file systems sync no folders."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def move_folder(source: Path, target: Path) -> None:
    """Rename a folder that others wrote, where `target` was, once all of it is on the disk."""
    for path in sorted(source.rglob("*")):
        sync(path)
    sync(source)
    shutil.rmtree(target, ignore_errors=True)
    source.rename(target)
    sync(target.parent)


def remove_leftovers(folder: Path, *names: str) -> None:
    """Remove what killed processes left of :func:`write_atomic`, of these files or of all.

    Only for a folder, or files, that no other process writes.
    """
    for path in folder.glob(".*.*") if folder.is_dir() else ():
        found = re.fullmatch(r"\.(.+)\.\d+", path.name)
        if found and (not names or found[1] in names):
            path.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    write_atomic(path, json.dumps(value, indent=2) + "\n")


def write_sealed(path: Path, value: dict) -> None:
    """JSON that ends with the checksum of all the rest."""
    write_json(path, value | {SEAL: _seal(value)})


def read_sealed(path: Path) -> dict:
    """What :func:`write_sealed` wrote. A file from before there were seals has none to fit.

    Raises OSError where there is no file, ValueError for another content than was written.
    """
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("not valid JSON: no object")
    seal = value.pop(SEAL, None)
    if seal is not None and seal != _seal(value):
        raise ValueError("not what was written: its checksum differs")
    return value


def _seal(value: dict) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def write_rows(path: Path, rows: list[Mapping[str, object]], columns: list[str]) -> None:
    """CSV with the first row's columns (`columns` where there is none).

    Floats are written by repr, so that equal numbers give equal bytes.
    """
    write_atomic(path, _csv(rows, columns))


def write_sealed_rows(path: Path, rows: list[Mapping[str, object]], columns: list[str]) -> None:
    """The same, and a first row with the checksum of all the rest: a cut leaves it standing."""
    head, *rest = _csv(rows, columns).splitlines(keepends=True)
    write_atomic(path, "".join([head, _sealing_row(head, "".join(rest)), *rest]))


def read_sealed_rows(path: Path) -> str:
    """The CSV that :func:`write_sealed_rows` wrote, less its seal; from before there were seals,
    the whole file. Raises OSError where there is none, ValueError for another than was written.
    """
    head, _, rest = path.read_bytes().decode().partition("\n")
    head += "\n"
    if not rest.startswith(SEAL):
        return head + rest
    first, _, rest = rest.partition("\n")
    if f"{first}\n" != _sealing_row(head, rest):
        raise ValueError("not what was written: its checksum differs")
    return head + rest


def _csv(rows: list[Mapping[str, object]], columns: list[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(
        text, fieldnames=list(rows[0]) if rows else columns, lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _sealing_row(head: str, rest: str) -> str:
    """As many fields as the header has: `checksum`, the checksum, and empty ones."""
    digest = hashlib.sha256((head + rest).encode()).hexdigest()
    return f"{SEAL},{digest}{',' * (head.count(',') - 1)}\n"


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
