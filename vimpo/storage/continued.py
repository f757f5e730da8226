"""A study that continues a published one: what is taken over from there instead of run again.

A cell is taken over if the published study has it complete (trained, evaluated and probed, with
nothing in missing.csv) and of the same configuration: the digests of the cell, of its probes and of
the evaluation are equal. If that holds for all cells of a size, and for its cost, its base policy
and cost are taken over too; any other size gets its base policy here, because weights are not
published. What was run here is never taken over.

Snakemake plans no jobs for what is taken over; `aggregate` takes its rows and manifests.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from vimpo.config import Cell, Study, digest, load_study
from vimpo.config.types import local_path
from vimpo.errors import ConfigError


@dataclass(frozen=True)
class TakenOver:
    """Cells, the sizes that have nothing left to run, and manifests by name of run or base policy.

    A base policy whose size has something left is made again; until then, what was measured of the
    published one counts. Afterwards it does not: runs here start from other weights.
    """

    folder: Path = Path()
    cells: frozenset[Cell] = frozenset()
    sizes: frozenset[str] = frozenset()
    manifests: dict[str, dict] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Of all that is taken over: if it changes, tables are made again."""
        return digest(self.manifests)

    @cached_property
    def rows(self) -> dict[str, dict[str, list[dict]]]:
        """Name of run, base policy or cost -> table -> rows."""
        from vimpo.storage.archive import FOLDER, archived_rows
        from vimpo.storage.columns import ARCHIVED, SNAPSHOTS

        costs = {f"cost/{size}" for size in self.sizes}
        found: dict[str, dict[str, list[dict]]] = {name: {} for name in (*self.manifests, *costs)}
        for table in (*ARCHIVED, *SNAPSHOTS):
            for row in archived_rows(self.folder / FOLDER, table):
                if (name := _name(table, row)) in found:
                    found[name].setdefault(table, []).append(row)
        return found


def _name(table: str, row: dict) -> str:
    if table == "measured_cost":
        return f"cost/{row['size']}"
    if "seed" not in row:
        return f"{row['algorithm']}/{row['size']}"  # a base policy
    return Cell(row["algorithm"], row["size"], row["noise"], row["seed"]).name


def taken_over(study: Study) -> TakenOver:
    """What `study` takes over from the published study that it continues, if any.

    Raises ConfigError for a folder that is not a published study, and for a file in it that is
    missing, damaged or of another study.
    """
    if study.continues is None:
        return TakenOver()
    folder = check_continued(study)
    published = load_study(folder / "config.yaml")
    manifests = _whole(published, folder)
    evaluated_alike = study.evaluation_digest() == published.evaluation_digest()
    theirs = set(published.cells() if evaluated_alike else ())
    cells = [
        cell
        for cell in study.cells()
        if cell in theirs
        and manifests.get(cell.name, {}).get("digest") == study.cell_digest(cell)
        and study.cell_digest(cell) == published.cell_digest(cell)
        and study.probe_digest(cell) == published.probe_digest(cell)
        and not _is_here(study.run_folder(cell))
    ]
    left = {cell.size for cell in set(study.cells()) - set(cells)}
    bases = [size for size in study.used_sizes() if _base_alike(study, size, manifests)]
    sizes = [
        size
        for size in bases
        if size not in left and _cost_alike(study, published, size, manifests)
    ]
    names = [*(f"base/{size}" for size in bases), *(cell.name for cell in cells)]
    taken = {name: manifests[name] for name in names}
    return TakenOver(folder, frozenset(cells), frozenset(sizes), taken)


def _whole(published: Study, folder: Path) -> dict[str, dict]:
    """Manifests of all that the published study has, except what its missing.csv names.

    An empty one stands for the cost of a size. Every file is compared with its checksum.
    """
    # Only here: unless a study is continued, Snakemake starts without pandas.
    from vimpo.storage.archive import FOLDER, check_archive
    from vimpo.storage.manifests import read_manifests
    from vimpo.storage.tables import check_tables, read_tables

    tables = read_tables(folder / "tables", ("accuracy", "summary", "missing"))
    check_tables(published, tables, folder / "config.yaml")
    check_archive(folder / FOLDER)
    found = read_manifests(folder) | {f"cost/{size}": {} for size in published.used_sizes()}
    missing = set(tables["missing"]["cell"])
    return {name: manifest for name, manifest in found.items() if name not in missing}


def _base_alike(study: Study, size: str, manifests: dict[str, dict]) -> bool:
    """Does the published study have this base policy, and was none made here?"""
    published = manifests.get(f"base/{size}", {}).get("digest")
    return published == study.base_digest(size) and not _is_here(study.base_folder(size))


def _cost_alike(study: Study, published: Study, size: str, manifests: dict[str, dict]) -> bool:
    return (
        f"cost/{size}" in manifests
        and study.cost_digest(size) == published.cost_digest(size)
        and not study.cost_file(size).is_file()
    )


def _is_here(folder: Path) -> bool:
    return (folder / "manifest.json").is_file()


def check_continued(study: Study) -> Path:
    """Folder of the published study that this one continues.

    Raises ConfigError if it is not one, or has no rows of single runs.
    """
    folder, _ = local_path(str(study.continues), "continues")
    for name in ("config.yaml", "manifests.jsonl", "tables/provenance.csv", "cells"):
        if not (folder / name).exists():
            raise ConfigError(
                f"continues: '{folder}' has no {name}; allowed: a folder with rows of single runs, "
                "as `publish` writes it, such as results/published/quick"
            )
    return folder
