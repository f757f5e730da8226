"""What looking at a policy while it trains costs, next to the same run without.

    python tests/benchmarks/validation.py --output validation.json

The default run of a size, with `train.validation` at its defaults and without: two trainers in one
process that do each step in turn, so that a busy machine is busy for both. Seconds are those of the
processor, in one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

SIZES = {"xs": {"pretrain_steps": 300}}
ALGORITHMS = ("vimpo", "ppo", "grpo")
NAMES = ("with", "without")


def make_trainer(size: str, algorithm: str, results: str, watched: bool):
    from vimpo.config import Cell, load_study
    from vimpo.models.networks import set_up_torch
    from vimpo.training.runs import pretrain_base
    from vimpo.training.trainer import Trainer

    train = {"train": {"validation": {}}} if watched else {}
    study = load_study({"study": f"validation-{size}", "results": results, "sizes": SIZES} | train)
    base = pretrain_base(study, size, quiet=True)
    set_up_torch(study.runtime)
    return Trainer(study.cell_config(Cell(algorithm, size, "0", 1)), base / "model")


def round_of(size: str, algorithm: str, results: str) -> dict[str, float]:
    """Seconds of both runs."""
    trainers = {name: make_trainer(size, algorithm, results, name == "with") for name in NAMES}
    seconds = dict.fromkeys(NAMES, 0.0)
    steps = trainers["with"].config.train.steps
    for step in range(steps + 1):
        for name in NAMES if step % 2 else NAMES[::-1]:
            start = time.process_time()
            trainers[name].validate(step)
            if step < steps:
                trainers[name].step(step)
            seconds[name] += time.process_time() - start
    return seconds


def measure(results: str, rounds: int) -> dict:
    found = {}
    for size in SIZES:
        for algorithm in ALGORITHMS:
            runs = [round_of(size, algorithm, results) for _ in range(rounds)]
            more = [run["with"] / run["without"] - 1 for run in runs]
            found[f"{size} {algorithm}"] = {
                "seconds": {name: statistics.median(run[name] for run in runs) for name in NAMES},
                "more": statistics.median(more),
                "rounds": more,
            }
            print(size, algorithm, [f"{share:.1%}" for share in more], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("validation.json"))
    parser.add_argument("--results", default="results")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    found = measure(arguments.results, arguments.rounds)
    arguments.output.write_text(json.dumps({"runs": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
