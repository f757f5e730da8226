"""One training run on several processes: torch's own DDP or FSDP2, and a null object for one.

Every process samples and scores its own share of a step's prompts. Small tensors, up to [B, T], are
then gathered on all of them, so group means, whitening and token means are those of the whole
batch, computed by the same functions as on one process. Only losses and gradients are summed. There
is no silent fallback: the number of processes and the kind of every weight are checked.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from vimpo.config import ConfigError, Runtime
from vimpo.models.passes import decoder_layers
from vimpo.models.weights import saved_buffers

SAME = 0.02  # largest relative difference between a split network and the whole one, in bfloat16


class Alone:
    """The null object: a single process, which waits for no other and copies nothing."""

    rank, size, main = 0, 1, True

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def share(self, count: int) -> slice:
        """This process's part of `count` items, the same number for each process."""
        return slice(0, count)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes in order: [b, ...] -> [B, ...], without a graph."""
        return rows

    def total(self, *numbers: float) -> list[float]:
        """Each number summed over all processes."""
        return list(numbers)

    def largest(self, number: float) -> float:
        """The largest of all processes' numbers."""
        return number

    def backward(self, loss: Tensor) -> None:
        """Gradients of the sum of all processes' losses."""
        loss.backward()

    def spread(self, module: nn.Module, *example: object) -> nn.Module:
        """What to call instead of `module` from now on. example: inputs of a forward pass."""
        return module

    def whole(self, module: nn.Module):
        """A context in which all of a spread module's weights are on this process, no gradients."""
        return nullcontext()

    def release(self, module: nn.Module) -> None:
        """Drop the gathered weights that a frozen module's forward pass left behind."""

    def wait(self) -> None:
        """Block until all processes are here."""

    def leave(self) -> None:
        """End this process's communication with the others."""


class Together(Alone):
    """One of `size` processes that train one network."""

    def __init__(self, runtime: Runtime) -> None:
        """Join the processes that torchrun started.

        Raises ConfigError if their number is not the configured one.
        """
        import torch.distributed as dist

        local = int(os.environ.get("LOCAL_RANK", "0"))
        self.device = f"cuda:{local}" if runtime.device == "cuda" else "cpu"
        if self.device != "cpu":
            check_devices(runtime)
            torch.cuda.set_device(local)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if self.device != "cpu" else "gloo")
        self._dist, self._sharding = dist, runtime.sharding
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.main = self.rank == 0
        if self.size != runtime.processes:
            raise ConfigError(
                f"runtime.processes: {runtime.processes} are configured, {self.size} run; "
                f"allowed: {self.size} with this launch"
            )

    def share(self, count: int) -> slice:
        part, rest = divmod(count, self.size)
        if rest:
            raise ValueError(f"{count} cannot be shared evenly by {self.size} processes")
        return slice(self.rank * part, (self.rank + 1) * part)

    def gather(self, rows: Tensor) -> Tensor:
        mine = rows.detach().to(self.device).contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        self._dist.all_gather(parts, mine)
        return torch.cat(parts)

    def total(self, *numbers: float) -> list[float]:
        return self._reduce(self._dist.ReduceOp.SUM, *numbers)

    def largest(self, number: float) -> float:
        return self._reduce(self._dist.ReduceOp.MAX, number)[0]

    def _reduce(self, operation, *numbers: float) -> list[float]:
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        self._dist.all_reduce(tensor, operation)
        return tensor.tolist()

    def backward(self, loss: Tensor) -> None:
        # DDP and FSDP2 average over processes.
        (loss * self.size).backward()

    def spread(self, module: nn.Module, *example: object) -> nn.Module:
        """Copies (DDP) or parts (FSDP2) of a module. Raises RuntimeError if it is neither."""
        if self._sharding == "fsdp2":
            return self._shard(module, *example)
        if not any(p.requires_grad for p in module.parameters()):
            return module  # frozen copies have nothing to synchronise
        from torch.nn.parallel import DistributedDataParallel

        devices = None if self.device == "cpu" else [self.device]
        copies = DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False)
        self._check_copies(module)
        return copies

    def _check_copies(self, module: nn.Module) -> None:
        total = torch.stack([p.detach().double().sum() for p in module.parameters()]).sum()
        sums = self.gather(total[None])
        if not torch.equal(sums, sums[:1].expand_as(sums)):
            raise RuntimeError(f"ddp: the processes hold different weights: {sums.tolist()}")

    def _shard(self, module: nn.Module, *example: object) -> nn.Module:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
        from torch.distributed.tensor import DTensor

        mesh = init_device_mesh(torch.device(self.device).type, (self.size,))
        policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
        settings: dict[str, Any] = {"mesh": mesh, "mp_policy": policy}
        # Warns of in-place changes to outputs, which do not happen here.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        expected = _first(module, *example)
        for layer in decoder_layers(module):
            fully_shard(layer, reshard_after_forward=True, **settings)
        # A reference's output layer is read after its forward pass; release() drops it.
        trained = any(p.requires_grad for p in module.parameters())
        fully_shard(module, reshard_after_forward=trained, **settings)
        # The first pass fixes which module is the root, before sampling calls a submodule.
        found = _first(module, *example)
        self.release(module)
        for name, parameter in module.named_parameters():
            if not isinstance(parameter, DTensor) or parameter.device_mesh.size() != self.size:
                raise RuntimeError(f"fsdp2: '{name}' is not split over {self.size} processes")
        scale = float(expected.abs().max()) + 1e-6
        if float((found - expected).abs().max()) > SAME * scale:
            raise RuntimeError("fsdp2: the split network does not answer as the whole one did")
        return module

    @contextmanager
    def whole(self, module: nn.Module) -> Iterator[None]:
        """Gather all weights once instead of once per sampled token; no waiting afterwards."""
        if self._sharding != "fsdp2":
            yield
            return
        from torch.distributed.fsdp import FSDPModule

        parts = [m for m in module.modules() if isinstance(m, FSDPModule)]
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        try:
            yield
        finally:
            for part in parts:
                part.reshard()
                part.set_reshard_after_forward(True, recurse=False)

    def release(self, module: nn.Module) -> None:
        if self._sharding == "fsdp2":
            module.reshard()  # type: ignore[operator]  # fully_shard adds it to the class

    def wait(self) -> None:
        self._dist.barrier()

    def leave(self) -> None:
        self._dist.destroy_process_group()


@torch.no_grad()
def _first(module: nn.Module, *example: object) -> Tensor:
    """The first output of a forward pass."""
    found = module(*example)
    return (found if isinstance(found, Tensor) else found[0]).float()


def full(tensor: Tensor) -> Tensor:
    """The whole tensor, wherever its parts are; every process must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def named_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Whole weights by name, one at a time; every process must consume all of them."""
    for name, parameter in module.named_parameters():
        yield name, full(parameter.detach())
    yield from saved_buffers(module).items()


def part_like(whole: Tensor, tensor: Tensor) -> Tensor:
    """The part of `whole` that this process holds of `tensor`; `whole` itself if not split."""
    if not hasattr(tensor, "full_tensor") or whole.ndim == 0:
        return whole
    from torch.distributed.tensor import DTensor, distribute_tensor

    part = cast(DTensor, tensor)
    return distribute_tensor(
        whole.to(part.device), part.device_mesh, part.placements, src_data_rank=None
    )


def join(runtime: Runtime) -> Alone:
    """This process's place among those of its run.

    Raises ConfigError if several are configured and this process was started alone.
    """
    if runtime.processes == 1:
        return Alone(runtime.device)
    if "WORLD_SIZE" not in os.environ:
        raise ConfigError(
            f"runtime.processes: {runtime.processes} are configured, but this process was started "
            "alone; allowed: 1, or a start by `python -m vimpo train`"
        )
    return Together(runtime)


def check_devices(runtime: Runtime) -> None:
    """Raise ConfigError if a machine has fewer GPUs than processes."""
    if runtime.device == "cpu":
        return
    wanted, seen = runtime.processes // runtime.nodes, torch.cuda.device_count()
    if seen < wanted:
        raise ConfigError(
            f"runtime.processes: {runtime.processes} on {runtime.nodes} node(s) need {wanted} GPUs "
            f"on each, torch sees {seen} here; allowed: at most {seen} per node, or device: cpu"
        )
