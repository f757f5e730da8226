"""Trains cells of a finished study again on this machine, and compares them with the originals.

Everything is made again, base policies too, in <folder>/<study>. An interrupted reproduction
resumes where it stopped; one that reached its verdict starts over.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from vimpo.compare.compare import compare, read_side
from vimpo.compare.text import describe, write_comparison
from vimpo.config import Cell, ConfigError, GridBlock, Noise, Study, dump_yaml
from vimpo.planning.preflight import check_before_running
from vimpo.storage.files import write_atomic
from vimpo.storage.integrity import beside

FOLDER = Path("results/reproduced")


def reproduce(reference: Path, folder: Path = FOLDER, cells: Sequence[str] | None = None) -> int:
    """Train, evaluate and probe `cells` (default: all), print the comparison; return its exit code.

    Raises ConfigError for a reference that cannot be read, and for cells that it does not have.
    """
    a = read_side(reference)
    study = chosen(a.study, cells).model_copy(update={"results": str(folder), "continues": None})
    verdict = study.folder / "comparison.json"
    if verdict.exists():
        shutil.rmtree(study.folder)
    check_before_running(study)
    write_atomic(study.folder / "config.yaml", dump_yaml(study))
    _run(study)
    b = read_side(study.folder)
    found = compare(a, b)
    print(describe(a, b, found))
    write_comparison(a, b, found, verdict)
    return found.exit_code


def chosen(study: Study, names: Sequence[str] | None) -> Study:
    """The study with a grid of the named cells alone. Raises ConfigError for an unknown cell."""
    known = {cell.name: cell for cell in study.cells()}
    if unknown := [name for name in names or () if name not in known]:
        example = next(iter(known))
        raise ConfigError(
            f"cells: '{unknown[0]}' is not in study '{study.study}'; allowed: such as {example}"
        )
    grid = [_block(known[name]) for name in names or known]
    return study.model_copy(update={"grid": grid})


def _block(cell: Cell) -> GridBlock:
    return GridBlock(
        algorithms=[cell.algorithm],
        sizes=[cell.size],
        noise=[Noise.parse(cell.noise)],
        seeds=[cell.seed],
    )


def _run(study: Study) -> None:
    """All stages of a study, one after the other; finished ones are kept."""
    os.environ["TQDM_DISABLE"] = "1"  # has to precede the imports
    from vimpo.evaluation.lm_eval import evaluate_checkpoint
    from vimpo.planning.preflight import check_inputs
    from vimpo.probes.run import probe_run
    from vimpo.training.runs import pretrain_base, train_cell

    check_inputs(study)
    folders = [pretrain_base(study, size, quiet=True) for size in study.used_sizes()]
    for cell in study.cells():
        folders.append(train_cell(study, cell, quiet=True))
        probes = folders[-1] / "probes.parquet"
        if not beside(probes).exists():
            probe_run(study, cell, probes)
    for folder in folders:
        if not beside(folder / "eval.json").exists():
            files = (folder / "model", study, folder / "eval.json", folder / "samples.jsonl.gz")
            evaluate_checkpoint(*files, digest=study.evaluation_digest())
