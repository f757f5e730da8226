"""Runs a learner to its end inside a folder: resume, checkpoints, outputs, manifest.

The same few lines carry pretraining and every algorithm. A run's folder holds config.yaml,
metrics.csv, timing.csv, manifest.json and model/; the manifest is written last, so a folder with a
manifest is complete.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import torch
from torch import nn
from tqdm import tqdm

from vimpo import records
from vimpo.checkpoint import discard_checkpoints, load_checkpoint, save_checkpoint
from vimpo.config import (
    Cell,
    ConfigError,
    ModelSpec,
    Pretrain,
    Runtime,
    Strict,
    Study,
    TaskConfig,
    dump_yaml,
)
from vimpo.distributed import Alone, check_devices, join
from vimpo.models import parameter_count, set_up_torch
from vimpo.outcomes import Outcome

OUTPUTS = ("config.yaml", "metrics.csv", "timing.csv", "model")


class Learner(Protocol):
    """What can be run: something with networks, optimisers and a step."""

    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    clock: records.Stopwatch
    phases: tuple[str, ...]
    policy: nn.Module

    def step(self, step: int) -> dict[str, float]:
        """Do step number `step`; the row of metrics.csv."""

    def save(self, folder: Path) -> None:
        """Write the model."""

    def provenance(self) -> dict:
        """What the manifest records of the training data, empty for generated problems."""

    def networks(self) -> list[nn.Module]:
        """All networks held in memory."""

    def outcome(self, rows: list[dict[str, float]]) -> Outcome | None:
        """Has the run failed at the last of its rows? None: it goes on."""


class BaseConfig(Strict):
    """Everything that decides a base policy; written beside its metrics."""

    size: str
    model: ModelSpec
    task: TaskConfig
    pretrain: Pretrain
    runtime: Runtime


def is_complete(folder: Path, digest: str) -> bool:
    """Did a run with this digest end here?

    Raises ConfigError where the folder holds a run of another configuration.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        return False
    found = json.loads(path.read_text())["digest"]
    if found != digest:
        raise ConfigError(
            f"results: '{folder}' was made by another configuration (digest {found} there, "
            f"{digest} here; compare config.yaml); allowed: the same configuration, another "
            "`study` name, or a folder that you removed"
        )
    return True


def pretrain_base(study: Study, size: str, *, quiet: bool = False) -> Path:
    """Make the base policy of a size unless it is there; returns its folder."""
    from vimpo.pretrain import Pretrainer

    folder, digest, spec = study.base_folder(size), study.base_digest(size), study.sizes[size]
    if is_complete(folder, digest):
        return folder
    set_up_torch(study.runtime)
    parts = {"task": study.task, "pretrain": study.pretrain, "runtime": study.runtime}
    config = BaseConfig(size=size, model=spec, **parts)
    _run(
        lambda: Pretrainer(spec, study.task, study.pretrain, study.runtime),
        folder,
        config,
        digest,
        steps=spec.pretrain_steps,
        checkpoint_every=study.pretrain.checkpoint_every,
        title=f"base/{size}",
        shown="loss",
        quiet=quiet,
    )
    return folder


def train_cell(study: Study, cell: Cell, *, quiet: bool = False) -> Path:
    """Train one cell unless it is done, from the base policy of its size; returns its folder.

    Raises ConfigError for a folder of another configuration, before anything is loaded.
    """
    from vimpo.trainer import Trainer

    config, digest, folder = (
        study.cell_config(cell),
        study.cell_digest(cell),
        study.run_folder(cell),
    )
    if is_complete(folder, digest):
        return folder
    world = join(config.runtime)
    if world.size == 1:
        base = pretrain_base(study, cell.size, quiet=quiet)
    else:
        base = require_base(study, cell.size)
    set_up_torch(config.runtime)
    _run(
        lambda: Trainer(config, base / "model", world),
        folder,
        config,
        digest,
        steps=config.train.steps,
        checkpoint_every=config.train.checkpoint_every,
        title=cell.name,
        shown="accuracy",
        quiet=quiet or not world.main,
        world=world,
    )
    world.leave()
    return folder


def prepare_cell(study: Study, cell: Cell, *, quiet: bool = False) -> bool:
    """What one process does before several train a cell: is there anything to train?

    Makes the base policy where it is missing and this is the only machine. Raises ConfigError for
    too few GPUs, and what :func:`train_cell` would.
    """
    check_devices(study.runtime)
    if is_complete(study.run_folder(cell), study.cell_digest(cell)):
        return False
    if study.runtime.nodes == 1:
        pretrain_base(study, cell.size, quiet=quiet)
    else:
        require_base(study, cell.size)
    return True


def require_base(study: Study, size: str) -> Path:
    """Folder of a base policy that is there. Raises ConfigError where it is not."""
    folder = study.base_folder(size)
    if not is_complete(folder, study.base_digest(size)):
        raise ConfigError(
            f"base: '{folder}' is missing, and several processes do not make it together; "
            f"allowed: a folder made by `python -m vimpo pretrain --size {size}`"
        )
    return folder


def _run(
    make_learner: Callable[[], Learner],
    folder: Path,
    config: Strict,
    digest: str,
    *,
    steps: int,
    checkpoint_every: int,
    title: str,
    shown: str,
    quiet: bool,
    world: Alone | None = None,
) -> None:
    """All steps of a learner, then its outputs; goes on from the newest sound checkpoint.

    Of several processes, all do the steps and the main one writes.
    """
    world = world or Alone()
    startup = records.seconds_since_process_start()
    learner = make_learner()
    # Named by the digest: what another configuration left half done is never gone on from.
    checkpoints = folder / f"checkpoint-{digest}"
    metrics: list[dict] = []
    timing: list[dict] = []
    found = load_checkpoint(checkpoints, learner.modules, learner.optimizers)
    if found:
        metrics, timing = found[1]["metrics"], found[1]["timing"]
    failure = None
    bar = tqdm(
        total=steps,
        initial=len(metrics),
        desc=title,
        unit="step",
        disable=quiet,
        mininterval=0.2 if sys.stderr.isatty() else 5.0,
        ascii=not sys.stderr.isatty(),
    )
    for step in range(len(metrics), steps):
        before = dict(learner.clock.seconds)
        metrics.append(learner.step(step))
        spent = {p: learner.clock.seconds.get(p, 0) - before.get(p, 0) for p in learner.phases}
        row = {f"{phase}_s": round(seconds, 6) for phase, seconds in spent.items()}
        timing.append({"step": step} | row | {"total_s": round(sum(spent.values()), 6)})
        bar.set_postfix({shown: f"{metrics[-1][shown]:.3f}"}, refresh=False)
        bar.update()
        if failure := learner.outcome(metrics):
            print(f"{title}: {failure.kind}: {failure.reason}", file=sys.stderr)
            break
        if (step + 1) % checkpoint_every == 0 and step + 1 < steps:
            with learner.clock("checkpoint"):
                state = {"metrics": metrics, "timing": timing}
                save_checkpoint(
                    checkpoints, step + 1, learner.modules, learner.optimizers, state, world
                )
    bar.close()
    aside = folder / ".model"
    with learner.clock("save"):
        if world.main:
            shutil.rmtree(aside, ignore_errors=True)
        learner.save(aside)
    peak = world.largest(records.peak_memory_mb(world.device))
    end = failure or Outcome("finished", len(metrics) - 1)
    together = {"processes": world.size, "peak_memory_mb": round(peak, 1), "outcome": asdict(end)}
    if world.main:
        _write_outputs(aside, folder, config, metrics, timing)
        manifest = _manifest(learner, folder, config, digest, timing, startup, together)
        records.write_json(folder / "manifest.json", manifest)
        discard_checkpoints(checkpoints)
    world.wait()


def _write_outputs(
    model: Path, folder: Path, config: Strict, metrics: list[dict], timing: list[dict]
) -> None:
    """The tables of a run, and its model, which lies ready beside them."""
    records.write_atomic(folder / "config.yaml", dump_yaml(config))
    records.write_rows(folder / "metrics.csv", metrics, ["step"])
    records.write_rows(folder / "timing.csv", timing, ["step"])
    shutil.rmtree(folder / "model", ignore_errors=True)
    model.rename(folder / "model")


def _manifest(
    learner: Learner,
    folder: Path,
    config: Strict,
    digest: str,
    timing: list[dict],
    startup: float,
    together: dict[str, object],
) -> dict:
    """Provenance and cost of a finished run; phases add up over interruptions.

    together: what only all of the run's processes can say.
    """
    phases = {p: sum(row[f"{p}_s"] for row in timing) for p in learner.phases}
    others = {k: v for k, v in learner.clock.seconds.items() if k not in phases}
    data = learner.provenance()
    slots = [s for o in learner.optimizers.values() for s in o.state_dict()["state"].values()]
    return {
        "digest": digest,
        "status": "complete",
        "parameters": parameter_count(learner.policy),
        "trainable_parameters": sum(parameter_count(m, True) for m in learner.modules.values()),
        "resident_parameters": sum(parameter_count(m) for m in learner.networks()),
        "optimizer_bytes": sum(
            t.numel() * t.element_size() for s in slots for t in s.values() if t.ndim
        ),
        **together,
        "wall_s": round(records.seconds_since_process_start(), 3),
        "phases_s": {k: round(v, 3) for k, v in ({"startup": startup} | phases | others).items()},
        "versions": records.versions(),
        "git_commit": records.git_commit(),
        "hardware": records.hardware(config.runtime.device),
        **({"data": data} if data else {}),
        "outputs": records.checksums(folder, OUTPUTS),
    }
