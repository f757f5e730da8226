"""Samplers: torch, from the very network being trained, or a vLLM engine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from transformers import PreTrainedModel

from vimpo.config import Runtime
from vimpo.models.distributed import Alone
from vimpo.sampling.rollouts import Sampler, Sampling, TorchSampler


def make_sampler(
    model: PreTrainedModel,
    folder: Path,
    sampling: Sampling,
    runtime: Runtime,
    world: Alone | None = None,
    gathered: Callable[[], AbstractContextManager] = nullcontext,
) -> Sampler:
    """The sampler that `runtime` names, for a model that was loaded from `folder`.

    gathered: see :class:`vimpo.sampling.rollouts.TorchSampler`. Raises ConfigError if vLLM is not
    installed.
    """
    if runtime.sampler == "vllm":
        from vimpo.sampling.vllm import VllmSampler

        return VllmSampler(folder, sampling, runtime, world)
    return TorchSampler(model, sampling, gathered)
