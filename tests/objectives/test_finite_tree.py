"""VIMPO's theory on a finite tree, where everything can be enumerated.

Tokens 0, 1, 2; token 0 ends a sequence, and so does the third token: 7 states, 15 trajectories.
Backward induction gives the fixed point pi(a|s) ~ pi_ref(a|s) exp(Q(s,a)/beta), where Q is the
reward-only action value of pi itself: Q(s,a) = V(s+a) = sum_b pi(b|s+a) Q(s+a,b), or the reward.
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass

import pytest
import torch

from vimpo.objectives.common import exact_kl
from vimpo.objectives.ppo import critic_td, ppo_advantages
from vimpo.objectives.vimpo import (
    actor_advantage,
    implied_td,
    implied_values,
    terminal_residual,
    value_loss,
)

TOKENS, DEPTH, EOS = 3, 3, 0
STATES = [s for n in range(DEPTH) for s in itertools.product((1, 2), repeat=n)]
BETAS = (0.05, 0.7, 3.0)


def ends(sequence):
    return len(sequence) == DEPTH or sequence[-1] == EOS


TRAJECTORIES = [(*s, a) for s in STATES for a in range(TOKENS) if ends((*s, a))]


@dataclass(frozen=True)
class Tree:
    """Plain numbers: by state, a list over tokens; rewards by trajectory; values by state."""

    beta: float
    rewards: dict
    reference: dict
    policy: dict
    q: dict
    values: dict


def random_tree(beta, seed=0):
    """Rewards in [0, 1], a random reference, and its fixed point by backward induction."""
    rng = random.Random(seed)
    rewards = {x: rng.random() for x in TRAJECTORIES}
    reference, policy, q, values = {}, {}, {}, {}
    for state in sorted(STATES, key=len, reverse=True):
        weights = [rng.uniform(0.1, 1) for _ in range(TOKENS)]
        reference[state] = [w / sum(weights) for w in weights]
        after = [(*state, a) for a in range(TOKENS)]
        q[state] = [rewards[x] if ends(x) else values[x] for x in after]
        tilted = [
            p * math.exp((v - max(q[state])) / beta)
            for p, v in zip(reference[state], q[state], strict=True)
        ]
        policy[state] = [w / sum(tilted) for w in tilted]
        values[state] = sum(p * v for p, v in zip(policy[state], q[state], strict=True))
    return Tree(beta, rewards, reference, policy, q, values)


@dataclass(frozen=True)
class Trajectories:
    """All 15 as right-padded tensors; states [15, 3] index the rows of a table of logits."""

    states: torch.Tensor
    actions: torch.Tensor
    mask: torch.Tensor
    rewards: torch.Tensor

    def log_probs(self, logits):
        return logits.log_softmax(-1)[self.states, self.actions]

    def kl(self, logits, ref_logits):
        return exact_kl(logits, ref_logits)[self.states]


def enumerate_all(tree):
    rows = []
    for x in TRAJECTORIES:
        pad = DEPTH - len(x)
        states = [STATES.index(x[:k]) for k in range(len(x))] + [0] * pad
        rows.append((states, [*x, *[0] * pad], [1.0] * len(x) + [0.0] * pad, tree.rewards[x]))
    states, actions, mask, rewards = zip(*rows, strict=True)
    return Trajectories(
        torch.tensor(states),
        torch.tensor(actions),
        torch.tensor(mask, dtype=torch.float64),
        torch.tensor(rewards, dtype=torch.float64),
    )


def logits_of(table):
    return torch.tensor([table[s] for s in STATES], dtype=torch.float64).log()


def largest(x):
    return float(x.detach().abs().max())


@pytest.fixture(params=BETAS, ids=lambda beta: f"beta={beta}")
def tree(request):
    return random_tree(request.param)


@pytest.fixture
def solved(tree):
    """tree, its trajectories, and td at the fixed point."""
    paths = enumerate_all(tree)
    policy, reference = logits_of(tree.policy), logits_of(tree.reference)
    kl = paths.kl(policy, reference)
    logp, ref_logp = paths.log_probs(policy), paths.log_probs(reference)
    td = implied_td(logp, ref_logp, kl, paths.mask, tree.beta)
    return tree, paths, (logp, ref_logp, kl), td


def test_the_tree_has_every_trajectory_once():
    assert len(STATES) == 7
    assert len(TRAJECTORIES) == len(set(TRAJECTORIES)) == 1 + 2 + 12


def test_backward_induction_is_a_fixed_point(tree):
    for state in STATES:
        partition = sum(
            p * math.exp(v / tree.beta)
            for p, v in zip(tree.reference[state], tree.q[state], strict=True)
        )
        for p, ref, v in zip(tree.policy[state], tree.reference[state], tree.q[state], strict=True):
            assert p == pytest.approx(ref * math.exp(v / tree.beta) / partition, rel=1e-12)
    # Q is the value of this policy and carries no penalty: the mean reward of what it samples.
    sampled = sum(
        tree.rewards[x] * math.prod(tree.policy[x[:k]][x[k]] for k in range(len(x)))
        for x in TRAJECTORIES
    )
    assert tree.values[()] == pytest.approx(sampled, rel=1e-12)


def test_value_differences_are_log_ratios_less_divergence_on_every_edge(solved):
    tree, _, _, td = solved
    edges = 0
    for row, x in zip(td.tolist(), TRAJECTORIES, strict=True):
        for k in range(len(x)):
            after = tree.rewards[x] if k + 1 == len(x) else tree.values[x[: k + 1]]
            assert abs(row[k] - (after - tree.values[x[:k]])) < 1e-10
            edges += 1
        assert row[len(x) :] == [0.0] * (DEPTH - len(x))
    assert edges == 1 + 2 * 2 + 12 * 3


def test_implied_values_are_the_values_along_every_trajectory(solved):
    tree, paths, _, td = solved
    baseline = torch.full((15,), tree.values[()], dtype=torch.float64)
    found = implied_values(td, baseline, paths.mask).tolist()
    for row, x in zip(found, TRAJECTORIES, strict=True):
        expected = [tree.values[x[:k]] for k in range(len(x))]
        expected += [tree.rewards[x]] * (DEPTH + 1 - len(x))
        assert max(abs(a - b) for a, b in zip(row, expected, strict=True)) < 1e-10


def test_td_has_mean_zero_under_the_policy_in_every_state(solved):
    tree, _, _, td = solved
    by_edge = {}
    for row, x in zip(td.tolist(), TRAJECTORIES, strict=True):
        by_edge |= {x[: k + 1]: row[k] for k in range(len(x))}
    for state in STATES:
        mean = sum(tree.policy[state][a] * by_edge[(*state, a)] for a in range(TOKENS))
        assert abs(mean) < 1e-12


def test_value_loss_is_zero_on_every_trajectory_at_the_fixed_point(solved):
    tree, paths, scores, _ = solved
    baseline = torch.full((15,), tree.values[()], dtype=torch.float64)
    residual = terminal_residual(*scores, paths.rewards, baseline, paths.mask, tree.beta)
    assert largest(residual) < 1e-10
    for i in range(15):
        one = [x[i : i + 1] for x in (*scores, paths.rewards, baseline, paths.mask)]
        assert float(value_loss(*one, tree.beta)) < 1e-20


def test_value_loss_is_not_zero_at_the_reference(solved):
    tree, paths, (_, ref_logp, kl), _ = solved
    baseline = torch.full((15,), tree.values[()], dtype=torch.float64)
    loss = value_loss(ref_logp, ref_logp, kl * 0, paths.rewards, baseline, paths.mask, tree.beta)
    expected = sum((r - tree.values[()]) ** 2 for r in tree.rewards.values()) / 30
    assert float(loss) == pytest.approx(expected, rel=1e-12)
    assert expected > 1e-3


@pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
def test_vimpo_and_ppo_give_the_same_credit_where_the_critic_is_right(solved, lam):
    tree, paths, _, td = solved
    table = torch.tensor([tree.values[s] for s in STATES], dtype=torch.float64)
    values = table[paths.states] * paths.mask
    assert largest(critic_td(paths.rewards, values, paths.mask) - td) < 1e-10
    by_critic, _ = ppo_advantages(paths.rewards, values, paths.mask, lam)
    assert largest(actor_advantage(td, paths.mask, lam) - by_critic) < 1e-8
    assert largest(by_critic) > 0.5


@pytest.mark.parametrize(("weights", "rate"), [("uniform", 0.25), ("policy", 0.4)])
@pytest.mark.parametrize("anchor", ["V(s_0)", "mean reward"])
@pytest.mark.parametrize("seed", [1, 2])
def test_gradient_descent_on_the_value_loss_finds_the_fixed_point(weights, rate, anchor, seed):
    tree = random_tree(0.7, seed)
    paths, reference = enumerate_all(tree), logits_of(tree.reference)
    logits = reference.clone().requires_grad_()
    ref_logp = paths.log_probs(reference)
    start = largest(logits.softmax(-1) - logits_of(tree.policy).exp())
    velocity = torch.zeros_like(logits)
    for _ in range(600):
        logp = paths.log_probs(logits)
        probability = (logp * paths.mask).sum(1).exp().detach()
        baseline = (probability * paths.rewards).sum()
        if anchor == "V(s_0)":
            baseline = torch.tensor(tree.values[()], dtype=torch.float64)
        rest = (paths.rewards, baseline.expand(15), paths.mask, tree.beta)
        kl = paths.kl(logits, reference)
        if weights == "uniform":
            loss = 15 * value_loss(logp, ref_logp, kl, *rest)
        else:
            residual = terminal_residual(logp, ref_logp, kl.detach(), *rest)
            loss = 15 * (probability * 0.5 * residual.square()).sum()
        (gradient,) = torch.autograd.grad(loss, logits)
        with torch.no_grad():
            velocity = 0.9 * velocity - rate * gradient
            logits += velocity
    assert start > 0.05
    assert largest(logits.softmax(-1) - logits_of(tree.policy).exp()) < 1e-6
