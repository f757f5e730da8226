"""The precision probe: known drifts, and the order of the arithmetic on a real network."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from vimpo.config import ChainTask, ModelSpec, Probes, Train
from vimpo.models.networks import build_policy, chain_tokenizer
from vimpo.probes.precision import (
    VARIANTS,
    Float64Norm,
    cast,
    precision_probe,
    precision_rows,
    read_at,
)
from vimpo.probes.subject import Subject
from vimpo.tasks.chain import ChainProblems


def found(rows: list[dict], **labels: str) -> dict:
    (match,) = [r for r in rows if all(r[k] == v for k, v in labels.items())]
    return match


@pytest.fixture(scope="module")
def subject() -> Subject:
    """A random policy and a reference that differs from it a little."""
    tokenizer = chain_tokenizer()
    policy = build_policy(ModelSpec(hidden=32, layers=2, pretrain_steps=1), tokenizer, seed=0)
    reference = copy.deepcopy(policy)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in reference.parameters():
            p += 0.02 * torch.randn(p.shape, generator=generator)
    return Subject(
        policy=policy.eval(),
        reference=reference.eval(),
        critic=None,
        tokenizer=tokenizer,
        task=ChainProblems(ChainTask()),
        train=Train(max_response=40),
        probes=Probes(),
        beta=0.02,
        lam=1.0,
    )


@pytest.fixture(scope="module")
def rows(subject) -> list[dict]:
    return precision_probe(subject)


def test_fewer_bits_drift_further(rows):
    drift = {
        name: found(rows, predictor=name, target="log_ratio", position="all", metric="rms_drift")
        for name in VARIANTS
    }
    float32, careful, careless = (drift[name]["value"] for name in VARIANTS)
    assert 0 < float32 < 1e-4
    assert 100 * float32 < careful
    assert 100 * float32 < careless


def test_published_benchmarks_of_a_chain_task_have_no_length(subject, rows):
    chains = {name: b.model_dump() for name, b in ChainTask().benchmarks.items()}
    mixed = ChainTask(benchmarks=chains | {"aime": {"task": "aime24"}})
    assert precision_probe(replace(subject, task=ChainProblems(mixed))) == rows


def test_drift_grows_along_the_response(rows):
    labels = {"predictor": "bfloat16", "target": "log_ratio", "metric": "rms_drift"}
    early = found(rows, position="4", **labels)
    late = found(rows, position="32", **labels)
    assert late["value"] > early["value"]
    assert late["n"] <= early["n"]


def test_float64_agrees_with_the_reading_of_the_probes(subject):
    (rollouts,) = subject.sample([[3, 4, 5], [6, 7]], "test", 3)
    log_ratio, td = read_at(subject, [rollouts], torch.float64, torch.float64)
    reading = subject.read(rollouts)
    mask = reading.mask.numpy().astype(bool)
    expected = reading.log_ratio.double().cumsum(1).numpy()
    assert log_ratio[mask] == pytest.approx(expected[mask], abs=1e-4)
    expected = reading.td.double().cumsum(1).numpy() / subject.beta
    assert td[mask] == pytest.approx(expected[mask], abs=1e-4)


def test_float64_norm_keeps_its_digits(subject):
    norm = next(m for m in subject.policy.modules() if hasattr(m, "variance_epsilon"))
    x = torch.randn(5, norm.weight.numel(), dtype=torch.float64)
    expected = (
        norm.weight.double()
        * x
        / torch.sqrt((x * x).sum(-1, keepdim=True) / x.shape[-1] + norm.variance_epsilon)
    )
    kept = Float64Norm(norm.double())(x)
    norm.float()
    assert float((kept - expected).detach().abs().max()) < 1e-14
    double = cast(subject.policy, torch.float64)
    assert not any(hasattr(m, "variance_epsilon") for m in double.modules())
    assert sum(isinstance(m, Float64Norm) for m in double.modules()) == 2 * 4 + 1
    assert subject.policy.dtype == torch.float32  # a copy was cast


def test_bfloat16_takes_differences_in_bfloat16(subject):
    """The log-ratio of one token is a multiple of bfloat16's spacing at the log-probability."""
    (rollouts,) = subject.sample([[3, 4, 5]], "test")
    first = read_at(subject, [rollouts], torch.bfloat16, torch.bfloat16)[0][0, 0]
    assert first == float(torch.tensor(first).bfloat16())
    careful = read_at(subject, [rollouts], torch.bfloat16, torch.float32)[0][0, 0]
    assert careful != float(torch.tensor(careful).bfloat16())


def test_known_drifts_are_reported():
    """An error of c per token: c t after t tokens, and beta c t in the value."""
    rng = np.random.default_rng(0)
    counts = np.array([6] * 5 + [20] * 5)
    truth = (rng.normal(size=(10, 20)).cumsum(1), rng.normal(size=(10, 20)).cumsum(1))
    found_ = tuple(x + 0.01 * np.arange(1, 21) for x in truth)
    rows = precision_rows("x", found_, truth, counts, beta=0.5)
    assert [r["position"] for r in rows if r["metric"] == "relative_drift"] == [
        "4",
        "8",
        "16",
        "all",
    ]
    for place, tokens, n in (("4", 4, 10), ("8", 8, 5), ("16", 16, 5)):
        labels = {"position": place, "metric": "rms_drift"}
        ratio = found(rows, target="log_ratio", **labels)
        assert ratio["value"] == pytest.approx(0.01 * tokens)
        assert ratio["n"] == n
        value = found(rows, target="implied_value", **labels)
        assert value["value"] == pytest.approx(0.5 * 0.01 * tokens)
        used = np.flatnonzero(counts >= tokens)
        spread = 0.5 * truth[1][used, tokens - 1].std(ddof=1)
        relative = found(rows, position=place, metric="relative_drift")
        assert relative["value"] == pytest.approx(value["value"] / spread)
    whole = found(rows, target="log_ratio", position="all", metric="rms_drift")
    assert whole["value"] == pytest.approx(0.01 * math.sqrt((6**2 + 20**2) / 2))


def test_equal_policies_have_nothing_to_be_relative_to():
    zero = np.zeros((6, 8))
    rows = precision_rows("x", (zero, zero), (zero, zero), np.full(6, 8), beta=0.1)
    relative = found(rows, position="all", metric="relative_drift")
    assert relative["reason"] == "the true summed td does not vary"
    assert found(rows, position="all", target="log_ratio", metric="rms_drift")["value"] == 0
