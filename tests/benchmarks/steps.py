"""VIMPO's step next to PPO's and GRPO's, and how much of the machine an update uses, by size.

    python tests/benchmarks/steps.py --output steps.json
    python tests/benchmarks/steps.py --output steps_one_thread.json --threads 1 --sizes xs s m l xl

Every measurement is a process of its own, and algorithms take turns. `wide` has so many parameters
and so few tokens that weights, gradients and moments are most of its memory; `vocabulary` is m with
as many tokens as Qwen3 knows, which it draws at random, up to the longest response; `chunks` is the
same with `runtime.logit_chunk`. Utilisation: FLOPs of an update without padding (6 per parameter
and token, plus attention) over its seconds and the rate of a large float32 product, same threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path

from fresh import in_fresh_process

SHORT = {"pretrain_steps": 60}
SIZES = {"xs": SHORT, "s": SHORT, "m": SHORT, "l": SHORT, "xl": SHORT}
WIDE = {"hidden": 1024, "layers": 4, "heads": 8, "kv_heads": 8, "pretrain_steps": 1}
LARGE = {"hidden": 128, "layers": 4, "heads": 8, "kv_heads": 8, "pretrain_steps": 1}
VOCABULARY, CHUNK = 151_936, 256
FEW = {"prompts_per_step": 2}
BATCHES = {"wide": FEW | {"group_size": 2}, "vocabulary": FEW, "chunks": FEW}
ALGORITHMS = ("vimpo", "ppo", "grpo")
WARM_UP = 2


def make_study(size: str, results: str, threads: int):
    from vimpo.config import load_study

    return load_study(
        {
            "study": f"steps-{threads}-{size}",
            "results": results,
            "sizes": {**SIZES, "wide": WIDE, "vocabulary": LARGE, "chunks": LARGE},
            "grid": {"algorithms": list(ALGORITHMS), "sizes": [size], "noise": [0], "seeds": [1]},
            "train": BATCHES.get(size, {"prompts_per_step": 16}),
            "runtime": {"threads": threads, "logit_chunk": CHUNK if size == "chunks" else None},
        }
    )


def enlarged(base: Path) -> Path:
    """A copy of a policy with rows for tokens that its tokenizer does not have."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = base.with_name("enlarged")
    if not folder.exists():
        model = AutoModelForCausalLM.from_pretrained(base)
        model.resize_token_embeddings(VOCABULARY, mean_resizing=False)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def case(algorithm: str, size: str, results: str, threads: int, steps: int) -> dict:
    """One process: medians over its steps, in seconds by phase and FLOPs, and its peak memory."""
    from vimpo.config import Cell
    from vimpo.models.memory import shape_of
    from vimpo.models.networks import set_up_torch
    from vimpo.planning.plan import forward_flops
    from vimpo.probes.cost import peak_bytes, resident_bytes
    from vimpo.training.runs import pretrain_base
    from vimpo.training.trainer import Trainer

    study = make_study(size, results, threads)
    base = pretrain_base(study, size, quiet=True) / "model"
    base = enlarged(base) if size in ("vocabulary", "chunks") else base
    set_up_torch(study.runtime)
    floor = resident_bytes("cpu")
    trainer = Trainer(study.cell_config(Cell(algorithm, size, "0", 1)), base)
    tokens = trainer.policy.get_input_embeddings().num_embeddings
    shape, rows = replace(shape_of(size, study.sizes[size]), vocabulary=tokens), []
    for step in range(WARM_UP + steps):
        before = dict(trainer.clock.seconds)
        response = trainer.step(step)["response_length"]
        row = {p: trainer.clock.seconds.get(p, 0.0) - before.get(p, 0.0) for p in trainer.phases}
        drawn = trainer.task.training_problems(1, step, study.train.prompts_per_step)
        prompt = statistics.mean(len(p.prompt) for p in drawn)
        tokens = study.rollouts_per_step * response + len(drawn) * prompt  # a prompt is read once
        flops = 3 * tokens * forward_flops(shape, (prompt + response) / 2)
        rows.append(row | {"total": sum(row.values()), "update_flops": flops})
    rows = rows[WARM_UP:]
    found = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    found["memory"] = peak_bytes("cpu") - floor
    found["parameters"] = sum(p.numel() for p in trainer.policy.parameters())
    return found


def summary(rounds: dict[str, list[dict]], rate: float) -> dict:
    """Ratios of each round, then their median and range, and the utilisation of the update."""

    def ratio(metric: str, other: str) -> dict[str, float]:
        pairs = zip(rounds["vimpo"], rounds[other], strict=True)
        values = [a[metric] / b[metric] for a, b in pairs]
        return {"median": statistics.median(values), "low": min(values), "high": max(values)}

    used = [r["update_flops"] / r["update"] / rate for r in rounds["grpo"]]
    return {
        "parameters": rounds["vimpo"][0]["parameters"],
        "time_to_grpo": ratio("total", "grpo"),
        "time_to_ppo": ratio("total", "ppo"),
        "memory_to_ppo": ratio("memory", "ppo"),
        "memory_to_grpo": ratio("memory", "grpo"),
        "utilisation": statistics.median(used),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=Path("steps.json"))
    parser.add_argument("--results", default="results/benchmarks", help="folder of base policies")
    parser.add_argument("--sizes", nargs="+", default=[*SIZES, *BATCHES])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(case(**options.case)))
        return
    from against_trl import matmul_rate

    how = {"results": options.results, "threads": options.threads}
    report = {"threads": options.threads, "sizes": {}}
    if options.output.exists():  # other sizes stay
        report["sizes"] = json.loads(options.output.read_text())["sizes"]
    print(f"{'size':10}{'time/GRPO':>20}{'time/PPO':>20}{'memory/PPO':>12}{'utilisation':>13}")
    for size in options.sizes:
        measured = partial(in_fresh_process, __file__, size=size, **how)
        measured(algorithm="grpo", steps=1)  # makes the base policy
        rounds: dict[str, list[dict]] = {a: [] for a in ALGORITHMS}
        rate = matmul_rate(options.threads)
        for _ in range(options.rounds):
            for algorithm, found in rounds.items():
                found.append(measured(algorithm=algorithm, steps=options.steps))
        one = summary(rounds, rate)
        report["sizes"][size] = one | {"gflops_per_second": rate / 1e9, "rounds": rounds}
        times = [
            f"{one[k]['median']:.2f} [{one[k]['low']:.2f}, {one[k]['high']:.2f}]"
            for k in ("time_to_grpo", "time_to_ppo")
        ]
        print(f"{size:10}{times[0]:>20}{times[1]:>20}", end="")
        print(f"{one['memory_to_ppo']['median']:12.2f}{one['utilisation']:13.0%}", flush=True)
        options.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
