"""Random batches: losses are finite, padding never leaks, and other shapes are named."""

from __future__ import annotations

import re

import hypothesis.strategies as st
import pytest
import torch
from fuzzing import profile
from hypothesis import example, given

from vimpo.objectives import common, grpo, ppo, vimpo
from vimpo.objectives.chunked import Head, chunked_scores


@st.composite
def batches(draw):
    """A right-padded batch with groups, in float64: mask, groups, rewards and log-probabilities."""
    groups, size = draw(st.integers(1, 3)), draw(st.integers(2, 4))
    rows, width = groups * size, draw(st.integers(1, 6))
    lengths = draw(st.lists(st.integers(0, width), min_size=rows, max_size=rows))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    scale = draw(st.sampled_from([0.0, 0.1, 3.0, 200.0]))

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rewards = draw(
        st.sampled_from([torch.zeros(rows), torch.ones(rows), (noise(rows) > 0).float()])
    ).double()
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).double()
    groups = torch.arange(groups).repeat_interleave(size)
    names = ("logp", "old_logp", "ref_logp")
    return {name: -1 + scale * noise(rows, width) for name in names} | {
        "token_kl": (scale * noise(rows, width)).abs(),
        "values": noise(rows, width),
        "mask": mask,
        "rewards": rewards,
        "groups": groups,
    }


def vimpo_loss(b, logp):
    baseline = common.group_mean(b["rewards"], b["groups"])
    middle = (b["old_logp"], b["ref_logp"], b["token_kl"], b["rewards"], baseline, b["mask"])
    return vimpo.vimpo_loss(logp, *middle, 0.02, 0.005, 0.9, 0.2, 0.28)


def grpo_loss(b, logp, reduction="token-mean"):
    advantage = grpo.group_advantage(b["rewards"], b["groups"])[:, None] * b["mask"]
    clip = (0.2, 0.28, 10.0)
    policy = common.clipped_surrogate(
        logp, b["old_logp"], advantage, b["mask"], *clip, reduction=reduction
    )
    penalty = common.reduce_tokens(common.k3_kl(logp, b["ref_logp"]), b["mask"], reduction)
    return policy + 0.1 * penalty


def grpo_naive_loss(b, logp):
    return grpo_loss(b, logp, "seq-mean")


def ppo_loss(b, logp):
    advantage, _ = ppo.ppo_advantages(b["rewards"], b["values"], b["mask"], 0.95)
    return common.clipped_surrogate(logp, b["old_logp"], advantage, b["mask"], 0.2, 0.28)


def ppo_critic_loss(b, logp):
    _, returns = ppo.ppo_advantages(b["rewards"], b["values"], b["mask"], 0.95)
    return ppo.critic_loss(0.1 * logp, returns, b["values"], b["mask"], 0.2)


LOSSES = [vimpo_loss, grpo_loss, grpo_naive_loss, ppo_loss, ppo_critic_loss]
TOKENS = ("logp", "old_logp", "ref_logp", "token_kl", "values")


def with_gradient(loss, batch):
    logp = batch["logp"].clone().requires_grad_()
    value = loss(batch, logp)
    value.backward()
    return value.detach(), logp.grad


@pytest.mark.parametrize("loss", LOSSES)
# Padding is what a network puts out past the end: any finite number.
@profile(40)
@given(batches(), st.sampled_from([1e3, -1e3, 1e30]))
def test_a_loss_is_finite_and_padding_never_leaks(loss, batch, filler):
    value, gradient = with_gradient(loss, batch)
    assert value.isfinite()
    assert gradient.isfinite().all()
    off = batch["mask"] == 0
    assert (gradient[off] == 0).all()
    filled = batch | {n: batch[n].masked_fill(off, filler) for n in TOKENS}
    other, moved = with_gradient(loss, filled)
    assert torch.equal(other, value)
    assert torch.equal(moved, gradient)


@pytest.mark.parametrize("loss", LOSSES)
@profile(25)
@given(batches(), st.randoms(use_true_random=False))
def test_a_loss_does_not_depend_on_the_order_of_rows(loss, batch, random):
    order = list(range(len(batch["mask"])))
    random.shuffle(order)
    value, gradient = with_gradient(loss, batch)
    other, moved = with_gradient(loss, {n: x[order] for n, x in batch.items()})
    scale = float(value.abs()) + float(gradient.abs().max()) + 1e-12
    assert float((other - value).abs()) <= 1e-9 * scale
    assert float((moved - gradient[order]).abs().max()) <= 1e-9 * scale


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["logp", "mask", "rewards"])
@profile(8)
@given(batches())
def test_another_shape_is_an_error_that_names_both(loss, name, batch):
    tensor = batch[name]
    wrong = torch.cat([tensor, tensor], dim=tensor.ndim - 1)
    changed = batch | {name: wrong}
    with pytest.raises(ValueError, match="match") as caught:
        loss(changed, changed["logp"])
    assert len(re.findall(r"\(\d+(?:, ?\d*)*\)", str(caught.value))) == 2


@profile(60)
@given(batches())
def test_parts_of_the_objectives_are_finite_and_zero_off_mask(batch):
    b, off = batch, batch["mask"] == 0
    baseline = common.group_mean(b["rewards"], b["groups"])
    td = vimpo.implied_td(b["logp"], b["ref_logp"], b["token_kl"], b["mask"], 0.02)
    advantage, returns = ppo.ppo_advantages(b["rewards"], b["values"], b["mask"], 0.95)
    for x in (td, common.gae(td, b["mask"], 0.9), common.whiten(td, b["mask"]), advantage, returns):
        assert x.isfinite().all()
        assert (x[off] == 0).all()
    assert vimpo.implied_values(td, baseline, b["mask"]).isfinite().all()
    found = common.clip_fraction(b["logp"], b["old_logp"], advantage, b["mask"], 0.2, 0.28)
    assert 0 <= float(found) <= 1
    variance = ppo.explained_variance(b["values"], returns, b["mask"])
    varies = float((returns - common.masked_mean(returns, b["mask"]))[~off].abs().sum()) > 0
    assert bool(variance.isfinite()) == varies
    equal = b["rewards"].unique().numel() == 1
    assert not equal or (grpo.group_advantage(b["rewards"], b["groups"]) == 0).all()


@profile(40)
@given(st.integers(0, 10**6), st.sampled_from([0.1, 30.0, 3000.0]), st.integers(1, 5))
@example(3, 30.0, 1)  # the reference has nearly all its mass on the policy's likeliest token
def test_divergences_are_finite_and_not_negative(seed, scale, chunk):
    generator = torch.Generator().manual_seed(seed)
    p, q = (scale * torch.randn(4, 7, generator=generator, dtype=torch.float64) for _ in "pq")
    exact = common.exact_kl(p, q)
    assert exact.isfinite().all()
    assert (exact > -1e-9).all()
    for k in (1, 3, 7, 9):
        merged = common.top_k_kl(p, q, k)
        assert merged.isfinite().all()
        assert (merged <= exact + 1e-6 * (1 + exact.abs())).all()
    for estimate in (common.k2_kl, common.k3_kl):
        assert estimate(p, q).isfinite().all()
        assert (estimate(p, q) >= 0).all()
    eye = torch.eye(7, dtype=torch.float64)
    scores = chunked_scores(Head(p, eye), torch.arange(4), Head(q, eye), chunk=chunk)
    assert torch.allclose(scores.kl, exact, rtol=1e-9, atol=1e-9)
