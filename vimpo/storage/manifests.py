"""The manifests of a study's runs: how each ended, on which machine, and checksums of its files.

Kept as one file with one line per run, they tell whether a re-run left the same weights, which are
committed nowhere. `aggregate` writes the file with the rows of single runs, `publish` copies it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from vimpo.storage.files import write_atomic
from vimpo.storage.integrity import check

FILE = "manifests.jsonl"
BASE_WEIGHTS = "base_weights"  # of a run: the weights that it started from, if known
BASE_SURPRISAL = "surprisal"  # of a base policy: vimpo/storage/surprisal.py, if it was measured
CONVERTED = "converted_from"  # of a base policy: the file of another format that held its weights
ALLOWED = "allowed: the file that `aggregate` wrote with the tables"


def weights(manifest: dict) -> str | None:
    """sha256 of a run's weights; if they are several files, that of their checksums."""
    found = {k: v for k, v in checksums(manifest).items() if k.startswith("model/model")}
    if len(found) < 2:
        return next(iter(found.values()), None)
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def write_manifests(folder: Path, manifests: dict[str, dict]) -> None:
    """Write them by name of run."""
    lines = [json.dumps({"run": name} | manifest) for name, manifest in manifests.items()]
    write_atomic(folder / FILE, "".join(f"{line}\n" for line in lines))


def check_manifests(folder: Path) -> None:
    """Raise DamagedError if the file is missing or not what was written."""
    check("manifests", folder / FILE, ALLOWED)


def read_manifests(folder: Path) -> dict[str, dict]:
    """What :func:`write_manifests` wrote, by name of run. Raises DamagedError."""
    check_manifests(folder)
    manifests = map(json.loads, (folder / FILE).read_text(encoding="utf-8").splitlines())
    return {manifest.pop("run"): manifest for manifest in manifests}


def checksums(manifest: dict) -> dict[str, str]:
    """sha256 of a run's weights and metrics, by file: what tells whether two runs are the same."""
    return {
        name: value
        for name, value in manifest.get("outputs", {}).items()
        if name == "metrics.csv" or name.endswith(".safetensors")
    }
