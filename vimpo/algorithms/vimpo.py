"""VIMPO (arXiv 2606.20008); its equations are in vimpo/objectives/vimpo.py.

Departures from the paper:

1. None known in the loss with ``kl_estimator: exact``.
2. beta is larger, because responses are shorter.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from vimpo.algorithms.base import Algorithm, Batch, Share
from vimpo.config import VimpoConfig
from vimpo.objectives.common import masked_mean
from vimpo.objectives.vimpo import actor_advantage, implied_td, terminal_residual, vimpo_loss


class Vimpo(Algorithm):
    """VIMPO: see vimpo/objectives/vimpo.py for the equations."""

    config: VimpoConfig
    advantage_reads_policy: ClassVar[bool] = True
    has_value: ClassVar[bool] = True

    def _td(self, batch: Batch) -> Tensor:
        return implied_td(batch.logp, batch.ref_logp, batch.token_kl, batch.mask, self.config.beta)

    def advantage(self, batch: Batch) -> Tensor:
        return actor_advantage(self._td(batch), batch.mask, self.config.lam)

    def loss(self, logp: Tensor, rows: Batch, share: Share) -> Tensor:
        c = self.config
        return vimpo_loss(
            logp,
            rows.old_logp,
            rows.ref_logp,
            rows.token_kl,
            rows.rewards,
            rows.baseline,
            rows.mask,
            c.beta,
            c.actor_coef,
            c.lam,
            c.clip_low,
            c.clip_high,
            c.dual_clip,
            advantage=rows.advantage,
            value_share=share.responses,
            actor_share=share.tokens,
        )

    def value_change(self, batch: Batch) -> Tensor:
        td = self._td(batch)
        return (td.cumsum(1) - td) * batch.mask

    def metrics(self, batch: Batch) -> dict[str, float]:
        residual = terminal_residual(
            batch.logp,
            batch.ref_logp,
            batch.token_kl,
            batch.rewards,
            batch.baseline,
            batch.mask,
            self.config.beta,
        )
        target = (batch.rewards - batch.baseline).square().mean().sqrt()
        # If every group has equal rewards, there is no target and no ratio to it.
        ratio = torch.where(target > 0, residual.square().mean().sqrt() / target, torch.nan)
        return {
            "value_loss": float(0.5 * residual.square().mean()),
            "terminal_residual": float(ratio),
            "td_mean": float(masked_mean(self._td(batch), batch.mask)),
            "reference_kl": float((batch.token_kl * batch.mask).sum(1).mean()),
        }
