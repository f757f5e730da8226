"""Credit from graded steps: what a process oracle knows, and the same numbers in random places."""

from __future__ import annotations

import torch
from torch import Tensor

from vimpo.objectives.common import check_shapes


def step_credit(steps: Tensor, grades: Tensor, mask: Tensor, negative: float = 1.0) -> Tensor:
    """Each token's credit: the grade of its step minus the mean grade of that step in the batch.

        A_ik = g_ik - mean_j g_jk          over responses j that are right up to step k

    and 0 after the first wrong step, because nothing after it can be right. Negative credit is
    multiplied by `negative`. steps: index of each token's step; grades: 1 right, 0 wrong, equal for
    the tokens of a step; mask; all [B, T] -> [B, T], 0 off mask.
    """
    check_shapes(steps=steps, grades=grades, mask=mask)
    count = int(steps.max()) + 1
    place = torch.where(mask.bool(), steps, count)  # one more column for what is off the mask
    empty = grades.new_zeros(len(steps), count + 1)
    present = empty.scatter(1, place, 1.0)[:, :count]
    graded = empty.scatter(1, place, grades)[:, :count]
    wrong = present * (1 - graded)
    alive = present * (wrong.cumsum(1) - wrong == 0)
    mean = (alive * graded).sum(0) / alive.sum(0).clamp(min=1)
    credit = alive * (graded - mean)
    credit = torch.where(credit < 0, negative * credit, credit)
    return credit.gather(1, place.clamp(max=count - 1)) * mask


def shuffled(x: Tensor, mask: Tensor, draws: Tensor) -> Tensor:
    """The numbers of each row in an order of their own, given by draws. [B, T] -> [B, T].

    x, mask (right-padded), draws: independent numbers below 1.
    """
    check_shapes(x=x, mask=mask, draws=draws)
    order = torch.where(mask.bool(), draws, 2.0).argsort(dim=1, stable=True)
    return x.gather(1, order) * mask
