"""Baselines of the value probe: closed forms, and a critic that must find solved values."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from toy_policies import LIMIT, Lookup, toy_subject

from vimpo.config import ModelSpec, Probes
from vimpo.config.judging import Baselines
from vimpo.models.networks import build_policy, chain_tokenizer
from vimpo.probes.baselines import (
    EVERY,
    FLAT,
    Moments,
    Outcomes,
    _epochs,
    error,
    fit_critic,
    fit_linear,
    log_probability,
    ridge,
)
from vimpo.probes.subject import Reading
from vimpo.probes.value import SCALE_FREE, measure_prefixes, value_rows

# --- log-probability -----------------------------------------------------------------------------


def test_log_probability_sums_what_came_before():
    logp = torch.tensor([[-1.0, -2.0, -4.0], [-0.5, -0.25, 0.0]])
    reading = Reading(*(torch.ones_like(logp) for _ in range(4)), None, logp)
    expected = [[0, -1, -3], [0, -0.5, -0.75]]
    assert log_probability(None, reading).tolist() == expected


def test_log_probability_is_judged_by_order_and_shape_alone():
    subject, _ = toy_subject(problems=40, continuations=8, baseline_continuations=8)
    prefixes = measure_prefixes(subject, {"log_probability": log_probability})
    (rollouts,) = subject.sample([subject.encode(p) for p in subject.problems(40, 0)], "value")
    place, cut = 7, prefixes.tokens[7, 1]
    tokens = [*rollouts.prompt_ids[place].tolist(), *rollouts.response_ids[place].tolist()]
    table = subject.policy.table.log_softmax(-1)
    expected = sum(float(table[t, tokens[t], tokens[t + 1]]) for t in range(cut))
    value, start = prefixes.more["log_probability"]
    assert value[place, 1] == pytest.approx(expected, rel=1e-5)
    assert not start.any()
    rows = [r for r in value_rows(prefixes, 0) if r["predictor"] == "log_probability"]
    assert {r["metric"] for r in rows} == set(SCALE_FREE)


# --- a linear probe ------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [1e-6, 0.3])
def test_ridge_is_least_squares_with_the_penalty_as_further_rows(penalty):
    rng = np.random.default_rng(0)
    x, y = rng.normal(2, [[1, 5, 0.2]], (40, 3)), rng.normal(size=40)
    moments = Moments()
    for s in (slice(0, 17), slice(17, 40)):  # in two parts
        moments.add(torch.tensor(x[s]), torch.tensor(y[s]))
    weights, level = ridge(moments, penalty)
    # mean error + penalty |w std|^2, as ordinary least squares over 40 + 3 rows
    rows = np.vstack(
        [np.c_[x, np.ones(40)], np.c_[np.diag(np.sqrt(40 * penalty) * x.std(0)), [0] * 3]]
    )
    expected = np.linalg.lstsq(rows, np.r_[y, [0] * 3], rcond=None)[0]
    assert [*weights.tolist(), float(level)] == pytest.approx(expected.tolist(), rel=1e-6)
    away = y - x @ weights.numpy() - float(level)
    assert moments.error(weights, level) == pytest.approx((away**2).mean())


def test_ridge_gives_a_constant_feature_no_weight():
    x = torch.tensor([[1.0, 3.0], [2.0, 3.0], [4.0, 3.0 + FLAT]], dtype=torch.float64)
    moments = Moments()
    moments.add(x, 2 * x[:, 0] - 1)
    weights, level = ridge(moments, 1e-9)
    assert weights.tolist() == pytest.approx([2, 0], abs=1e-6)
    assert float(level) == pytest.approx(-1, abs=1e-6)


def test_the_linear_probe_finds_what_is_linear_in_the_states():
    """Responses of one token, whose reward is a linear function of the state before it."""
    spec = ModelSpec(hidden=16, layers=1, pretrain_steps=1)
    policy = build_policy(spec, chain_tokenizer(), seed=0).eval()
    toy, _ = toy_subject()
    subject = type(toy)(**vars(toy) | {"policy": policy, "critic": None, "read_rows": 7})
    prompts = [[3, i % 16 + 2] for i in range(64)]
    with torch.no_grad():
        states = policy.base_model(input_ids=torch.tensor(prompts)).last_hidden_state[:, -1]
    rewards = states.double() @ torch.linspace(-1, 1, 16, dtype=torch.float64)
    data = Outcomes(subject, prompts, [[5]] * 64, rewards)
    _, held_out = data.split()
    assert error(fit_linear(data), data, held_out) < 1e-4 * float(rewards.var())


# --- a critic ------------------------------------------------------------------------------------


class Table(torch.nn.Module):
    """A critic of one number per place and last token."""

    def __init__(self) -> None:
        super().__init__()
        self.values = torch.nn.Parameter(torch.full((LIMIT + 1, 5), 0.5))

    def forward(self, ids, attention_mask, last):
        lookup = Lookup(np.zeros(1))
        lookup.table = self.values
        return lookup(ids, attention_mask, last)


SETTINGS = Baselines(rollouts=3000, updates=400, learning_rate=0.05, batch_size=300, patience=20)


def test_the_ceiling_finds_the_solved_values():
    """A critic that can hold any value is fitted to those of backward induction."""
    subject, solved = toy_subject()
    data, critic = Outcomes.sampled(subject, 3000), Table()
    errors = fit_critic(critic, data, SETTINGS, seed=0)
    visits = np.zeros((LIMIT + 1, 5))
    for prompt, tokens in zip(data.prompts, data.tokens, strict=True):
        for place, last in enumerate([*prompt, *tokens][:-1]):
            visits[place, last] += 1
    often = visits > 150
    assert often.sum() >= 10
    found = critic.values.detach().numpy()
    stderr = np.sqrt(np.clip(solved * (1 - solved), 0.01, None) / np.maximum(visits, 1))
    assert (np.abs(found - solved)[often] < 4 * stderr[often] + 0.02).all()
    rows, held_out = data.split()
    assert errors[0] > min(errors) == pytest.approx(error_of(critic, data, held_out))
    assert (len(rows), len(held_out)) == (2400, 600)


def error_of(critic, data, rows) -> float:
    """Mean over tokens, by plain loops."""
    values = critic.values.detach().numpy()
    away = [
        (values[place, last] - float(data.rewards[i])) ** 2
        for i in rows
        for place, last in enumerate([*data.prompts[i], *data.tokens[i]][:-1])
    ]
    return float(np.mean(away))


def test_a_critic_that_only_gets_worse_is_given_back_as_it_was():
    subject, _ = toy_subject()
    data, critic = Outcomes.sampled(subject, 60), Table()
    settings = Baselines(updates=1000, learning_rate=50.0, batch_size=8, patience=3)
    errors = fit_critic(critic, data, settings, seed=0)
    assert (critic.values == 0.5).all()
    assert len(errors) == 1 + settings.patience  # and stopped there
    again = fit_critic(Table(), data, settings, seed=0)
    assert again == errors != fit_critic(Table(), data, settings, seed=1)


def test_every_rollout_is_used_before_any_comes_again():
    batches = _epochs(10, 4, torch.Generator().manual_seed(0))
    first = [next(batches) for _ in range(3)]
    assert [len(b) for b in first] == [4, 4, 2]
    assert sorted(itertools.chain(*first)) == list(range(10))
    assert next(batches) != first[0]


def test_large_batches_are_read_in_parts_of_the_same_gradient():
    found = []
    for rows in (256, 7):
        subject, _ = toy_subject()
        subject = type(subject)(**vars(subject) | {"read_rows": rows})
        data, critic = Outcomes.sampled(subject, 100), Table()
        fit_critic(critic, data, Baselines(updates=EVERY, batch_size=50), seed=0)
        found.append(critic.values.detach().numpy())
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert not np.array_equal(found[0], np.full_like(found[0], 0.5))


# --- common prefixes -----------------------------------------------------------------------------


def test_common_prefixes_are_the_same_for_every_policy_and_judged_on_its_own_values():
    """Two policies over one base: the same prefixes, of which the solved one knows the value."""
    solved, values = toy_subject(problems=60, continuations=64)
    other = type(solved)(**vars(solved) | {"policy": solved.reference, "critic": None})
    found = []
    for subject in (solved, other):
        own = measure_prefixes(subject)
        found.append(measure_prefixes(subject, common=own))
        assert found[-1].baseline is own.baseline
    assert np.array_equal(found[0].tokens, found[1].tokens)
    assert not np.array_equal(found[0].outcomes, found[1].outcomes)
    # The base's rollouts, drawn again by hand, and the solved policy's value there.
    prompts = [solved.encode(p) for p in solved.problems(60, 0)]
    (rollouts,) = other.sample(prompts, "common")
    whole = torch.cat([rollouts.prompt_ids, rollouts.response_ids], 1).numpy()
    true = values[found[0].tokens, np.take_along_axis(whole, found[0].tokens, 1)]
    start = values[0, whole[:, 0]]
    assert found[0].implied == pytest.approx(true - start[:, None], abs=1e-5)
    measured, open_ = found[0].outcomes.mean(-1), (true > 0.01) & (true < 0.99)
    z = (measured - true)[open_] / np.sqrt(true * (1 - true) / 64)[open_]
    assert abs(z.mean()) < 4 / math.sqrt(z.size)
    assert z.std() == pytest.approx(1, abs=0.15)
    labels = {r["probe"] for r in value_rows(found[0], 0, "common")}
    assert labels == {"common"}


def test_the_new_probes_are_off_and_leave_no_trace_unless_asked_for():
    assert Probes().model_dump().keys().isdisjoint({"common", "pairs", "baselines"})
    asked = Probes(common=True, pairs=2, baselines=Baselines()).model_dump()
    assert {"common", "pairs", "baselines"} <= set(asked)
