"""Rollouts by vLLM, on the GPU and in the process that trains.

Each process has its own engine for its own prompts, which loads the policy's weights before every
step. Its log-probabilities are not used: kernels differ, so training computes its own.

Every response has its own seed, made from (seed, step, row in the step), so random draws depend
neither on the algorithm nor on the number of processes. They differ from the torch sampler's draws
for the same row, and repeat bit for bit only if vLLM's kernels do, which depends on how requests
are batched.

Calls are those of the released vLLM 0.30.0, read in its source and never run on a GPU: LLM(...),
LLM.generate, LLM.collective_rpc with the worker's `reload_weights`, LLM.reset_prefix_cache and
SamplingParams. tests/sampling/test_vllm_sampler.py holds their signatures.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from vimpo.config import ConfigError, Runtime
from vimpo.models.distributed import Alone
from vimpo.sampling.rollouts import Rollouts, Sampler, Sampling, left_pad, seed_of


def _library() -> ModuleType:
    """vLLM. Raises ConfigError if it is not installed."""
    # The engine must run in this very process, so that weights are passed without a copy.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    try:
        import vllm
    except ImportError as error:
        raise ConfigError(
            f"runtime.sampler: 'vllm' cannot be imported ({error}); allowed: torch, or "
            "`pip install -e '.[vllm]'` (Python 3.13)"
        ) from None
    return vllm


class VllmSampler:
    """A :class:`vimpo.sampling.rollouts.Sampler` over one engine."""

    def __init__(
        self, model: Path, sampling: Sampling, runtime: Runtime, world: Alone | None = None
    ) -> None:
        """Start an engine with the base policy in folder `model`, on a share of GPU memory."""
        self._vllm, self._sampling = _library(), sampling
        world = world or Alone(runtime.device)
        self._device = world.device
        self._engine = self._vllm.LLM(
            model=str(model),
            skip_tokenizer_init=True,  # tokens in, tokens out
            generation_config="vllm",  # ignore the model's own defaults, which may set top-k
            trust_remote_code=runtime.trust_remote_code,
            dtype=runtime.dtype,
            gpu_memory_utilization=runtime.vllm_memory,
            # Each of several processes is one engine; torchrun has already started them.
            distributed_executor_backend=None if world.size == 1 else "external_launcher",
            disable_log_stats=True,
        )

    def sync(self, weights: Callable[[], Iterable[tuple[str, Tensor]]]) -> None:
        """Load the policy's weights and forget prompts cached with older ones.

        Raises RuntimeError if the engine keeps them: it would continue from the old weights' cache.
        """
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights())})
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("vllm: the prompt cache of older weights could not be cleared")

    def with_(self, sampling: Sampling) -> Sampler:
        """Another view of this very engine."""
        other = copy.copy(self)
        other._sampling = sampling
        return other

    def rollouts(
        self,
        prompts: Sequence[Sequence[int]],
        seed: int,
        first: int = 0,
        total: int | None = None,
        limits: Sequence[int] | None = None,
    ) -> Rollouts:
        """One request per response; a shared prompt is computed once.

        Raises RuntimeError if the engine leaves a request without an answer.
        """
        size = self._sampling.group_size
        requests = [{"prompt_token_ids": list(p)} for p in prompts for _ in range(size)]
        most = limits or [self._sampling.max_response] * len(prompts)
        settings = [
            self._settings(seed_of(seed, first * size + i), most[i // size], i % size)
            for i in range(len(requests))
        ]
        answers = self._engine.generate(requests, settings, use_tqdm=False)
        if len(answers) != len(requests):
            raise RuntimeError(f"vllm: {len(answers)} answers to {len(requests)} requests")
        outputs = [answer.outputs[0] for answer in answers]
        return self._padded(prompts, outputs)

    def _settings(self, seed: int, most: int, member: int):
        """Plain sampling from the whole distribution, or by the decoder of a member of a group."""
        decoders = self._sampling.decoders
        temperature, top_p = decoders[member] if decoders else (self._sampling.temperature, 1.0)
        return self._vllm.SamplingParams(
            n=1,
            temperature=temperature,
            top_p=top_p,
            top_k=0,
            seed=seed,
            max_tokens=most,
            # The same ends as the torch sampler's, and no other that vLLM finds in the model.
            ignore_eos=True,
            stop_token_ids=list(self._sampling.ends),
            detokenize=False,
        )

    def _padded(self, prompts: Sequence[Sequence[int]], outputs: Sequence) -> Rollouts:
        """Answers as :class:`Rollouts`.

        Raises RuntimeError for one that was aborted, or that stopped at anything but an end.
        """
        ends, pad = self._sampling.ends, self._sampling.pad
        responses = []
        for output in outputs:
            if output.finish_reason not in ("stop", "length"):
                raise RuntimeError(f"vllm: a response ended by {output.finish_reason!r}")
            tokens = list(output.token_ids)
            if output.finish_reason == "stop" and not set(tokens[-1:]) & set(ends):
                found = f"stopped at {tokens[-1:]}, not at an end {list(ends)}"
                raise RuntimeError(f"vllm: a response {found}")
            responses.append(tokens)
        width, device = max(map(len, responses)), self._device
        ids = [tokens + [pad] * (width - len(tokens)) for tokens in responses]
        rows = [[1.0] * len(tokens) + [0.0] * (width - len(tokens)) for tokens in responses]
        size = self._sampling.group_size
        prompt_ids, prompt_mask = (
            t.repeat_interleave(size, 0) for t in left_pad(prompts, pad, device)
        )
        mask = torch.tensor(rows, device=device)
        return Rollouts(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            response_ids=torch.tensor(ids, device=device),
            mask=mask,
            logp=torch.full_like(mask, torch.nan),  # not requested
            finished=torch.tensor([tokens[-1] in ends for tokens in responses], device=device),
        )
