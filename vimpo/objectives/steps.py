"""Credit of steps: from grades, as a process oracle knows them, or from values of states."""

from __future__ import annotations

import torch
from torch import Tensor

from vimpo.objectives.common import check_rows, check_shapes


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


def segment_advantage(values: Tensor, segments: Tensor, rewards: Tensor, mask: Tensor) -> Tensor:
    """Each token's share of what its segment changed: the value after the segment less before it.

        A_t = V(start of the next segment) - V(start of this one);  R - V(start) in the last one

    Summed over the segments of a response this is R - V(s_0). values: V at the start of each
    token's segment; segments: its index, which never falls; mask; all [B, T]; rewards [B] ->
    [B, T], 0 off mask.
    """
    check_shapes(values=values, segments=segments, mask=mask)
    check_rows(values=values, rewards=rewards)
    after = torch.zeros_like(values)
    following = rewards.to(values)
    for t in reversed(range(values.shape[1])):
        if t + 1 < values.shape[1]:
            opens = mask[:, t + 1].bool() & (segments[:, t + 1] != segments[:, t])
            following = torch.where(opens, values[:, t + 1], following)
        after[:, t] = following
    return (after - values) * mask
