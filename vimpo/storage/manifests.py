"""The manifests of a study's runs: how each ended, on what, and checksums of what it left.

Kept as one file of a line a run, they say of a re-run, whose weights are committed nowhere, whether
it left the same. `aggregate` writes it with the rows of single runs, `publish` copies it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pandas as pd

from vimpo.errors import ConfigError, DamagedError
from vimpo.storage.files import sha256, write_atomic

FILE = "manifests.jsonl"
CHECKSUM = "cells.manifests"  # provenance: sha256 of the file
BASE_WEIGHTS = "base_weights"  # of a run: from which weights it started, if that is known
ALLOWED = "allowed: the file that `aggregate` wrote with the tables"


def weights(manifest: dict) -> str | None:
    """sha256 of a run's weights; of several files, that of their checksums."""
    found = {k: v for k, v in checksums(manifest).items() if k.startswith("model/model")}
    if len(found) < 2:
        return next(iter(found.values()), None)
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def write_manifests(folder: Path, manifests: dict[str, dict]) -> list[dict]:
    """Write them by name of run; returns the row of `provenance` that vouches for the file."""
    lines = [json.dumps({"run": name} | manifest) for name, manifest in manifests.items()]
    write_atomic(folder / FILE, "".join(f"{line}\n" for line in lines))
    return [{"item": CHECKSUM, "value": sha256(folder / FILE), "count": 1}]


def check_manifests(folder: Path, provenance: pd.DataFrame) -> None:
    """Raise as :func:`check_vouched` where the file is not what was written."""
    check_vouched("manifests", folder / FILE, CHECKSUM, provenance)


def check_vouched(field: str, path: Path, item: str, provenance: pd.DataFrame) -> None:
    """Is `path` the file whose checksum is `provenance`'s `item`?

    Raises ConfigError that names `field` where there is no file, DamagedError where it is another.
    """
    if not path.is_file():
        raise ConfigError(f"{field}: '{path}' is not a file; {ALLOWED}")
    if sha256(path) != provenance.set_index("item")["value"].get(item):
        raise DamagedError(
            f"{field}: '{path}' is damaged, or of other tables: its checksum is not that of "
            f"provenance.csv; {ALLOWED}"
        )


def read_manifests(folder: Path) -> dict[str, dict]:
    """What :func:`write_manifests` wrote; nothing of a folder from before there was such a file.

    Raises ConfigError where it is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        manifests = [json.loads(line) for line in path.read_text().splitlines()]
        return {manifest.pop("run"): manifest for manifest in manifests}
    except (ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"manifests: '{path}' is damaged: {error!r}; {ALLOWED}") from None


def checksums(manifest: dict) -> dict[str, str]:
    """sha256 of a run's weights and metrics, by file: of all that says whether it is the same."""
    return {
        name: value
        for name, value in manifest.get("outputs", {}).items()
        if name == "metrics.csv" or name.endswith(".safetensors")
    }
