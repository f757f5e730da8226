"""The objectives against hand-computed literals, identities, finite differences and edge cases."""

from __future__ import annotations

import inspect
import math
import statistics

import pytest
import torch

from vimpo.objectives import common, grpo, ppo, vimpo

F64 = torch.float64


def t(values, dtype=F64):
    return torch.tensor(values, dtype=dtype)


def assert_equal(found, expected, tolerance=1e-12):
    expected = torch.as_tensor(expected, dtype=found.dtype)
    assert found.shape == expected.shape
    assert float((found - expected).detach().abs().max()) <= tolerance


@pytest.fixture
def batch():
    """Three responses of lengths 4, 2 and 1; off-policy, far from every kink of the clip."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=F64)

    mask = t([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    return {
        "logits": normal(3, 4, 5),
        "logp": -normal(3, 4).abs(),
        "old_logp": -normal(3, 4).abs(),
        "ref_logp": -normal(3, 4).abs(),
        "token_kl": normal(3, 4).abs(),
        "rewards": t([1.0, 0.0, 1.0]),
        "baseline": t([0.5, 0.5, 0.75]),
        "values": normal(3, 4),
        "adv": normal(3, 4),
        "mask": mask,
    }


# --- Hand-computed literals ----------------------------------------------------------------------


def test_group_mean_is_taken_over_equal_labels_in_any_order():
    found = common.group_mean(t([1.0, 0.0, 1.0, 1.0]), torch.tensor([7, 3, 7, 3]))
    assert_equal(found, [1.0, 0.5, 1.0, 0.5])


def test_gae_literal():
    td, mask = t([[1.0, 2.0, 3.0], [4.0, 5.0, 9.0]]), t([[1, 1, 1], [1, 1, 0]])
    assert_equal(common.gae(td, mask, 0.5), [[2.75, 3.5, 3.0], [6.5, 5.0, 0.0]])


def test_whiten_literal_uses_bessels_correction_and_only_the_mask():
    found = common.whiten(t([[1.0, 2.0], [6.0, 99.0]]), t([[1, 1], [1, 0]]))
    # mean 3, variance (4 + 1 + 9) / 2 = 7
    assert_equal(found, [[-2 / 7**0.5, -1 / 7**0.5], [3 / 7**0.5, 0.0]], 1e-8)


@pytest.mark.parametrize(
    ("ratio", "adv", "loss"),
    [
        (1.5, 2.0, -2.56),  # held at 1 + clip_high
        (1.5, -2.0, 3.0),
        (0.5, 2.0, -1.0),
        (0.5, -2.0, 1.6),  # held at 1 - clip_low
        (12.0, -2.0, 20.0),  # held by the dual clip
        (1.1, 2.0, -2.2),
        (1.1, -2.0, 2.2),
    ],
)
def test_clipped_surrogate_of_one_token(ratio, adv, loss):
    logp, old = t([[math.log(ratio) - 1]]), t([[-1.0]])
    found = common.clipped_surrogate(logp, old, t([[adv]]), t([[1]]), 0.2, 0.28)
    assert_equal(found, loss)


def test_clipped_surrogate_reductions_weigh_tokens_or_responses():
    logp, mask = t([[-1.0, -2.0, -1.0], [-3.0, 0.0, 0.0]]), t([[1, 1, 1], [1, 0, 0]])
    adv = t([[1.0, 1.0, 4.0], [-2.0, 50.0, 50.0]])
    shared = (logp, logp, adv, mask, 0.2, 0.28)
    assert_equal(common.clipped_surrogate(*shared), -1.0)  # -(1 + 1 + 4 - 2) / 4
    assert_equal(common.clipped_surrogate(*shared, reduction="seq-mean"), 0.0)  # (-2 + 2) / 2


def test_clip_fraction_counts_tokens_that_the_clip_holds_back():
    logp = t([[1.5, 1.5, 0.5, 0.5, 1.1, 1.1]]).log()
    adv = t([[1.0, -1.0, 1.0, -1.0, 1.0, 1.0]])
    mask = t([[1, 1, 1, 1, 1, 0]])
    assert_equal(common.clip_fraction(logp, logp * 0, adv, mask, 0.2, 0.28), 0.4)


def test_unknown_reduction_is_refused():
    one = t([[1.0]])
    with pytest.raises(ValueError, match="'sum' is unknown; allowed: token-mean, seq-mean"):
        common.clipped_surrogate(one, one, one, one, 0.2, 0.2, reduction="sum")


def test_kl_literals():
    p, q = t([0.5, 0.3, 0.2]), t([0.25, 0.25, 0.5])
    exact = 0.5 * math.log(2) + 0.3 * math.log(1.2) + 0.2 * math.log(0.4)
    assert_equal(common.exact_kl(p.log() + 7, q.log() - 3), exact)
    # All but the likeliest merged: [.5, .5] against [.25, .75]
    assert_equal(common.top_k_kl(p.log() + 7, q.log() - 3, 1), 0.5 * math.log(4 / 3))
    assert_equal(common.k2_kl(t([-1.0]), t([-1.4])), [0.08])
    assert_equal(common.k3_kl(t([-1.0]), t([-1.0 - math.log(2)])), [math.log(2) - 0.5])


def test_group_advantage_literal():
    rewards, groups = t([1.0, 0.0, 1.0, 0.0, 0.0, 1.0]), torch.tensor([4, 4, 2, 4, 4, 2])
    # Group 4: mean 1/4, variance (9 + 3) / 16 / 3 = 1/4
    a, b = 0.75 / 0.500001, -0.25 / 0.500001
    assert_equal(grpo.group_advantage(rewards, groups), [a, b, 0.0, b, b, 0.0])
    centred = grpo.group_advantage(rewards, groups, normalize_std=False)
    assert_equal(centred, [0.75, -0.25, 0.0, -0.25, -0.25, 0.0])


def test_a_group_of_one_has_no_advantage():
    with pytest.raises(ValueError, match="group of 1"):
        grpo.group_advantage(t([1.0, 0.0, 1.0]), torch.tensor([0, 0, 1]))


VALUES = [[0.5, 0.25], [0.2, 9.0]]
MASK = [[1, 1], [1, 0]]


def test_ppo_advantages_literal_at_lambda_one():
    advantage, returns = ppo.ppo_advantages(t([1.0, 0.0]), t(VALUES), t(MASK), 1.0)
    # R - V: .5, .75, -.2; mean .35; variance (.0225 + .16 + .3025) / 2
    s = math.sqrt(0.2425 + 1e-8)
    assert_equal(advantage, [[0.15 / s, 0.4 / s], [-0.55 / s, 0.0]])
    assert_equal(returns, [[1.0, 1.0], [0.0, 0.0]])


def test_ppo_advantages_literal_at_lambda_zero():
    advantage, returns = ppo.ppo_advantages(t([1.0, 0.0]), t(VALUES), t(MASK), 0.0)
    # td: .25 - .5, 1 - .25, 0 - .2; mean .1; variance (.1225 + .4225 + .09) / 2
    s = math.sqrt(0.3175 + 1e-8)
    assert_equal(advantage, [[-0.35 / s, 0.65 / s], [-0.3 / s, 0.0]])
    assert_equal(returns, [[0.25, 1.0], [0.0, 0.0]])


def test_rewards_are_paid_on_the_last_token():
    found = ppo.terminal_rewards(t([2.0, 3.0]), t(MASK))
    assert_equal(found, [[0.0, 2.0], [3.0, 0.0]])


def test_critic_loss_takes_the_worse_of_clipped_and_unclipped():
    values, returns = t([[1.0, 0.6, 5.0]]), t([[1.0, 0.0, 0.0]])
    old, mask = t([[0.5, 0.5, 0.0]]), t([[1, 1, 0]])
    # clipped to .7: error .09 beats 0; .6 is inside the range: .36
    assert_equal(ppo.critic_loss(values, returns, old, mask, 0.2), 0.5 * (0.09 + 0.36) / 2)


def test_explained_variance_literals():
    returns, mask = t([[0.0, 1.0, 9.0]]), t([[1, 1, 0]])
    assert_equal(ppo.explained_variance(returns, returns, mask), 1.0)
    assert_equal(ppo.explained_variance(returns * 0 + 4, returns, mask), 0.0)
    assert_equal(ppo.explained_variance(1 - returns, returns, mask), -3.0)
    assert math.isnan(float(ppo.explained_variance(returns, returns * 0, mask)))


LOGP, REF = [[-1.0, -2.0], [-1.0, -9.0]], [[-1.5, -2.5], [-1.0, -7.0]]
KL = [[0.1, 0.2], [0.3, 5.0]]


def test_implied_td_and_values_literals():
    td = vimpo.implied_td(t(LOGP), t(REF), t(KL), t(MASK), 2.0)
    assert_equal(td, [[0.8, 0.6], [-0.6, 0.0]])
    values = vimpo.implied_values(td, t([0.5, 0.25]), t(MASK))
    assert_equal(values, [[0.5, 1.3, 1.9], [0.25, -0.35, -0.35]])


def test_td_off_mask_is_zero_even_where_the_log_ratio_is_infinite():
    logp = t([[-1.0, -math.inf]])
    td = vimpo.implied_td(logp, t([[-2.0, -math.inf]]), t([[0.5, math.nan]]), t([[1, 0]]), 2.0)
    assert_equal(td, [[1.0, 0.0]])


def test_value_loss_literal():
    shared = (t([1.0, 0.0]), t([0.5, 0.5]), t(MASK), 2.0)
    # residuals: 1.4 - .5 and -.6 + .5
    residual = vimpo.terminal_residual(t(LOGP), t(REF), t(KL), *shared)
    assert_equal(residual, [0.9, -0.1])
    assert_equal(vimpo.value_loss(t(LOGP), t(REF), t(KL), *shared), 0.5 * (0.81 + 0.01) / 2)


def test_vimpo_loss_literal():
    old = t([[-1.0, -2.0 - math.log(2)], [-1.0 - math.log(0.5), 0.0]])  # ratios 1, 2, 1/2
    found = vimpo.vimpo_loss(
        t(LOGP), old, t(REF), t(KL), t([1.0, 0.0]), t([0.5, 0.5]), t(MASK), 2.0, 0.1, 1.0, 0.2, 0.28
    )
    raw = [1.4, 0.6, -0.6]  # the tail sums of td
    scale = math.sqrt(statistics.variance(raw) + 1e-8)
    a, b, c = ((x - statistics.mean(raw)) / scale for x in raw)
    actor = (-a * 1.0 - b * 1.28 - c * 0.8) / 3  # b > 0 held at 1.28, c < 0 held at 0.8
    assert_equal(found, 0.205 + 0.1 * actor)


# --- Identities ----------------------------------------------------------------------------------


def test_gae_at_lambda_one_is_the_sum_of_what_follows(batch):
    td = batch["adv"] * batch["mask"]
    expected = [[sum(row[k:]) for k in range(4)] for row in td.tolist()]
    assert_equal(common.gae(batch["adv"], batch["mask"], 1.0), expected)


def test_gae_at_lambda_zero_is_td(batch):
    assert_equal(common.gae(batch["adv"], batch["mask"], 0.0), batch["adv"] * batch["mask"])


def test_gae_between_is_the_discounted_sum_of_what_follows(batch):
    td = (batch["adv"] * batch["mask"]).tolist()
    expected = [[sum(0.9 ** (k - s) * row[k] for k in range(s, 4)) for s in range(4)] for row in td]
    assert_equal(common.gae(batch["adv"], batch["mask"], 0.9), expected)


def test_last_implied_value_is_the_baseline_plus_all_td(batch):
    td = batch["adv"] * batch["mask"]
    values = vimpo.implied_values(td, batch["baseline"], batch["mask"])
    expected = [
        b + sum(row) for b, row in zip(batch["baseline"].tolist(), td.tolist(), strict=True)
    ]
    assert_equal(values[:, -1], expected)
    assert_equal(values[:, 0], batch["baseline"])


def test_whitened_tokens_have_mean_zero_and_unit_variance(batch):
    found = common.whiten(batch["adv"], batch["mask"])[batch["mask"].bool()].tolist()
    assert len(found) == 7
    assert abs(statistics.mean(found)) < 1e-12
    assert statistics.variance(found) == pytest.approx(1, abs=1e-7)


def test_seq_mean_is_token_mean_at_equal_lengths(batch):
    mask = t([[1, 1, 1, 0]] * 3)
    shared = (batch["logp"], batch["old_logp"], batch["adv"], mask, 0.2, 0.28)
    by_token = float(common.clipped_surrogate(*shared))
    by_response = float(common.clipped_surrogate(*shared, reduction="seq-mean"))
    assert abs(by_token) > 0.1
    assert by_token == pytest.approx(by_response, rel=1e-12)


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_ppo_has_no_advantage_where_the_values_are_the_rewards_to_come(lam):
    rewards, mask = t([1.0, 0.0, 1.0]), t([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    advantage, returns = ppo.ppo_advantages(rewards, rewards[:, None].expand(3, 3), mask, lam)
    assert_equal(advantage, mask * 0)
    assert_equal(returns, rewards[:, None] * mask)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_top_k_kl_is_a_lower_bound_that_rises_with_k(k):
    generator = torch.Generator().manual_seed(k)
    p, q = torch.randn(2, 200, 6, generator=generator, dtype=F64) * 3
    exact = (p.softmax(-1) * (p.softmax(-1) / q.softmax(-1)).log()).sum(-1)
    found, finer = common.top_k_kl(p, q, k), common.top_k_kl(p, q, k + 1)
    assert float((found - finer).max()) < 1e-12
    assert float((found - exact).max()) < 1e-12
    assert float((exact - found).max()) > 1e-3


@pytest.mark.parametrize("k", [5, 6, 99])
def test_top_k_kl_is_exact_once_at_most_one_token_is_left(k):
    generator = torch.Generator().manual_seed(k)
    p, q = torch.randn(2, 200, 6, generator=generator, dtype=F64)
    exact = (p.softmax(-1) * (p.softmax(-1) / q.softmax(-1)).log()).sum(-1)
    assert_equal(common.top_k_kl(p, q, k), exact)


def test_k3_is_unbiased_and_never_negative():
    generator = torch.Generator().manual_seed(0)
    log_p, log_q = torch.randn(2, 50, 7, generator=generator, dtype=F64).log_softmax(-1)
    estimate = common.k3_kl(log_p, log_q)
    assert float(estimate.min()) >= 0
    exact = (log_p.exp() * (log_p - log_q)).sum(-1)
    assert_equal((log_p.exp() * estimate).sum(-1), exact)


def test_exact_kl_is_zero_only_between_equal_distributions(batch):
    logits = batch["logits"]
    assert_equal(common.exact_kl(logits, logits + 3), torch.zeros(3, 4))
    assert float(common.exact_kl(logits, logits.flip(-1)).min()) > 1e-3


# --- Gradients -----------------------------------------------------------------------------------


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


# --- Wrong shapes and edge cases -----------------------------------------------------------------

ROWS = ("rewards", "groups", "baseline")
CALLS = {
    common.group_mean: ("rewards", "groups"),
    common.gae: ("td", "mask", 1.0),
    common.whiten: ("x", "mask"),
    common.clipped_surrogate: ("logp", "old_logp", "adv", "mask", 0.2, 0.28),
    common.clip_fraction: ("logp", "old_logp", "adv", "mask", 0.2, 0.28),
    common.exact_kl: ("policy_logits", "ref_logits"),
    common.top_k_kl: ("policy_logits", "ref_logits", 2),
    common.k2_kl: ("logp", "ref_logp"),
    common.k3_kl: ("logp", "ref_logp"),
    grpo.group_advantage: ("rewards", "groups"),
    ppo.terminal_rewards: ("rewards", "mask"),
    ppo.critic_td: ("rewards", "values", "mask"),
    ppo.ppo_advantages: ("rewards", "values", "mask", 1.0),
    ppo.critic_loss: ("values", "returns", "old_values", "mask", 0.2),
    ppo.explained_variance: ("values", "returns", "mask"),
    vimpo.implied_td: ("logp", "ref_logp", "token_kl", "mask", 0.5),
    vimpo.implied_values: ("td", "baseline", "mask"),
    vimpo.value_loss: ("logp", "ref_logp", "token_kl", "rewards", "baseline", "mask", 0.5),
    vimpo.terminal_residual: ("logp", "ref_logp", "token_kl", "rewards", "baseline", "mask", 0.5),
    vimpo.actor_advantage: ("td", "mask", 1.0),
    vimpo.vimpo_loss: (
        *("logp", "old_logp", "ref_logp", "token_kl", "rewards", "baseline", "mask"),
        *(0.5, 0.1, 1.0, 0.2, 0.28),
    ),
}


def arguments(function, dtype=F64, rows=4, tokens=3, rewards=None, mask=None):
    generator = torch.Generator().manual_seed(1)
    made = []
    for name in CALLS[function]:
        if name == "groups":
            made.append(torch.arange(rows) // 2)
        elif name == "rewards" and rewards is not None:
            made.append(rewards.to(dtype))
        elif name == "mask":
            made.append(torch.ones(rows, tokens, dtype=dtype) if mask is None else mask.to(dtype))
        elif isinstance(name, str):
            shape = (rows,) if name in ROWS else (rows, tokens)
            shape += (5,) * name.endswith("_logits")
            made.append(torch.randn(shape, generator=generator, dtype=dtype))
        else:
            made.append(name)
    return made


def test_every_public_function_of_the_objectives_is_covered():
    helpers = {"check_shapes", "check_rows", "masked_mean", "reduce_tokens"}
    found = {
        f.__name__
        for module in (common, grpo, ppo, vimpo)
        for f in vars(module).values()
        if inspect.isfunction(f) and f.__module__ == module.__name__
    }
    assert found - helpers == {f.__name__ for f in CALLS}


CHANGES = {
    "a row more": lambda x: torch.cat([x, x[:1]]),
    "a dimension more": lambda x: x[..., None],
    "a column less": lambda x: x[:, 1:],
}


def misfits():
    for function, names in CALLS.items():
        for i, name in enumerate(names):
            if not isinstance(name, str):
                continue
            for change in CHANGES:
                no_columns = name in ROWS and change == "a column less"
                # Its mask is the only tensor with columns, so any number of them fits.
                alone = function is ppo.terminal_rewards and name == "mask"
                if not no_columns and not (alone and change != "a row more"):
                    case = (function, i, change)
                    yield pytest.param(*case, id=f"{function.__name__}-{name}-{change}")


@pytest.mark.parametrize(("function", "position", "change"), list(misfits()))
def test_shapes_that_do_not_fit_are_named(function, position, change):
    good = arguments(function)
    bad = list(good)
    bad[position] = CHANGES[change](good[position])
    with pytest.raises(ValueError, match="match") as caught:
        function(*bad)
    message = str(caught.value)
    assert str(tuple(bad[position].shape)) in message
    assert any(
        str(tuple(x.shape)) in message
        for i, x in enumerate(good)
        if i != position and torch.is_tensor(x)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "edge", ["no tokens", "one token", "equal rewards", "one response", "one column"]
)
def test_edge_cases_are_finite_and_keep_the_type(edge, dtype):
    undefined = {
        "explained_variance": ("no tokens", "one token"),  # nothing varies: NaN by contract
        "group_advantage": ("one response",),  # refused by contract
    }
    for function in CALLS:
        if edge in undefined.get(function.__name__, ()):
            continue
        rows, tokens, rewards, mask = 4, 3, None, None
        if edge == "no tokens":
            mask = torch.zeros(4, 3)
        elif edge == "one token":
            mask = torch.zeros(4, 3)
            mask[0, 0] = 1
        elif edge == "equal rewards":
            rewards = torch.ones(4)
        elif edge == "one response":
            rows = 1
        else:
            tokens = 1
        found = function(*arguments(function, dtype, rows, tokens, rewards, mask))
        for tensor in found if isinstance(found, tuple) else (found,):
            assert tensor.isfinite().all(), function.__name__
            assert tensor.dtype == dtype, function.__name__


def test_equal_rewards_give_no_advantage_in_any_algorithm():
    rewards, mask = t([1.0, 1.0]), t(MASK)
    assert_equal(grpo.group_advantage(rewards, torch.tensor([0, 0])), [0.0, 0.0])
    advantage, _ = ppo.ppo_advantages(rewards, torch.zeros(2, 2, dtype=F64), mask, 1.0)
    assert_equal(advantage, [[0.0, 0.0], [0.0, 0.0]])
    zero = t([[0.0, 0.0], [0.0, 0.0]])
    loss = vimpo.value_loss(zero, zero, zero, rewards, rewards, mask, 0.5)
    assert_equal(loss, 0.0)


def test_huge_log_ratios_stay_finite_in_float32():
    logp, old = t([[0.0, -500.0]], torch.float32), t([[-500.0, 0.0]], torch.float32)
    for adv in (1.0, -1.0):
        x = logp.clone().requires_grad_()
        loss = common.clipped_surrogate(x, old, torch.full((1, 2), adv), torch.ones(1, 2), 0.2, 0.2)
        loss.backward()
        assert loss.isfinite()
        assert x.grad.isfinite().all()
    assert common.k3_kl(old, logp).isfinite().all()
