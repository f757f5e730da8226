"""VinePPO: PPO with Monte Carlo values instead of a critic's (arXiv 2410.01679, section 4).

    V(s)  = mean reward of k continuations of s by the policy that sampled it
    A_t   = V(end of the token's step) - V(its start);  R - V(its start) in the last step

whitened over all tokens of the batch, with the clipped surrogate, averaged over tokens. Read beside
the official code (McGill-NLP/VinePPO), whose settings whiten too. Departures from it:

1. Rewards of continuations pass through the cell's noise as those of rollouts do: a verifier that
   errs in one errs in the other. The paper has no noise.
2. A separator opens the step that follows it instead of closing the one before, and the end of the
   response is a step of its own, as for the oracle; with `interval`, a step is so many tokens.
3. A state that several responses to a prompt share, their start above all, is continued once.
4. No KL penalty, as for all algorithms here; a dual clip bounds the loss where A < 0.

Continuations are sampled in vimpo/training/continuations.py, and count as sampling.
"""

from __future__ import annotations

from torch import Tensor

from vimpo.algorithms.base import Batch, PolicyGradient
from vimpo.config import VinePPOConfig
from vimpo.objectives.common import masked_mean, whiten
from vimpo.objectives.steps import segment_advantage


class VinePpo(PolicyGradient):
    """What each step changed in the value of the state."""

    config: VinePPOConfig

    def advantage(self, batch: Batch) -> Tensor:
        change = segment_advantage(batch.state_values, batch.segments, batch.rewards, batch.mask)
        return whiten(change, batch.mask)

    def metrics(self, batch: Batch) -> dict[str, float]:
        return {"value_mean": float(masked_mean(batch.state_values, batch.mask))}
