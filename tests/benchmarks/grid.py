"""Does a grid's speed depend on its size? Cells per hour, start-up of processes, large dry runs.

    python tests/benchmarks/grid.py --output grid.json        # about twenty minutes on two cores

Runs the tiny study of the tests with 12 and with 120 cells from nothing to the report, and dry-runs
10,000 cells of the quick study. Start-up is what a command takes before its first step of work:
the wall time of its imports less that of `python -c pass`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
ALGORITHMS = 3
LOADING = {
    "train": "import vimpo.__main__, vimpo.training.trainer, vimpo.training.runs",
    "evaluate": "import vimpo.__main__, lm_eval.evaluator, lm_eval.models.huggingface",
    "probe": "import vimpo.__main__, vimpo.probes.run",
}


def snakemake(*words: str) -> tuple[float, float]:
    """Run it to success: wall seconds, and its own peak in MB."""
    command = ["/usr/bin/env", "time", "-f", "%M", sys.executable, "-m", "snakemake", *words]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")
    return time.perf_counter() - start, int(done.stderr.splitlines()[-1]) / 1024


def cells_an_hour(cells: int, cores: int) -> dict:
    """The tiny study with this many cells, from base policy to report."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "study.yaml"
        study = yaml.safe_load((ROOT / "workflow/config/tiny.yaml").read_text())
        del study["probes"]  # the tests measure the cost of a step once, a study twice
        study["grid"]["seeds"] = list(range(1, cells // ALGORITHMS + 1))
        config.write_text(yaml.safe_dump(study | {"results": folder}))
        seconds, _ = snakemake("--cores", str(cores), "--nolock", "-q", "--configfile", str(config))
    return {"cells": cells, "seconds": seconds, "cells_an_hour": 3600 * cells / seconds}


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
        seconds, peak = snakemake("-n", "-q", "--nolock", "--configfile", str(config))
    return {"cells": each * len(seeds), "seconds": seconds, "peak_mb": peak}


def start_up() -> dict[str, float]:
    """Seconds to load and unload what a command needs, best of three."""

    def seconds(code: str) -> float:
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
            best = min(best, time.perf_counter() - start)
        return best

    empty = seconds("pass")
    collecting = {
        f"{k}_with_collector": seconds(v.replace("vimpo.__main__, ", "")) - empty
        for k, v in LOADING.items()
    }
    freed = "; import gc; gc.freeze()"  # as models.set_up_torch does
    return {k: seconds(v + freed) - empty for k, v in LOADING.items()} | collecting


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("grid.json"))
    parser.add_argument("--cells", type=int, nargs="*", default=[12, 120])
    parser.add_argument("--dry", type=int, default=10_000)
    parser.add_argument("--cores", type=int, default=2)
    options = parser.parse_args()
    report = {
        "cores": options.cores,
        "start_up_seconds": start_up(),
        "dry_run": dry_run(options.dry),
    }
    print({k: round(v, 2) for k, v in report["start_up_seconds"].items()})
    dry = report["dry_run"]
    print(f"dry run of {dry['cells']} cells: {dry['seconds']:.1f} s, {dry['peak_mb']:.0f} MB")
    report["grids"] = []
    for cells in options.cells:
        one = cells_an_hour(cells, options.cores)
        report["grids"].append(one)
        print(f"{cells} cells: {one['seconds']:.0f} s, {one['cells_an_hour']:.0f} per hour")
        options.output.write_text(json.dumps(report, indent=2) + "\n")
    options.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
