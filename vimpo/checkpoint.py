"""Atomic checkpoints and exact resume.

A checkpoint is `step-N.safetensors` and `step-N.json`. The JSON is written last and holds the
checksum of the tensors, so a checkpoint without a JSON that fits it does not exist. No random state
is kept, because every draw is a pure function of (seed, step). The last two are kept.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from vimpo.records import sha256, write_atomic, write_json

KEEP = 2


def save_checkpoint(
    folder: Path,
    step: int,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    state: dict[str, Any],
) -> None:
    """Write everything that step `step` (steps done) needs to go on; drop older ones."""
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        tensors |= {f"module.{name}.{k}": p.detach() for k, p in module.named_parameters()}
    for name, optimizer in optimizers.items():
        for i, slots in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{name}.{i}.{k}": torch.as_tensor(v) for k, v in slots.items()}
    path = folder / f"step-{step:06d}.safetensors"
    write_atomic(path, save({k: v.contiguous() for k, v in tensors.items()}))
    write_json(path.with_suffix(".json"), {"step": step, "sha256": sha256(path), "state": state})
    for old in sorted(folder.glob("step-*.json"))[:-KEEP]:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)


def load_checkpoint(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> tuple[int, dict[str, Any]] | None:
    """Restore the newest sound checkpoint in place: (steps done, state), or None."""
    for path in sorted(folder.glob("step-*.json"), reverse=True):
        try:
            record = json.loads(path.read_text())
            tensors_path = path.with_suffix(".safetensors")
            if sha256(tensors_path) != record["sha256"]:
                continue
        except (OSError, ValueError, KeyError):
            continue  # damaged: the one before it is used
        _restore(load_file(tensors_path), modules, optimizers)
        return record["step"], record["state"]
    return None


def _restore(
    tensors: dict[str, Tensor],
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> None:
    with torch.no_grad():
        for name, module in modules.items():
            for key, parameter in module.named_parameters():
                parameter.copy_(tensors[f"module.{name}.{key}"])
    for name, optimizer in optimizers.items():
        content = optimizer.state_dict()
        content["state"] = {}
        for key, tensor in tensors.items():
            kind, owner, *rest = key.split(".")
            if kind == "optimizer" and owner == name:
                index, slot = rest
                content["state"].setdefault(int(index), {})[slot] = tensor
        optimizer.load_state_dict(content)


def discard_checkpoints(folder: Path) -> None:
    """Remove a folder of checkpoints whose run is complete."""
    shutil.rmtree(folder, ignore_errors=True)
