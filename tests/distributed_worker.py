"""What each of two processes does for test_distributed.py; torchrun starts it.

    torchrun --nproc-per-node 2 tests/distributed_worker.py STUDY.json OUTPUT

Trains the cases that it finds in STUDY.json, step by step, under each sharding, and leaves rows,
rollouts, weights and checkpoints in OUTPUT.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from vimpo.config import Cell, load_study
from vimpo.models.distributed import join, named_weights
from vimpo.models.networks import set_up_torch
from vimpo.training.checkpoint import load_checkpoint, save_checkpoint
from vimpo.training.trainer import Trainer

STEPS = 3


def make_trainer(case, world=None):
    study = load_study(case["study"])
    config = study.cell_config(Cell(case["algorithm"], "tiny", "rollout-0.25", 1))
    return Trainer(config, study.base_folder("tiny") / "model", world)


def run_case(case, world, output):
    """Three steps; a checkpoint after two, from which a fresh trainer does the third again."""
    trainer = make_trainer(case, world)
    found = trainer.collector.collect(0)
    rollouts, batch = found.rollouts, found.batch
    tensors = {"ids": world.gather(rollouts.response_ids), "mask": batch.mask}
    own = float(rollouts.mask.sum())
    tokens = [world.total(own * (world.rank == r))[0] for r in range(world.size)]
    rows = []
    for step in range(STEPS):
        if step == 2:
            networks = (trainer.modules, trainer.optimizers)
            save_checkpoint(output / "checkpoint", step, *networks, {"rows": rows[:]}, world)
        rows.append(trainer.step(step))
    tensors |= dict(named_weights(trainer.policy))
    if trainer.critic is not None:
        tensors |= {f"critic.{k}": v for k, v in named_weights(trainer.critic)}
    trainer.save(output / "model")
    again = make_trainer(case, world)
    step, _ = load_checkpoint(output / "checkpoint", again.modules, again.optimizers)
    resumed = again.step(step)
    if world.main:
        save_file({k: v.contiguous() for k, v in tensors.items()}, output / "tensors.safetensors")
        result = {"rows": rows, "resumed": resumed, "tokens": tokens}
        (output / "result.json").write_text(json.dumps(result))


def different_weights_are_seen(world):
    """Does DDP's check tell that the processes do not hold the same weights?"""
    module = torch.nn.Linear(2, 2)
    with torch.no_grad():
        module.weight.fill_(float(world.rank))
    try:
        world._check_copies(module)
    except RuntimeError as error:
        return str(error)
    return ""


def main() -> None:
    cases = json.loads(Path(sys.argv[1]).read_text())
    for sharding, named in cases.items():
        first = load_study(next(iter(named.values()))["study"])
        set_up_torch(first.runtime)
        world = join(first.runtime)
        for name, case in named.items():
            run_case(case, world, Path(sys.argv[2]) / sharding / name)
        message = different_weights_are_seen(world)
        if world.main:
            (Path(sys.argv[2]) / sharding / "different.txt").write_text(message)
    world.leave()


if __name__ == "__main__":
    main()
