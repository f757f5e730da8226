"""What a value knows of the change along a response: plain loops, and a process solved by hand."""

from __future__ import annotations

import itertools
import math
import random
import statistics

import pytest
import torch
from objective_cases import F64, assert_equal, t

from vimpo.objectives.steps import graded_values
from vimpo.objectives.value import (
    end_explained,
    explained,
    graded_explained,
    outcome_explained,
)


def made(seed, rows=12, tokens=9):
    """Random steps, grades and rewards. steps grow by at most one from token to token."""
    rng = random.Random(seed)
    steps, grades, mask, rewards = [], [], [], []
    for _ in range(rows):
        length = rng.randint(1, tokens)
        path = list(itertools.accumulate(rng.randint(0, 1) for _ in range(length)))
        path = [p - path[0] for p in path]
        grade = [float(rng.random() < 0.7) for _ in range(path[-1] + 1)]
        steps.append(path + [0] * (tokens - length))
        grades.append([grade[p] for p in path] + [0.0] * (tokens - length))
        mask.append([1.0] * length + [0.0] * (tokens - length))
        rewards.append(float(all(grade)))
    groups = torch.arange(rows) // 4
    return torch.tensor(steps), t(grades), t(rewards), groups, t(mask)


def weighted(pairs):
    """1 - Var(truth - change) / Var(truth) of (change, truth, weight)."""

    def variance(numbers):
        total = sum(w for _, w in numbers)
        mean = sum(x * w for x, w in numbers) / total
        return sum(w * (x - mean) ** 2 for x, w in numbers) / total

    left = variance([(y - x, w) for x, y, w in pairs])
    return 1 - left / variance([(y, w) for _, y, w in pairs])


def values_by_loops(steps, grades, rewards, groups, mask):
    """The value by graded steps of each token, from its words."""
    count = len(rewards)
    lengths = [int(m.sum()) for m in mask]

    def right_before(i, step):
        own = range(lengths[i])
        reached = any(int(steps[i, s]) == step for s in own)
        return reached and all(grades[i, s] == 1 for s in own if int(steps[i, s]) < step)

    found = torch.zeros_like(mask)
    for i in range(count):
        for s in range(lengths[i]):
            step = int(steps[i, s])
            if right_before(i, step):
                like = [
                    float(rewards[j])
                    for j in range(count)
                    if groups[j] == groups[i] and right_before(j, step)
                ]
                found[i, s] = statistics.mean(like)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_values_by_graded_steps_are_those_of_plain_loops(seed):
    case = made(seed)
    expected = values_by_loops(*case)
    assert len(set(expected.flatten().tolist())) > 2
    assert_equal(graded_values(*case), expected)


@pytest.mark.parametrize("seed", range(5))
def test_explained_variances_are_those_of_plain_loops(seed):
    steps, grades, rewards, groups, mask = made(seed)
    change = torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed), dtype=F64)
    graded = values_by_loops(steps, grades, rewards, groups, mask)
    every, last, starts = [], [], []
    for i in range(len(mask)):
        length = int(mask[i].sum())
        mean = rewards[groups == groups[i]].mean()
        own = [(float(change[i, s]), float(rewards[i] - mean)) for s in range(length)]
        every += [(*own[s], 1 / (length - 1)) for s in range(1, length)]
        last += [(*own[length - 1], 1.0)] if length > 1 else []
        begins = [s for s in range(1, length) if steps[i, s] != steps[i, s - 1]]
        starts += [
            (float(change[i, s]), float(graded[i, s] - graded[i, 0]), 1 / len(begins))
            for s in begins
        ]
    outcome = (rewards, groups, mask)
    assert_equal(outcome_explained(change, *outcome), weighted(every))
    assert_equal(end_explained(change, *outcome), weighted(last))
    assert_equal(graded_explained(change, steps, grades, *outcome), weighted(starts))


@pytest.mark.parametrize(("scale", "share"), [(0, 0), (0.5, 0.75), (1, 1), (2, 0), (-1, -3)])
def test_a_scaled_truth_explains_one_less_the_square_of_what_is_missing(scale, share):
    truth, weights = t([[0.1, -0.4, 0.8], [0.3, 0.0, -0.2]]), t([[1, 2, 3], [0.5, 0, 1]])
    assert_equal(explained(scale * truth + 7, truth, weights), share)


def test_what_is_explained_does_not_depend_on_the_noise_of_outcomes():
    """Two coins decide: right if both show heads, the first thrown at token 0, the last at 1.

    Before token 1, the change is V - V_0 = 1/2 - 1/4 or 0 - 1/4; the outcome adds noise to it. A
    perfect value explains Var(change) / Var(R) of the outcome, exactly over all four cases.
    """
    rewards, mask = t([1, 0, 0, 0]), torch.ones(4, 2, dtype=F64)
    change = t([[0, 0.25], [0, 0.25], [0, -0.25], [0, -0.25]])
    groups = torch.zeros(4)
    assert_equal(outcome_explained(change, rewards, groups, mask), 0.0625 / 0.1875)
    grades, steps = t([[1, 1], [1, 0], [0, 1], [0, 0]]), torch.tensor([[0, 1]] * 4)
    assert_equal(graded_values(steps, grades, rewards, groups, mask)[:, 1], [0.5, 0.5, 0, 0])
    assert_equal(graded_explained(change, steps, grades, rewards, groups, mask), 1.0)


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.3])
def test_equal_rewards_leave_nothing_to_explain(reward):
    steps, grades, rewards, groups, mask = made(1)
    rewards, change = torch.full_like(rewards, reward), torch.randn(mask.shape, dtype=F64)
    grades = torch.ones_like(grades) * mask
    for found in (
        outcome_explained(change, rewards, groups, mask),
        end_explained(change, rewards, groups, mask),
        graded_explained(change, steps, grades, rewards, groups, mask),
    ):
        assert math.isnan(found)


def test_responses_of_one_token_have_no_prefix_to_judge():
    mask, rewards = t([[1, 0], [1, 0]]), t([1, 0])
    nothing = outcome_explained(t([[0, 9], [0, 5]]), rewards, torch.zeros(2), mask)
    assert math.isnan(nothing)
