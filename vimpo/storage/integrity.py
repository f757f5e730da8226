"""Is a file what its stage wrote, and is no other process writing there?

Every stage ends by writing the checksums of its files, in the format of coreutils, so that
`sha256sum -c SHA256SUMS` checks a folder by hand. Files without checksums are unfinished. No two
stages share a file of checksums, so jobs that write to one folder need no lock:

    SHA256SUMS                 a run or base policy; tables/ with cells/; a published study
    eval.sha256                eval.json and samples.jsonl.gz; likewise probes.sha256,
                               cost/<size>.sha256 and step-<n>.sha256 of a checkpoint

The last line is a comment with the checksum of the lines above: a file of checksums that was cut or
changed holds none.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vimpo.errors import ConfigError, DamagedError
from vimpo.storage.files import checksums, make_folder, room_for, sha256, write_atomic

SUMS = "SHA256SUMS"


@contextmanager
def sealing(sums: Path, parts: Iterable[str]) -> Iterator[None]:
    """Seal what the body writes. A process killed in the body leaves its files without checksums.

    parts: files, and folders with all they hold, relative to the folder of `sums`.
    """
    sums.unlink(missing_ok=True)
    yield
    seal(sums, parts)


def seal(sums: Path, parts: Iterable[str]) -> None:
    """Write the checksums of `parts`; see :func:`sealing`."""
    lines = "".join(f"{value}  {name}\n" for name, value in checksums(sums.parent, parts).items())
    write_atomic(sums, f"{lines}# {_digest(lines)}\n")


def read_sums(sums: Path) -> dict[str, str]:
    """File -> sha256; empty if there is no such file, or if it is not what was written."""
    if not sums.is_file():
        return {}
    lines, _, own = sums.read_bytes().decode(errors="replace").rpartition("# ")
    if own != f"{_digest(lines)}\n":
        return {}
    pairs = (line.split("  ", 1) for line in lines.split("\n")[:-1])
    return {name: value for value, name in pairs}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def beside(path: Path) -> Path:
    """Where the checksums are of a stage whose result is `path`, in a folder with others."""
    return path.with_suffix(".sha256")


def fault_of(path: Path, sums: Path | None = None) -> str | None:
    """What is wrong with a file; None: nothing.

    sums: by default the SHA256SUMS of the file's folder, or else of the folder above.
    """
    if not path.is_file():
        return "is missing"
    sums = sums or _sums_of(path)
    if read_sums(sums).get(path.relative_to(sums.parent).as_posix()) != sha256(path):
        return f"is damaged: its checksum is not the one in {sums.name}"
    return None


def is_sealed(path: Path) -> bool:
    """Do the checksums of its folder, or of the one above, name this file?"""
    sums = _sums_of(path)
    return path.relative_to(sums.parent).as_posix() in read_sums(sums)


def _sums_of(path: Path) -> Path:
    sums = path.with_name(SUMS)
    return sums if sums.is_file() else path.parent.with_name(SUMS)


def check(field: str, path: Path, remedy: str, sums: Path | None = None) -> None:
    """Raise DamagedError if `path` is missing or not what was written; see :func:`fault_of`."""
    if fault := fault_of(path, sums):
        raise DamagedError(f"{field}: '{path}' {fault}; {remedy}")


def make_again(folder: Path) -> str:
    return (
        f"remove the folder '{folder}', and `snakemake`, or `python -m vimpo pretrain` or `train`, "
        "makes it again"
    )


def check_model(folder: Path) -> None:
    """Raise DamagedError if `folder`/model or its manifest is not what the run wrote.

    Every file is read whole, once per job: jobs on large models last hours, and the system keeps in
    memory what the job then loads.
    """
    sums = folder / SUMS
    models = [name for name in read_sums(sums) if name.startswith("model/")]
    for name in ("manifest.json", *models):
        check("model", folder / name, make_again(folder), sums)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold a run's folder. Raises ConfigError if another process does.

    A killed Snakemake leaves jobs that go on, and its lock can be lost when another study ends. The
    system releases the lock of a dead process. A file system without folder locks refuses nobody.
    """
    import fcntl

    with room_for(folder):
        make_folder(folder)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"results: another process works on '{folder}'; allowed: one at a time; wait "
                    "for it, or end it: training resumes from its last save"
                ) from None
        yield
    finally:
        os.close(descriptor)
        with suppress(OSError):  # not empty, unless the run could not start
            folder.rmdir()
