"""A saved model is read again before its run counts as complete: are its weights what was trained?

Every tensor must be there and equal, bit for bit. Logits are compared too, because equal tensors
under the right names do not show that adapters were merged rightly, or that the configuration says
all that the network needs. All of it happens on the CPU, so a GPU needs no room for a second copy.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vimpo.config import Runtime
from vimpo.errors import DamagedError
from vimpo.models.distributed import named_weights
from vimpo.models.kinds import embedding_rows
from vimpo.models.networks import load_policy
from vimpo.models.passes import last_logits
from vimpo.models.weights import listed

READ = 8  # tokens
# Largest difference of logits, over the largest logit. On all architectures of tests/zoo.py it is
# 0 on the CPU without adapters; with adapters merged at most 2e-6, and 0.07 in bfloat16, where
# rounding can choose other experts. Weights of another network give about 1, and a false alarm
# would cost a whole run.
BOUNDS = {torch.float32: 1e-2, torch.bfloat16: 0.5}


@torch.no_grad()
def check_saved(
    policy: PreTrainedModel,
    folder: Path,
    runtime: Runtime,
    tensors: dict[str, Tensor] | None = None,
) -> PreTrainedModel:
    """Load `folder`, compare it with the policy that was saved there, and return it, on the CPU.

    tensors: the saved weights by name, if they are not those of the policy itself. Raises
    DamagedError, or ConfigError if nothing can be loaded.
    """
    again = load_policy(folder, on_cpu(runtime), finite=False).eval()
    expected = dict(named_weights(policy)) if tensors is None else tensors
    found = dict(named_weights(again))
    wrong = expected.keys() ^ found.keys()
    wrong |= {n for n in expected.keys() & found.keys() if not same(expected[n], found[n])}
    if wrong:
        raise DamagedError(
            f"model: what was saved in '{folder}' is not what was trained: {listed(wrong)} "
            "differ; the run's last checkpoint is kept"
        )
    if any(hasattr(p, "full_tensor") for p in policy.parameters()):
        return again  # split over processes, whose forward pass needs all; and without adapters
    ids = torch.arange(READ)[None] % embedding_rows(policy)
    ones = torch.ones_like(ids)
    live = last_logits(policy, ids.to(policy.device), ones.to(policy.device), READ).cpu()
    gap, scale = (last_logits(again, ids, ones, READ) - live).abs().max(), live.abs().max()
    if gap > BOUNDS[policy.dtype] * scale:
        raise DamagedError(
            f"model: what was saved in '{folder}' gives other logits than what was trained: "
            f"{float(gap):.2g} apart, where the largest is {float(scale):.2g}; the run's last "
            "checkpoint is kept"
        )
    return again


def on_cpu(runtime: Runtime) -> Runtime:
    """How the same model is run on the CPU; kernels that only GPUs have are left out."""
    if runtime.device == "cpu":
        return runtime
    return runtime.model_copy(update={"device": "cpu", "attention": "eager"})


def same(trained: Tensor, saved: Tensor) -> bool:
    """Equal in every bit. NaN, which a failed run may hold, equals itself."""
    trained = trained.detach().cpu()
    if trained.dtype != saved.dtype or not trained.is_floating_point():
        return torch.equal(trained, saved)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[trained.element_size()]
    return torch.equal(trained.contiguous().view(bits), saved.contiguous().view(bits))
