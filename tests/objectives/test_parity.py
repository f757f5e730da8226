"""Agreement with the official code on every recorded case, values and gradients."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vimpo.objectives import common, grpo, ppo, vimpo

CASES = sorted((Path(__file__).parents[3] / "shared/data/parity").glob("case_*.npz"))
pytestmark = pytest.mark.skipif(
    not CASES, reason="the recorded cases of the official code (shared/data/parity) are not here"
)


@pytest.fixture(params=CASES, ids=lambda path: path.stem)
def case(request):
    arrays = {k: torch.tensor(v) for k, v in np.load(request.param).items()}
    case = {k: v.double() if v.is_floating_point() else v for k, v in arrays.items()}
    case["mask"] = case["mask"].double()
    for k in ("beta", "actor_coef", "gae_lambda", "clip_low", "clip_high", "dual_clip"):
        case[k] = float(case[k])
    case["value_clip"] = float(case["value_clip"])
    return case


def assert_agrees(ours, theirs, mask=None):
    ours = ours.detach()
    if mask is not None:
        ours, theirs = ours * mask, theirs * mask
    assert ours.shape == theirs.shape
    scale = 1.0 if theirs.ndim == 0 else float(theirs.abs().max())
    assert float((ours - theirs).abs().max()) <= 1e-8 * max(scale, 1e-300)


def policy(case):
    """Logits that require a gradient, and the log-probabilities of the actions."""
    logits = case["policy_logits"].clone().requires_grad_()
    actions = case["actions"].long()[..., None]
    return logits, logits.log_softmax(-1).gather(-1, actions)[..., 0]


def test_log_probabilities_and_exact_kl(case):
    logits, logp = policy(case)
    actions = case["actions"].long()[..., None]
    ref_logp = case["ref_logits"].log_softmax(-1).gather(-1, actions)[..., 0]
    assert_agrees(logp, case["logp"])
    assert_agrees(ref_logp, case["ref_logp"])
    assert_agrees(common.exact_kl(logits, case["ref_logits"]), case["token_kl"])


def test_vimpo(case):
    logits, logp = policy(case)
    kl = common.exact_kl(logits, case["ref_logits"])
    baseline = common.group_mean(case["rewards"], case["groups"])
    assert_agrees(baseline, case["vimpo_reward_baseline"])
    td = vimpo.implied_td(logp, case["ref_logp"], kl, case["mask"], case["beta"])
    lam = case["gae_lambda"]
    raw = vimpo.actor_advantage(td, case["mask"], lam, whiten=False)
    advantage = vimpo.actor_advantage(td, case["mask"], lam)
    assert_agrees(raw, case["vimpo_raw_advantage"], case["mask"])
    assert_agrees(advantage, case["vimpo_advantage"])
    clip = (case["clip_low"], case["clip_high"], case["dual_clip"])
    shared = (case["rewards"], baseline, case["mask"], case["beta"])
    assert_agrees(vimpo.value_loss(logp, case["ref_logp"], kl, *shared), case["vimpo_value_loss"])
    actor = common.clipped_surrogate(logp, case["old_logp"], advantage, case["mask"], *clip)
    assert_agrees(actor, case["vimpo_actor_loss"])
    total = vimpo.vimpo_loss(
        logp, case["old_logp"], case["ref_logp"], kl, *shared, case["actor_coef"], lam, *clip
    )
    assert_agrees(total, case["vimpo_total_loss"])
    (gradient,) = torch.autograd.grad(total, logits)
    assert_agrees(gradient, case["vimpo_grad_policy_logits"])


def test_grpo(case):
    logits, logp = policy(case)
    advantage = grpo.group_advantage(case["rewards"], case["groups"])
    advantage = advantage[:, None] * case["mask"]
    assert_agrees(advantage, case["grpo_advantage"])
    fixed = (logp, case["old_logp"], advantage, case["mask"])
    clip = (case["clip_low"], case["clip_high"], case["dual_clip"])
    token_mean = common.clipped_surrogate(*fixed, *clip)
    assert_agrees(token_mean, case["grpo_loss_token_mean"])
    seq_mean = common.clipped_surrogate(*fixed, *clip, reduction="seq-mean")
    assert_agrees(seq_mean, case["grpo_loss_seq_mean"])
    (gradient,) = torch.autograd.grad(token_mean, logits)
    assert_agrees(gradient, case["grpo_grad_policy_logits"])


def test_ppo(case):
    logits, logp = policy(case)
    advantage, returns = ppo.ppo_advantages(
        case["rewards"], case["old_critic_values"], case["mask"], case["gae_lambda"]
    )
    assert_agrees(advantage, case["ppo_advantage"])
    assert_agrees(returns, case["ppo_returns"], case["mask"])
    clip = (case["clip_low"], case["clip_high"], case["dual_clip"])
    loss = common.clipped_surrogate(logp, case["old_logp"], advantage, case["mask"], *clip)
    assert_agrees(loss, case["ppo_policy_loss"])
    (gradient,) = torch.autograd.grad(loss, logits)
    assert_agrees(gradient, case["ppo_grad_policy_logits"])
    values = case["critic_values"].clone().requires_grad_()
    value_loss = ppo.critic_loss(
        values, returns, case["old_critic_values"], case["mask"], case["value_clip"]
    )
    assert_agrees(value_loss, case["ppo_value_loss"])
    (gradient,) = torch.autograd.grad(value_loss, values)
    assert_agrees(gradient, case["ppo_grad_values"])
