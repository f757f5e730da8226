"""Rollouts by vLLM, on the GPU and in the process of the training.

Each process has an engine of its own for its own prompts, which takes over the policy's weights
before every step. Its log-probabilities are not used: kernels differ, so training makes its own.

Seeds: every response has one, made of (seed, step, row in the step), so luck depends neither on the
algorithm nor on the number of processes. It is not the luck that the torch sampler gives the same
row, and repeats bit by bit only where vLLM's kernels do, which depends on how requests are batched.

Calls are those of the released vLLM 0.30.0, read in its source and never run on a GPU: LLM(...),
LLM.generate, LLM.collective_rpc with the worker's `reload_weights`, LLM.reset_prefix_cache and
SamplingParams. tests/test_vllm_sampler.py holds their signatures.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from vimpo.config import ConfigError, Runtime
from vimpo.models.distributed import Alone
from vimpo.sampling.rollouts import Rollouts, Sampler, Sampling, left_pad


def row_seed(seed: int, row: int) -> int:
    """Seed of one response of a step."""
    text = f"{seed}:{row}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest())


def _library() -> ModuleType:
    """vLLM. Raises ConfigError where it is not installed."""
    # The engine must run in this very process: weights go over without a copy.
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
        """Start an engine on the base policy in folder `model`, for a share of the GPU's memory."""
        self._vllm, self._sampling = _library(), sampling
        world = world or Alone(runtime.device)
        self._device = world.device
        self._engine = self._vllm.LLM(
            model=str(model),
            skip_tokenizer_init=True,  # tokens in, tokens out
            generation_config="vllm",  # no defaults of the model's own: it might cut off by top-k
            trust_remote_code=runtime.trust_remote_code,
            dtype=runtime.dtype,
            gpu_memory_utilization=runtime.vllm_memory,
            # Of several processes, each is one engine; torchrun started them already.
            distributed_executor_backend=None if world.size == 1 else "external_launcher",
            disable_log_stats=True,
        )

    def sync(self, weights: Callable[[], Iterable[tuple[str, Tensor]]]) -> None:
        """Take over the policy's weights, and forget prompts that older ones have read.

        Raises RuntimeError where the engine keeps them: it would go on from the old weights' cache.
        """
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights())})
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("vllm: prompts that older weights have read could not be forgotten")

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
        """One request for each response; a prompt that several share is computed once.

        Raises RuntimeError where the engine leaves a request without an answer.
        """
        size = self._sampling.group_size
        requests = [{"prompt_token_ids": list(p)} for p in prompts for _ in range(size)]
        most = limits or [self._sampling.max_response] * len(prompts)
        settings = [
            self._settings(row_seed(seed, first * size + i), most[i // size])
            for i in range(len(requests))
        ]
        answers = self._engine.generate(requests, settings, use_tqdm=False)
        if len(answers) != len(requests):
            raise RuntimeError(f"vllm: {len(answers)} answers to {len(requests)} requests")
        outputs = [answer.outputs[0] for answer in answers]
        return self._padded(prompts, outputs)

    def _settings(self, seed: int, most: int):
        """Plain sampling from the whole distribution."""
        return self._vllm.SamplingParams(
            n=1,
            temperature=self._sampling.temperature,
            top_p=1.0,
            top_k=0,
            seed=seed,
            max_tokens=most,
            # The tokenizer's EOS alone: vLLM would add those of the model's generation config.
            ignore_eos=True,
            stop_token_ids=[self._sampling.eos],
            detokenize=False,
        )

    def _padded(self, prompts: Sequence[Sequence[int]], outputs: Sequence) -> Rollouts:
        """Answers as :class:`Rollouts`.

        Raises RuntimeError for one that was broken off, or that stopped at anything but EOS.
        """
        eos, pad = self._sampling.eos, self._sampling.pad
        responses = []
        for output in outputs:
            if output.finish_reason not in ("stop", "length"):
                raise RuntimeError(f"vllm: a response ended by {output.finish_reason!r}")
            tokens = list(output.token_ids)
            if output.finish_reason == "stop" and tokens[-1:] != [eos]:
                raise RuntimeError(f"vllm: a response stopped at {tokens[-1:]}, not at EOS ({eos})")
            responses.append(tokens)
        width, device = max(map(len, responses)), self._device
        ids = [tokens + [pad] * (width - len(tokens)) for tokens in responses]
        mask = [[1.0] * len(tokens) + [0.0] * (width - len(tokens)) for tokens in responses]
        size = self._sampling.group_size
        prompt_ids, prompt_mask = (
            t.repeat_interleave(size, 0) for t in left_pad(prompts, pad, device)
        )
        mask = torch.tensor(mask, device=device)
        return Rollouts(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            response_ids=torch.tensor(ids, device=device),
            mask=mask,
            logp=torch.full_like(mask, torch.nan),  # nobody asked
            finished=torch.tensor([tokens[-1] == eos for tokens in responses], device=device),
        )
