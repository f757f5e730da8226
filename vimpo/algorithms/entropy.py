"""Control: what sharpening alone gives. Minimises the entropy of tokens and reads no reward.

    A_t = log pi(a_t|s_t) + H(pi(.|s_t))        - grad H = E[A_t grad log pi(a_t|s_t)]

with the clipped surrogate, averaged over tokens. Source: arXiv 2505.15134, which minimises the same
entropy. Departures from the paper:

1. The gradient is estimated from the sampled token instead of the whole vocabulary, so that the
   loss is the surrogate that all algorithms share.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from vimpo.algorithms.base import Batch, PolicyGradient
from vimpo.config import EntropyConfig


class Entropy(PolicyGradient):
    """Tokens likelier than the policy's average gain, whatever they earn."""

    config: EntropyConfig
    advantage_reads_policy: ClassVar[bool] = True

    def advantage(self, batch: Batch) -> Tensor:
        return (batch.logp + batch.entropy) * batch.mask
