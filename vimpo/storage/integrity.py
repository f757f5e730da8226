"""Are a run's files what it wrote, and is nobody else writing them?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vimpo.errors import ConfigError, DamagedError
from vimpo.storage.files import make_folder, read_sealed, room_for, sha256


def make_again(folder: Path) -> str:
    return (
        f"remove the folder '{folder}', and `snakemake`, or `python -m vimpo pretrain` or `train`, "
        "makes it again"
    )


def check_model(folder: Path) -> None:
    """Raise DamagedError where `folder`/model is not what the run of this folder wrote.

    Every file is read whole, once a job, which lasts hours where models are large; the system keeps
    in memory what the job then loads.
    """
    manifest = folder / "manifest.json"
    try:
        outputs = read_sealed(manifest).get("outputs", {})
    except OSError:
        fault = "is missing: the run did not end, or the file was removed"
        raise DamagedError(f"model: '{manifest}' {fault}; {make_again(folder)}") from None
    except ValueError as error:
        raise DamagedError(
            f"model: '{manifest}' is damaged ({error}); {make_again(folder)}"
        ) from None
    for name, checksum in outputs.items():
        if name.startswith("model/") and (fault := fault_of(folder / name, checksum)):
            raise DamagedError(f"model: '{folder / name}' {fault}; {make_again(folder)}")


def fault_of(path: Path, checksum: str | None) -> str | None:
    """What is wrong with a file that had this checksum when it was written; None: nothing."""
    if not path.is_file():
        return "is missing"
    if checksum is not None and sha256(path) != checksum:
        return "is not what was written: its checksum differs"
    return None


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold a run's folder. Raises ConfigError where another process does.

    A killed Snakemake leaves jobs that go on, and its lock can be lost to another study's end. The
    system lets go of a dead process's lock. A file system that locks no folders refuses nobody.
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
                    "for it, or end it: what it saved is gone on from"
                ) from None
        yield
    finally:
        os.close(descriptor)
        with suppress(OSError):  # not empty, unless the run could not start
            folder.rmdir()
