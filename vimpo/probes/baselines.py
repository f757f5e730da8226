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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from vimpo.config.judging import Baselines
from vimpo.models.networks import Critic, last_states
from vimpo.models.optimizer import make_optimizer
from vimpo.probes.subject import Reading, Subject, responses
from vimpo.sampling.rollouts import Rollouts, micro_batches, seed_of

PURPOSE = 2  # of the problems' seed
LOG_PROBABILITY, LINEAR, CEILING = "log_probability", "linear", "ceiling"
HELD_OUT = 5  # one rollout in five
EVERY = 20  # updates between two looks at the held-out error
PENALTIES = tuple(10.0**k for k in range(-6, 3))
FLAT = 1e-12  # a feature of lower variance is a constant

Fitted = Mapping[str, Callable[[Rollouts, Reading], Tensor]]
"""Predictors by name: V(s_t) [B, T], float64, of rollouts and what the networks read in them."""
NOTHING: Fitted = {}


def fit_baselines(subject: Subject, settings: Baselines) -> Fitted:
    """All baselines of a policy; draws are a pure function of the probes' seed."""
    problems = subject.problems(settings.rollouts, PURPOSE)
    chunks = subject.sample([subject.encode(p) for p in problems], "baselines")
    tokens, finished = responses(chunks)
    rewards = torch.tensor(subject.rewards(problems, tokens, finished), dtype=torch.float64)
    batches = list(zip(chunks, rewards.split([len(c.mask) for c in chunks]), strict=True))
    pieces = [
        Outcomes(chunk.rows(s).trimmed(), outcome[s])
        for chunk, outcome in batches
        for s in micro_batches(len(chunk.mask), subject.read_rows)
    ]
    return {LOG_PROBABILITY: log_probability}


@dataclass(frozen=True)
class Outcomes:
    """Rollouts and the reward R [B] of each."""

    rollouts: Rollouts
    rewards: Tensor
