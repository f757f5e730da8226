"""VIMPO (arXiv 2606.20008); its equations are in vimpo/objectives/vimpo.py.

Departures from the paper:

1. None known in the loss with ``kl_estimator: exact``.
2. beta is larger, because responses are shorter.

Departures from the official code (backprop07/VIMPO, 2aa83bc), each with the setting that undoes it:

1. The advantage is whitened, and L_A a mean over tokens, over the whole batch; there over every
   micro-batch of at most 6,144 tokens on each GPU (`train.statistics: micro_batch`, in responses).
   Ours sorts a batch by length first, so that its micro-batches hold responses of like length.
2. Prompts are plain text; there a chat template is applied (`task.chat_template: true`).
3. A response that reaches the limit is wrong; there its text is graded (`train.truncated: graded`).
4. Overlong prompts are dropped; there they lose their beginning (`task.long_prompts: cut`).
5. PPO's value clip is .2; the default of verl, on which that code is built, is .5
   (`algorithms.ppo.value_clip: 0.5`).

Its switches, off there too: `value: soft`, `huber_delta`, `cap_v0`, `adaptive_coef`,
`refresh_every`. Its adaptive coefficient is measured on every micro-batch, ours on the batch. Left
out: its actor with GRPO's advantage, and a value loss divided by its target's mean square.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from vimpo.algorithms.base import Algorithm, Batch, Share
from vimpo.config import VimpoConfig, beta_number
from vimpo.objectives.adaptive import (
    actor_gradient,
    adaptive_coefficient,
    logit_norm,
    value_gradient,
)
from vimpo.objectives.common import masked_mean
from vimpo.objectives.vimpo import (
    actor_advantage,
    implied_td,
    start_values,
    terminal_residual,
    vimpo_loss,
)


class Vimpo(Algorithm):
    """VIMPO: see vimpo/objectives/vimpo.py for the equations."""

    config: VimpoConfig
    advantage_reads_policy: ClassVar[bool] = True
    has_value: ClassVar[bool] = True

    def __init__(self, config: VimpoConfig) -> None:
        super().__init__(config)
        self._beta = beta_number(config.beta)
        self._actor_coef = config.actor_coef

    def _td(self, batch: Batch) -> Tensor:
        return implied_td(batch.logp, batch.ref_logp, batch.token_kl, batch.mask, self._beta)

    def _residual_kl(self, rows: Batch) -> Tensor:
        """The KL that the terminal residual subtracts: none of it with soft values."""
        soft = self.config.value == "soft"
        return torch.zeros_like(rows.token_kl) if soft else rows.token_kl

    def _residual(self, batch: Batch) -> Tensor:
        kl = self._residual_kl(batch)
        logps = (batch.logp, batch.ref_logp, kl)
        return terminal_residual(*logps, batch.rewards, batch.baseline, batch.mask, self._beta)

    def advantage(self, batch: Batch) -> Tensor:
        return actor_advantage(self._td(batch), batch.mask, self.config.lam)

    def prepared(self, batch: Batch, memory: dict[str, Any]) -> Batch:
        c = self.config
        if c.value == "soft" or c.cap_v0 is not None:
            cost = self._beta * (batch.token_kl * batch.mask).sum(1) if c.value == "soft" else None
            start = start_values(batch.rewards, batch.groups, cost, c.cap_v0)
            batch = batch.with_(baseline=start)
        if c.adaptive_coef is not None:
            self._actor_coef = self._adapted(batch, c.adaptive_coef, memory)
        return batch

    def _adapted(self, batch: Batch, share: float, memory: dict[str, Any]) -> float:
        """c_A of this update; its running means are kept in `memory`."""
        c, norm = self.config, logit_norm(batch.logp, batch.squares)
        value = value_gradient(self._residual(batch), norm, batch.mask, self._beta, c.huber_delta)
        old = batch.logp if batch.old_logp is None else batch.old_logp
        clip = (c.clip_low, c.clip_high, c.dual_clip)
        actor = actor_gradient(batch.logp, old, batch.advantage, norm, batch.mask, *clip)
        means = (memory.get("value_gradient", 0.0), memory.get("actor_gradient", 0.0))
        found, means = adaptive_coefficient(
            float(value), float(actor), means, share, c.adaptive_decay
        )
        memory["value_gradient"], memory["actor_gradient"] = means
        return found

    def loss(self, logp: Tensor, rows: Batch, share: Share) -> Tensor:
        c = self.config
        return vimpo_loss(
            logp,
            rows.old_logp,
            rows.ref_logp,
            self._residual_kl(rows),
            rows.rewards,
            rows.baseline,
            rows.mask,
            self._beta,
            self._actor_coef,
            c.lam,
            c.clip_low,
            c.clip_high,
            c.dual_clip,
            advantage=rows.advantage,
            value_share=share.responses,
            actor_share=share.tokens,
            huber_delta=c.huber_delta,
        )

    def value_change(self, batch: Batch) -> Tensor:
        td = self._td(batch)
        return (td.cumsum(1) - td) * batch.mask

    def metrics(self, batch: Batch) -> dict[str, float]:
        c, residual = self.config, self._residual(batch)
        target = (batch.rewards - batch.baseline).square().mean().sqrt()
        # If every group has equal rewards, there is no target and no ratio to it.
        ratio = torch.where(target > 0, residual.square().mean().sqrt() / target, torch.nan)
        found = {
            "value_loss": float(0.5 * residual.square().mean()),
            "terminal_residual": float(ratio),
            "td_mean": float(masked_mean(self._td(batch), batch.mask)),
            "reference_kl": float((batch.token_kl * batch.mask).sum(1).mean()),
        }
        return found if c.adaptive_coef is None else found | {"actor_coef": self._actor_coef}
