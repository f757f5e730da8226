"""TBRM: trajectory Bellman residual minimisation (arXiv 2505.15311).

Logits are action values in units of beta, so V(s) = beta logsumexp of the logits z at s, and the
sum of the Bellman residuals of a response telescopes:

    e_i = beta (V(s_0) / beta + sum_t [log pi(a_t|s_t) - log pi_ref(a_t|s_t)]) - R_i
    L   = mean_i 1/2 e_i^2                                        V(s_0) / beta = logsumexp z(s_0)

One residual per response; no critic, no group, no ratio, no clip. VIMPO differs in two places: its
V(s_0) is the group's mean reward, and it subtracts the KL of every token. Derived here from what
the paper defines (logits as action values of the KL-regularised problem, one squared residual for
each response), and not compared with the authors' code.

Departures from the paper:

1. The loss is multiplied by beta^2 / 2, so that it is in units of reward.
2. Rollouts are of the current policy; the paper's analysis allows any.
3. `advantage`, which no loss reads, is - e_i: what the residual pulls a response's tokens towards.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from vimpo.algorithms.base import Algorithm, Batch, Share
from vimpo.config import TBRMConfig, beta_number
from vimpo.objectives.tbrm import trajectory_residual


class Tbrm(Algorithm):
    """The squared residual of each response."""

    config: TBRMConfig
    advantage_reads_policy: ClassVar[bool] = True

    def __init__(self, config: TBRMConfig) -> None:
        super().__init__(config)
        self._beta = beta_number(config.beta)

    def _residual(self, logp: Tensor, rows: Batch) -> Tensor:
        return trajectory_residual(
            logp, rows.ref_logp, rows.start, rows.rewards, rows.mask, self._beta
        )

    def advantage(self, batch: Batch) -> Tensor:
        return -self._residual(batch.logp, batch).detach()[:, None] * batch.mask

    def loss(self, logp: Tensor, rows: Batch, share: Share) -> Tensor:
        return share.responses * 0.5 * self._residual(logp, rows).square().mean()

    def clip_fraction(self, rows: Batch) -> Tensor:
        return torch.zeros(())
