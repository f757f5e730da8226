"""REINFORCE++: rewards normalised over the batch instead of the group (arXiv 2501.03262).

    A_t = whiten(R)                    over all tokens of the batch
    A_t = whiten(R - mean_g)           with group_baseline: the paper's variant for groups

with the clipped surrogate, averaged over tokens. Departures from the paper:

1. No KL penalty, neither in the reward nor in the loss, as for all algorithms here.
2. A dual clip bounds the loss where A < 0, as for all clipped surrogates here.
"""

from __future__ import annotations

from torch import Tensor

from vimpo.algorithms.base import Batch, PolicyGradient
from vimpo.config import ReinforceConfig
from vimpo.objectives.common import whiten


class Reinforce(PolicyGradient):
    """REINFORCE++, with or without the group's mean as a baseline."""

    config: ReinforceConfig

    def advantage(self, batch: Batch) -> Tensor:
        signal = batch.rewards
        if self.config.group_baseline:
            signal = signal - batch.baseline
        return whiten(signal[:, None] * batch.mask, batch.mask)
