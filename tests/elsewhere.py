"""A device that is not there, whose arithmetic this processor does: a GPU's rules without a GPU.

Within `elsewhere()`, tensors on the device named `DEVICE` are computed here, and an operation on
tensors of both places fails, as it does on a GPU. So a whole training step can be run "elsewhere":
a tensor that was made on the wrong device is found, and results must be those of the CPU.

`DEVICE` is torch's `meta`, since autograd starts a thread per GPU and has none for one that is
not there. What torch does to that name before any operation is called is put right: literals,
lists, and weights that are moved.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = "meta"
MOVES = ("aten::copy_", "aten::_to_copy")


class Remote(Tensor):
    """A tensor that says it is on the device; `inner` holds it."""

    inner: Tensor
    is_meta = False  # it has data

    @staticmethod
    def __new__(cls, inner: Tensor) -> Remote:
        found = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(DEVICE),
        )
        found.inner = inner
        return found

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _computed(operation, args, kwargs or {})


def _computed(operation: Any, args: tuple, kwargs: dict) -> Any:
    """Where the device is named, the result is there, and else where the arguments are."""
    name = operation._schema.name
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    remote = any(isinstance(x, Remote) for x in tensors)
    # A number, as a tensor without dimensions, may be anywhere.
    local = [x for x in tensors if not isinstance(x, Remote) and x.dim()]
    if remote and local and name not in MOVES:
        raise RuntimeError(f"{name}: tensors on two devices")
    if kwargs.get("device") is not None:
        remote = torch.device(kwargs["device"]).type == DEVICE
        kwargs_here = kwargs | {"device": torch.device("cpu")}
    else:
        kwargs_here = kwargs
    if remote and kwargs.get("generator") is not None:
        raise RuntimeError(f"{name}: a generator of the CPU draws on the device")
    found = operation(*tree_map(_inner, args), **tree_map(_inner, kwargs_here))
    if name == "aten::copy_":
        return args[0]
    if not remote:
        return found
    wrapped = tree_map(lambda x: Remote(x) if isinstance(x, Tensor) else x, found)
    return return_and_correct_aliasing(operation, args, kwargs, wrapped)


def _inner(x: Any) -> Any:
    return x.inner if isinstance(x, Remote) else x


class _Operations(TorchDispatchMode):
    """What makes tensors from nothing passes here; all else through :class:`Remote`."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return _computed(operation, args, kwargs or {})


class _Calls(TorchFunctionMode):
    """Three calls that torch answers itself where the device is `meta`, or a tensor is wrapped."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.tensor and (device := kwargs.pop("device", None)) is not None:
            return torch.tensor(*args, **kwargs).to(device)
        if function is Tensor.new_tensor and isinstance(args[0], Remote):
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype} | kwargs).to(DEVICE)
        if function is Tensor.tolist and isinstance(args[0], Remote):
            return args[0].cpu().tolist()
        return function(*args, **kwargs)


@contextmanager
def elsewhere() -> Iterator[None]:
    """The device exists."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with _Operations(), _Calls():
            yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
