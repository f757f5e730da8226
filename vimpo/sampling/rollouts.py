"""Rollouts: G sampled responses to each prompt, and the padded tensors that training reads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad as pad_last_dims
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vimpo.config import Train
from vimpo.models.ends import ends_of
from vimpo.sampling.decoding import make_decoder
from vimpo.sampling.distribution import decoded_logp, plain_logp

# Finished rows are dropped from the batch once they are this share of it: dropping costs a copy of
# the KV cache, keeping costs their share of every further step.
DROP_SHARE = 0.2


@dataclass(frozen=True)
class Rollouts:
    """B sampled responses: prompts left-padded to P, responses right-padded to T.

    prompt_ids, prompt_mask [B, P]; response_ids, mask, logp [B, T] (logp: of the sampled tokens at
    the sampling temperature); finished [B]: ended by one of the ends within the limit.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    response_ids: Tensor
    mask: Tensor
    logp: Tensor
    finished: Tensor

    @property
    def width(self) -> int:
        """T, the longest response."""
        return self.response_ids.shape[1]

    def inputs(self) -> tuple[Tensor, Tensor]:
        """ids, attention_mask [B, P + T - 1] whose last T positions predict the response."""
        ids = torch.cat([self.prompt_ids, self.response_ids], dim=1)
        mask = torch.cat([self.prompt_mask, self.mask.long()], dim=1)
        return ids[:, :-1], mask[:, :-1]

    def rows(self, index: slice | Tensor) -> Rollouts:
        return Rollouts(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def by_length(self) -> Tensor:
        """Indices [B] that sort rows by response, then prompt length, shortest first."""
        prompt, response = self.prompt_mask.sum(1), self.mask.sum(1).long()
        return torch.argsort(response * (self.prompt_mask.shape[1] + 1) + prompt, stable=True)

    def trimmed(self) -> Rollouts:
        """The same without columns that are padding in every row."""
        prompt, response = (int(m.sum(1).max()) for m in (self.prompt_mask, self.mask))
        return replace(
            self,
            prompt_ids=self.prompt_ids[:, -prompt:],
            prompt_mask=self.prompt_mask[:, -prompt:],
            **{n: getattr(self, n)[:, :response] for n in ("response_ids", "mask", "logp")},
        )

    def widened(self, width: int, pad: int) -> Rollouts:
        """The same with responses padded to `width` >= T."""
        extra = width - self.width
        changed = {
            name: pad_last_dims(getattr(self, name), (0, extra), value=value)
            for name, value in (("response_ids", pad), ("mask", 0), ("logp", 0))
        }
        return replace(self, **changed) if extra else self

    def token_lists(self) -> list[list[int]]:
        """Responses without padding, ends included."""
        lengths = self.mask.sum(1).long().tolist()
        return [ids[:n] for ids, n in zip(self.response_ids.tolist(), lengths, strict=True)]

    def texts(self, tokenizer) -> list[str]:
        """Responses without their ends and padding."""
        lengths = (self.mask.sum(1).long() - self.finished.long()).tolist()
        return [
            tokenizer.decode(ids[:length], skip_special_tokens=True)
            for ids, length in zip(self.response_ids.tolist(), lengths, strict=True)
        ]


def joined_rollouts(parts: Sequence[Rollouts], pad: int) -> Rollouts:
    """One batch of all rows: prompts left-padded, responses right-padded to the widest."""
    if len(parts) == 1:
        return parts[0]
    wide = max(part.prompt_ids.shape[1] for part in parts)
    width = max(part.width for part in parts)
    equal = []
    for part in parts:
        extra = wide - part.prompt_ids.shape[1]
        prompts = {
            "prompt_ids": pad_last_dims(part.prompt_ids, (extra, 0), value=pad),
            "prompt_mask": pad_last_dims(part.prompt_mask, (extra, 0)),
        }
        equal.append(replace(part, **prompts).widened(width, pad))
    return Rollouts(
        **{f.name: torch.cat([getattr(part, f.name) for part in equal]) for f in fields(Rollouts)}
    )


def seed_of(*parts: int | str) -> int:
    """A seed for a generator from what its draws depend on."""
    text = ":".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest())


def step_seed(seed: int, step: int, purpose: str) -> int:
    """Seed of one step's draws, the same for every algorithm."""
    return seed_of(purpose, seed, step)


def micro_batches(count: int, size: int | None) -> list[slice]:
    size = size or count
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def joined(parts: Sequence[Any], width: int) -> Any:
    """Rows of [b, t] tensors as one [B, width] tensor, zeros after t; None for parts of None."""
    if parts[0] is None:
        return None
    return torch.cat([pad_last_dims(part, (0, width - part.shape[1])) for part in parts])


def left_pad(prompts: Sequence[Sequence[int]], pad: int, device: str | torch.device = "cpu"):
    """Token lists -> ids [N, P], mask [N, P]."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


def draw_tokens(logp: Tensor, uniform: Tensor) -> Tensor:
    """Sample by inverting the cumulative distribution. logp [N, V], uniform [N] -> [N].

    One number in [0, 1) decides one token, so a row's draw depends neither on the other rows nor on
    how they are batched, and two policies can be sampled with the same random numbers.
    """
    cumulative = logp.double().exp().cumsum(-1)
    # Scaled by the total, so rounding cannot point past the last token.
    target = uniform.double()[:, None] * cumulative[:, -1:]
    return (
        torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=logp.shape[-1] - 1)
    )


@dataclass(frozen=True)
class Sampling:
    """What every sampler must know; max_response in tokens, the end included.

    ends: each of these tokens ends a response (vimpo/models/ends.py). decoders: temperature (0:
    greedy) and top-p of each response of a group, instead of `temperature` for all.
    """

    group_size: int
    max_response: int
    temperature: float
    ends: tuple[int, ...]
    pad: int
    decoders: tuple[tuple[float, float], ...] = ()


def sampling_of(
    train: Train,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    group_size: int,
    max_response: int,
) -> Sampling:
    """Plain sampling at the training temperature."""
    ends = ends_of(model, tokenizer)
    return Sampling(group_size, max_response, train.temperature, ends, tokenizer.pad_token_id)


class Sampler(Protocol):
    """Makes the rollouts of a training step."""

    def sync(self, weights: Callable[[], Iterable[tuple[str, Tensor]]]) -> None:
        """Load the policy's weights, by name; called before every step's :meth:`rollouts`."""

    def rollouts(
        self,
        prompts: Sequence[Sequence[int]],
        seed: int,
        first: int = 0,
        total: int | None = None,
        limits: Sequence[int] | None = None,
    ) -> Rollouts:
        """Sample as :func:`sample` does. `logp` is the sampler's own; training computes its own."""

    def with_(self, sampling: Sampling) -> Sampler:
        """The same sampler, engine and all, under other settings."""


class TorchSampler:
    """Samples from the very network being trained, so there are no weights to load."""

    def __init__(
        self,
        model: PreTrainedModel,
        sampling: Sampling,
        gathered: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        """gathered: makes a context in which all of the model's weights are on this process."""
        self._model, self._sampling, self._gathered = model, sampling, gathered

    def sync(self, weights: Callable[[], Iterable[tuple[str, Tensor]]]) -> None:
        pass

    def rollouts(
        self,
        prompts: Sequence[Sequence[int]],
        seed: int,
        first: int = 0,
        total: int | None = None,
        limits: Sequence[int] | None = None,
    ) -> Rollouts:
        with self._gathered():
            return sample(
                self._model,
                prompts,
                generator=torch.Generator().manual_seed(seed),
                first=first,
                total=total,
                limits=limits,
                **vars(self._sampling),
            )

    def with_(self, sampling: Sampling) -> Sampler:
        return TorchSampler(self._model, sampling, self._gathered)


def _blank(prompt_ids: Tensor, prompt_mask: Tensor, width: int, pad: int) -> Rollouts:
    """Rollouts of these prompts, still empty."""
    shape, device = (len(prompt_ids), width), prompt_ids.device
    return Rollouts(
        prompt_ids,
        prompt_mask,
        response_ids=torch.full(shape, pad, device=device),
        mask=torch.zeros(shape, device=device),
        logp=torch.zeros(shape, device=device),
        finished=torch.zeros(shape[0], dtype=torch.bool, device=device),
    )


def _write(
    rollouts: Rollouts, rows: Tensor, t: int, live: Tensor, tokens: Tensor, log_probs: Tensor
) -> None:
    """Write tokens [N], drawn from log_probs [N, V], at position t of the live ones of N rows."""
    rollouts.response_ids[rows, t] = tokens.where(live, rollouts.response_ids[rows, t])
    rollouts.logp[rows, t] = log_probs.gather(1, tokens[:, None]).squeeze(1).where(live, 0.0)
    rollouts.mask[rows, t] = live.float()


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    group_size: int,
    max_response: int,
    temperature: float,
    ends: Sequence[int],
    pad: int,
    generator: torch.Generator,
    decoders: Sequence[tuple[float, float]] = (),
    first: int = 0,
    total: int | None = None,
    limits: Sequence[int] | None = None,
) -> Rollouts:
    """Sample `group_size` responses to each prompt; rows of one prompt are adjacent.

    prompts: N token lists -> Rollouts of B = N * group_size rows. The prompt is computed once per
    group; each of the tokens `ends` finishes its row, and finished rows leave the batch. first,
    total: these are prompts first, first + 1, ... of `total`, and get the same random draws as if
    all were sampled here. decoders: see :class:`Sampling`. limits: N, 1 to `max_response`, for
    prompts that leave room for fewer tokens.
    """
    device = model.device
    prompt_ids, prompt_mask = left_pad(prompts, pad, device)
    count = len(prompts) * group_size
    shape = ((total or len(prompts)) * group_size, max_response)
    uniforms = torch.rand(shape, generator=generator, dtype=torch.float64)
    uniforms = uniforms[first * group_size :][:count].to(device)
    decoder = make_decoder(model, prompt_ids, prompt_mask, group_size, max_response)
    logits = decoder.logits
    prompt_ids = prompt_ids.repeat_interleave(group_size, 0)
    prompt_mask = prompt_mask.repeat_interleave(group_size, 0)

    written = _blank(prompt_ids, prompt_mask, max_response, pad)
    most = torch.tensor(limits or [max_response] * len(prompts), device=device)
    most = most.repeat_interleave(group_size)
    stops = torch.tensor(ends, device=device)
    each = torch.tensor(decoders, device=device).mT if decoders else None  # [2, group_size]
    rows = torch.arange(count, device=device)  # still being decoded
    live = torch.ones_like(rows, dtype=torch.bool)
    for t in range(max_response):
        if each is not None:
            log_probs = decoded_logp(logits, *each[:, rows % group_size])
        else:
            log_probs = plain_logp(logits, temperature)
        tokens = draw_tokens(log_probs, uniforms[rows, t])
        _write(written, rows, t, live, tokens, log_probs)
        ended = (tokens[:, None] == stops).any(1) & live
        written.finished[rows] |= ended
        live = live & ~ended & (t + 1 < most[rows])
        left = int(live.sum())
        if not left:
            break
        if left <= (1 - DROP_SHARE) * len(rows):
            keep = live.nonzero().squeeze(1)
            rows, tokens, live = rows[keep], tokens[keep], live[keep]
            decoder.keep(keep)
        logits = decoder.step(tokens, live)
    drawn = {n: getattr(written, n)[:, : t + 1] for n in ("response_ids", "mask", "logp")}
    return replace(written, **drawn)
