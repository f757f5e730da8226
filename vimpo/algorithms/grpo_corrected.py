"""GRPO corrected for label noise (arXiv 2510.18924), with known rates of flips.

With p+ the rate of wrong -> right and p- that of right -> wrong, a noisy mean m of a group has the
clean mean (m - p+) / (1 - p+ - p-) in expectation, and so

    q   = (mean_g - p+) / (1 - p+ - p-)               the group's clean accuracy
    A_i = (R_i - mean_g) / ((1 - p+ - p-) sqrt(q (1 - q)))

The numerator over (1 - p+ - p-) is an unbiased estimate of the clean reward minus its mean, and the
denominator estimates the clean standard deviation, where GRPO's own is that of noise as well. Both
are derived here from the model of noise that 2510.18924 states: independent flips, at rates that
depend on the clean label. That the paper divides by this very estimate is not established. The
other paper on this, 2510.00915, has a backward correction, an affine map of the rewards, which
GRPO's normalisation cancels, and a forward one, which weighs terms of the gradient: not here.

Departures from the paper:

1. The rates are the cell's own, or settings; the paper estimates them.
2. q is kept in [1 / 2G, 1 - 1 / 2G], G the group's size: the estimate may leave [0, 1].
3. The loss is that of ``grpo``: a mean over tokens with a wider upper clip.

In noise mode `group` all flips of a group are one draw: unbiased over groups, wrong within one.
"""

from __future__ import annotations

from torch import Tensor

from vimpo.algorithms.base import Batch, PolicyGradient
from vimpo.config import CorrectedGRPOConfig
from vimpo.objectives.grpo import corrected_advantage


class CorrectedGrpo(PolicyGradient):
    """GRPO on an estimate of the clean rewards."""

    config: CorrectedGRPOConfig

    def advantage(self, batch: Batch) -> Tensor:
        rates = self.config.rates(self.setup.noise)
        return corrected_advantage(batch.rewards, batch.groups, *rates)[:, None] * batch.mask
