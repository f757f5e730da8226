"""Precision probe: how far does the implied value drift when computed in fewer bits?

The same rollouts, on chains from short to long, are read at four precisions:

    float64                   weights, activations and log-softmax: the truth
    float32                   all of them in float32
    bfloat16_float32_softmax  weights and activations in bfloat16; log-softmax of the logits, and
                              everything after it, in float32: what careful trainers do
    bfloat16                  weights, activations, log-softmax, log-ratio and KL in bfloat16

What a model's own code rounds to float32 stays so at every precision: gated norms of recurrent
layers, and the logits of Mamba.

For a policy with more than :data:`DOUBLED` parameters float32 is the truth, because float64 takes 8
bytes per parameter and GPUs are slow at it; the rows of float32 then have no value, and say so. One
model at a time is on the device, and runtime.logit_chunk limits the logits.

Rows are by the number t of response tokens that are summed, in float32 or better: an independent
error per token grows with sqrt(t), a biased one with t. Over the rollouts with at least t tokens,
and `all` for whole responses:

    rms_drift, mean_drift     of the summed log-ratio (nats) and of the implied value (reward)
    relative_drift            rms_drift of the implied value over the standard deviation, between
                              rollouts, of its true summed td
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from vimpo.config.asked import Benchmark
from vimpo.models.networks import parameter_count
from vimpo.models.passes import positions
from vimpo.models.scoring import Reader, Reading
from vimpo.probes import IS_THE_TRUTH
from vimpo.probes.measures import cluster_mean, root_mean, row
from vimpo.probes.subject import Subject, responses
from vimpo.sampling.rollouts import Rollouts, micro_batches
from vimpo.storage.codes import NO_REASON, Reason, Why
from vimpo.tasks import Problem
from vimpo.tasks.chain import ChainProblems

PURPOSE = 10  # of the problems' seed, plus the number of operators
LONGEST = 8  # operators, unless a benchmark has more
ROLLOUTS = 6  # of each length
LENGTHS = (4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 2048, 4096, 8192)
FEWEST = 5  # rollouts per row
CONSTANT = Why(Reason.NO_VARIATION, "the true summed td does not vary")
DOUBLED = 10**9  # parameters up to which float64 is the truth
VARIANTS = {
    "float32": (torch.float32, torch.float32),
    "bfloat16_float32_softmax": (torch.bfloat16, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
}


class Float64Norm(nn.Module):
    """RMSNorm without the detour through float32 that transformers' version always takes."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.epsilon = norm.weight, norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon)


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A copy of the model in another precision."""
    model = copy.deepcopy(model).to(dtype)  # type: ignore[arg-type]  # wrapped: mypy asks for self
    if dtype == torch.float64:
        # The other ways of computing experts have no kernel for float64. Dense models ignore it.
        model.set_experts_implementation("eager")
        for name, module in list(model.named_modules()):
            if hasattr(module, "variance_epsilon") and _reads_one_tensor(module):
                parent, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, Float64Norm(module))
    return model


def _reads_one_tensor(norm: nn.Module) -> bool:
    """False for the gated norms of recurrent layers, whose insides stay in float32."""
    return len(inspect.signature(norm.forward).parameters) == 1


@contextmanager
def alone_on_device(subject: Subject) -> Iterator[None]:
    """Policy, reference and critic wait in main memory, and return afterwards."""
    loaded: list[nn.Module | None] = [subject.policy, subject.reference, subject.critic]
    networks = [m for m in loaded if m is not None]
    places = [next(m.parameters()).device for m in networks]
    for model in networks:
        model.to("cpu")
    try:
        yield
    finally:
        for model, device in zip(networks, places, strict=True):
            model.to(device)


@torch.no_grad()
def read_at(
    subject: Subject, chunks: Sequence[Rollouts], weights: torch.dtype, softmax: torch.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Log-ratio and td / beta, both in nats and summed over tokens. -> [B, T], [B, T], float64

    Differences are taken at the precision of the log-softmax, sums in float32 or better. chunks:
    rollouts of B rows in all, of at most T tokens.
    """
    parts = [c.rows(s) for c in chunks for s in micro_batches(len(c.mask), subject.read_rows)]
    how = (weights, chunks[0].mask.device, subject.chunk)
    policy = [(x.cpu(), *head) for x, *head in _readings(subject.policy, parts, *how)]
    reference = _readings(subject.reference, parts, *how)
    sums = [
        _summed(subject, part, p, q, softmax)
        for part, p, q in zip(parts, policy, reference, strict=True)
    ]
    width = max(s.shape[-1] for s in sums)
    padded = [np.pad(s, ((0, 0), (0, 0), (0, width - s.shape[-1]))) for s in sums]
    log_ratio, td = np.concatenate(padded, 1)
    return log_ratio, td


def _readings(
    model: PreTrainedModel,
    parts: Sequence[Rollouts],
    dtype: torch.dtype,
    device: torch.device,
    chunk: int | None,
) -> Iterator[Reading]:
    """The output of a copy of the model in another precision on each part, unrounded."""
    model = cast(model, dtype).to(device)  # type: ignore[arg-type]  # wrapped, as in cast
    for part in parts:
        ids, attention_mask = part.inputs()
        if chunk:
            yield Reader(model, 1.0, chunk).read(ids, attention_mask, part.width)
            continue
        # Reader would round the logits to float32.
        output = model(
            input_ids=ids,
            attention_mask=attention_mask,
            position_ids=positions(attention_mask),
            use_cache=False,
            logits_to_keep=part.width,
        )
        yield (output.logits,)


def _summed(
    subject: Subject, part: Rollouts, policy: Reading, reference: Reading, dtype: torch.dtype
) -> np.ndarray:
    """Summed log-ratio and td / beta of some rollouts. -> [2, b, T], float64"""
    rows, width = part.mask.shape
    how = (subject.train.temperature, dtype, part.mask.device)
    columns = max(1, subject.chunk // rows) if subject.chunk else width
    found: list[tuple[Tensor, Tensor]] = []
    for place in micro_batches(width, columns):
        log_p, log_q = (_log_probs(r, place, *how) for r in (policy, reference))
        index = part.response_ids[:, place, None]
        log_ratio = (log_p.gather(-1, index) - log_q.gather(-1, index)).squeeze(-1)
        found.append((log_ratio, log_ratio - (log_p.exp() * (log_p - log_q)).sum(-1)))
    on, summed = part.mask.bool(), torch.promote_types(dtype, torch.float32)
    whole = [torch.cat(pieces, 1) for pieces in zip(*found, strict=True)]
    sums = [torch.where(on, x, 0.0).to(summed).cumsum(1) for x in whole]
    return torch.stack(sums).double().cpu().numpy()


def _log_probs(
    reading: Reading, place: slice, temperature: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Log-softmax of some tokens of all rows. -> [b, t, V]"""
    x, *head = reading
    x = x[:, place].to(device)
    logits = linear(x, *head) if head else x
    return (logits.to(dtype) / temperature).log_softmax(-1)


def precision_probe(subject: Subject) -> list[dict]:
    """Fresh rollouts, read at every precision. -> rows of probes.parquet"""
    prompts = [subject.encode(problem) for problem in _problems(subject)]
    chunks = subject.sample(prompts, "precision")
    counts = np.array([len(ids) for ids in responses(chunks)[0]])
    large = parameter_count(subject.policy) > DOUBLED
    best = torch.float32 if large else torch.float64
    rows = []
    with alone_on_device(subject):
        truth = read_at(subject, chunks, best, best)
        for name, precisions in VARIANTS.items():
            if precisions == (best, best):
                nothing = np.full_like(truth[0], np.nan), np.full_like(truth[1], np.nan)
                rows += precision_rows(name, nothing, truth, counts, subject.beta, IS_THE_TRUTH)
            else:
                found = read_at(subject, chunks, *precisions)
                rows += precision_rows(name, found, truth, counts, subject.beta)
    return rows


def _problems(subject: Subject) -> list[Problem]:
    """Chains of every length from the shortest trained one; for datasets, the task's mixture."""
    if not isinstance(subject.task, ChainProblems):
        return subject.problems(subject.probes.problems, PURPOSE)
    config = subject.task.config
    lengths = [*config.train_operators, LONGEST]
    lengths += [b.operators for b in config.benchmarks.values() if isinstance(b, Benchmark)]
    return [
        problem
        for operators in range(min(lengths), max(lengths) + 1)
        for problem in subject.problems(ROLLOUTS, PURPOSE + operators, [operators])
    ]


def precision_rows(
    name: str,
    found: tuple[np.ndarray, np.ndarray],
    truth: tuple[np.ndarray, np.ndarray],
    counts: np.ndarray,
    beta: float,
    absent: Why = NO_REASON,
) -> list[dict]:
    """found, truth: summed log-ratio and td / beta [B, T]; counts [B]: tokens of each response.

    absent: why `found` is NaN, if it is.
    """
    rows = []
    places = {str(t): t for t in LENGTHS if (counts >= t).sum() >= FEWEST} | {"all": 0}
    for place, t in places.items():
        index = np.flatnonzero(counts >= t)
        each = np.arange(len(index))
        last = np.full(len(index), t - 1) if t else counts[index] - 1
        true_td = beta * truth[1][index, last]
        for target, unit, scale, k in (
            ("log_ratio", "nats", 1.0, 0),
            ("implied_value", "reward", beta, 1),
        ):
            drift = scale * (found[k][index, last] - truth[k][index, last])
            labels = ("precision", name, target, place)
            rms, stderr = root_mean(drift, each)
            rows.append(row(*labels, "rms_drift", rms, stderr, len(index), unit, absent))
            mean = cluster_mean(drift, each)
            rows.append(row(*labels, "mean_drift", *mean, len(index), unit, absent))
        spread = true_td.std(ddof=1) if len(index) > 1 else 0.0
        shares = (rms / spread, stderr / spread) if spread > 0 else (np.nan, np.nan)
        reason = absent if absent.code else CONSTANT
        rows.append(row(*labels, "relative_drift", *shares, len(index), "1", reason))
    return rows
