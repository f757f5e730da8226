"""Precision probe: how far does the implied value drift when it is computed in fewer bits?

The same rollouts, from short problems to long ones, are read at four precisions:

    float64                   weights, activations and log-softmax: the truth
    float32                   all of them in float32
    bfloat16_float32_softmax  weights and activations in bfloat16, log-softmax of its logits, and
                              all that follows, in float32: what careful trainers do
    bfloat16                  weights, activations, log-softmax, log-ratio and KL in bfloat16

Rows are by the number t of response tokens that are summed, in float32 or better: an error that is
drawn afresh at every token grows with sqrt(t), a biased one with t. Over the rollouts with at least
t tokens, and `all` for whole responses:

    rms_drift, mean_drift     of the summed log-ratio (nats) and of the implied value (reward)
    relative_drift            rms_drift of the implied value over the standard deviation, between
                              rollouts, of its true summed td
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vimpo.models import positions
from vimpo.probes.measures import cluster_mean, root_mean, row
from vimpo.probes.subject import Subject
from vimpo.rollout import Rollouts

PURPOSE = 10  # of the problems' seed, plus the number of operators
LONGEST = 8  # operators, unless a benchmark has more
ROLLOUTS = 6  # of each length
LENGTHS = (4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 2048, 4096, 8192)
FEWEST = 5  # rollouts that a row needs
VARIANTS = {
    "float32": (torch.float32, torch.float32),
    "bfloat16_float32_softmax": (torch.bfloat16, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
}


class Float64Norm(nn.Module):
    """RMSNorm without the detour through float32 that transformers' takes at any precision."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight, self.epsilon = norm.weight, norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon)


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A copy of the model in another precision."""
    model = copy.deepcopy(model).to(dtype)
    if dtype == torch.float64:
        for name, module in list(model.named_modules()):
            if hasattr(module, "variance_epsilon"):
                parent, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, Float64Norm(module))
    return model


@torch.no_grad()
def read_at(
    subject: Subject, rollouts: Rollouts, weights: torch.dtype, softmax: torch.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Log-ratio and td / beta, both in nats and summed over tokens. -> [B, T], [B, T], float64

    Differences are taken at the precision of the log-softmax; sums in float32, or better.
    """
    log_p = _log_probs(cast(subject.policy, weights), rollouts, subject.train.temperature, softmax)
    log_q = _log_probs(
        cast(subject.reference, weights), rollouts, subject.train.temperature, softmax
    )
    index = rollouts.response_ids[..., None]
    log_ratio = (log_p.gather(-1, index) - log_q.gather(-1, index)).squeeze(-1)
    td = log_ratio - (log_p.exp() * (log_p - log_q)).sum(-1)
    on = rollouts.mask.bool()
    summed = torch.promote_types(softmax, torch.float32)
    sums = [torch.where(on, x, 0.0).to(summed).cumsum(1) for x in (log_ratio, td)]
    return sums[0].double().cpu().numpy(), sums[1].double().cpu().numpy()


def _log_probs(
    model: PreTrainedModel, rollouts: Rollouts, temperature: float, dtype: torch.dtype
) -> Tensor:
    """[B, T, V]; vimpo.models.last_logits would round to float32."""
    ids, attention_mask = rollouts.inputs()
    logits = model(
        input_ids=ids,
        attention_mask=attention_mask,
        position_ids=positions(attention_mask),
        use_cache=False,
        logits_to_keep=rollouts.width,
    ).logits
    return (logits.to(dtype) / temperature).log_softmax(-1)


def precision_probe(subject: Subject) -> list[dict]:
    """Rollouts of every length from the shortest trained one. -> rows of probes.parquet"""
    lengths = [*subject.task.train_operators, LONGEST]
    lengths += [b.operators for b in subject.task.benchmarks.values()]
    prompts = [
        subject.encode(problem)
        for operators in range(min(lengths), max(lengths) + 1)
        for problem in subject.problems(ROLLOUTS, PURPOSE + operators, [operators])
    ]
    rows = []
    (rollouts,) = subject.sample(prompts, "precision")
    truth = read_at(subject, rollouts, torch.float64, torch.float64)
    counts = rollouts.mask.sum(1).long().cpu().numpy()
    for name, (weights, softmax) in VARIANTS.items():
        found = read_at(subject, rollouts, weights, softmax)
        rows += precision_rows(name, found, truth, counts, subject.beta)
    return rows


def precision_rows(
    name: str,
    found: tuple[np.ndarray, np.ndarray],
    truth: tuple[np.ndarray, np.ndarray],
    counts: np.ndarray,
    beta: float,
) -> list[dict]:
    """found, truth: summed log-ratio and td / beta [B, T]; counts [B]: tokens of each response."""
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
            rows.append(row(*labels, "rms_drift", rms, stderr, len(index), unit))
            mean = cluster_mean(drift, each)
            rows.append(row(*labels, "mean_drift", *mean, len(index), unit))
        spread = true_td.std(ddof=1) if len(index) > 1 else 0.0
        shares = (rms / spread, stderr / spread) if spread > 0 else (np.nan, np.nan)
        reason = "the true summed td does not vary"
        rows.append(row(*labels, "relative_drift", *shares, len(index), "1", reason))
    return rows
