"""Probes of large models: bounded batches and logits in chunks read what the plain way reads."""

from __future__ import annotations

import copy
import dataclasses
import gc
import math
import weakref

import numpy as np
import pytest
import torch

from vimpo.config import ChainTask, ModelSpec, Probes, Train
from vimpo.models.networks import Critic, build_policy, chain_tokenizer
from vimpo.models.passes import positions
from vimpo.objectives import chunked
from vimpo.probes import IS_THE_TRUTH, precision
from vimpo.probes.credit import credit_probe
from vimpo.probes.precision import precision_probe, read_at
from vimpo.probes.subject import Subject, responses
from vimpo.tasks.chain import ChainProblems

CHUNK = 7


@pytest.fixture(scope="module")
def plain() -> Subject:
    """A random policy, a reference that differs from it, and a critic; everything at once."""
    tokenizer = chain_tokenizer()
    policy = build_policy(ModelSpec(hidden=32, layers=2, pretrain_steps=1), tokenizer, seed=0)
    reference = copy.deepcopy(policy)
    critic = Critic.from_policy(policy)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in [*reference.parameters(), *critic.head.parameters()]:
            p += 0.05 * torch.randn(p.shape, generator=generator)
    return Subject(
        policy=policy.eval(),
        reference=reference.eval(),
        critic=critic.eval(),
        tokenizer=tokenizer,
        task=ChainProblems(ChainTask()),
        train=Train(max_response=30, temperature=1.3),
        probes=Probes(),
        beta=0.02,
        lam=1.0,
    )


@pytest.fixture
def lean(plain) -> Subject:
    """The same in chunks and few rows; it fails where a model makes the logits of many tokens."""

    def refuse(_, inputs):
        assert inputs[0].shape[1] == 1, "not a sampler's logits of the last token"

    networks = [copy.deepcopy(model) for model in (plain.policy, plain.reference)]
    for model in networks:
        model.lm_head.register_forward_pre_hook(refuse)
    policy, reference = networks
    return dataclasses.replace(
        plain, policy=policy, reference=reference, read_rows=3, sample_rows=5, chunk=CHUNK
    )


@pytest.fixture
def held(monkeypatch) -> list[int]:
    """Tokens of each piece of logits that is formed in chunks."""
    sizes, whole = [], chunked._log_probs

    def counted(head, rows, temperature):
        found = whole(head, rows, temperature)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(chunked, "_log_probs", counted)
    return sizes


def rollouts_of(subject: Subject) -> list:
    prompts = [subject.encode(p) for p in subject.problems(8, 0)]
    return subject.sample(prompts, "test", 2)


def test_batches_change_no_response(plain, lean):
    ours, theirs = rollouts_of(lean), rollouts_of(plain)
    assert [len(chunk.mask) for chunk in ours] == [4] * 4  # whole groups, at most five rows
    assert len(theirs) == 1
    assert responses(ours) == responses(theirs)


def test_chunked_reading_equals_plain_reading(plain, lean, held):
    (rollouts,) = rollouts_of(plain)
    expected = plain.read(rollouts)
    assert held == []
    found = lean.read(rollouts)
    assert max(held) == CHUNK
    assert sum(held) == 2 * int(rollouts.mask.sum())  # of the policy, and of the reference
    for name in ("mask", "log_ratio", "token_kl", "td", "values"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.shape == theirs.shape
        assert float((ours - theirs).abs().max()) < 1e-5, name
    assert float(expected.token_kl.max()) > 1e-3
    assert float(expected.values.abs().max()) > 1e-3


def test_readings_are_at_the_temperature_of_training(plain):
    (rollouts,) = rollouts_of(plain)
    found = plain.read(rollouts).log_ratio.double().cumsum(1).numpy()
    ids, mask = rollouts.inputs()
    cold = dataclasses.replace(plain, train=Train(max_response=30, temperature=1.0))
    with torch.no_grad():
        logp, ref_logp = (
            (model(ids, attention_mask=mask, position_ids=positions(mask)).logits / 1.3)
            .log_softmax(-1)[:, -rollouts.width :]
            .gather(-1, rollouts.response_ids[..., None])[..., 0]
            for model in (plain.policy, plain.reference)
        )
    expected = ((logp - ref_logp) * rollouts.mask).double().cumsum(1).numpy()
    assert found == pytest.approx(expected, abs=1e-4)
    other = cold.read(rollouts).log_ratio.double().cumsum(1).numpy()
    assert np.abs(other - expected).max() > 0.01


@pytest.mark.parametrize(
    ("weights", "softmax", "rounding"),
    [(torch.float64, torch.float64, 1e-10), (torch.float32, torch.float32, 1e-5)],
)
def test_chunked_precision_equals_the_plain_one(
    plain, lean, monkeypatch, weights, softmax, rounding
):
    sizes, whole = [], precision._log_probs

    def counted(*arguments):
        found = whole(*arguments)
        sizes.append(found[..., 0].numel())
        return found

    monkeypatch.setattr(precision, "_log_probs", counted)
    chunks = rollouts_of(lean)
    lengths = np.array([len(ids) for ids in responses(chunks)[0]])
    plain_way, ours = (read_at(s, chunks, weights, softmax) for s in (plain, lean))
    for found, expected in zip(ours, plain_way, strict=True):
        on = np.arange(found.shape[1]) < lengths[:, None]
        assert np.abs(found - expected)[on].max() < rounding
        assert np.abs(expected[on]).max() > 0.01
    plain_pieces = 2 * len(chunks)
    assert max(sizes[:plain_pieces]) > CHUNK
    assert max(sizes[plain_pieces:]) == CHUNK


def test_one_copy_of_one_model_is_held_at_a_time(lean, monkeypatch):
    made, cast = [], precision.cast

    def alone(model, dtype):
        gc.collect()
        assert all(copy_() is None for copy_ in made)
        found = cast(model, dtype)
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(precision, "cast", alone)
    read_at(lean, rollouts_of(lean), torch.float64, torch.float64)
    assert len(made) == 2


def test_float32_is_the_truth_of_a_policy_that_is_too_large_for_float64(plain, monkeypatch):
    read, precisions = precision.read_at, []

    def watched(subject, chunks, weights, softmax):
        precisions.append(weights)
        return read(subject, chunks, weights, softmax)

    monkeypatch.setattr(precision, "read_at", watched)
    monkeypatch.setattr(precision, "DOUBLED", 10)
    rows = precision_probe(plain)
    assert precisions == [torch.float32, torch.bfloat16, torch.bfloat16]
    drift = {
        r["predictor"]: r for r in rows if (r["position"], r["metric"]) == ("all", "rms_drift")
    }
    assert math.isnan(drift["float32"]["value"])
    assert drift["bfloat16"]["value"] > 0
    assert {r["reason"] for r in rows if r["predictor"] == "float32"} == {IS_THE_TRUTH.text}
    assert {r["reason"] for r in rows if r["predictor"] != "float32"} == {""}


def test_credit_is_the_same_in_chunks(plain, lean):
    plain, lean = (dataclasses.replace(s, probes=Probes(credit_rollouts=12)) for s in (plain, lean))
    for ours, theirs in zip(credit_probe(lean), credit_probe(plain), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3, nan_ok=True)
