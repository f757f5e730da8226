"""Atomic checkpoints and exact resume.

A checkpoint is `step-N.safetensors` and `step-N.json`. Their checksums in `step-N.sha256` are
written last; without them there is no checkpoint. No random state is kept, because every draw is a
pure function of (seed, step); what a learner remembers besides its networks is a `kept` tensor. The
last two checkpoints are kept. Weights that never change are left out: those that are frozen in a
network of which others are trained. Tensors are written whole, so a run may resume with a different
number of processes or a different sharding.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vimpo.errors import DamagedError
from vimpo.models.distributed import Alone, full, part_like
from vimpo.storage.files import write_json, written_aside
from vimpo.storage.integrity import beside, check, sealing

KEEP = 2


def save_checkpoint(
    folder: Path,
    step: int,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    state: dict[str, Any],
    world: Alone | None = None,
    kept: Mapping[str, Tensor] | None = None,
) -> None:
    """Write everything needed to resume after `step` steps; drop older checkpoints.

    kept: what the learner remembers besides its networks, equal in all processes. Every process of
    `world` must call it; the main one writes, and the others wait.
    """
    world = world or Alone()
    tensors = {f"kept.{name}": tensor for name, tensor in (kept or {}).items()}
    for key, tensor in _tensors(modules, optimizers):
        whole = full(tensor)
        if world.main:
            tensors[key] = whole if world.size == 1 else whole.cpu()
    if world.main:
        numbers = {name: _numbers(optimizer) for name, optimizer in optimizers.items()}
        _write(folder, tensors, {"step": step, "state": state, "numbers": numbers})
    world.wait()


def _tensors(
    modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> Iterator[tuple[str, Tensor]]:
    for name, module in modules.items():
        for key, parameter in _changing(module):
            yield f"module.{name}.{key}", parameter.detach()
    for name, optimizer in optimizers.items():
        for i, slots in optimizer.state_dict()["state"].items():
            for key, value in slots.items():
                yield f"optimizer.{name}.{i}.{key}", torch.as_tensor(value)


def _changing(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Trained weights by name; all of a network that is not trained but replaced now and then."""
    trained = any(p.requires_grad for p in module.parameters())
    for name, parameter in module.named_parameters():
        if parameter.requires_grad or not trained:
            yield name, parameter


def _numbers(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """What steps keep in `param_groups` beside the settings: running means."""
    (group,) = optimizer.param_groups
    return {k: v for k, v in group.items() if k != "params" and k not in optimizer.defaults}


def _write(folder: Path, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
    path = folder / f"step-{content['step']:06d}.safetensors"
    record = path.with_suffix(".json")
    with sealing(beside(path), [path.name, record.name]):
        with written_aside(path) as aside:  # from the tensors' own memory: no copy in bytes
            save_file({k: v.contiguous() for k, v in tensors.items()}, aside)
        write_json(record, content)
    for old in sorted(folder.glob("step-*.sha256"))[:-KEEP]:
        old.unlink()
    for file in folder.glob("step-*"):
        if not beside(file).exists():  # dropped, or its process was killed
            file.unlink(missing_ok=True)


def load_checkpoint(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    restore: Callable[[dict[str, Tensor]], None] | None = None,
) -> tuple[int, dict[str, Any]] | None:
    """Restore the newest sound checkpoint in place: (steps done, state), or None.

    restore: takes the tensors that were kept besides those of networks and optimisers. Warns of
    each damaged one and uses the one before it instead.
    """
    for sums in sorted(folder.glob("step-*.sha256"), reverse=True):
        path, record_path = sums.with_suffix(".safetensors"), sums.with_suffix(".json")
        try:
            for file in (path, record_path):
                check("checkpoint", file, "resuming from the one before, if any", sums)
        except DamagedError as error:
            warnings.warn(str(error), stacklevel=2)
            continue
        with safe_open(path, framework="pt") as tensors:
            _restore(tensors, modules, optimizers)
            if restore:
                kept = [key for key in tensors.keys() if key.startswith("kept.")]  # noqa: SIM118
                restore({key.removeprefix("kept."): tensors.get_tensor(key) for key in kept})
        record = json.loads(record_path.read_text(encoding="utf-8"))
        for name, optimizer in optimizers.items():
            (group,) = optimizer.param_groups
            group.update(record.get("numbers", {}).get(name, {}))
        return record["step"], record["state"]
    return None


def _restore(
    tensors: safe_open,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> None:
    """Read the tensors one by one; a process keeps its part of each."""
    with torch.no_grad():
        for name, module in modules.items():
            for key, parameter in _changing(module):
                whole = tensors.get_tensor(f"module.{name}.{key}")
                parameter.copy_(part_like(whole, parameter))
    for name, optimizer in optimizers.items():
        content = optimizer.state_dict()
        content["state"] = {}
        (group,) = optimizer.param_groups
        for key in tensors.keys():  # noqa: SIM118
            kind, owner, *rest = key.split(".")
            if kind == "optimizer" and owner == name:
                index, slot = int(rest[0]), rest[1]
                part = part_like(tensors.get_tensor(key), group["params"][index])
                content["state"].setdefault(index, {})[slot] = part
        optimizer.load_state_dict(content)
