"""Baselines of the value probe: what any predictor should beat, and what the best could reach.

    log_probability  sum_{k<t} log pi(a_k|s_k), how sure the policy has been so far; in nats, so
                     that only its order and its best rescaling mean anything
    linear           ridge regression of the outcome on the policy's last hidden state at s_t:

                         argmin_{w,b} mean (R - b - x w)^2 + penalty |w|^2,

                     over all tokens, x scaled to variance 1, the penalty that errs least on the
                     rollouts held out: what a linear map finds of the value in the policy
    ceiling          a critic of the policy's own architecture, started from its weights and from
                     the mean outcome, fitted to the outcome by mean squared error over tokens; kept
                     as it was when it erred least on the rollouts held out

All are fitted to fresh rollouts of the policy that is probed, one to a problem, of which the last
fifth is held out. They see clean rewards and more rollouts of the final policy than training did,
so `ceiling` says what a critic of this size can know, not what one knows in training.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from vimpo.config.judging import Baselines
from vimpo.models.networks import Critic
from vimpo.models.optimizer import make_optimizer
from vimpo.models.passes import last_states
from vimpo.probes.measures import ratio, row
from vimpo.probes.subject import Reading, Subject, responses
from vimpo.sampling.rollouts import Rollouts, micro_batches, seed_of

PURPOSE = 2  # of the problems' seed
LOG_PROBABILITY, LINEAR, CEILING = "log_probability", "linear", "ceiling"
HELD_OUT = 5  # one rollout in five
EVERY = 20  # updates between two looks at the held-out error
PENALTIES = tuple(10.0**k for k in range(-6, 3))
FLAT = 1e-12  # a feature of lower variance is a constant
GRAD_NORM = 1.0  # gradients are clipped to it

Values = Callable[[Rollouts], Tensor]
"""V(s_t) [B, T] of rollouts, in rewards."""
Fitted = Mapping[str, Callable[[Rollouts, Reading], Tensor]]
"""Predictors by name: V(s_t) [B, T], float64, of rollouts and what the networks read in them."""
NOTHING: Fitted = {}


@dataclass(frozen=True)
class Outcomes:
    """Rollouts by row, of prompts and responses in tokens, and the reward R [N] of each."""

    subject: Subject
    prompts: Sequence[Sequence[int]]
    tokens: Sequence[Sequence[int]]
    rewards: Tensor

    @classmethod
    def sampled(cls, subject: Subject, count: int) -> Outcomes:
        problems = subject.problems(count, PURPOSE)
        prompts = [subject.encode(p) for p in problems]
        tokens, finished = responses(subject.sample(prompts, "baselines"))
        rewards = torch.tensor(subject.rewards(problems, tokens, finished), dtype=torch.float64)
        return cls(subject, prompts, tokens, rewards)

    def split(self) -> tuple[range, range]:
        """Rows to fit to, and rows held out, at least one each."""
        held_out = max(1, len(self.tokens) // HELD_OUT)
        cut = len(self.tokens) - held_out
        return range(cut), range(cut, len(self.tokens))

    def read(self, rows: Sequence[int]) -> Iterator[tuple[Rollouts, Tensor]]:
        """The rollouts of these rows, and R [B, 1], in parts that are read at once."""
        chosen = ([own[i] for i in rows] for own in (self.prompts, self.tokens))
        parts = self.subject.written(*chosen)
        rewards = self.rewards[list(rows)].split([len(part.mask) for part in parts])
        return zip(parts, (r[:, None] for r in rewards), strict=True)


def fit_baselines(subject: Subject, settings: Baselines) -> tuple[Fitted, list[dict]]:
    """All baselines of a policy, and rows that say how they fare on the rollouts held out.

    Draws are a pure function of the probes' seed.
    """
    data = Outcomes.sampled(subject, settings.rollouts)
    _, held_out = data.split()
    fitted: dict[str, Values] = {LINEAR: fit_linear(data)}
    if settings.updates:
        critic = Critic.from_policy(subject.policy).requires_grad_(True).eval()
        with torch.no_grad():
            critic.head.bias.fill_(float(data.rewards.mean()))
        fit_critic(critic, data, settings, seed_of("ceiling", subject.probes.seed))
        fitted[CEILING] = partial(_critic_values, critic)
    rows = []
    for name, values in fitted.items():
        missed = np.array(error(values, data, held_out))
        explained = 1 - ratio(missed, _spread(data, held_out))
        labels = ("baselines", name, "outcome", "all", "explained_variance")
        rows.append(row(*labels, explained, np.nan, len(held_out), "1"))
    found = {name: partial(_in_parts, subject.read_rows, v) for name, v in fitted.items()}
    return {LOG_PROBABILITY: log_probability, **found}, rows


def log_probability(rollouts: Rollouts, reading: Reading) -> Tensor:
    """sum_{k<t} log pi(a_k|s_k). -> [B, T]"""
    logp = cast(Tensor, reading.logp).double()
    return logp.cumsum(1) - logp


@torch.no_grad()
def _in_parts(size: int, values: Values, rollouts: Rollouts, reading: Reading) -> Tensor:
    parts = [rollouts.rows(s) for s in micro_batches(len(rollouts.mask), size)]
    return torch.cat([values(part).double().cpu() for part in parts])


@torch.no_grad()
def error(values: Values, data: Outcomes, rows: Sequence[int]) -> float:
    """Mean over tokens of (V(s_t) - R)^2."""
    total = count = 0.0
    for rollouts, outcome in data.read(rows):
        mask = rollouts.mask.double().cpu()
        found = values(rollouts).double().cpu()
        total += float(((found - outcome).square() * mask).sum())
        count += float(mask.sum())
    return total / count


def _spread(data: Outcomes, rows: Sequence[int]) -> np.ndarray:
    """Variance of R over the tokens of these rows."""
    lengths = [len(data.tokens[i]) for i in rows]
    return np.repeat(data.rewards[list(rows)].numpy(), lengths).var()


# --- a linear probe ------------------------------------------------------------------------------


@dataclass
class Moments:
    """Sums over tokens, float64: of 1, x [H], R, R^2, x x' [H, H] and x R [H]."""

    count: Any = 0.0
    x: Any = 0.0
    y: Any = 0.0
    yy: Any = 0.0
    xx: Any = 0.0
    xy: Any = 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        """x [n, H], y [n]"""
        self.count += len(y)
        self.x, self.y = self.x + x.sum(0), self.y + y.sum()
        self.yy, self.xx, self.xy = self.yy + y @ y, self.xx + x.T @ x, self.xy + x.T @ y

    def error(self, weights: Tensor, level: Tensor) -> float:
        """mean (R - b - x w)^2"""
        product = weights @ self.xy + level * self.y
        square = weights @ self.xx @ weights + 2 * level * (weights @ self.x)
        return float(self.yy - 2 * product + square) / self.count + float(level) ** 2


def ridge(moments: Moments, penalty: float) -> tuple[Tensor, Tensor]:
    """w [H] and b of argmin mean (y - b - x w)^2 + penalty |w std(x)|^2."""
    n = moments.count
    mean, level = moments.x / n, moments.y / n
    cov = moments.xx / n - mean[:, None] * mean
    shared = moments.xy / n - mean * level
    variance = cov.diagonal()
    scale = torch.where(variance > FLAT, variance, torch.inf).rsqrt()  # 0 of a constant
    scaled = scale[:, None] * cov * scale + penalty * torch.eye(len(scale), dtype=cov.dtype)
    weights = scale * torch.linalg.solve(scaled, scale * shared)
    return weights, level - mean @ weights


@torch.no_grad()
def fit_linear(data: Outcomes) -> Values:
    """The ridge regression that errs least on the rollouts held out."""
    rows, held_out = data.split()
    moments, unseen = _moments(data, rows), _moments(data, held_out)
    found = (ridge(moments, penalty) for penalty in PENALTIES)
    weights, level = min(found, key=lambda fit: unseen.error(*fit))
    return partial(_linear_values, data.subject.policy, weights, level)


def _moments(data: Outcomes, rows: Sequence[int]) -> Moments:
    moments = Moments()
    for rollouts, outcome in data.read(rows):
        on = rollouts.mask.bool().cpu()
        states = last_states(data.subject.policy, *rollouts.inputs(), rollouts.width)
        moments.add(states.double().cpu()[on], outcome.expand(on.shape)[on])
    return moments


def _linear_values(policy: Any, weights: Tensor, level: Tensor, rollouts: Rollouts) -> Tensor:
    states = last_states(policy, *rollouts.inputs(), rollouts.width)
    return states.double().cpu() @ weights + level


# --- a critic ------------------------------------------------------------------------------------


def _critic_values(critic: Any, rollouts: Rollouts) -> Tensor:
    return critic(*rollouts.inputs(), rollouts.width)


def fit_critic(critic: nn.Module, data: Outcomes, settings: Baselines, seed: int) -> list[float]:
    """Fit V(s_t) to outcomes, in place. -> held-out error before, and at each look.

    Every rollout is used once before any is used again. The critic is left as it was when it erred
    least.
    """
    rows, held_out = data.split()
    values = partial(_critic_values, critic)
    optimizer = make_optimizer(critic, settings.learning_rate, weight_decay=0.0)
    order = _epochs(len(rows), settings.batch_size, torch.Generator().manual_seed(seed))
    errors, best = [error(values, data, held_out)], copy.deepcopy(critic.state_dict())
    for update in range(1, settings.updates + 1):
        batch = next(order)
        tokens = sum(len(data.tokens[i]) for i in batch)
        for rollouts, outcome in data.read(batch):
            away = values(rollouts) - outcome.to(rollouts.mask)
            (away.square() * rollouts.mask).sum().div(tokens).backward()
            optimizer.collect()
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        if update % EVERY and update < settings.updates:
            continue
        errors.append(error(values, data, held_out))
        if errors[-1] == min(errors):
            best = copy.deepcopy(critic.state_dict())
        if min(errors) not in errors[-settings.patience :]:
            break
    critic.load_state_dict(best)
    return errors


def _epochs(count: int, size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Batches of rows, all of them in random order before any comes again."""
    while True:
        order = torch.randperm(count, generator=generator).tolist()
        yield from (order[s] for s in micro_batches(count, size))
