"""Are a run's files still what it wrote? Its manifest has a checksum of each."""

from __future__ import annotations

from pathlib import Path

from vimpo.config_types import DamagedError
from vimpo.records import read_sealed, sha256


def make_again(folder: Path) -> str:
    return (
        f"remove the folder '{folder}', and `snakemake`, or `python -m vimpo pretrain` or `train`, "
        "makes it again"
    )


def check_model(folder: Path) -> None:
    """Raise DamagedError where `folder`/model is not what the run of this folder wrote.

    Every file is read whole, about a second for a gigabyte: once a job, which lasts hours where
    models are large, and the system keeps in memory what the job then loads.
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
