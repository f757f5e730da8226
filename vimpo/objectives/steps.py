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
    alive, graded = right_so_far(steps, grades, mask)
    mean = (alive * graded).sum(0) / alive.sum(0).clamp(min=1)
    credit = alive * (graded - mean)
    credit = torch.where(credit < 0, negative * credit, credit)
    return credit.gather(1, steps.clamp(0, credit.shape[1] - 1)) * mask


def right_so_far(steps: Tensor, grades: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Of each step: 1 if it is there and all steps before it are right; and its grade.

    steps, grades, mask [B, T], as in :func:`step_credit` -> [B, K], [B, K] for K steps.
    """
    check_shapes(steps=steps, grades=grades, mask=mask)
    count = int(steps.max()) + 1
    place = torch.where(mask.bool(), steps, count)  # one more column for what is off the mask
    empty = grades.new_zeros(len(steps), count + 1)
    present = empty.scatter(1, place, 1.0)[:, :count]
    graded = empty.scatter(1, place, grades)[:, :count]
    wrong = present * (1 - graded)
    return present * (wrong.cumsum(1) - wrong == 0), graded


def graded_values(
    steps: Tensor, grades: Tensor, rewards: Tensor, groups: Tensor, mask: Tensor
) -> Tensor:
    """V of the state in which each token's step begins, as far as grades of steps tell.

        V_ik = 0                      if a step before k is wrong
               mean_j R_j             otherwise, over responses j of the group that reach step k
                                      with all steps before it right

    So V of the first step is the group's mean reward. Exact after a wrong step where nothing can
    make up for it, as in sums of `+` alone. steps, grades, mask [B, T], as in :func:`step_credit`;
    rewards, groups [B] -> [B, T], 0 off mask.
    """
    check_rows(steps=steps, rewards=rewards, groups=groups)
    alive, _ = right_so_far(steps, grades, mask)
    _, index = groups.unique(return_inverse=True)
    empty = alive.new_zeros(int(index.max()) + 1, alive.shape[1])
    total = empty.index_add(0, index, alive * rewards[:, None])
    count = empty.index_add(0, index, alive)
    values = alive * (total / count.clamp(min=1))[index]
    return values.gather(1, steps.clamp(0, alive.shape[1] - 1)) * mask


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
