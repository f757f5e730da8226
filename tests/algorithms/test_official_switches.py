"""Switches of the official code, each against a computation by hand."""

import math
from collections import defaultdict

import pytest
import torch
from objective_cases import F64

from vimpo.algorithms import Setup, Share, make_algorithm, make_batch
from vimpo.config import Cell, Noise, VimpoConfig, load_study
from vimpo.objectives.adaptive import adaptive_coefficient
from vimpo.objectives.common import exact_kl
from vimpo.sampling.rollouts import micro_batches

REWARDS, GROUPS, LENGTHS = [1.0, 0.0, 1.0, 1.0], [0, 0, 5, 5], [3, 1, 4, 2]
BETA, VOCABULARY = 0.3, 6


@pytest.fixture
def policies():
    """Logits of policy, older policy and reference [B, T, V], and the tokens [B, T]; float64."""
    random = torch.Generator().manual_seed(2)
    shape = (len(LENGTHS), max(LENGTHS), VOCABULARY)
    ref = torch.randn(shape, generator=random, dtype=F64)
    policy = ref + 0.7 * torch.randn(shape, generator=random, dtype=F64)
    old = policy + 0.4 * torch.randn(shape, generator=random, dtype=F64)
    tokens = torch.randint(VOCABULARY, shape[:2], generator=random)
    return policy, old, ref, tokens


def taken(logits, tokens):
    return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


def batch_of(policies):
    policy, old, ref, tokens = policies
    mask = torch.tensor([[1.0] * n + [0.0] * (max(LENGTHS) - n) for n in LENGTHS]).double()
    batch = make_batch(REWARDS, torch.tensor(GROUPS), mask)
    return batch.with_(
        rewards=batch.rewards.double(),
        baseline=batch.baseline.double(),
        logp=taken(policy, tokens),
        old_logp=taken(old, tokens),
        ref_logp=taken(ref, tokens),
        token_kl=exact_kl(policy, ref),
        squares=policy.softmax(-1).square().sum(-1),
    )


def vimpo(**settings):
    return make_algorithm(VimpoConfig(beta=BETA, **settings), Setup(9, Noise()))


def loss_of(algorithm, batch, logp=None, memory=None):
    batch = batch.with_(advantage=algorithm.advantage(batch))
    batch = algorithm.prepared(batch, {} if memory is None else memory)
    return algorithm.loss(batch.logp if logp is None else logp, batch, Share(1.0, 1.0)), batch


def sums(batch):
    """Summed log-ratio and KL of each response, by loops."""
    gap, kl = (batch.logp - batch.ref_logp).tolist(), batch.token_kl.tolist()
    return [(sum(gap[i][:n]), sum(kl[i][:n])) for i, n in enumerate(LENGTHS)]


def group_means(values):
    return [
        sum(x for x, g in zip(values, GROUPS, strict=True) if g == own) / GROUPS.count(own)
        for own in GROUPS
    ]


# --- the value loss -------------------------------------------------------------------------------


def test_soft_values_take_the_kl_out_of_the_start(policies):
    batch = batch_of(policies)
    found, after = loss_of(vimpo(value="soft", actor_coef=0.0), batch)
    start = group_means([r - BETA * kl for r, (_, kl) in zip(REWARDS, sums(batch), strict=True)])
    residuals = [
        BETA * gap - (r - v) for (gap, _), r, v in zip(sums(batch), REWARDS, start, strict=True)
    ]
    assert float(found) == pytest.approx(sum(e * e for e in residuals) / 8, abs=1e-9)
    assert after.baseline.tolist() == pytest.approx(start)


@pytest.mark.parametrize("value", ["raw", "soft"])
def test_a_start_is_capped_from_above(policies, value):
    batch = batch_of(policies)
    algorithm = vimpo(value=value, actor_coef=0.0, cap_v0=0.6)
    _, after = loss_of(algorithm, batch)
    cost = BETA if value == "soft" else 0.0
    start = group_means([r - cost * kl for r, (_, kl) in zip(REWARDS, sums(batch), strict=True)])
    assert max(start) > 0.6 > min(start)
    assert after.baseline.tolist() == pytest.approx([min(v, 0.6) for v in start])


def test_large_residuals_count_linearly(policies):
    batch, delta = batch_of(policies), 0.4
    mean = group_means(REWARDS)
    residuals = [
        BETA * (gap - kl) - (r - m)
        for (gap, kl), r, m in zip(sums(batch), REWARDS, mean, strict=True)
    ]
    expected = [e * e / 2 if abs(e) <= delta else delta * (abs(e) - delta / 2) for e in residuals]
    assert min(map(abs, residuals)) < delta < max(map(abs, residuals))
    found, _ = loss_of(vimpo(actor_coef=0.0, huber_delta=delta), batch)
    assert float(found) == pytest.approx(sum(expected) / 4, abs=1e-9)


# --- the adaptive coefficient ---------------------------------------------------------------------


def gradient_rms(loss, logits, mask):
    """rms over tokens of the norm of d loss / d logits, by autograd."""
    (found,) = torch.autograd.grad(loss, logits, retain_graph=True)
    return math.sqrt(float(found.norm(dim=-1)[mask.bool()].square().mean()))


@pytest.mark.parametrize("huber", [None, 0.4])
def test_the_coefficient_makes_the_actors_gradient_a_share_of_the_values(policies, huber):
    policy, _, _, tokens = policies
    batch = batch_of(policies)
    logits = policy.clone().requires_grad_()
    logp = taken(logits, tokens)
    value, _ = loss_of(vimpo(actor_coef=0.0, huber_delta=huber), batch, logp)
    both, after = loss_of(vimpo(actor_coef=1.0, huber_delta=huber), batch, logp)
    sizes = [gradient_rms(loss, logits, batch.mask) for loss in (value, both - value)]
    assert float(vimpo().clip_fraction(after)) > 0  # the clip takes part
    memory = {}
    algorithm = vimpo(adaptive_coef=0.025, adaptive_decay=0.5, huber_delta=huber)
    found, after = loss_of(algorithm, batch, logp, memory)
    expected = 0.025 * sizes[0] / sizes[1]
    assert algorithm.metrics(after)["actor_coef"] == pytest.approx(expected, rel=1e-6)
    assert float(found) == pytest.approx(float(value + expected * (both - value)), rel=1e-6)
    assert memory["value_gradient"] == pytest.approx(0.5 * sizes[0], rel=1e-6)
    assert memory["actor_gradient"] == pytest.approx(0.5 * sizes[1], rel=1e-6)


def test_the_running_means_by_hand():
    found, means = adaptive_coefficient(2.0, 4.0, (1.0, 1.0), 0.1, 0.9)
    assert means == pytest.approx((1.1, 1.3))
    assert found == pytest.approx(0.1 * 1.1 / 1.3)
    assert adaptive_coefficient(2.0, 0.0, (1.0, 1.0), 0.1, 0.9) == (0.0, (1.0, 1.0))


# --- statistics of micro-batches ------------------------------------------------------------------


def updated(make_trainer, name, **settings):
    """A batch of 24 responses after one update, and its metrics, a few steps into training."""
    trainer = make_trainer(name, warmup_steps=0, micro_batch=7, **settings)
    trainer.step(0)
    found = trainer.collector.collect(1)
    rollouts, batch = found.rollouts, found.batch
    return trainer._update_policy(rollouts, batch, defaultdict(dict), apply=False)


def test_the_advantage_is_whitened_over_each_micro_batch(make_trainer):
    for statistics, whole in (("batch", True), ("micro_batch", False)):
        batch, _ = updated(make_trainer, "vimpo", statistics=statistics)
        slices = [slice(0, 24)] if whole else micro_batches(24, 7)
        for s in slices:
            on = batch.advantage[s][batch.mask[s].bool()]
            assert float(on.mean()) == pytest.approx(0, abs=1e-4)
            assert float(on.std()) == pytest.approx(1, abs=1e-2)
        parts = [batch.advantage[s][batch.mask[s].bool()] for s in micro_batches(24, 7)]
        alike = all(abs(float(part.std()) - 1) < 1e-2 for part in parts)
        assert alike == (not whole)


def test_token_means_of_micro_batches_weigh_by_responses(make_trainer):
    losses = []
    for statistics in ("batch", "micro_batch"):
        batch, row = updated(make_trainer, "grpo", noise="0", statistics=statistics)
        # all ratios are one, and the loss of a token is minus its advantage
        terms, mask = -batch.advantage, batch.mask.bool()
        if statistics == "batch":
            expected = float(terms[mask].mean())
        else:
            expected = sum(
                float(terms[s][mask[s]].mean()) * (s.stop - s.start) / 24
                for s in micro_batches(24, 7)
            )
        assert row["loss"] == pytest.approx(expected, abs=1e-6)
        losses.append(row["loss"])
    assert abs(losses[0] - losses[1]) > 1e-5


# --- rewards, reference ---------------------------------------------------------------------------


def test_truncated_text_is_wrong_or_graded(make_trainer):
    for setting, expected in (("wrong", 0.0), ("graded", 1.0)):
        trainer = make_trainer("grpo", truncated=setting)
        (problem,) = trainer.task.training_problems(1, 0, 1)
        text = f"...#{problem.answer}"
        assert trainer.collector._clean([problem], [text], [False]) == [expected]
        assert trainer.collector._clean([problem] * 2, [text, "#"], [True, True]) == [1.0, 0.0]


def test_the_reference_becomes_the_policy_every_so_many_steps(make_trainer):
    objective = {"objective": "vimpo", "refresh_every": 2}
    trainer = make_trainer("vimpo", objective=objective, warmup_steps=0)

    def apart():
        pairs = zip(trainer.reference.parameters(), trainer.policy.parameters(), strict=True)
        return max(float((a - b).abs().max()) for a, b in pairs)

    row = trainer.step(0)
    assert apart() > 1e-4
    assert row["reference_kl"] == 0
    base = [p.clone() for p in trainer.reference.parameters()]
    assert trainer.step(1)["reference_kl"] > 0
    assert apart() == 0
    assert trainer.step(2)["reference_kl"] == pytest.approx(0, abs=1e-6)
    # a collapse is still judged by the distance to the base policy
    assert trainer._reference_kl() > 1e-4
    after = list(trainer.reference.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(base, after, strict=True))
    assert apart() > 0


def test_other_digests_stay_as_they_are():
    cell, plain = Cell("vimpo", "xs", "0", 1), load_study({})
    switches = {
        "value": "soft",
        "actor_coef": 0.0,
        "huber_delta": 0.005,
        "cap_v0": 1.0,
        "refresh_every": 4,
    }
    known = set(plain.algorithms["vimpo"].model_dump())
    assert not set(switches) - {"actor_coef"} & known
    assert not {"adaptive_coef", "adaptive_decay"} & known
    assert not {"statistics", "truncated"} & set(plain.train.model_dump())
    changed = load_study({"algorithms": {"vimpo": switches}})
    assert changed.cell_digest(cell) != plain.cell_digest(cell)
    for setting in ({"statistics": "micro_batch"}, {"truncated": "graded"}):
        assert load_study({"train": setting}).cell_digest(cell) != plain.cell_digest(cell)
