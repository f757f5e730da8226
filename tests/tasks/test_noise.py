"""Reward noise: the right share of the right labels flips, and the same ones every time."""

from __future__ import annotations

import random

import pytest

from vimpo.config import Noise
from vimpo.tasks.noise import noisy_rewards, uniform

PROMPTS, GROUP = 2500, 4
IDS = [f"prompt {i}" for i in range(PROMPTS) for _ in range(GROUP)]
INDICES = list(range(GROUP)) * PROMPTS
CLEAN = [float(random.Random(i).random() < 0.3) for i in range(PROMPTS * GROUP)]


def flips(noise, rewards=CLEAN, ids=IDS, indices=INDICES, seed=1, step=0):
    noisy = noisy_rewards(noise, rewards, ids, indices, seed=seed, step=step)
    assert set(noisy) <= {0.0, 1.0}
    return [a != b for a, b in zip(noisy, rewards, strict=True)]


def share(flipped):
    return sum(flipped) / len(flipped)


def noise(mode, rate):
    if mode == "asymmetric":
        return Noise(mode=mode, false_positive=rate, false_negative=rate)
    return Noise(mode=mode, rate=rate)


MODES = ("group", "rollout", "asymmetric")


@pytest.mark.parametrize("mode", MODES)
def test_nothing_flips_at_zero_and_everything_at_one(mode):
    assert not any(flips(noise(mode, 0.0)))
    assert all(flips(noise(mode, 1.0)))


def test_nothing_flips_by_default():
    assert noisy_rewards(Noise(), CLEAN, IDS, INDICES, seed=0, step=0) == CLEAN


@pytest.mark.parametrize("rate", [0.05, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("mode", MODES)
def test_the_share_of_flips_is_the_rate(mode, rate):
    independent = PROMPTS if mode == "group" else PROMPTS * GROUP
    found = share(flips(noise(mode, rate)))
    assert abs(found - rate) < 4 * (rate * (1 - rate) / independent) ** 0.5


def test_a_group_shares_one_decision_and_rollouts_do_not():
    def mixed(mode):
        flipped = flips(noise(mode, 0.5))
        groups = [flipped[i : i + GROUP] for i in range(0, len(flipped), GROUP)]
        return share([0 < sum(group) < GROUP for group in groups])

    assert mixed("group") == 0
    # Independent halves: 1 - 2 / 2^4 of the groups are mixed
    assert abs(mixed("rollout") - 0.875) < 4 * (0.875 * 0.125 / PROMPTS) ** 0.5


def test_asymmetric_rates_belong_to_wrong_and_right_answers():
    flipped = flips(Noise(mode="asymmetric", false_positive=0.1, false_negative=0.4))
    for label, rate in ((0.0, 0.1), (1.0, 0.4)):
        chosen = [f for f, clean in zip(flipped, CLEAN, strict=True) if clean == label]
        assert abs(share(chosen) - rate) < 4 * (rate * (1 - rate) / len(chosen)) ** 0.5
    only_positive = flips(Noise(mode="asymmetric", false_positive=1.0))
    assert only_positive == [clean == 0 for clean in CLEAN]


@pytest.mark.parametrize("mode", MODES)
def test_flips_repeat_and_do_not_depend_on_the_order_of_the_batch(mode):
    flipped = flips(noise(mode, 0.3))
    assert flips(noise(mode, 0.3)) == flipped
    order = list(range(len(CLEAN)))
    random.Random(0).shuffle(order)
    shuffled = flips(
        noise(mode, 0.3), *([values[i] for i in order] for values in (CLEAN, IDS, INDICES))
    )
    assert shuffled == [flipped[i] for i in order]
    assert flips(noise(mode, 0.3), CLEAN[40:44], IDS[40:44], INDICES[40:44]) == flipped[40:44]


@pytest.mark.parametrize("mode", ["group", "rollout"])
def test_flips_do_not_depend_on_the_rewards(mode):
    # What is drawn is the same for every algorithm, however well its policy answers.
    assert flips(noise(mode, 0.3), [0.0] * len(CLEAN)) == flips(noise(mode, 0.3), [1.0] * len(IDS))


@pytest.mark.parametrize("mode", MODES)
def test_what_flips_at_a_low_rate_flips_at_a_higher_one(mode):
    low, high = flips(noise(mode, 0.1)), flips(noise(mode, 0.3))
    assert sum(low) > 500
    assert all(b for a, b in zip(low, high, strict=True) if a)
    assert sum(high) > sum(low)


@pytest.mark.parametrize("mode", MODES)
def test_other_seeds_and_steps_flip_independently(mode):
    first = flips(noise(mode, 0.5))
    for other in (flips(noise(mode, 0.5), seed=2), flips(noise(mode, 0.5), step=1)):
        equal = share([a == b for a, b in zip(first, other, strict=True)])
        assert abs(equal - 0.5) < 4 * (0.25 / PROMPTS) ** 0.5


def test_uniform_is_uniform_and_keeps_the_parts_of_its_key_apart():
    draws = sorted(uniform(i) for i in range(2000))
    assert draws[0] >= 0
    assert draws[-1] < 1
    distance = max(abs(x - (i + 0.5) / 2000) for i, x in enumerate(draws))
    assert distance < 1.95 / 2000**0.5  # Kolmogorov-Smirnov, p about 0.001
    assert len({uniform(1, 23), uniform(12, 3), uniform("123"), uniform(1, 2, 3)}) == 4


@pytest.mark.parametrize("reward", [0.5, -1.0, 2.0, float("nan")])
def test_a_reward_that_is_no_label_is_refused(reward):
    with pytest.raises(ValueError, match="labels 0 and 1, not"):
        noisy_rewards(Noise(), [1.0, reward], ["a", "a"], [0, 1], seed=0, step=0)


def test_sequences_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="argument"):
        noisy_rewards(Noise(), [1.0, 0.0], ["a"], [0, 1], seed=0, step=0)
