"""Value probe: how close are implied value and critic to the true value of a prefix?

Each of P problems gets one fresh rollout, whose prefixes end at fixed shares of the response. The
truth of a prefix s_t is the mean reward of K continuations under the run's own policy; V(s_0)
comes from separate continuations of the bare prompt. Predictors:

    implied      V(s_0) + sum_{k<t} td_k, td = beta (log pi/pi_ref - KL) with the base policy as
                 reference and the exact KL, for every algorithm; it never sees this reward
    critic       PPO's V(s_t)
    group_mean   V(s_0) at every prefix, all that GRPO knows

and, if the study asks for baselines (vimpo/probes/baselines.py), `ceiling`, `linear` and
`log_probability`. The same is measured on prefixes that the base policy wrote to the same problems
(probe `common`), if the study asks for it: these are equal for every algorithm, and the truth is
still of the run's own policy.

Targets: `value`, V(s_t), and `change`, V(s_t) - V(s_0), about which group_mean knows nothing (the
critic's prediction is critic(s_t) - critic(s_0)). The estimated V(s_0) belongs to the probe, not
the predictor, so its noise is corrected for wherever it enters (vimpo/probes/measures.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np
import torch

from vimpo.probes.baselines import LOG_PROBABILITY, NOTHING, Fitted
from vimpo.probes.measures import (
    SPLITS,
    Noisy,
    agreement,
    bernoulli,
    metric_rows,
    resampling,
    truth_summary,
)
from vimpo.probes.subject import Reading, Subject, responses
from vimpo.sampling.rollouts import Rollouts
from vimpo.storage.codes import NO_REASON, Reason, Why
from vimpo.tasks import Problem

PURPOSE = 0  # of the problems' seed
UNITS = {
    "explained_variance": "1",
    "explained_variance_linear": "1",
    "spearman": "1",
    "pearson": "1",
    "slope": "1",
    "mse": "reward^2",
    "pearson_ceiling": "1",
    "spearman_ceiling": "1",
}
SCALE_FREE = ("explained_variance_linear", "spearman", "pearson")
UNSCALED = (LOG_PROBABILITY,)  # predictors that are not in rewards


@dataclass(frozen=True)
class Prefixes:
    """P problems with m prefixes each, and how they continued.

    positions: m shares of the response; tokens [P, m]: length of each prefix; outcomes [P, m, K]
    and baseline [P, K0] in {0, 1}; implied [P, m]: summed td; critic [P, m] and critic_start [P]:
    V(s_t) and V(s_0) of the critic, None without one; prompts: P texts; more: V(s_t) [P, m] and
    V(s_0) [P] of further predictors by name.
    """

    positions: tuple[float, ...]
    tokens: np.ndarray
    outcomes: np.ndarray
    baseline: np.ndarray
    implied: np.ndarray
    critic: np.ndarray | None = None
    critic_start: np.ndarray | None = None
    prompts: tuple[str, ...] = ()
    more: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


# --- measuring -----------------------------------------------------------------------------------


def measure_prefixes(
    subject: Subject, fitted: Fitted = NOTHING, common: Prefixes | None = None
) -> Prefixes:
    """Roll out, cut, continue and grade; read the predictors off the rollouts.

    fitted: further predictors; common: the policy's own prefixes, if those of the base policy are
    to be measured, to the same problems with the same V(s_0).
    """
    probes = subject.probes
    problems = subject.problems(probes.problems, PURPOSE)
    prompts = [subject.encode(p) for p in problems]
    name = "value" if common is None else "common"
    chunks = subject.sample(prompts, name, base=common is not None)
    tokens, _ = responses(chunks)
    cuts = np.array([prefix_lengths(len(ids), probes.positions) for ids in tokens])
    found = predictions(subject, chunks, cuts, fitted)
    # One position at a time, because prefixes of similar length finish at similar times.
    outcomes = [
        continuation_rewards(
            subject,
            problems,
            [ids[:cut] for ids, cut in zip(tokens, cuts[:, j], strict=True)],
            probes.continuations,
            f"continuations {j}" if common is None else f"common {j}",
        )
        for j in range(len(probes.positions))
    ]
    if common is not None:
        baseline = common.baseline
    else:
        nothing: list[list[int]] = [[]] * len(problems)
        count = probes.baseline_continuations
        baseline = continuation_rewards(subject, problems, nothing, count, "baseline")
    return Prefixes(
        positions=tuple(probes.positions),
        tokens=cuts,
        outcomes=np.stack(outcomes, 1),
        baseline=baseline,
        prompts=tuple(p.prompt for p in problems),
        **vars(found),
    )


def prefix_lengths(length: int, positions: Sequence[float]) -> list[int]:
    """Tokens of each prefix: at least one, and never all of the response."""
    return [min(max(1, round(p * length)), length - 1) for p in positions]


@dataclass(frozen=True)
class Predictions:
    """What is read off P rollouts at m cuts each: those fields of :class:`Prefixes`."""

    implied: np.ndarray
    critic: np.ndarray | None
    critic_start: np.ndarray | None
    more: Mapping[str, tuple[np.ndarray, np.ndarray]]


def predictions(
    subject: Subject, chunks: Sequence[Rollouts], cuts: np.ndarray, fitted: Fitted
) -> Predictions:
    """Summed td up to each cut [P, m], and each V there and at the start."""
    readings = [subject.read(chunk) for chunk in chunks]
    start = np.zeros_like(cuts[:, :1])

    def picked(tables: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return _pick(tables, cuts), _pick(tables, start)[:, 0]

    more = {}
    for name, value in fitted.items():
        pairs = zip(chunks, readings, strict=True)
        more[name] = picked([value(chunk, reading).numpy() for chunk, reading in pairs])
    values = [r.values.double().numpy() for r in readings if r.values is not None]
    critic, critic_start = picked(values) if values else (None, None)
    implied = _pick([_summed_td(r) for r in readings], cuts)
    return Predictions(implied, critic, critic_start, more)


def _summed_td(reading: Reading) -> np.ndarray:
    """sum_{k<t} td_k. -> [B, T+1], float64"""
    td = reading.td.double()
    return torch.cat([torch.zeros_like(td[:, :1]), td.cumsum(1)], 1).numpy()


def _pick(tables: list[np.ndarray], columns: np.ndarray) -> np.ndarray:
    """Entries of row-wise concatenated tables [b, *] at columns [P, m]. -> [P, m]"""
    rows = [r for table in tables for r in table]
    return np.array([r[c] for r, c in zip(rows, columns, strict=True)])


def continuation_rewards(
    subject: Subject,
    problems: Sequence[Problem],
    prefixes: Sequence[Sequence[int]],
    count: int,
    purpose: str,
) -> np.ndarray:
    """Clean rewards of `count` continuations of each prefix, in {0, 1}. -> [P, count]

    The limit stays: prefix and continuation together have at most max_response tokens.
    """
    order = sorted(range(len(prefixes)), key=lambda i: -len(prefixes[i]))
    prompts = [subject.encode(problems[i]) + list(prefixes[i]) for i in order]
    spent = [len(prefixes[i]) for i in order]
    tokens, finished = responses(subject.sample(prompts, purpose, count, spent))
    owners = np.repeat(order, count)
    whole = [[*prefixes[i], *ids] for i, ids in zip(owners, tokens, strict=True)]
    rewards = np.zeros((len(problems), count))
    found = subject.rewards([problems[i] for i in owners], whole, finished)
    rewards[order] = np.reshape(found, (-1, count))
    return rewards


# --- judging -------------------------------------------------------------------------------------


def value_rows(prefixes: Prefixes, seed: int, probe: str = "value") -> list[dict]:
    """All rows of the value probe, pooled over positions and for each position."""
    index = resampling(len(prefixes.outcomes), seed)
    rows = []
    for target in ("value", "change"):
        truth = truth_of(prefixes, target)
        halves = _halves(prefixes, target, seed)
        predictors = predictions_of(prefixes, target)
        for j in range(-1, len(prefixes.positions)):
            labels = {"probe": probe, "target": target, "position": "all"}
            if j >= 0:
                labels["position"] = f"{prefixes.positions[j]:g}"
            rows += _truth_rows(_at(truth, j), _at(halves, j), index, labels)
            for name, prediction in predictors.items():
                found = _at(prediction, j)
                rows += _predictor_rows(_at(truth, j), found, index, labels | {"predictor": name})
    return [row for row in rows if row["predictor"] not in UNSCALED or row["metric"] in SCALE_FREE]


@overload
def _at(x: Noisy, j: int) -> Noisy: ...
@overload
def _at(x: np.ndarray, j: int) -> np.ndarray: ...
def _at(x: Noisy | np.ndarray, j: int) -> Noisy | np.ndarray:
    """Position j, or all of them for -1."""
    if j < 0:
        return x
    return x.column(j) if isinstance(x, Noisy) else x[..., j : j + 1]


def _baseline(prefixes: Prefixes) -> Noisy:
    """V(s_0) at every prefix, with the noise that a problem's prefixes share."""
    mean, noise = bernoulli(prefixes.baseline)
    value = np.repeat(mean[:, None], len(prefixes.positions), 1)
    return Noisy(value, np.zeros_like(value), noise[:, None])


def truth_of(prefixes: Prefixes, target: str) -> Noisy:
    """V(s_t), or V(s_t) - V(s_0) for the target `change`. -> [P, m]"""
    mean, noise = bernoulli(prefixes.outcomes)
    value = Noisy(mean, noise, np.zeros_like(mean[:, :1]))
    return value if target == "value" else value - _baseline(prefixes)


def predictions_of(prefixes: Prefixes, target: str) -> dict[str, Noisy]:
    """Each predictor of the target. -> [P, m]"""
    change = Noisy.exact(prefixes.implied)
    known = {"implied": change, "group_mean": Noisy.exact(np.zeros_like(prefixes.implied))}
    if target == "value":
        start = _baseline(prefixes)
        known = {
            name: Noisy(start.value + x.value, start.own, start.shared) for name, x in known.items()
        }
    critic, critic_start = prefixes.critic, prefixes.critic_start
    if critic is not None and target == "value":
        known["critic"] = Noisy.exact(critic)
    elif critic is not None and critic_start is not None:
        known["critic"] = Noisy.exact(critic - critic_start[:, None])
    for name, (value, at_start) in prefixes.more.items():
        known[name] = Noisy.exact(value if target == "value" else value - at_start[:, None])
    return known


def _halves(prefixes: Prefixes, target: str, seed: int) -> np.ndarray:
    """The truth from either half of the continuations, for SPLITS halvings. -> [2, S, P, m]"""
    rng = np.random.default_rng([seed, 2])

    def split(outcomes: np.ndarray) -> np.ndarray:
        half = outcomes.shape[-1] // 2
        orders = [rng.permutation(outcomes.shape[-1]) for _ in range(SPLITS)]
        parts = [(outcomes[..., o[:half]], outcomes[..., o[half : 2 * half]]) for o in orders]
        return np.array([[a.mean(-1), b.mean(-1)] for a, b in parts]).swapaxes(0, 1)

    halves = split(prefixes.outcomes)
    return halves if target == "value" else halves - split(prefixes.baseline)[..., None]


def _truth_rows(truth: Noisy, halves: np.ndarray, index: np.ndarray, labels: dict) -> list[dict]:
    # Resamples come before halvings: [2, S, P, m] -> [2, R, S, P, m].
    drawn = halves[:, :, index].swapaxes(1, 2)
    return metric_rows(
        truth_summary,
        (truth, halves),
        (truth.resampled(index), drawn),
        UNITS,
        predictor="truth",
        n=truth.value.size,
        **labels,
    )


def _predictor_rows(truth: Noisy, found: Noisy, index: np.ndarray, labels: dict) -> list[dict]:
    bad, reason = int((~np.isfinite(found.value)).sum()), NO_REASON
    if bad:
        text = f"{bad} of {found.value.size} predictions are not finite"
        reason = Why(Reason.NOT_FINITE, text)
        found = Noisy.exact(np.full_like(found.value, np.nan))
    parts, drawn = (truth, found), (truth.resampled(index), found.resampled(index))
    return metric_rows(agreement, parts, drawn, UNITS, n=truth.value.size, reason=reason, **labels)


def prefix_table(prefixes: Prefixes) -> dict[str, list]:
    """Columns of prefixes.parquet, one row per prefix; in rewards and numbers of tokens.

    problem, prompt, position, tokens; value with stderr (the truth), start with start_stderr
    (V(s_0)); implied = start + summed td; critic and critic_start, NaN without a critic.
    """
    count = len(prefixes.positions)
    value, start = truth_of(prefixes, "value"), _baseline(prefixes)
    nothing = np.full_like(value.value, np.nan)
    critic = nothing if prefixes.critic is None else prefixes.critic
    critic_start = prefixes.critic_start
    critic_start = nothing if critic_start is None else critic_start[:, None] + 0 * critic
    shared = np.repeat(start.shared, count, 1)
    columns = {
        "problem": np.repeat(np.arange(len(critic))[:, None], count, 1),
        "position": np.repeat(np.array([prefixes.positions]), len(critic), 0),
        "tokens": prefixes.tokens,
        "value": value.value,
        "stderr": np.sqrt(value.own),
        "start": start.value,
        "start_stderr": np.sqrt(shared),
        "implied": start.value + prefixes.implied,
        "critic": critic,
        "critic_start": critic_start,
    }
    table = {name: column.ravel().tolist() for name, column in columns.items()}
    return table | {"prompt": [p for p in prefixes.prompts for _ in range(count)]}
