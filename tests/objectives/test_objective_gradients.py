"""Gradients of the objectives: finite differences, what is detached, sums of micro-batches."""

from __future__ import annotations

import pytest
import torch
from objective_cases import KL, LOGP, MASK, REF, assert_equal, made_batch, t

from vimpo.objectives import common, ppo, vimpo


@pytest.fixture
def batch():
    return made_batch()


def differentiable(b):
    """name -> (function of the tensors that follow, tensors)."""
    mask, clip = b["mask"], (0.2, 0.28)
    anchored = (b["rewards"], b["baseline"], mask, 0.3)
    off_policy = b["logp"] + 0.1 * b["adv"]
    return {
        "group_mean": (lambda r: common.group_mean(r, torch.tensor([0, 1, 0])), b["rewards"]),
        "gae": (lambda td: common.gae(td, mask, 0.9), b["adv"]),
        "whiten": (lambda x: common.whiten(x, mask), b["adv"]),
        "token-mean surrogate": (
            lambda x, a: common.clipped_surrogate(x, off_policy, a, mask, *clip),
            b["logp"],
            b["adv"],
        ),
        "seq-mean surrogate": (
            lambda x: common.clipped_surrogate(
                x, b["old_logp"], b["adv"], mask, *clip, reduction="seq-mean"
            ),
            b["logp"],
        ),
        "exact_kl": (common.exact_kl, b["logits"], b["logits"].flip(-1)),
        "top_k_kl": (lambda p, q: common.top_k_kl(p, q, 2), b["logits"], b["logits"].flip(-1)),
        "k2": (common.k2_kl, b["logp"], b["ref_logp"]),
        "k3": (common.k3_kl, b["logp"], b["ref_logp"]),
        "implied_td": (
            lambda x, y, kl: vimpo.implied_td(x, y, kl, mask, 0.3),
            b["logp"],
            b["ref_logp"],
            b["token_kl"],
        ),
        "implied_values": (
            lambda td, v: vimpo.implied_values(td, v, mask),
            b["adv"],
            b["baseline"],
        ),
        "value_loss": (
            lambda x, y: vimpo.value_loss(x, y, b["token_kl"], *anchored),
            b["logp"],
            b["ref_logp"],
        ),
        "vimpo_loss": (
            lambda x: vimpo.vimpo_loss(
                x,
                off_policy,
                b["ref_logp"],
                b["token_kl"],
                *anchored,
                0.5,
                1.0,
                *clip,
                advantage=b["adv"],
            ),
            b["logp"],
        ),
        "critic_loss": (
            lambda v: ppo.critic_loss(v, b["adv"], b["old_logp"], mask, 0.2),
            b["values"],
        ),
    }


@pytest.mark.parametrize(
    "name",
    [
        "group_mean",
        "gae",
        "whiten",
        "token-mean surrogate",
        "seq-mean surrogate",
        "exact_kl",
        "top_k_kl",
        "k2",
        "k3",
        "implied_td",
        "implied_values",
        "value_loss",
        "vimpo_loss",
        "critic_loss",
    ],
)
def test_gradients_equal_finite_differences(batch, name):
    function, *inputs = differentiable(batch)[name]
    inputs = [x.clone().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(function, inputs, eps=1e-6, atol=1e-7)


def test_value_loss_pulls_each_token_by_its_residual():
    logp, kl = t(LOGP).requires_grad_(), t(KL).requires_grad_()
    loss = vimpo.value_loss(logp, t(REF), kl, t([1.0, 0.0]), t([0.5, 0.5]), t(MASK), 2.0)
    gradient, through_kl = torch.autograd.grad(loss, [logp, kl], allow_unused=True)
    # residual * beta / B: .9 * 2 / 2 and -.1 * 2 / 2
    assert_equal(gradient, [[0.9, 0.9], [-0.1, 0.0]])
    assert through_kl is None


@pytest.mark.parametrize("whiten", [True, False])
def test_actor_advantage_is_detached(batch, whiten):
    td = batch["adv"].clone().requires_grad_()
    assert not vimpo.actor_advantage(td, batch["mask"], 1.0, whiten=whiten).requires_grad


def test_vimpo_loss_moves_the_actor_through_the_ratio_alone(batch):
    logp = batch["logp"].clone().requires_grad_()
    rest = (batch["rewards"], batch["baseline"], batch["mask"], 0.3)
    shared = (batch["old_logp"], batch["ref_logp"], batch["token_kl"], *rest)
    whole = vimpo.vimpo_loss(logp, *shared, 0.5, 1.0, 0.2, 0.28)
    td = 0.3 * (batch["logp"] - batch["ref_logp"] - batch["token_kl"]) * batch["mask"]
    tail = td.flip(1).cumsum(1).flip(1)
    tokens = tail[batch["mask"].bool()]
    fixed = (tail - tokens.mean()) / (tokens.var() + 1e-8).sqrt()
    given = vimpo.vimpo_loss(logp, *shared, 0.5, 1.0, 0.2, 0.28, advantage=fixed)
    assert_equal(whole, given)
    (a,), (b,) = torch.autograd.grad(whole, logp), torch.autograd.grad(given, logp)
    assert float(a.abs().max()) > 0.01
    assert_equal(a, b)


def test_value_only_vimpo_is_the_value_loss(batch):
    rest = (batch["rewards"], batch["baseline"], batch["mask"], 0.3)
    shared = (batch["ref_logp"], batch["token_kl"], *rest)
    whole = vimpo.vimpo_loss(
        batch["logp"], batch["old_logp"], *shared, 0.0, 1.0, 0.2, 0.28, value_share=0.25
    )
    assert_equal(whole, 0.25 * vimpo.value_loss(batch["logp"], *shared))


def test_micro_batches_of_vimpo_sum_to_the_batch(batch):
    def loss(rows, advantage, value_share, actor_share):
        names = ("old_logp", "ref_logp", "token_kl", "rewards", "baseline", "mask")
        return vimpo.vimpo_loss(
            logp[rows],
            *(batch[n][rows] for n in names),
            *(0.3, 0.5, 1.0, 0.2, 0.28),
            advantage=advantage[rows],
            value_share=value_share,
            actor_share=actor_share,
        )

    logp = batch["logp"].clone().requires_grad_()
    advantage = common.whiten(batch["adv"], batch["mask"])
    whole = loss(slice(0, 3), advantage, 1, 1)
    # 1 of 3 responses with 4 of 7 tokens, then the rest
    parts = loss(slice(0, 1), advantage, 1 / 3, 4 / 7) + loss(slice(1, 3), advantage, 2 / 3, 3 / 7)
    assert_equal(parts, whole.detach())
    gradients = [torch.autograd.grad(x, logp)[0] for x in (whole, parts)]
    assert_equal(gradients[1], gradients[0])
