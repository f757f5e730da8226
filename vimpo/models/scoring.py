"""How likely a network finds the tokens of a rollout: log-probabilities, entropy, KL.

All of it happens inside a module's forward pass, because that is where DDP and FSDP2 hook in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from vimpo.config import AlgorithmConfig, VimpoConfig
from vimpo.models.passes import Prompts, last_logits, last_states, read_prompts, recomputing
from vimpo.objectives.chunked import Head, chunked_scores
from vimpo.objectives.common import exact_kl, k2_kl, k3_kl, top_k_kl


@dataclass(frozen=True)
class Scores:
    """Policy (and reference) on a batch of rollouts; each [B, T], logp with its graph."""

    logp: Tensor
    entropy: Tensor
    ref_logp: Any = None  # Tensor, if a reference was read
    token_kl: Any = None  # Tensor, if the objective needs it
    start: Any = None  # [B], with a graph: logsumexp of the first token's logits, if needed
    squares: Any = None  # Tensor: sum over the vocabulary of squared probabilities, if needed

    def detached(self) -> dict[str, Tensor]:
        found = {
            "logp": self.logp.detach(),
            "entropy": self.entropy,
            "ref_logp": self.ref_logp,
            "token_kl": self.token_kl,
            "start": None if self.start is None else self.start.detach(),
            "squares": self.squares,
        }
        return {k: v for k, v in found.items() if v is not None}


def token_kl(
    config: VimpoConfig, policy_logits: Tensor, ref_logits: Tensor, logp: Tensor, ref_logp: Tensor
) -> Tensor:
    """KL(pi || pi_ref) per token by the configured estimator. -> [B, T], nats, no graph."""
    if config.kl_estimator == "exact":
        return exact_kl(policy_logits, ref_logits)
    if config.kl_estimator == "topk":
        return top_k_kl(policy_logits, ref_logits, config.kl_top_k)
    return (k2_kl if config.kl_estimator == "k2" else k3_kl)(logp, ref_logp)


Reading = tuple[Tensor, ...]
"""Logits (B, last, V); in chunks: hidden (B, last, H), weight (V, H) and, if any, bias (V)."""


class Reader(nn.Module):
    """A causal LM that returns logits at the last positions, or what they are computed from.

    chunk: tokens whose logits are held at once; None: all of them, [B, T, V].
    """

    def __init__(
        self, model: PreTrainedModel, temperature: float, chunk: int | None = None
    ) -> None:
        super().__init__()
        self.model, self.temperature, self.chunk = model, temperature, chunk

    def read_prompts(self, ids: Tensor, mask: Tensor, tokens: int) -> Prompts | None:
        """What :meth:`read` need not read again (vimpo/models/passes.py)."""
        return read_prompts(self.model, ids, mask, tokens, logits=self.chunk is None)

    def read(
        self, ids: Tensor, attention_mask: Tensor, last: int, prompts: Prompts | None = None
    ) -> Reading:
        """ids, attention_mask [B, L] -> :data:`Reading` of the last positions."""
        if self.chunk is None:
            logits = last_logits(self.model, ids, attention_mask, last, prompts)
            return (logits / self.temperature,)
        states = last_states(self.model, ids, attention_mask, last, prompts)
        head = self.model.get_output_embeddings()
        bias = getattr(head, "bias", None)
        return (states, head.weight) if bias is None else (states, head.weight, bias)

    def forward(
        self, ids: Tensor, attention_mask: Tensor, last: int, prompts: Prompts | None = None
    ) -> Reading:
        """As :meth:`read`, through the call that DDP and FSDP2 hook into."""
        return self.read(ids, attention_mask, last, prompts)


class Scorer(Reader):
    """A policy that scores given tokens at the sampling temperature."""

    def __init__(
        self,
        model: PreTrainedModel,
        objective: AlgorithmConfig,
        temperature: float,
        chunk: int | None = None,
    ) -> None:
        super().__init__(model, temperature, chunk)
        self.objective = objective

    def forward(  # type: ignore[override]  # torch calls it by whatever a module takes
        self,
        ids: Tensor,
        attention_mask: Tensor,
        targets: Tensor,
        mask: Tensor,
        reference: Reading | None = None,
        prompts: Prompts | None = None,
    ) -> tuple[Tensor | None, ...]:
        """The fields of :class:`Scores`; the first has a graph.

        ids, attention_mask [B, L], whose last T positions predict targets, mask [B, T];
        reference: another reader's output at the same positions; prompts: of this reader's rows.
        """
        with recomputing(self.model):
            reading = self.read(ids, attention_mask, targets.shape[1], prompts)
        start = self._start(reading) if self.objective.needs_start else None
        if self.chunk is None:
            other = None if reference is None else reference[0]
            squares = self._squares(reading[0]) if self.objective.needs_squares else None
            return *self._score(reading[0], targets, other), start, squares
        found = self._score_chunks(self.chunk, reading, targets, mask.bool(), reference)
        return *found, start, None

    def _start(self, reading: Reading) -> Tensor:
        """logsumexp of the logits of the first token. -> [B, 1]"""
        first = reading[0][:, :1]
        if self.chunk is not None:
            first = linear(first, *reading[1:]).float() / self.temperature
        return first.logsumexp(-1)

    @torch.no_grad()
    def _squares(self, logits: Tensor) -> Tensor:
        """sum_a pi(a)^2 at each token. -> [B, T]"""
        return logits.softmax(-1).square().sum(-1)

    def _score(
        self, logits: Tensor, targets: Tensor, ref_logits: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        log_probs = logits.log_softmax(-1)
        index = targets[..., None]
        logp = log_probs.gather(-1, index).squeeze(-1)
        with torch.no_grad():
            entropy = -(log_probs.exp() * log_probs).sum(-1)
            if ref_logits is None:
                return logp, entropy, None, None
            ref_logp = ref_logits.log_softmax(-1).gather(-1, index).squeeze(-1)
            kl = None
            if isinstance(self.objective, VimpoConfig):
                kl = token_kl(self.objective, logits, ref_logits, logp, ref_logp)
        return logp, entropy, ref_logp, kl

    def _score_chunks(
        self,
        chunk: int,
        reading: Reading,
        targets: Tensor,
        keep: Tensor,
        reference: Reading | None,
    ) -> tuple[Tensor | None, ...]:
        """As :meth:`_score`, for the kept tokens only; 0 elsewhere."""
        policy = Head(reading[0][keep], *reading[1:])
        other = None if reference is None else Head(reference[0][keep], *reference[1:])
        found = chunked_scores(
            policy, targets[keep], other, temperature=self.temperature, chunk=chunk
        )
        scores: list[Any] = [
            x if x is None else x.new_zeros(keep.shape).masked_scatter(keep, x) for x in found
        ]
        logp, entropy, ref_logp, kl = scores
        if reference is None or not isinstance(self.objective, VimpoConfig):
            return logp, entropy.detach(), ref_logp, None
        if self.objective.kl_estimator != "exact":
            kl = (k2_kl if self.objective.kl_estimator == "k2" else k3_kl)(logp, ref_logp)
        return logp, entropy.detach(), ref_logp, kl.detach()
