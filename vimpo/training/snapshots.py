"""The policy at chosen steps, saved while a run goes on: sealed folders of the form of a run.

A snapshot holds model/, manifest.json and SHA256SUMS, so whatever reads a run's model reads a
snapshot's. A run that resumes keeps those of the steps that it need not do again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from vimpo.config.watching import snapshot_folder
from vimpo.models.distributed import Alone
from vimpo.storage import files
from vimpo.storage.integrity import SUMS, fault_of, sealing


def save_snapshot(
    folder: Path,
    save: Callable[[Path], None],
    digest: str,
    step: int,
    world: Alone,
    updates: int | None = None,
) -> None:
    """Save the policy to `folder`, unless it is there; every process of `world` must call it.

    save: writes the model; digest: of the run; updates: what the policy had, if the run ended
    before `step`.
    """
    there = world.main and _is_sealed(folder, digest)
    if world.largest(there):
        return
    aside = folder / ".model"
    with files.room_for(folder):
        if world.main:
            shutil.rmtree(folder, ignore_errors=True)
            files.make_folder(folder)
        world.wait()
        save(aside)
    if world.main:
        manifest = {"digest": digest, "status": "complete", "step": step}
        with sealing(folder / SUMS, ["model", "manifest.json"]), files.room_for(folder):
            files.move_folder(aside, folder / "model")
            files.write_json(folder / "manifest.json", manifest | {"updates": updates or step})
    world.wait()


def drop_snapshots(run: Path, done: int) -> None:
    """Remove the snapshots of a run beyond the steps that are done."""
    for folder in snapshot_folder(run, 0).parent.glob("step-*"):
        if int(folder.name.removeprefix("step-")) > done:
            shutil.rmtree(folder)


def _is_sealed(folder: Path, digest: str) -> bool:
    """Does the folder hold a whole snapshot of this configuration?"""
    manifest = folder / "manifest.json"
    if fault_of(manifest, folder / SUMS):
        return False
    return json.loads(manifest.read_text(encoding="utf-8"))["digest"] == digest
