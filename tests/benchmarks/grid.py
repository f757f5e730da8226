"""Does a grid's speed depend on its size? Cells per hour, start-up of processes, large dry runs.

    python tests/benchmarks/grid.py --output grid.json

Runs the tiny study of the tests with different numbers of cells from nothing to the report, on one
core and on two, and dry-runs 10,000 cells of the quick study. On two cores the smaller grids run
once more after the largest, in reverse, so that a machine that slows down does so for all of them
alike. Start-up is what a cell costs on one core beyond its stages (training, evaluation, probes),
which are timed in one process that has imported everything: three processes, their imports, and
Snakemake's share.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from fresh import in_fresh_process
from tables import per_cell

from vimpo.config import load_study

ROOT = Path(__file__).parents[2]
ALGORITHMS = 3


# Prints the CPU seconds of its own process, jobs not included.
SNAKEMAKE = """
import atexit, sys, time
from snakemake.cli import main
atexit.register(lambda: print(time.process_time(), file=sys.stderr))
main()
"""


def snakemake(*words: str) -> dict[str, float]:
    """Run it to success: wall seconds, its own CPU seconds, and its own peak in MB."""
    command = ["/usr/bin/env", "time", "-f", "%M", sys.executable, "-c", SNAKEMAKE, *words]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")
    seconds = time.perf_counter() - start
    *_, own, peak = done.stderr.split()
    return {"seconds": seconds, "own_cpu_seconds": float(own), "peak_mb": int(peak) / 1024}


def tiny_study(folder: Path, cells: int) -> Path:
    """The tiny study with this many cells, as a file in the folder of its results."""
    study = yaml.safe_load((ROOT / "workflow/config/tiny.yaml").read_text())
    study["grid"]["seeds"] = list(range(1, cells // ALGORITHMS + 1))
    config = folder / "study.yaml"
    config.write_text(yaml.safe_dump(study | {"results": str(folder)}))
    return config


def whole_study(cells: int, cores: int) -> dict:
    """The tiny study with this many cells, from base policy to report."""
    with tempfile.TemporaryDirectory() as folder:
        config = tiny_study(Path(folder), cells)
        return snakemake("--cores", str(cores), "--nolock", "-q", "--configfile", str(config))


def mean_grid(cells: int, runs: list[dict]) -> dict:
    """One grid's numbers, over its runs."""
    found = {k: statistics.mean(run[k] for run in runs) for k in ("seconds", "own_cpu_seconds")}
    per_hour = 3600 * cells / found["seconds"]
    return {"cells": cells, "runs": runs, "cells_an_hour": per_hour} | found


def dry_run(cells: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "study.yaml"
        study = yaml.safe_load((ROOT / "workflow/config/quick.yaml").read_text())
        algorithms, noise = ["vimpo", "ppo", "grpo"], [0, 0.1]
        each = len(algorithms) * len(noise)
        seeds = list(range(1, -(-cells // each) + 1))
        block = {"algorithms": algorithms, "sizes": ["xs"], "noise": noise, "seeds": seeds}
        study |= {"grid": [block], "hypotheses": []}
        config.write_text(yaml.safe_dump(study | {"results": folder}))
        found = snakemake("-n", "-q", "--nolock", "--configfile", str(config))
    return {"cells": each * len(seeds)} | found


def stages(folder: str) -> float:
    """Mean seconds of a cell's stages in one process, once it has imported all libraries."""
    from vimpo.cli import main as vimpo

    config = tiny_study(Path(folder), 2 * ALGORITHMS)
    vimpo(["pretrain", "--config", str(config), "--size", "nano"])
    seconds = []
    for cell in load_study(config).cells():
        where = ["--algorithm", cell.algorithm, "--size", cell.size]
        where += ["--noise", cell.noise, "--seed", str(cell.seed)]
        start = time.perf_counter()
        for stage in ("train", "evaluate", "probe"):
            vimpo([stage, "--config", str(config), *where])
        seconds.append(time.perf_counter() - start)
    return statistics.mean(seconds[ALGORITHMS:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("grid.json"))
    parser.add_argument("--cells", type=int, nargs="*", default=[12, 120, 1200])
    parser.add_argument("--alone", type=int, nargs="*", default=[12, 60], help="on one core")
    parser.add_argument("--dry", type=int, default=10_000)
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(stages(**options.case)))
        return
    report: dict[str, Any] = {"dry_run": dry_run(options.dry)}
    dry = report["dry_run"]
    print(f"dry run of {dry['cells']} cells: {dry['seconds']:.1f} s, {dry['peak_mb']:.0f} MB")
    turns = [*options.cells, *options.cells[-2::-1]]
    for key, cores, counts in (("one_core", 1, options.alone), ("grids", 2, turns)):
        runs: dict[int, list[dict]] = {}
        for cells in counts:
            one = whole_study(cells, cores)
            runs.setdefault(cells, []).append(one)
            print(f"{cores} cores, {cells} cells: {one['seconds']:.0f} s", flush=True)
            report[key] = [mean_grid(*each) for each in runs.items()]
            options.output.write_text(json.dumps(report, indent=2) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        work = in_fresh_process(__file__, folder=folder)
    alone = per_cell(report["one_core"])
    report |= {"stages_seconds": work, "start_up_seconds": alone - work}
    print(f"a cell: {alone:.2f} s on one core, of which {work:.2f} s in its stages")
    options.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
