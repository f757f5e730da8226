"""What looking at a policy while it trains costs, next to the same run without.

    python tests/benchmarks/validation.py --output validation.json

The default run of a size, with `train.validation` at its defaults and without, by turns. Seconds
are those of the processor, in one thread: other processes cannot lengthen them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

SIZES = {"xs": {"pretrain_steps": 300}, "m": {"pretrain_steps": 200}}
ALGORITHMS = ("vimpo", "ppo", "grpo")


def cpu_seconds(size: str, algorithm: str, results: str, validation: dict | None) -> float:
    """Of all steps of a run, and of what is looked at between them."""
    from vimpo.config import Cell, load_study
    from vimpo.models.networks import set_up_torch
    from vimpo.training.runs import pretrain_base
    from vimpo.training.trainer import Trainer

    changes = {"study": f"validation-{size}", "results": results, "sizes": SIZES}
    train = {"validation": validation} if validation is not None else {}
    study = load_study(changes | {"train": train})
    base = pretrain_base(study, size, quiet=True)
    set_up_torch(study.runtime)
    trainer = Trainer(study.cell_config(Cell(algorithm, size, "0", 1)), base / "model")
    start = time.process_time()
    for step in range(study.train.steps):
        trainer.validate(step)
        trainer.step(step)
    trainer.validate(study.train.steps)
    return time.process_time() - start


def measure(results: str, rounds: int) -> dict:
    found: dict[str, dict] = {}
    for size in SIZES:
        for algorithm in ALGORITHMS:
            cpu_seconds(size, algorithm, results, None)  # fills caches
            seconds: dict[str, list[float]] = {"with": [], "without": []}
            for _ in range(rounds):
                seconds["without"].append(cpu_seconds(size, algorithm, results, None))
                seconds["with"].append(cpu_seconds(size, algorithm, results, {}))
            middle = {name: statistics.median(values) for name, values in seconds.items()}
            share = middle["with"] / middle["without"] - 1
            found[f"{size} {algorithm}"] = middle | {"more": share}
            print(size, algorithm, middle, f"{share:.1%}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("validation.json"))
    parser.add_argument("--results", default="results")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    found = measure(arguments.results, arguments.rounds)
    arguments.output.write_text(json.dumps({"runs": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
