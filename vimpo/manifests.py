"""The manifests of a study's runs: how each ended, on what, and checksums of what it left.

Committed as one file of a line a run, they say of a re-run, whose weights are committed nowhere,
whether it left the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from vimpo.config import Cell, ConfigError, Study
from vimpo.continued import taken_over
from vimpo.reading import IncompleteError, read_manifest
from vimpo.records import write_atomic
from vimpo.tables import BASE

FILE = "manifests.jsonl"
BASE_WEIGHTS = "base_weights"  # of a run: from which weights it started


def manifests_of_runs(study: Study) -> dict[str, dict]:
    """Name -> manifest of each complete run and base policy, in the order of the grid.

    Of a study that continues another, those that it takes over stand among them. Raises ConfigError
    for one of another configuration.
    """
    taken = taken_over(study).manifests
    sources = [
        (f"{BASE}/{size}", study.base_folder(size), study.base_digest(size))
        for size in study.used_sizes()
    ]
    sources += [
        (cell.name, study.run_folder(cell), study.cell_digest(cell)) for cell in study.cells()
    ]
    found = {}
    for name, folder, digest in sources:
        try:
            found[name] = taken.get(name) or read_manifest(folder, digest, name)
        except IncompleteError:
            continue
    # Those taken over started elsewhere, from a base policy that may be another one.
    here = [cell for cell in study.cells() if cell.name not in taken]
    return with_base_weights(here, found)


def with_base_weights(cells: Iterable[Cell], manifests: dict[str, dict]) -> dict[str, dict]:
    """The manifests, those of `cells` with the weights of the base policy among them, if known.

    What a manifest says of that itself, as one that was taken over before, stands.
    """
    found = dict(manifests)
    for cell in cells:
        started = weights(manifests.get(f"{BASE}/{cell.size}", {}))
        if cell.name in found and started:
            found[cell.name] = {BASE_WEIGHTS: started} | found[cell.name]
    return found


def weights(manifest: dict) -> str | None:
    """sha256 of a run's weights; of several files, that of their checksums."""
    found = {k: v for k, v in checksums(manifest).items() if k.startswith("model/model")}
    if len(found) < 2:
        return next(iter(found.values()), None)
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def write_manifests(folder: Path, manifests: dict[str, dict]) -> None:
    lines = [json.dumps({"run": name} | manifest) for name, manifest in manifests.items()]
    write_atomic(folder / FILE, "".join(f"{line}\n" for line in lines))


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
        raise ConfigError(
            f"manifests: '{path}' is damaged: {error!r}; allowed: what `publish` wrote"
        ) from None


def checksums(manifest: dict) -> dict[str, str]:
    """sha256 of a run's weights and metrics, by file: of all that says whether it is the same."""
    return {
        name: value
        for name, value in manifest.get("outputs", {}).items()
        if name == "metrics.csv" or name.endswith(".safetensors")
    }
