"""AdamW, with float32 copies of weights that are trained in bfloat16.

A bfloat16 number has 8 significant bits: at a learning rate of 1e-6, nearly every update of a
weight near 0.02 rounds to nothing. So the optimiser sums gradients, keeps its moments and updates a
copy in float32; the network gets that copy, rounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class AdamW(torch.optim.AdamW):
    """torch's own, for weights that need no float32 copy."""

    def collect(self) -> None:
        """Must be called after every backward pass."""


class MasterAdamW(AdamW):
    """AdamW over float32 copies; `param_groups` holds the copies, with the gradients in them."""

    def __init__(self, parameters: list[nn.Parameter], **settings: Any) -> None:
        self._weights = list(parameters)
        copies = [nn.Parameter(w.detach().float().clone()) for w in self._weights]
        super().__init__(copies, **settings)

    def _pairs(self) -> list[tuple[nn.Parameter, Tensor]]:
        (group,) = self.param_groups
        return list(zip(self._weights, group["params"], strict=True))

    def collect(self) -> None:
        """Add the weights' gradients to those of the copies, in float32, and drop them."""
        for weight, copy in self._pairs():
            if weight.grad is None:
                continue
            gradient = weight.grad.float()
            copy.grad = gradient if copy.grad is None else copy.grad.add_(gradient)
            weight.grad = None

    @torch.no_grad()
    def step(  # type: ignore[override]  # no closure is ever given
        self, closure: None = None
    ) -> None:
        super().step(closure)
        for weight, copy in self._pairs():
            weight.copy_(copy)

    def state_dict(self) -> dict[str, Any]:
        """AdamW's, with the copy as one more slot of each weight."""
        content = super().state_dict()
        for index, (_, copy) in enumerate(self._pairs()):
            if index in content["state"]:
                content["state"][index] = content["state"][index] | {"master": copy.detach()}
        return content

    def load_state_dict(self, content: dict[str, Any]) -> None:
        state = {i: dict(slots) for i, slots in content["state"].items()}
        with torch.no_grad():
            for index, (_, copy) in enumerate(self._pairs()):
                if index in state:
                    copy.copy_(state[index].pop("master"))
        super().load_state_dict(content | {"state": state})


# Share of a new gradient norm in its running mean, once there have been as many as its inverse.
NEWEST = 0.05


def norm_limit(optimizer: torch.optim.Optimizer, norm: float) -> float:
    """The running mean of the gradient norm before `norm`, which then joins it; inf at first.

    The mean is geometric: a single outlier hardly moves it, and a factor of the loss is the same
    factor of the mean. It lives in `param_groups`, so checkpoints hold it. Norms of zero are steps
    without a gradient and do not count, nor does what is not finite.
    """
    (group,) = optimizer.param_groups
    count, mean = group.get("norms", 0), group.get("log_norm", math.inf)
    if 0 < norm < math.inf:
        share = max(NEWEST, 1 / (count + 1))
        group["log_norm"] = math.log(norm) if count == 0 else mean + share * (math.log(norm) - mean)
        group["norms"] = count + 1
    return math.exp(mean) if count else math.inf


def optimizer_bytes(optimizers: Iterable[torch.optim.Optimizer]) -> int:
    """Bytes of moments and copies, over all processes; step counters are left out."""
    slots = [s for o in optimizers for s in o.state_dict()["state"].values()]
    return sum(t.numel() * t.element_size() for s in slots for t in s.values() if t.ndim)


def make_optimizer(module: nn.Module, learning_rate: float, weight_decay: float) -> AdamW:
    """The optimiser of a module's trainable weights."""
    weights = [p for p in module.parameters() if p.requires_grad]
    narrow = any(w.dtype in (torch.bfloat16, torch.float16) for w in weights)
    kind = MasterAdamW if narrow else AdamW
    return kind(weights, lr=learning_rate, weight_decay=weight_decay)
