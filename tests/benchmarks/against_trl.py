"""A GRPO step here next to TRL's, on the same machine in the same run.

    pip install -e '.[peers]'
    python tests/benchmarks/against_trl.py --output against_trl.json

Both start from the same base policy and do steps of 32 prompts x 8 rollouts with one update per
batch, token-mean loss, clip 0.2 / 0.28, no KL, AdamW, gradient clip 1.0, float32, the same limit of
tokens and the same kind of problems. Each measurement is its own process; the two take turns.

The floor is the step's arithmetic (2 FLOPs per parameter and token in decoding, 6 in the update,
plus attention) at the machine's large-matmul rate, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

from fresh import in_fresh_process

STUDY = {
    "study": "against_trl",
    "sizes": {
        "s128x3": {
            "hidden": 128,
            "layers": 3,
            "pretrain_steps": 300,
            "pretrain_lr": 3e-3,
            "learning_rate": 1e-4,
        }
    },
    "grid": {"algorithms": ["grpo"], "sizes": ["s128x3"], "noise": [0], "seeds": [1]},
    "train": {"prompts_per_step": 32, "group_size": 8, "steps": 100},
}
WARM_UP = 3


def make_study(results: str, threads: int):
    from vimpo.config import load_study

    return load_study(STUDY | {"results": results, "runtime": {"threads": threads}})


def ours(results: str, threads: int, steps: int) -> dict:
    """Seconds of every step after warm-up, by phase."""
    from vimpo.config import Cell
    from vimpo.models.networks import set_up_torch
    from vimpo.training.runs import pretrain_base
    from vimpo.training.trainer import Trainer

    study = make_study(results, threads)
    base = pretrain_base(study, "s128x3", quiet=True)
    set_up_torch(study.runtime)
    trainer = Trainer(study.cell_config(Cell("grpo", "s128x3", "0", 1)), base / "model")
    found = []
    for step in range(WARM_UP + steps):
        before, start = dict(trainer.clock.seconds), time.perf_counter()
        row = trainer.step(step)
        spent = {p: trainer.clock.seconds[p] - before.get(p, 0.0) for p in ("rollout", "update")}
        spent["total"] = time.perf_counter() - start
        found.append(spent | {"response_length": row["response_length"]})
    return {"steps": found[WARM_UP:]}


def trl(results: str, threads: int, steps: int) -> dict:
    """Seconds of every step after warm-up; its rollouts are timed as TRL makes them."""
    import torch
    from datasets import Dataset
    from trl import GRPOTrainer

    from vimpo.models.networks import load_policy, load_tokenizer
    from vimpo.tasks import make_task

    study = make_study(results, threads)
    torch.set_num_threads(threads)
    base = study.base_folder("s128x3") / "model"
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


def floor(results: str, threads: int, response: float) -> dict[str, float]:
    """Seconds of a step's arithmetic at the machine's rate, without padding."""
    from vimpo.models.memory import shape_of
    from vimpo.planning.plan import forward_flops
    from vimpo.tasks import make_task

    study, rate = make_study(results, threads), matmul_rate(threads)
    shape = shape_of("s128x3", study.sizes["s128x3"])
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("against_trl.json"))
    parser.add_argument("--results", default="results/benchmarks", help="folder of the base policy")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        side = {"ours": ours, "trl": trl}[args.case.pop("side")]
        print(json.dumps(side(**args.case)))
        return
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    how = {"results": args.results, "threads": args.threads}
    in_fresh_process(__file__, side="ours", steps=1, **how)  # makes the base policy
    rounds: dict[str, list[dict]] = {"ours": [], "trl": []}
    for _ in range(args.rounds):
        for side, found in rounds.items():
            rows = in_fresh_process(__file__, side=side, steps=args.steps, **how)["steps"]
            found.append(summary(rows))
    best = floor(args.results, args.threads, summary(rounds["ours"])["response_length"])
    found = {side: summary(rows) for side, rows in rounds.items()}
    phases = ("rollout", "update", "total")
    best["total"] = best["rollout"] + best["update"]
    report = {
        "threads": args.threads,
        "rounds": rounds,
        "median": found,
        "floor": best,
        "trl_over_ours": {p: found["trl"][p] / found["ours"][p] for p in phases},
        "share_of_floor": {p: best[p] / found["ours"][p] for p in phases},
    }
    args.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{'':8}{'ours':>9}{'TRL':>9}{'TRL/ours':>10}{'floor':>9}{'floor/ours':>12}")
    for p in phases:
        print(
            f"{p:8}{found['ours'][p]:8.3f}s{found['trl'][p]:8.3f}s{report['trl_over_ours'][p]:10.2f}"
            f"{best[p]:8.3f}s{report['share_of_floor'][p]:12.2f}"
        )


if __name__ == "__main__":
    main()
