"""Objectives of wrong shapes and of edge cases: an error that names both, or a finite result."""

from __future__ import annotations

import inspect

import pytest
import torch
from objective_cases import F64, MASK, assert_equal, t

from vimpo.objectives import adaptive, common, grpo, ppo, steps, tbrm, value, vimpo

ROWS = ("rewards", "groups", "baseline", "start", "costs", "residual")
CALLS = {
    adaptive.logit_norm: ("logp", "squares"),
    adaptive.value_gradient: ("residual", "norm", "mask", 0.5),
    adaptive.actor_gradient: (
        *("logp", "old_logp", "adv", "norm", "mask"),
        *(0.2, 0.28, 10.0),
    ),
    common.group_mean: ("rewards", "groups"),
    common.gae: ("td", "mask", 1.0),
    common.whiten: ("x", "mask"),
    common.clipped_surrogate: ("logp", "old_logp", "adv", "mask", 0.2, 0.28),
    common.clipped_terms: ("logp", "old_logp", "adv", 0.2, 0.28, 10.0),
    common.response_logp: ("logp", "mask"),
    common.clip_fraction: ("logp", "old_logp", "adv", "mask", 0.2, 0.28),
    common.exact_kl: ("policy_logits", "ref_logits"),
    common.top_k_kl: ("policy_logits", "ref_logits", 2),
    common.k2_kl: ("logp", "ref_logp"),
    common.k3_kl: ("logp", "ref_logp"),
    grpo.group_advantage: ("rewards", "groups"),
    grpo.corrected_advantage: ("rewards", "groups", 0.1, 0.2),
    steps.step_credit: ("steps", "grades", "mask"),
    steps.segment_advantage: ("values", "segments", "rewards", "mask"),
    steps.right_so_far: ("steps", "grades", "mask"),
    steps.graded_values: ("steps", "grades", "rewards", "groups", "mask"),
    steps.shuffled: ("values", "mask", "draws"),
    tbrm.trajectory_residual: ("logp", "ref_logp", "start", "rewards", "mask", 0.5),
    ppo.terminal_rewards: ("rewards", "mask"),
    ppo.critic_td: ("rewards", "values", "mask"),
    ppo.ppo_advantages: ("rewards", "values", "mask", 1.0),
    ppo.critic_loss: ("values", "returns", "old_values", "mask", 0.2),
    ppo.explained_variance: ("values", "returns", "mask"),
    value.explained: ("change", "truth", "weights"),
    value.outcome_explained: ("change", "rewards", "groups", "mask"),
    value.end_explained: ("change", "rewards", "groups", "mask"),
    value.graded_explained: ("change", "steps", "grades", "rewards", "groups", "mask"),
    vimpo.implied_td: ("logp", "ref_logp", "token_kl", "mask", 0.5),
    vimpo.implied_values: ("td", "baseline", "mask"),
    vimpo.value_loss: ("logp", "ref_logp", "token_kl", "rewards", "baseline", "mask", 0.5),
    vimpo.terminal_residual: ("logp", "ref_logp", "token_kl", "rewards", "baseline", "mask", 0.5),
    vimpo.start_values: ("rewards", "groups", "costs"),
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
        elif name in ("steps", "segments"):
            made.append(torch.arange(tokens).expand(rows, tokens) // 2)
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
    # of numbers, of one tensor, or a number
    helpers |= {"adaptive_coefficient", "overlong_penalty", "response_kl"}
    helpers |= {"_later", "_equal_weights", "_outcome"}
    found = {
        f.__name__
        for module in (adaptive, common, grpo, ppo, steps, tbrm, value, vimpo)
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
    all_of_them = ("no tokens", "one token", "equal rewards", "one response", "one column")
    undefined = {
        "explained": all_of_them,  # its own tests
        "outcome_explained": all_of_them,
        "end_explained": all_of_them,
        "graded_explained": all_of_them,
        "explained_variance": ("no tokens", "one token"),  # nothing varies: NaN by contract
        "group_advantage": ("one response",),  # refused by contract
        "corrected_advantage": ("one response",),
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
