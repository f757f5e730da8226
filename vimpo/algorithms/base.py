"""The algorithms as small objects: everything that differs between them in the training loop.

An algorithm turns a batch of rollouts into per-token advantages and a loss. Everything else
(prompts, sampler, rewards and their noise, optimiser, schedule, clipping of gradients) is shared.
Departures from the papers:

1. VIMPO: none known with ``kl_estimator: exact``; beta is larger because responses are shorter.
2. PPO: rewards are terminal, without a KL penalty, as in the other two.
3. GRPO: no KL penalty by default; token-mean loss and a wider upper clip (the VIMPO paper's
   stronger baseline); ``grpo_naive`` has the original per-response mean and symmetric clip.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass, fields, replace
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor

from vimpo.config import (
    AlgorithmConfig,
    ConfigError,
    GRPOConfig,
    OwnConfig,
    PolicyUpdate,
    PPOConfig,
    VimpoConfig,
)
from vimpo.config.algorithms import read_own_file
from vimpo.objectives.common import clipped_surrogate, group_mean, k3_kl, masked_mean, reduce_tokens
from vimpo.objectives.grpo import group_advantage
from vimpo.objectives.ppo import critic_loss, explained_variance, ppo_advantages
from vimpo.objectives.vimpo import actor_advantage, implied_td, terminal_residual, vimpo_loss

# A tensor that the training loop fills in before anything reads it, None until then. Which ones are
# filled in depends on the algorithm, so a type checker cannot know.
Filled = Any


@dataclass(frozen=True)
class Batch:
    """What the algorithms read, all detached. [B, T] unless stated otherwise; None: not needed.

    logp: of the current policy; old_logp: of the policy before the first update; token_kl in nats;
    rewards, baseline [B]: noisy, and their group mean; values: the critic's, before its update.
    """

    mask: Tensor
    rewards: Tensor
    groups: Tensor
    baseline: Tensor
    logp: Filled = None
    old_logp: Filled = None
    ref_logp: Filled = None
    token_kl: Filled = None
    values: Filled = None
    advantage: Filled = None

    def rows(self, index: slice) -> Batch:
        tensors: dict[str, Filled] = {f.name: getattr(self, f.name) for f in fields(self)}
        rows: dict[str, Filled] = {k: None if v is None else v[index] for k, v in tensors.items()}
        return Batch(**rows)

    def with_(self, **tensors: Tensor) -> Batch:
        return replace(self, **tensors)


@dataclass(frozen=True)
class Share:
    """A micro-batch's share of its batch, for losses that average over responses or tokens."""

    responses: float
    tokens: float


class Algorithm:
    """What the training loop needs from an algorithm."""

    needs_critic: ClassVar[bool] = False
    advantage_reads_policy: ClassVar[bool] = False
    """Is the advantage computed from the policy's own log-probabilities?"""

    def __init__(self, config: PolicyUpdate) -> None:
        self.config = config

    def advantage(self, batch: Batch) -> Tensor:
        """Detached advantages over the whole batch, 0 off the mask. -> [B, T]"""
        raise NotImplementedError

    def loss(self, logp: Tensor, rows: Batch, share: Share) -> Tensor:
        """The micro-batch's part of the batch's loss; differentiable in logp [b, T]. -> scalar"""
        raise NotImplementedError

    def metrics(self, batch: Batch) -> dict[str, float]:
        """Columns that this algorithm adds to metrics.csv."""
        return {}


class PolicyGradient(Algorithm):
    """The clipped surrogate, averaged over tokens; subclasses say of which advantage.

    The base class of a user-supplied algorithm (:class:`vimpo.config.OwnConfig`), which must define
    `advantage` and may override anything else.
    """

    def loss(self, logp: Tensor, rows: Batch, share: Share) -> Tensor:
        """The micro-batch's part of the batch's loss; differentiable in logp [b, T]. -> scalar"""
        c = self.config
        return share.tokens * clipped_surrogate(
            logp, rows.old_logp, rows.advantage, rows.mask, c.clip_low, c.clip_high, c.dual_clip
        )


class Vimpo(Algorithm):
    """VIMPO: see vimpo/objectives/vimpo.py for the equations."""

    config: VimpoConfig
    advantage_reads_policy: ClassVar[bool] = True

    def _td(self, batch: Batch) -> Tensor:
        return implied_td(batch.logp, batch.ref_logp, batch.token_kl, batch.mask, self.config.beta)

    def advantage(self, batch: Batch) -> Tensor:
        return actor_advantage(self._td(batch), batch.mask, self.config.lam)

    def loss(self, logp: Tensor, rows: Batch, share: Share) -> Tensor:
        c = self.config
        return vimpo_loss(
            logp,
            rows.old_logp,
            rows.ref_logp,
            rows.token_kl,
            rows.rewards,
            rows.baseline,
            rows.mask,
            c.beta,
            c.actor_coef,
            c.lam,
            c.clip_low,
            c.clip_high,
            c.dual_clip,
            advantage=rows.advantage,
            value_share=share.responses,
            actor_share=share.tokens,
        )

    def metrics(self, batch: Batch) -> dict[str, float]:
        residual = terminal_residual(
            batch.logp,
            batch.ref_logp,
            batch.token_kl,
            batch.rewards,
            batch.baseline,
            batch.mask,
            self.config.beta,
        )
        target = (batch.rewards - batch.baseline).square().mean().sqrt()
        # If every group has equal rewards, there is no target and no ratio to it.
        ratio = torch.where(target > 0, residual.square().mean().sqrt() / target, torch.nan)
        return {
            "value_loss": float(0.5 * residual.square().mean()),
            "terminal_residual": float(ratio),
            "td_mean": float(masked_mean(self._td(batch), batch.mask)),
            "reference_kl": float((batch.token_kl * batch.mask).sum(1).mean()),
        }


class Ppo(PolicyGradient):
    """PPO: whitened GAE over a critic's values."""

    config: PPOConfig
    needs_critic: ClassVar[bool] = True

    def advantage(self, batch: Batch) -> Tensor:
        return ppo_advantages(batch.rewards, batch.values, batch.mask, self.config.lam)[0]

    def returns(self, batch: Batch) -> Tensor:
        """The critic's targets. -> [B, T]"""
        return ppo_advantages(batch.rewards, batch.values, batch.mask, self.config.lam)[1]

    def critic_loss(self, values: Tensor, returns: Tensor, rows: Batch) -> Tensor:
        """Clipped value loss; differentiable in values [b, T]. -> scalar"""
        return critic_loss(values, returns, rows.values, rows.mask, self.config.value_clip)

    def metrics(self, batch: Batch) -> dict[str, float]:
        # Against the reward itself: with lambda < 1, returns contain the values being judged.
        outcome = batch.rewards[:, None].expand_as(batch.mask)
        return {
            "explained_variance": float(explained_variance(batch.values, outcome, batch.mask)),
            "value_mean": float(masked_mean(batch.values, batch.mask)),
        }


class Grpo(Algorithm):
    """GRPO: one advantage per response, relative to its group."""

    config: GRPOConfig

    def advantage(self, batch: Batch) -> Tensor:
        advantage = group_advantage(batch.rewards, batch.groups, self.config.normalize_std)
        return advantage[:, None] * batch.mask

    def loss(self, logp: Tensor, rows: Batch, share: Share) -> Tensor:
        c = self.config
        part = share.tokens if c.reduction == "token-mean" else share.responses
        clip = (c.clip_low, c.clip_high, c.dual_clip)
        loss = clipped_surrogate(
            logp, rows.old_logp, rows.advantage, rows.mask, *clip, reduction=c.reduction
        )
        if c.kl_coef:
            penalty = reduce_tokens(k3_kl(logp, rows.ref_logp), rows.mask, c.reduction)
            loss = loss + c.kl_coef * penalty
        return part * loss

    def metrics(self, batch: Batch) -> dict[str, float]:
        if not self.config.needs_reference:
            return {}
        kl = k3_kl(batch.logp, batch.ref_logp) * batch.mask
        return {"reference_kl": float(kl.sum(1).mean())}


def make_algorithm(config: AlgorithmConfig) -> Algorithm:
    """Raises ConfigError for a user-supplied file that holds no algorithm."""
    if isinstance(config, OwnConfig):
        return _own_algorithm(config)
    return {"vimpo": Vimpo, "ppo": Ppo, "grpo": Grpo}[config.objective](config)


def _own_algorithm(config: OwnConfig) -> Algorithm:
    """The one subclass of :class:`PolicyGradient` in the file that the configuration names."""
    path = config.objective
    module = ModuleType(f"vimpo_own_{config.sha256}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses look there
    content = read_own_file(path, config.sha256)
    try:
        # Not by import, whose cache compares file times and could run older content.
        exec(compile(content, path, "exec"), module.__dict__)
    except (SyntaxError, ImportError) as error:
        raise ConfigError(f"algorithms: '{path}' cannot be run: {error}") from None
    found = [c for c in vars(module).values() if isinstance(c, type)]
    own = [c for c in found if issubclass(c, PolicyGradient) and c.__module__ == module.__name__]
    if len(own) != 1:
        raise ConfigError(
            f"algorithms: '{path}' defines {len(own)} subclasses of PolicyGradient; allowed: one"
        )
    if own[0].needs_critic:
        raise ConfigError(f"algorithms: '{path}' needs a critic; allowed: `objective: ppo` has one")
    try:
        inspect.signature(own[0]).bind(config, **config.settings)
    except TypeError as error:
        raise ConfigError(
            f"algorithms: settings do not fit {own[0].__name__} in '{path}': {error}; "
            "allowed: its keyword arguments"
        ) from None
    return own[0](config, **config.settings)


def make_batch(rewards: list[float], groups: Tensor, mask: Tensor) -> Batch:
    """A batch before any forward pass. rewards: B numbers; groups [B]; mask [B, T]."""
    reward_tensor = torch.tensor(rewards, dtype=torch.float32, device=mask.device)
    groups = groups.to(mask.device)
    return Batch(
        mask=mask,
        rewards=reward_tensor,
        groups=groups,
        baseline=group_mean(reward_tensor, groups),
    )
