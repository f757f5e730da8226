"""Values of states by continuing them, against values that are known exactly."""

import math

import pytest
import torch
from toy_policies import EOS, LETTERS, LIMIT, toy_subject

from vimpo.config import load_study
from vimpo.models.memory import memory_parts, study_numbers, study_workload
from vimpo.objectives.steps import segment_advantage
from vimpo.planning.plan import Planner
from vimpo.sampling.rollouts import Sampling, TorchSampler
from vimpo.training.continuations import Continuer, continued, group_values, starts

K = 400


def continuer(subject, k=K, together=10_000):
    sampling = Sampling(k, LIMIT, 1.0, (EOS,), EOS)
    return Continuer(TorchSampler(subject.policy, sampling), k, LIMIT, together)


def rewards_after(prompt):
    """1 for a response that ended right after an `a`, the prompt's own included."""

    def rewards(responses):
        letters = [[LETTERS.find(prompt) + 1, *ids[: len(ids) - done]] for ids, done in responses]
        return [
            float(done and ids[-1] == 1) for ids, (_, done) in zip(letters, responses, strict=True)
        ]

    return rewards


@pytest.fixture(scope="module")
def toy():
    """A policy with known values V [place, last token], and responses to each letter."""
    subject, values = toy_subject()
    sampling = Sampling(3, LIMIT, 1.0, (EOS,), EOS)
    prompts = [[LETTERS.find(x) + 1] for x in LETTERS]
    rollouts = TorchSampler(subject.policy, sampling).rollouts(prompts, 5)
    return subject, values, rollouts


def test_values_are_those_of_backward_induction(toy):
    subject, values, rollouts = toy
    responses = rollouts.token_lists()
    segments = [list(range(len(ids))) for ids in responses]
    found, _ = continued(
        continuer(subject),
        rollouts,
        segments,
        [1, 2, 3, 4],
        lambda group, given: rewards_after(LETTERS[group])(given),
    )
    misses = []
    for i, ids in enumerate(responses):
        last = [i // 3 + 1, *ids]  # the prompt's letter, then the response
        exact = [values[t, last[t]] for t in range(len(ids))]
        row = found["state_values"][i, : len(ids)].tolist()
        misses += [
            (a - v) / math.sqrt(max(v * (1 - v), 1e-3) / K) for a, v in zip(row, exact, strict=True)
        ]
        assert found["segments"][i, : len(ids)].tolist() == segments[i]
    assert max(map(abs, misses)) < 4.5
    assert len(set(misses)) > 10


def test_a_shared_state_is_continued_once_and_its_draws_depend_on_nothing_else(toy):
    subject, _, _ = toy
    responses, segments = [[1, 2, 3, 0], [1, 2, 4, 0]], [[0, 0, 1, 1], [0, 0, 1, 2]]
    graded = []

    def rewards(given):
        graded.append(len(given))
        return rewards_after("b")(given)

    whole, tokens = group_values(continuer(subject, 6), [2], responses, segments, 9, rewards)
    parts, again = group_values(continuer(subject, 6, 1), [2], responses, segments, 9, rewards)
    assert graded == [18, 18]  # the prompt, [1, 2], and [1, 2, 4]: six of each
    assert (whole, tokens) == (parts, again)
    assert whole[0][:2] == whole[1][:2]
    assert whole[0][2:] == [whole[0][2]] * 2 == [whole[1][2]] * 2
    assert group_values(continuer(subject, 6), [2], responses, segments, 8, rewards) != whole


def test_segments_begin_where_the_index_changes():
    assert starts([0, 0, 1, 1, 3]) == [0, 2, 4]
    assert starts([2]) == [0]


def test_credit_of_segments_by_hand_and_telescoping():
    values = torch.tensor([[0.5, 0.5, 0.8, 0.8, 0.1], [0.3, 0.3, 0.3, 0.0, 0.0]])
    segments = torch.tensor([[0, 0, 1, 1, 2], [0, 0, 0, 0, 0]])
    mask = torch.tensor([[1.0] * 5, [1.0] * 3 + [0.0] * 2])
    found = segment_advantage(values, segments, torch.tensor([1.0, 0.0]), mask)
    assert found[0].tolist() == pytest.approx([0.3, 0.3, -0.7, -0.7, 0.9])
    assert found[1].tolist() == pytest.approx([-0.3] * 3 + [0, 0])
    ends = found[0, [0, 2, 4]]  # one token of each segment
    assert float(ends.sum()) == pytest.approx(1 - 0.5)


# --- in the loop ----------------------------------------------------------------------------------


def test_in_the_loop_states_begin_with_steps_and_sampling_counts(make_trainer):
    trainer = make_trainer("vineppo", noise="0", objective={"objective": "vineppo", "k": 3})
    found = trainer.collector.collect(0)
    rollouts, batch = found.rollouts, found.batch
    for text, index in zip(rollouts.texts(trainer.tokenizer), batch.segments.tolist(), strict=True):
        if "#" in text:  # `4+3=7#7`: the step, the answer with its mark, the end
            assert index[text.index("#")] == index[text.index("#") - 1] + 1
    thirds = batch.state_values * 3
    assert torch.equal(thirds, thirds.round())
    assert 0 < float(batch.state_values.mean()) < 1
    row = trainer.step(0)
    rolled = row["response_length"] * len(batch.mask)
    assert row["sampled_tokens"] > 2 * rolled
    plain = make_trainer("grpo", noise="0").step(0)
    assert plain["sampled_tokens"] == pytest.approx(plain["response_length"] * len(batch.mask))


def test_an_interval_splits_without_steps_and_noise_reaches_continuations(make_trainer):
    objective = {"objective": "vineppo", "k": 2, "interval": 3}
    clean, flipped = (
        make_trainer("vineppo", noise=noise, objective=objective).collector.collect(0).batch
        for noise in ("0", "1")
    )
    width = clean.mask.shape[1]
    assert clean.segments[-1].tolist() == [t // 3 for t in range(width)]
    on = clean.mask.bool()
    assert torch.equal(flipped.state_values[on], 1 - clean.state_values[on])
    assert clean.state_values[on].unique().numel() > 1


def test_the_advantage_is_whitened_change(make_trainer):
    trainer = make_trainer("vineppo", objective={"objective": "vineppo", "k": 3})
    batch = trainer.collector.collect(0).batch
    found, on = trainer.algorithm.advantage(batch), batch.mask.bool()
    assert float(found[on].mean()) == pytest.approx(0, abs=1e-5)
    assert float(found[on].std()) == pytest.approx(1, abs=1e-3)
    raw = segment_advantage(batch.state_values, batch.segments, batch.rewards, batch.mask)
    pair = torch.stack([found[on], raw[on]])
    assert float(torch.corrcoef(pair)[0, 1]) == pytest.approx(1, abs=1e-5)


def test_continuations_are_planned():
    study = load_study({"grid": {"algorithms": ["vineppo", "grpo"], "sizes": ["xs"]}})
    planner = Planner(study)
    shape, work = planner.left["xs"], study_workload(study)
    vine, grpo = (study.algorithms[name] for name in ("vineppo", "grpo"))
    assert planner.step_s(shape, vine) > 2 * planner.step_s(shape, grpo)
    caches = [
        next(
            part.bytes
            for part in memory_parts(shape, objective, work, study_numbers(study))
            if part.part == "kv_cache"
        )
        for objective in (vine, grpo)
    ]
    assert caches[0] == caches[1] * 640 / study.rollouts_per_step
