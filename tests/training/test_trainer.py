"""The training loop: its gradients, its rewards, gradient accumulation, the critic's warm-up."""

from __future__ import annotations

import statistics
from functools import partial
from unittest.mock import Mock

import pytest
import torch

from vimpo.config import VimpoConfig
from vimpo.models.networks import Critic
from vimpo.models.scoring import token_kl
from vimpo.training import trainer as trainer_file
from vimpo.training.pieces import pieces
from vimpo.training.trainer import micro_batches, step_seed

NAMES = ("vimpo", "ppo", "grpo")
VARIANTS = {
    "vimpo": {"objective": "vimpo", "beta": 0.3, "actor_coef": 0.5},
    "vimpo_lam": {"objective": "vimpo", "beta": 0.3, "actor_coef": 0.5, "lam": 0.7},
    "vimpo_value_only": {"objective": "vimpo", "beta": 0.3, "actor_coef": 0.0},
    "ppo": {"objective": "ppo", "lam": 0.9},
    "grpo": {"objective": "grpo"},
    "grpo_naive": {"objective": "grpo", "reduction": "seq-mean"},
    "grpo_kl": {"objective": "grpo", "kl_coef": 0.5},
    "grpo_naive_kl": {"objective": "grpo", "reduction": "seq-mean", "kl_coef": 0.5},
}


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


def distance(a, b):
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


# --- The gradient of a first step, by hand -------------------------------------------------------


def token_weights(algorithm, rewards, owners, lengths):
    """d loss / d logp of every token of each response, if policy, old policy and reference are
    one: all ratios are 1, VIMPO's td is 0 and the critic says 0. owners: the prompt of each."""
    groups = [[r for r, o in zip(rewards, owners, strict=True) if o == own] for own in owners]
    centred = [r - statistics.mean(g) for r, g in zip(rewards, groups, strict=True)]
    tokens = sum(lengths)
    if algorithm.startswith("vimpo"):
        return [-0.3 * c / len(rewards) for c in centred]
    if algorithm == "ppo":
        flat = [r for r, n in zip(rewards, lengths, strict=True) for _ in range(n)]
        return [-(r - statistics.mean(flat)) / statistics.stdev(flat) / tokens for r in rewards]
    spread = [statistics.stdev(g) + 1e-6 for g in groups]
    advantage = [c / s for c, s in zip(centred, spread, strict=True)]
    if algorithm == "grpo":
        return [-a / tokens for a in advantage]
    return [-a / n / len(rewards) for a, n in zip(advantage, lengths, strict=True)]


@pytest.mark.parametrize("micro_batch", [None, 5])
@pytest.mark.parametrize("algorithm", ["vimpo", "vimpo_value_only", "ppo", "grpo", "grpo_naive"])
def test_the_first_gradient_is_the_one_computed_by_hand(make_trainer, algorithm, micro_batch):
    objective = VARIANTS[algorithm] | ({"beta": 0.3} if "vimpo" in algorithm else {"lam": 1.0})
    objective = {k: v for k, v in objective.items() if k != "lam" or algorithm == "ppo"}
    trainer = make_trainer(
        algorithm, objective=objective, micro_batch=micro_batch, grad_clip=1e9, temperature=0.8
    )
    found = trainer.collector.collect(0)
    rollouts, batch = found.rollouts, found.batch
    lengths = [int(n) for n in rollouts.mask.sum(1)]
    rewards, owners = batch.rewards.tolist(), batch.groups.tolist()
    assert 0 < sum(rewards) < len(rewards)
    expected = [torch.zeros_like(p) for p in trainer.policy.parameters()]
    for i, weight in enumerate(token_weights(algorithm, rewards, owners, lengths)):
        prompt = rollouts.prompt_ids[i][rollouts.prompt_mask[i].bool()]
        response = rollouts.response_ids[i, : lengths[i]]
        text = torch.cat([prompt, response])[None]
        logits = trainer.policy(text[:, :-1]).logits[0, -lengths[i] :] / 0.8
        logp = logits.log_softmax(-1)[range(lengths[i]), response].sum()
        gradient = torch.autograd.grad(weight * logp, trainer.policy.parameters())
        expected = [a + g for a, g in zip(expected, gradient, strict=True)]
    trainer.step(0)
    found = [p.grad for p in trainer.policy.parameters()]
    largest = max(float(g.abs().max()) for g in expected)
    assert largest > 1e-3
    assert distance(found, expected) < 1e-4 * largest


@pytest.mark.parametrize("algorithm", NAMES)
def test_gradients_of_one_step_do_not_leak_into_the_next(make_trainer, algorithm):
    trainer, fresh = (make_trainer(algorithm, grad_clip=1e9) for _ in range(2))
    trainer.step(0)
    for name, module in trainer.modules.items():
        fresh.modules[name].load_state_dict(module.state_dict())
    trainer.step(1)
    fresh.step(1)
    for name, module in trainer.modules.items():
        found = [p.grad for p in module.parameters()]
        assert max(float(g.abs().max()) for g in found) > 1e-4
        assert distance(found, [p.grad for p in fresh.modules[name].parameters()]) == 0


# --- Gradient accumulation -----------------------------------------------------------------------


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("algorithm", VARIANTS)
def test_micro_batches_give_the_same_parameters_as_one_batch(make_trainer, algorithm, epochs):
    runs = []
    for size in (None, 7, 1):  # 24 rollouts: at once, 7 + 7 + 7 + 3, one by one
        if size == 1 and epochs > 1:
            continue
        trainer = make_trainer(
            algorithm, objective=VARIANTS[algorithm], micro_batch=size, epochs=epochs
        )
        for optimizer in trainer.optimizers.values():
            # Adam divides by the gradient's size: at 1e-8 it would blow up rounding near zero.
            optimizer.param_groups[0]["eps"] = 1e-2
        start = weights(trainer.policy)
        rows = [trainer.step(step) for step in range(2)]
        assert distance(weights(trainer.policy), start) > 1e-4
        runs.append((trainer, rows))
    whole, rows = runs[0]
    for parts, other in runs[1:]:
        for name in whole.modules:
            found, expected = weights(parts.modules[name]), weights(whole.modules[name])
            assert distance(found, expected) < 1e-6, name
        for a, b in zip(rows, other, strict=True):
            assert a == pytest.approx(b, rel=1e-4, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize(
    ("count", "size", "slices"),
    [
        (5, None, [(0, 5)]),
        (5, 2, [(0, 2), (2, 4), (4, 5)]),
        (4, 2, [(0, 2), (2, 4)]),
        (3, 9, [(0, 3)]),
    ],
)
def test_micro_batches_cut_a_batch_without_gaps(count, size, slices):
    assert [(s.start, s.stop) for s in micro_batches(count, size)] == slices


@pytest.mark.parametrize("algorithm", NAMES)
def test_a_batch_in_pieces_trains_like_one_piece(make_trainer, monkeypatch, algorithm):
    runs = []
    for many, price in ((False, 1e6), (True, 0.0)):
        trainer = make_trainer(algorithm, objective=VARIANTS[algorithm])
        monkeypatch.setattr(trainer, "_price", price)
        monkeypatch.setattr("vimpo.training.trainer.pieces", partial(pieces, block=3))
        for optimizer in trainer.optimizers.values():
            optimizer.param_groups[0]["eps"] = 1e-2  # as above
        rows = [trainer.step(step) for step in range(3)]
        runs.append((trainer, rows))
        drawn = trainer.collector.collect(3).rollouts
        widths = [piece.width for (piece,) in trainer._pieces(drawn)]
        assert (len(widths) > 1) == many
        assert widths == sorted(widths)
        assert not many or widths[0] < widths[-1]
    (whole, expected), (parts, found) = runs
    for name in whole.modules:
        pair = (weights(t.modules[name]) for t in (whole, parts))
        assert distance(*pair) < 1e-6, name
    for a, b in zip(expected, found, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6, nan_ok=True)


def test_rows_of_a_batch_are_sorted_with_all_that_belongs_to_them(make_trainer):
    trainer = make_trainer("grpo")
    found = trainer.collector.collect(0)
    rollouts, clean, batch = found.rollouts, found.clean, found.batch
    lengths = rollouts.mask.sum(1).tolist()
    assert lengths == sorted(lengths)
    c = trainer.config
    problems = trainer.task.training_problems(c.seed, 0, c.train.prompts_per_step)
    owners = [problems[i] for i in batch.groups.tolist()]
    prompts = trainer.tokenizer.batch_decode(rollouts.prompt_ids, skip_special_tokens=True)
    assert prompts == [p.prompt for p in owners]
    assert sum(clean) == sum(trainer.task.rewards(owners, rollouts.texts(trainer.tokenizer)))


@pytest.mark.parametrize("algorithm", NAMES)
def test_later_epochs_are_off_policy_and_the_first_is_not(make_trainer, algorithm):
    once, twice = (make_trainer(algorithm, epochs=n, warmup_steps=0).step(0) for n in (1, 2))
    assert once["approx_kl"] == 0
    assert once["clip_fraction"] == 0
    assert twice["approx_kl"] > 1e-6


@pytest.mark.parametrize("micro_batch", [None, 7])
@pytest.mark.parametrize("algorithm", NAMES)
def test_all_epochs_are_clipped_around_the_policy_that_sampled(
    make_trainer, algorithm, micro_batch
):
    objective = VARIANTS[algorithm] | {"clip_low": 1e-5, "clip_high": 1e-5}
    settings = {"objective": objective, "warmup_steps": 0, "micro_batch": micro_batch}
    rows = [make_trainer(algorithm, epochs=n, **settings).step(0) for n in (1, 2, 3)]
    assert rows[0]["clip_fraction"] == 0
    assert min(row["clip_fraction"] for row in rows[1:]) > 0.1


# --- Rewards -------------------------------------------------------------------------------------


def graded_by_hand(trainer, rollouts):
    """Right is: the text, up to EOS, ends in `#` and the value of its prompt."""
    rewards = []
    for i in range(len(rollouts.mask)):
        prompt = trainer.tokenizer.decode(rollouts.prompt_ids[i][rollouts.prompt_mask[i].bool()])
        ids = rollouts.response_ids[i, : int(rollouts.mask[i].sum())].tolist()
        text = trainer.tokenizer.decode(ids[:-1])
        answer = text.rpartition("#")[2] if "#" in text else None
        rewards.append(float(ids[-1] == 1 and answer == str(eval(prompt.strip("=")))))
    return rewards


def test_the_reward_is_the_clean_one_without_noise_and_flipped_at_one(make_trainer):
    trainer, flipped = make_trainer(noise="0"), make_trainer(noise="1")
    found = trainer.collector.collect(0)
    rollouts, clean, batch = found.rollouts, found.clean, found.batch
    expected = graded_by_hand(trainer, rollouts)
    assert 0 < sum(expected) < len(expected)
    assert clean == expected
    assert batch.rewards.tolist() == expected
    found = flipped.collector.collect(0)
    clean_too, batch = found.clean, found.batch
    assert clean_too == expected
    assert batch.rewards.tolist() == [1 - r for r in expected]
    for group in range(6):
        own = batch.groups == group
        assert own.sum() == 4
        assert set(batch.baseline[own].tolist()) == {float(batch.rewards[own].mean())}
    for step in range(3):
        row, other = trainer.step(step), flipped.step(step)
        assert row["reward"] == pytest.approx(row["accuracy"], abs=1e-7)
        assert other["reward"] == pytest.approx(1 - other["accuracy"], abs=1e-7)


def test_a_response_without_an_end_earns_nothing(make_trainer):
    # Four tokens hold no whole answer, so nothing can end in time and be right.
    clean = make_trainer(max_response=4).collector.collect(0).clean
    assert clean == [0.0] * 24


def test_an_answer_cut_off_before_its_end_earns_nothing(make_trainer, monkeypatch):
    # `3+4=7#7` and EOS fit into 8 tokens, `3-4=-1#-1` does not.
    trainer = make_trainer(max_response=8)
    monkeypatch.setattr("vimpo.tasks.chain.is_right", lambda answer, text: True)
    found = trainer.collector.collect(0)
    rollouts, clean = found.rollouts, found.clean
    ended = [
        ids[int(mask.sum()) - 1] == 1
        for ids, mask in zip(rollouts.response_ids, rollouts.mask, strict=True)
    ]
    assert clean == [float(done) for done in ended]
    assert 0 < sum(clean) < 24


def test_all_algorithms_meet_the_same_prompts_draws_and_noise(make_trainer):
    names = (*NAMES, "vimpo_value_only", "grpo_naive")
    first, *others = [make_trainer(name).collector.collect(2) for name in names]
    assert first.clean != first.batch.rewards.tolist()
    for other in others:
        assert torch.equal(other.rollouts.response_ids, first.rollouts.response_ids)
        assert other.clean == first.clean
        assert torch.equal(other.batch.rewards, first.batch.rewards)
        assert torch.equal(other.batch.groups, first.batch.groups)


def test_the_rows_of_a_first_step_agree_between_algorithms_where_they_must(make_trainer):
    rows = {name: make_trainer(name).step(0) for name in NAMES}
    for key in ("accuracy", "reward", "response_length", "truncated", "learning_rate", "entropy"):
        assert len({row[key] for row in rows.values()}) == 1, key
    assert rows["vimpo"]["reference_kl"] == pytest.approx(0, abs=1e-6)
    assert rows["vimpo"]["terminal_residual"] == pytest.approx(1, abs=1e-6)
    assert rows["ppo"]["value_mean"] == 0
    assert rows["ppo"]["explained_variance"] == pytest.approx(0, abs=1e-6)


def test_draws_of_other_steps_seeds_and_purposes_differ():
    keys = [(s, t, p) for s in range(20) for t in range(20) for p in ("rollout", "other")]
    assert len({step_seed(*key) for key in keys}) == 800
    assert step_seed(1, 2, "rollout") == step_seed(1, 2, "rollout")
    assert all(0 <= step_seed(*key) < 2**56 for key in keys)


# --- Scores --------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scored_log_probabilities_are_those_of_the_sampler(make_trainer, temperature):
    trainer = make_trainer("vimpo", temperature=temperature)
    for step in range(3):
        trainer.step(step)
    rollouts = trainer.collector.collect(3).rollouts
    scores = trainer._score(rollouts)
    difference = (scores.logp.detach() - rollouts.logp) * rollouts.mask
    assert float(difference.abs().max()) < 1e-5
    assert scores.logp.requires_grad
    assert not scores.ref_logp.requires_grad
    assert not scores.token_kl.requires_grad
    assert float(scores.token_kl.abs().max()) > 1e-4


@pytest.mark.parametrize("chunk", [None, 16])
@pytest.mark.parametrize(
    ("epochs", "micro_batch", "passes"), [(1, None, 1), (3, None, 3), (1, 7, 2), (2, 7, 4)]
)
def test_a_frozen_reference_reads_a_batch_once(
    make_trainer, monkeypatch, chunk, epochs, micro_batch, passes
):
    runs = []
    for width in (trainer_file.KEPT_WIDTH, 0):
        monkeypatch.setattr(trainer_file, "KEPT_WIDTH", width)
        trainer = make_trainer(
            "vimpo", epochs=epochs, micro_batch=micro_batch, runtime={"logit_chunk": chunk}
        )
        trainer._price = 0  # two parts where that saves padding
        read = Mock(wraps=trainer._reader.forward)
        monkeypatch.setattr(trainer._reader, "forward", read)
        rows = [trainer.step(step) for step in range(2)]
        runs.append((read.call_count, rows, weights(trainer.policy)))
    (once, kept, its), (several, again, others) = runs
    assert several == passes * once
    assert kept == again
    assert distance(its, others) == 0


def test_kl_estimators_are_those_that_are_configured():
    p = torch.tensor([[[0.5, 0.3, 0.2]]], dtype=torch.float64)
    q = torch.tensor([[[0.25, 0.25, 0.5]]], dtype=torch.float64)
    expected = {
        "exact": 0.5 * 0.6931471805599453 + 0.3 * 0.1823215567939546 - 0.2 * 0.916290731874155,
        "topk": 0.14384103622589042,  # the two less likely tokens merged
        "k2": 0.5 * 0.6931471805599453**2,
        "k3": 0.6931471805599453 - 0.5,
    }
    for name, value in expected.items():
        config = VimpoConfig(kl_estimator=name, kl_top_k=1)
        chosen = (p.log()[..., 0], q.log()[..., 0])
        assert float(token_kl(config, p.log(), q.log(), *chosen)) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("estimator", ["exact", "topk", "k2", "k3"])
def test_vimpo_trains_with_every_estimator(make_trainer, estimator):
    objective = {"objective": "vimpo", "kl_estimator": estimator, "kl_top_k": 3}
    trainer = make_trainer(objective=objective)
    rows = [trainer.step(step) for step in range(3)]
    assert rows[-1]["reference_kl"] > 0


# --- Schedule, critic, references ----------------------------------------------------------------


def test_the_learning_rate_warms_up_linearly_and_stays(make_trainer):
    trainer = make_trainer("ppo", warmup_steps=4)
    rates = [trainer.step(step)["learning_rate"] for step in range(6)]
    assert rates == pytest.approx([0.0005, 0.001, 0.0015, 0.002, 0.002, 0.002], rel=1e-12)
    assert trainer.optimizers["critic"].param_groups[0]["lr"] == pytest.approx(0.006, rel=1e-12)


def test_the_policy_rests_while_the_critic_warms_up(make_trainer):
    trainer = make_trainer("ppo", objective={"objective": "ppo", "critic_warmup": 2}, epochs=2)
    policy, critic = weights(trainer.policy), weights(trainer.critic)
    for step in range(2):
        row = trainer.step(step)
        assert distance(weights(trainer.policy), policy) == 0
        assert row["grad_norm"] == 0
        assert distance(weights(trainer.critic), critic) > 1e-4
        critic = weights(trainer.critic)
    trainer.step(2)
    assert distance(weights(trainer.policy), policy) > 1e-4


def test_the_critic_learns_a_constant_reward(make_trainer):
    # All wrong answers are called right, so every reward is 1.
    trainer = make_trainer("ppo", noise="asymmetric-1-0", steps=30)
    values = [trainer.step(step)["value_mean"] for step in range(30)]
    assert values[0] == 0
    assert values[-1] > 0.5


def test_the_reference_stays_what_the_policy_was(make_trainer):
    trainer = make_trainer("vimpo")
    start = weights(trainer.policy)
    for step in range(2):
        trainer.step(step)
    assert distance(weights(trainer.reference), start) == 0
    assert distance(weights(trainer.policy), start) > 1e-4


@pytest.mark.parametrize(
    ("algorithm", "networks"), [("vimpo", 2), ("ppo", 2), ("grpo", 1), ("vimpo_value_only", 2)]
)
def test_only_the_networks_that_an_algorithm_needs_are_held(make_trainer, algorithm, networks):
    trainer = make_trainer(algorithm)
    assert len(trainer.networks()) == networks
    assert isinstance(trainer.critic, Critic) is (algorithm == "ppo")
    assert (trainer.reference is not None) is algorithm.startswith("vimpo")


def test_gradients_are_clipped_to_the_configured_norm(make_trainer):
    trainer = make_trainer("grpo", grad_clip=1e-3)
    norm = trainer.step(0)["grad_norm"]
    total = torch.stack([p.grad.norm() for p in trainer.policy.parameters()]).norm()
    assert norm > 0.01  # what is recorded is the norm before clipping
    assert float(total) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("algorithm", NAMES)
def test_phases_of_a_step_are_timed_once(make_trainer, algorithm):
    trainer = make_trainer(algorithm)
    trainer.step(0)
    expected = {"rollout", "update"}
    expected |= {"critic"} if algorithm == "ppo" else set()
    expected |= {"reference"} if algorithm == "vimpo" else set()
    assert set(trainer.clock.seconds) == expected <= set(trainer.phases)
    assert min(trainer.clock.seconds.values()) > 0
