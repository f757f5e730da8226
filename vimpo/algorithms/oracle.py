"""Control: the top of the scale of credit assignment, and the same numbers in random places.

    A_ik = g_ik - mean_j g_jk        g: 1 if step k of response i is right, else 0

for every token of step k, over responses that are right up to there, and 0 after the first wrong
step (vimpo/objectives/steps.py). The loss is the clipped surrogate, averaged over tokens. No paper:
the grades come from the task, which knows the right value of every step. It reads no reward, and so
no noise either. Nothing is divided by a spread: where all agree there is no signal, and rare
mistakes are not blown up. Negative credit counts `negative` of the positive one.

`shuffled` puts a response's numbers on random tokens of it: as much signal, at the wrong places.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from vimpo.algorithms.base import Batch, PolicyGradient
from vimpo.config import OracleConfig
from vimpo.objectives.steps import shuffled, step_credit


class Oracle(PolicyGradient):
    """Credit from graded steps."""

    config: OracleConfig
    needs_steps: ClassVar[bool] = True
    needs_draws: ClassVar[bool] = True

    def advantage(self, batch: Batch) -> Tensor:
        credit = step_credit(batch.steps, batch.grades, batch.mask, self.config.negative)
        return shuffled(credit, batch.mask, batch.draws) if self.config.shuffled else credit
