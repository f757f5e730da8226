"""Dynamic sampling: which groups make a batch, and what of it training sees."""

import pytest
import torch

from vimpo.algorithms import Setup, make_algorithm, make_batch
from vimpo.config import ALGORITHMS, Cell, Noise, load_study
from vimpo.objectives.grpo import overlong_penalty
from vimpo.planning.plan import Planner
from vimpo.planning.text import describe
from vimpo.sampling.rollouts import Rollouts, joined_rollouts
from vimpo.tasks.chain import Problem
from vimpo.training.resampling import Sampled, with_signal

MIXED, WRONG, RIGHT = [0.0, 1.0], [0.0, 0.0], [1.0, 1.0]


def sampled(prefix, groups, width=2):
    """One round; every response has `width` tokens, and tells its problem in its text."""
    problems = [Problem(f"{prefix}{i}", "1") for i in range(len(groups))]
    count = 2 * len(groups)
    ids = torch.arange(count)[:, None].expand(count, width) + 1
    ones = torch.ones(count, width)
    rollouts = Rollouts(ids, ones.long(), ids, ones, ones, torch.ones(count, dtype=torch.bool))
    rewards = [r for group in groups for r in group]
    return Sampled(problems, rollouts, [p.id for p in problems for _ in "ab"], rewards, rewards)


@pytest.mark.parametrize(
    ("later", "rounds", "chosen", "used"),
    [
        # the first has one with a signal; the second brings two; one of them completes the batch
        ([[MIXED, WRONG, MIXED]], 9, ["a1", "b0", "b2"], 2),
        ([[MIXED, MIXED, MIXED]], 1, ["a1", "a0", "a2"], 1),  # the cap
        ([[WRONG, RIGHT], [MIXED]], 3, ["a1", "c0", "a0"], 3),  # filled in order
        ([], 9, ["a1", "a0", "a2"], 1),  # no other problem is left
    ],
)
def test_groups_with_a_signal_make_the_batch(later, rounds, chosen, used):
    seen = []

    def another(number, known):
        seen.append((number, len(known)))
        if number > len(later):
            return None
        return sampled("abc"[number], later[number - 1], width=1 + number)

    found, count, tokens = with_signal(sampled("a", [WRONG, MIXED, RIGHT]), rounds, another, 0)
    assert [p.id for p in found.problems] == chosen
    assert count == used
    assert found.texts == [name for name in chosen for _ in range(2)]
    assert len(found.rollouts.mask) == len(found.rewards) == 6
    widths = [2, *(1 + n for n in range(1, used))]
    groups = [3, *map(len, later[: used - 1])]
    assert tokens == sum(2 * n * w for n, w in zip(groups, widths, strict=True))
    assert all(n == i + 1 for i, (n, _) in enumerate(seen))


def test_rounds_of_different_widths_are_one_batch():
    parts = [sampled("a", [MIXED], 1).rollouts, sampled("b", [MIXED], 3).rollouts]
    whole = joined_rollouts(parts, 9)
    assert whole.prompt_ids[0].tolist() == [9, 9, 1]
    assert whole.prompt_mask[0].tolist() == [0, 0, 1]
    assert whole.response_ids[0].tolist() == [1, 9, 9]
    assert whole.mask.tolist() == [[1, 0, 0]] * 2 + [[1, 1, 1]] * 2


def differ(batch):
    groups = batch.groups.unique()
    return [len(batch.rewards[batch.groups == g].unique()) > 1 for g in groups]


def test_in_the_loop_a_batch_has_signals_and_sampling_counts(make_trainer):
    settings = {"noise": "0", "group_size": 4}
    plain = make_trainer("grpo", **settings)
    before = plain.collector.collect(0).batch
    objective = {"objective": "grpo", "rounds": 40}
    first, again = (make_trainer("dapo", objective=objective, **settings) for _ in range(2))
    batch = first.collector.collect(0).batch
    assert not all(differ(before))
    assert all(differ(batch))
    assert len(batch.mask) == len(before.mask)
    assert torch.equal(batch.mask, again.collector.collect(0).batch.mask)
    row, other = first.step(0), plain.step(0)
    assert row["rounds"] > 1
    assert row["sampled_tokens"] > 1.5 * float(batch.mask.sum())
    assert row["accuracy"] == other["accuracy"]  # of all prompts, not of those that were chosen
    assert row["reward"] != other["reward"]
    assert row["no_signal"] == 0
    # one round is GRPO to the last digit
    one = {"objective": "grpo", "rounds": 1, "overlong": None}
    once = make_trainer("dapo", objective=one, **settings).step(0)
    assert once == make_trainer("grpo", **settings).step(0)


def test_the_penalty_is_that_of_dapo():
    """20 tokens, the last 8 of them punished: by the formula of verl, in integers."""

    def expected(length):
        return min(-(length - (20 - 8)) / 8 * 1.0, 0)

    lengths = list(range(1, 21))
    found = overlong_penalty(torch.tensor(lengths).double(), 20, 0.4)
    assert found.tolist() == pytest.approx([expected(n) for n in lengths])
    assert float(found[-1]) == -1


def test_the_advantage_reads_the_punished_reward():
    mask = torch.tensor([[1.0] * 10, [1.0] * 4 + [0.0] * 6])
    batch = make_batch([1.0, 1.0], torch.tensor([0, 0]), mask)
    config = ALGORITHMS["dapo"].model_copy(update={"normalize_std": False})
    found = make_algorithm(config, Setup(10, Noise())).advantage(batch)
    assert found[:, 0].tolist() == pytest.approx([-0.5, 0.5])
    assert not make_algorithm(ALGORITHMS["grpo"], Setup(10, Noise())).advantage(batch).any()


def test_rounds_are_planned():
    study = load_study({"grid": {"algorithms": ["dapo", "grpo"], "sizes": ["xs"]}})
    planner = Planner(study)
    steps = [
        planner.step_s(planner.left["xs"], study.algorithms[name]) for name in ("dapo", "grpo")
    ]
    assert steps[0] - steps[1] == pytest.approx(planner.rollout_s(planner.left["xs"]))
    assert "dapo: 2 rounds of sampling per step" in describe(study)


def test_other_digests_stay_as_they_are():
    cell, plain = Cell("grpo", "xs", "0", 1), load_study({})
    assert not {"rounds", "overlong"} & set(plain.algorithms["grpo"].model_dump())
    for change in ({"rounds": 3}, {"overlong": 0.2}):
        assert load_study({"algorithms": {"grpo": change}}).cell_digest(cell) != plain.cell_digest(
            cell
        )
