"""The objectives against hand-computed literals and identities."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from objective_cases import F64, KL, LOGP, MASK, REF, VALUES, assert_equal, made_batch, t

from vimpo.objectives import common, grpo, ppo, vimpo


@pytest.fixture
def batch():
    return made_batch()


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
