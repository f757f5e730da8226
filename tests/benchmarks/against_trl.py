"""A GRPO step here next to TRL's, on the same machine in the same run.

    pip install -e '.[peers]'
    python tests/benchmarks/against_trl.py --output against_trl.json

Both start from the same base policy and do steps of the same rollouts with one update per batch,
token-mean loss, clip 0.2 / 0.28, no KL, AdamW, gradient clip 1.0, float32, the same limit of tokens
and the same kind of problems. Each measurement is its own process; the two take turns.

The floor is the step's arithmetic (2 FLOPs per parameter and token in decoding, 6 in the update,
plus attention) at the machine's large-matmul rate, measured in the same run. Each token counts
once, and a group's prompt is read once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from importlib.metadata import version
from pathlib import Path

from fresh import in_fresh_process

TRAIN = {"prompts_per_step": 16, "group_size": 8, "steps": 100}


def sums(operators: int, max_response: int) -> dict:
    """Longer responses, of about eight tokens per operator, from a base that saw few of them."""
    task = {"symbols": "+", "largest": 9, "first_largest": 99}
    task |= {"pretrain_operators": [operators], "train_operators": [operators]}
    train = TRAIN | {"max_response": max_response}
    return {"task": task, "train": train, "pretrain": {"batch_size": 16}}


# hidden, layers, and what else a study of this case has
CASES = {
    "128 x 3": (128, 3, {"train": TRAIN | {"prompts_per_step": 32}}),
    "64 x 2, short": (64, 2, {"train": TRAIN}),
    "64 x 2": (64, 2, sums(5, 56)),
    "64 x 2, long": (64, 2, sums(28, 256)),
}
PHASES = ("rollout", "update", "total")
WARM_UP = 3


def make_study(name: str, results: str, threads: int):
    from vimpo.config import load_study

    hidden, layers, more = CASES[name]
    size = {"hidden": hidden, "layers": layers, "pretrain_steps": 300, "pretrain_lr": 3e-3}
    grid = {"algorithms": ["grpo"], "sizes": ["one"], "noise": [0], "seeds": [1]}
    own = {
        "study": "against_trl_" + "".join(c if c.isalnum() else "_" for c in name),
        "results": results,
        "sizes": {"one": size | {"learning_rate": 1e-4}},
        "grid": grid,
        "runtime": {"threads": threads},
    }
    return load_study(own | more)


def ours(name: str, results: str, threads: int, steps: int) -> dict:
    """Seconds of every step after warm-up, by phase."""
    from vimpo.config import Cell
    from vimpo.models.networks import set_up_torch
    from vimpo.training.runs import pretrain_base
    from vimpo.training.trainer import Trainer

    study = make_study(name, results, threads)
    base = pretrain_base(study, "one", quiet=True)
    set_up_torch(study.runtime)
    trainer = Trainer(study.cell_config(Cell("grpo", "one", "0", 1)), base / "model")
    found = []
    for step in range(WARM_UP + steps):
        before, start = dict(trainer.clock.seconds), time.perf_counter()
        row = trainer.step(step)
        spent = {p: trainer.clock.seconds[p] - before.get(p, 0.0) for p in ("rollout", "update")}
        spent["total"] = time.perf_counter() - start
        found.append(spent | {"response_length": row["response_length"]})
    return {"steps": found[WARM_UP:]}


def trl(name: str, results: str, threads: int, steps: int) -> dict:
    """Seconds of every step after warm-up; its rollouts are timed as TRL makes them."""
    import torch
    from datasets import Dataset
    from trl import GRPOTrainer

    from vimpo.models.networks import load_policy, load_tokenizer
    from vimpo.tasks import make_task

    study = make_study(name, results, threads)
    torch.set_num_threads(threads)
    base = study.base_folder("one") / "model"
    tokenizer = load_tokenizer(base)
    task = make_task(study.task, tokenizer)
    per_step = study.train.prompts_per_step
    problems = [
        p for step in range(WARM_UP + steps) for p in task.training_problems(1, step, per_step)
    ]
    rows = [{"prompt": p.prompt, "number": i} for i, p in enumerate(problems)]
    lengths: list[float] = []

    def reward(prompts, completions, number, completion_ids, **_):
        lengths.append(statistics.mean(map(len, completion_ids)))
        return task.rewards([problems[i] for i in number], completions)

    clock = trl_clock()
    trainer = GRPOTrainer(
        model=load_policy(base, study.runtime),
        reward_funcs=reward,
        args=trl_config(study, f"{results}/trl", steps),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer._generate_and_score_completions = clock.timed(trainer._generate_and_score_completions)
    trainer.train()
    found = [
        row | {"update": row["total"] - row["rollout"], "response_length": length}
        for row, length in zip(clock.steps, lengths, strict=False)
    ]
    return {"steps": found[WARM_UP:]}


def trl_clock():
    """A callback that records the seconds of every step, and of the calls it is told to time."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self):
            self.steps: list[dict] = []
            self.start, self.rollout = None, 0.0

        def on_step_begin(self, args, state, control, **_):
            if self.start is None:
                self.start = time.perf_counter()

        def on_step_end(self, args, state, control, **_):
            now = time.perf_counter()
            self.steps.append({"total": now - self.start, "rollout": self.rollout})
            self.start, self.rollout = now, 0.0

        def timed(self, generate):
            def call(*args, **kwargs):
                start = time.perf_counter()
                try:
                    return generate(*args, **kwargs)
                finally:
                    self.rollout += time.perf_counter() - start

            return call

    return Clock()


def trl_config(study, output: str, steps: int):
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=output,
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=study.rollouts_per_step,
        num_generations=study.train.group_size,
        steps_per_generation=1,
        max_completion_length=study.train.max_response,
        max_steps=WARM_UP + steps,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        epsilon=0.2,
        epsilon_high=0.28,
        temperature=study.train.temperature,
        max_grad_norm=study.train.grad_clip,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        shuffle_dataset=False,
    )


def matmul_rate(threads: int) -> float:
    """FLOP/s of a large float32 product, best of ten."""
    import torch

    torch.set_num_threads(threads)
    a, b = (torch.randn(2048, 2048) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * 2048**3 / best


def floor(name: str, results: str, threads: int, response: float) -> dict[str, float]:
    """Seconds of a step's arithmetic at the machine's rate, without padding."""
    from vimpo.models.memory import shape_of
    from vimpo.planning.plan import forward_flops
    from vimpo.tasks import make_task

    study, rate = make_study(name, results, threads), matmul_rate(threads)
    shape = shape_of("one", study.sizes["one"])
    task = make_task(study.task, None)
    drawn = task.training_problems(1, 0, study.train.prompts_per_step)
    prompt = statistics.mean(len(p.prompt) for p in drawn)
    rollouts = study.rollouts_per_step
    context = (prompt + response) / 2
    tokens = rollouts * response + len(drawn) * prompt  # a group's prompt is read once
    forward = tokens * forward_flops(shape, context) / rate
    return {"gflops_per_second": rate / 1e9, "rollout": forward, "update": 3 * forward}


def summary(rows: list[dict]) -> dict[str, float]:
    return {k: statistics.median(r[k] for r in rows) for k in rows[0]}


def compare(how: dict, steps: int, rounds: int) -> dict:
    """Both sides of one case in turn: medians of the rounds, ratios, and shares of the floor."""
    in_fresh_process(__file__, side="ours", steps=1, **how)  # makes the base policy
    sides: dict[str, list[dict]] = {"ours": [], "trl": []}
    for _ in range(rounds):
        for side, found in sides.items():
            found.append(
                summary(in_fresh_process(__file__, side=side, steps=steps, **how)["steps"])
            )
    median = {side: summary(rows) for side, rows in sides.items()}
    best = floor(**how, response=median["ours"]["response_length"])
    best["total"] = best["rollout"] + best["update"]
    return {
        "rounds": sides,
        "median": median,
        "floor": best,
        "trl_over_ours": {p: median["trl"][p] / median["ours"][p] for p in PHASES},
        "share_of_floor": {p: best[p] / median["ours"][p] for p in PHASES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("against_trl.json"))
    parser.add_argument("--results", default="results/benchmarks", help="folder of the base policy")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        side = {"ours": ours, "trl": trl}[args.case.pop("side")]
        print(json.dumps(side(**args.case)))
        return
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    found = {"threads": args.threads, "trl": version("trl"), "cases": {}}
    print(f"{'':14}{'':8}{'ours':>9}{'TRL':>9}{'TRL/ours':>10}{'floor':>9}{'floor/ours':>12}")
    for name in args.cases:
        how = {"name": name, "results": args.results, "threads": args.threads}
        one = compare(how, args.steps, args.rounds)
        found["cases"][name] = one
        args.output.write_text(json.dumps(found, indent=2) + "\n")
        for p in PHASES:
            print(
                f"{name:14}{p:8}{one['median']['ours'][p]:8.3f}s{one['median']['trl'][p]:8.3f}s"
                f"{one['trl_over_ours'][p]:10.2f}{one['floor'][p]:8.3f}s"
                f"{one['share_of_floor'][p]:12.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
