"""Credit probe: do token advantages point at the first wrong step?

The task's oracle grades every step of fresh rollouts; a task without one gets rows that say so. In
each rollout with a first wrong step and at least one other step, a signal is averaged over the
tokens of each step, giving

    auc          P(mean advantage of the first wrong step < that of another step), ties one half:
                 the area under the ROC within a rollout, averaged over rollouts
    top1         does the first wrong step have the lowest mean? Ties share the hit
    top1_chance  1 / number of steps, the score of a constant signal

Signals: implied_td and implied_gae (td of the log-ratio, for every algorithm), critic_td and
critic_gae (PPO, with the clean terminal reward), and group, which is constant within a rollout and
so marks chance level. lambda is the algorithm's own, 1 for those without one. Wrong steps are not
spread evenly, so a signal that merely rises along the response need not score one half. `position`,
the token's index, is the control for that (1 - its auc for a signal that falls); sums over the rest
of a response, as in GAE with lambda = 1, have such trends.

Policies make different errors, so that their scores are of different wrong steps. If the study asks
for common prefixes, the same is scored on responses of the base policy (probe `common`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vimpo.objectives.common import gae, whiten
from vimpo.objectives.ppo import critic_td
from vimpo.probes import NO_ORACLE
from vimpo.probes.measures import cluster_mean, row
from vimpo.probes.subject import Reading, Subject, joined_readings, responses
from vimpo.storage.codes import Reason, Why
from vimpo.tasks import Problem
from vimpo.tasks.chain import Step
from vimpo.tasks.steps import step_tokens, token_spans

PURPOSE = 1  # of the problems' seed
REACH = 10  # tokens before and after the first wrong one in the profile
TIE = 1e-9  # means closer than this share of the largest are equal
NO_STEPS = Why(Reason.NO_WRONG_STEP, "no rollout has a first wrong step and another step")
NO_TOKENS = Why(Reason.NO_WRONG_STEP, "no rollout with a first wrong step reaches this token")
NOT_FINITE = Why(Reason.NOT_FINITE, "the signal is not finite")
METRICS = ("auc", "top1", "top1_chance")
SIGNALS = ("implied_td", "implied_gae", "group", "position")
CRITIC_SIGNALS = ("critic_td", "critic_gae")


@dataclass(frozen=True)
class Graded:
    """A rollout with a first wrong step: its row in the batch, its problem, tokens of each step."""

    row: int
    cluster: int
    steps: list[list[int]]
    wrong: int


# --- what a signal says --------------------------------------------------------------------------


def signals_of(reading: Reading, rewards: Tensor, lam: float) -> dict[str, Tensor]:
    """Token advantages by name, [B, T] each. rewards [B]: clean."""
    mask = reading.mask
    signals = {
        "implied_td": reading.td,
        "implied_gae": gae(reading.td, mask, lam),
        "group": (rewards - rewards.mean())[:, None] * mask,
        "position": mask.cumsum(1) * mask,
    }
    if reading.values is not None:
        td = critic_td(rewards, reading.values, mask)
        signals |= {"critic_td": td, "critic_gae": gae(td, mask, lam)}
    return signals


def within_rollout(means: np.ndarray, wrong: int) -> tuple[float, float]:
    """auc and top1 of one rollout from its steps' means [S], S >= 2."""
    if not np.isfinite(means).all():  # of a policy whose training failed
        return math.nan, math.nan
    tie = TIE * np.abs(means).max()
    others = np.delete(means, wrong) - means[wrong]
    auc = np.where(np.abs(others) <= tie, 0.5, others > 0).mean()
    lowest = means <= means.min() + tie
    return float(auc), float(lowest[wrong] / lowest.sum())


def credit_rows(
    signals: Mapping[str, Tensor], mask: Tensor, graded: Sequence[Graded]
) -> list[dict]:
    """All rows of the probe. signals: name -> [B, T]; mask [B, T]."""
    rows = []
    for name, signal in signals.items():
        finite = bool(torch.isfinite(signal).all())
        rows += _step_rows(name, signal.double().numpy(), graded, finite)
        rows += _profile_rows(name, whiten(signal, mask).double().numpy(), mask, graded, finite)
    return rows


def _step_rows(
    name: str, signal: np.ndarray, graded: Sequence[Graded], finite: bool, probe: str = "credit"
) -> list[dict]:
    """auc, top1 and top1_chance, averaged over rollouts."""
    compared = [g for g in graded if len(g.steps) > 1]
    scores = []
    for g in compared:
        means = np.array([signal[g.row, tokens].mean() for tokens in g.steps])
        scores.append([*within_rollout(means, g.wrong), 1 / len(g.steps)])
    table = np.array(scores).reshape(-1, 3)
    clusters = np.array([g.cluster for g in compared])
    rows = []
    for metric, values in zip(METRICS, table.T, strict=True):
        mean, stderr = cluster_mean(values if finite else values[:0], clusters[: len(values)])
        reason = NO_STEPS if finite else NOT_FINITE
        labels = (probe, name, "step", "all", metric)
        rows.append(row(*labels, mean, stderr, len(values), "1", reason))
    return rows


def _profile_rows(
    name: str, signal: np.ndarray, mask: Tensor, graded: Sequence[Graded], finite: bool
) -> list[dict]:
    """Mean whitened advantage, aligned on the first token of the first wrong step."""
    lengths = mask.sum(1).long().tolist()
    rows = []
    for offset in range(-REACH, REACH + 1):
        places = [(g, g.steps[g.wrong][0] + offset) for g in graded]
        places = [(g, t) for g, t in places if 0 <= t < lengths[g.row] and finite]
        values = np.array([signal[g.row, t] for g, t in places])
        mean, stderr = cluster_mean(values, np.array([g.cluster for g, _ in places]))
        reason = NO_TOKENS if finite else NOT_FINITE
        labels = ("credit", name, "profile", str(offset), "mean_advantage")
        rows.append(row(*labels, mean, stderr, len(values), "std", reason))
    return rows


# --- the probe -----------------------------------------------------------------------------------


def credit_probe(subject: Subject) -> list[dict]:
    """Fresh rollouts, graded and read; only scored without an oracle. -> rows of probes.parquet"""
    problems = subject.problems(subject.probes.credit_rollouts, PURPOSE)
    chunks = subject.sample([subject.encode(p) for p in problems], "credit")
    tokens, finished = responses(chunks)
    rewards = subject.rewards(problems, tokens, finished)
    accuracy = _share_row("accuracy", rewards)
    if subject.task.grade_steps is None:
        return [*ungraded_rows(subject.critic is not None), accuracy]
    graded, wrong = grade(subject, problems, tokens)
    reading = joined_chunks([subject.read(chunk) for chunk in chunks])
    signals = signals_of(reading, torch.tensor(rewards), subject.lam)
    return [
        *credit_rows(signals, reading.mask, graded),
        _share_row("wrong_rollouts", wrong),
        accuracy,
    ]


def common_credit(subject: Subject) -> list[dict]:
    """The scores of each signal on responses of the base policy: the same wrong steps for all."""
    if subject.task.grade_steps is None:
        return []
    problems = subject.problems(subject.probes.credit_rollouts, PURPOSE)
    prompts = [subject.encode(p) for p in problems]
    chunks = subject.sample(prompts, "common credit", base=True)
    tokens, finished = responses(chunks)
    rewards = torch.tensor(subject.rewards(problems, tokens, finished))
    graded, _ = grade(subject, problems, tokens)
    reading = joined_chunks([subject.read(chunk) for chunk in chunks])
    rows = []
    for name, signal in signals_of(reading, rewards, subject.lam).items():
        finite = bool(torch.isfinite(signal).all())
        rows += _step_rows(name, signal.double().numpy(), graded, finite, "common")
    return rows


def grade(
    subject: Subject, problems: Sequence[Problem], tokens: Sequence[Sequence[int]]
) -> tuple[list[Graded], list[float]]:
    """The rollouts with a first wrong step, and for each rollout whether any step is wrong."""
    assert subject.task.grade_steps is not None
    rows = []
    for i, (problem, ids) in enumerate(zip(problems, tokens, strict=True)):
        steps = subject.task.grade_steps(problem, subject.text(ids))
        spans = step_tokens(steps, token_spans(subject.tokenizer, ids))
        rows.append((i, problem.id, steps, spans))
    clusters = {name: k for k, name in enumerate(dict.fromkeys(r[1] for r in rows))}
    graded = [g for r in rows if (g := _graded(r[0], clusters[r[1]], r[2], r[3]))]
    return graded, [float(any(not s.right for s in r[2])) for r in rows]


def ungraded_rows(critic: bool) -> list[dict]:
    """Rows that an oracle would fill, with the reason why not; the profile is left out."""
    keys = [(signal, metric) for signal in SIGNALS for metric in METRICS]
    if critic:
        keys += [(signal, metric) for signal in CRITIC_SIGNALS for metric in METRICS]
    nothing = (np.nan, np.nan, 0)
    return [
        row("credit", signal, "step", "all", metric, *nothing, "1", NO_ORACLE)
        for signal, metric in keys
    ] + [row("credit", "policy", "step", "all", "wrong_rollouts", *nothing, "share", NO_ORACLE)]


def _graded(index: int, cluster: int, steps: list[Step], tokens: list[list[int]]) -> Graded | None:
    """None if every step is right, or if the first wrong one has no token."""
    wrong = next((i for i, step in enumerate(steps) if not step.right), None)
    if wrong is None or not tokens[wrong]:
        return None
    kept = [i for i in range(len(steps)) if tokens[i]]
    return Graded(index, cluster, [tokens[i] for i in kept], kept.index(wrong))


def joined_chunks(readings: Sequence[Reading]) -> Reading:
    """Chunks of different widths as one batch, right-padded."""
    width = max(reading.mask.shape[1] for reading in readings)
    return joined_readings(readings, width)


def _share_row(metric: str, values: list[float]) -> dict:
    mean, stderr = cluster_mean(np.array(values), np.arange(len(values)))
    return row("credit", "policy", "step", "all", metric, mean, stderr, len(values), "share")
