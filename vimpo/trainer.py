"""The one training loop; algorithms differ only by their objective (vimpo/algorithms.py).

A step: draw prompts, sample rollouts, grade them, flip rewards, update. Every draw is a pure
function of (seed, step), so an interrupted run resumes from its last checkpoint and ends with the
same bytes as an undisturbed one.
"""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vimpo.algorithms import Batch, Share, make_algorithm, make_batch
from vimpo.config import CellConfig, PPOConfig, VimpoConfig
from vimpo.models import (
    Critic,
    frozen_copy,
    last_logits,
    load_policy,
    load_tokenizer,
    save_policy,
)
from vimpo.objectives.common import (
    clip_fraction,
    exact_kl,
    k2_kl,
    k3_kl,
    masked_mean,
    top_k_kl,
)
from vimpo.records import Stopwatch
from vimpo.rollout import Rollouts, sample
from vimpo.tasks import make_task
from vimpo.tasks.noise import noisy_rewards


@dataclass(frozen=True)
class Scores:
    """The policy (and the reference) on a batch of rollouts; each [B, T], logp with its graph."""

    logp: Tensor
    entropy: Tensor
    ref_logp: Tensor | None = None
    token_kl: Tensor | None = None

    def detached(self) -> dict[str, Tensor]:
        found = {"logp": self.logp.detach(), "ref_logp": self.ref_logp, "token_kl": self.token_kl}
        return {k: v for k, v in found.items() if v is not None}


def token_kl(
    config: VimpoConfig, policy_logits: Tensor, ref_logits: Tensor, logp: Tensor, ref_logp: Tensor
) -> Tensor:
    """KL(pi || pi_ref) of each token by the configured estimator. -> [B, T], nats, no graph."""
    if config.kl_estimator == "exact":
        return exact_kl(policy_logits, ref_logits)
    if config.kl_estimator == "topk":
        return top_k_kl(policy_logits, ref_logits, config.kl_top_k)
    return (k2_kl if config.kl_estimator == "k2" else k3_kl)(logp, ref_logp)


def step_seed(seed: int, step: int, purpose: str) -> int:
    """Seed of one step's draws, the same for every algorithm."""
    text = f"{purpose}:{seed}:{step}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest())


def micro_batches(count: int, size: int | None) -> list[slice]:
    size = size or count
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


class Trainer:
    """The state of one run, a policy and perhaps a critic, and the step that moves it."""

    phases = ("rollout", "reference", "critic", "update")

    def __init__(self, config: CellConfig, base: Path) -> None:
        """Load the base policy. Raises ConfigError where `base` holds none."""
        self.config = config
        self.algorithm = make_algorithm(config.objective)
        self.tokenizer = load_tokenizer(base)
        self.policy = load_policy(base, config.runtime)
        self.reference = frozen_copy(self.policy) if self.algorithm.needs_reference else None
        self.critic = Critic.from_policy(self.policy) if self.algorithm.needs_critic else None
        positions = getattr(self.policy.config, "max_position_embeddings", None)
        self.task = make_task(
            config.task,
            self.tokenizer,
            batch_size=config.train.prompts_per_step,
            room=positions and positions - config.train.max_response,
        )
        self.clock = Stopwatch(config.runtime.device)
        rate = config.model.learning_rate
        self.rates = {"policy": rate * config.objective.lr_scale}
        self.modules: dict[str, nn.Module] = {"policy": self.policy}
        if isinstance(config.objective, PPOConfig):
            self.rates["critic"] = rate * config.objective.critic_lr_scale
            self.modules["critic"] = self.critic
        self.optimizers = {
            name: torch.optim.AdamW(
                module.parameters(), lr=self.rates[name], weight_decay=config.train.weight_decay
            )
            for name, module in self.modules.items()
        }

    # --- one step ---------------------------------------------------------------------------

    def step(self, step: int) -> dict[str, float]:
        """Sample, grade, update once (or `epochs` times). Returns the row of metrics.csv."""
        self._set_rates(step)
        with self.clock("rollout"):
            rollouts, clean, batch = self._collect(step)
        critic_metrics: dict[str, float] = {}
        value_graph = None
        if self.critic is not None:
            with self.clock("critic"):
                batch, value_graph = self._estimate_values(rollouts, batch)
        warming_up = step < getattr(self.config.objective, "critic_warmup", 0)
        updates = []
        for _ in range(self.config.train.epochs):
            if self.critic is not None:
                with self.clock("critic"):
                    critic_metrics = self._update_critic(rollouts, batch, value_graph)
                value_graph = None
            with self.clock("update"):
                batch, metrics = self._update_policy(rollouts, batch, apply=not warming_up)
            updates.append(metrics)
        return {
            "step": step,
            "accuracy": sum(clean) / len(clean),
            "reward": float(batch.rewards.mean()),
            "response_length": float(rollouts.mask.sum(1).mean()),
            "truncated": float((~rollouts.finished).float().mean()),
            "learning_rate": self.optimizers["policy"].param_groups[0]["lr"],
            **updates[-1],
            **critic_metrics,
            **self.algorithm.metrics(batch),
        }

    def _set_rates(self, step: int) -> None:
        warmup = self.config.train.warmup_steps
        share = min(1.0, (step + 1) / warmup) if warmup else 1.0
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self.rates[name] * share

    def _collect(self, step: int) -> tuple[Rollouts, list[float], Batch]:
        """Rollouts, their clean rewards, and a batch with the noisy ones."""
        c = self.config
        problems = self.task.training_problems(c.seed, step, c.train.prompts_per_step)
        rollouts = sample(
            self.policy,
            [self.tokenizer(p.prompt, add_special_tokens=False).input_ids for p in problems],
            group_size=c.train.group_size,
            max_response=c.train.max_response,
            temperature=c.train.temperature,
            eos=self.tokenizer.eos_token_id,
            pad=self.tokenizer.pad_token_id,
            generator=torch.Generator().manual_seed(step_seed(c.seed, step, "rollout")),
        )
        owners = [p for p in problems for _ in range(c.train.group_size)]
        finished = rollouts.finished.tolist()
        marks = self.task.rewards(owners, rollouts.texts(self.tokenizer))
        # A response that was cut off did not end: it is wrong, whatever it holds.
        clean = [mark * done for mark, done in zip(marks, finished, strict=True)]
        rewards = noisy_rewards(
            c.noise,
            clean,
            [p.id for p in owners],
            list(range(c.train.group_size)) * len(problems),
            seed=c.seed,
            step=step,
        )
        groups = torch.arange(len(problems)).repeat_interleave(c.train.group_size)
        return rollouts, clean, make_batch(rewards, groups, rollouts.mask)

    # --- policy -------------------------------------------------------------------------------

    def _score(self, rollouts: Rollouts) -> Scores:
        """Log-probabilities at the sampling temperature, with graph; the rest without."""
        config = self.config
        ids, attention_mask = rollouts.inputs()
        temperature = config.train.temperature
        logits = last_logits(self.policy, ids, attention_mask, rollouts.width) / temperature
        log_probs = logits.log_softmax(-1)
        index = rollouts.response_ids[..., None]
        logp = log_probs.gather(-1, index).squeeze(-1)
        with torch.no_grad():
            entropy = -(log_probs.exp() * log_probs).sum(-1)
            if self.reference is None:
                return Scores(logp, entropy)
            with self.clock("reference"):
                ref_logits = last_logits(self.reference, ids, attention_mask, rollouts.width)
                ref_logits = ref_logits / temperature
                ref_logp = ref_logits.log_softmax(-1).gather(-1, index).squeeze(-1)
                kl = None
                if isinstance(config.objective, VimpoConfig):
                    kl = token_kl(config.objective, logits, ref_logits, logp, ref_logp)
        return Scores(logp, entropy, ref_logp, kl)

    def _update_policy(
        self, rollouts: Rollouts, batch: Batch, apply: bool
    ) -> tuple[Batch, dict[str, float]]:
        """One update over all micro-batches; one of them needs a single forward pass.

        Several of them need a first pass where the advantage is made of the policy's own
        log-probabilities, because it is whitened over the whole batch.
        """
        c = self.config
        slices = micro_batches(len(batch.mask), c.train.micro_batch)
        whole = self._score(rollouts) if len(slices) == 1 else None
        if whole is not None:
            batch = batch.with_(**whole.detached())
        elif self.algorithm.advantage_reads_policy:
            with torch.no_grad():
                parts = [self._score(rollouts.rows(s)).detached() for s in slices]
            batch = batch.with_(**{k: torch.cat([p[k] for p in parts]) for k in parts[0]})
        batch = batch.with_(advantage=self.algorithm.advantage(batch))

        self.optimizers["policy"].zero_grad()
        loss_sum, entropy_sum, clipped, logps, ref_logps = 0.0, 0.0, 0.0, [], []
        for s in slices:
            scores = whole or self._score(rollouts.rows(s))
            rows = batch.rows(s).with_(**scores.detached())
            if rows.old_logp is None:
                rows = rows.with_(old_logp=rows.logp)
            share = Share(
                responses=len(rows.mask) / len(batch.mask),
                tokens=float(rows.mask.sum() / batch.mask.sum()),
            )
            loss = self.algorithm.loss(scores.logp, rows, share)
            if apply:
                loss.backward()
            loss_sum += loss.item()
            clip = (c.objective.clip_low, c.objective.clip_high)
            clipped += share.tokens * float(
                clip_fraction(rows.logp, rows.old_logp, rows.advantage, rows.mask, *clip)
            )
            entropy_sum += share.tokens * float(masked_mean(scores.entropy, rows.mask))
            logps.append(rows.logp)
            ref_logps.append(rows.ref_logp)
        batch = batch.with_(logp=torch.cat(logps))
        if batch.old_logp is None:
            batch = batch.with_(old_logp=batch.logp)
        if ref_logps[0] is not None:
            batch = batch.with_(ref_logp=torch.cat(ref_logps))
        norm = self._apply("policy") if apply else 0.0
        ratio = batch.old_logp - batch.logp
        return batch, {
            "loss": loss_sum,
            "grad_norm": norm,
            "clip_fraction": clipped,
            "entropy": entropy_sum,
            "approx_kl": float(masked_mean(ratio.exp() - 1 - ratio, batch.mask)),
            "advantage_std": float(masked_mean(batch.advantage.square(), batch.mask).sqrt()),
        }

    def _apply(self, name: str) -> float:
        norm = nn.utils.clip_grad_norm_(
            self.modules[name].parameters(), self.config.train.grad_clip
        )
        self.optimizers[name].step()
        return float(norm)

    # --- critic -------------------------------------------------------------------------------

    def _values(self, rollouts: Rollouts) -> Tensor:
        return self.critic(*rollouts.inputs(), rollouts.width)

    def _estimate_values(self, rollouts: Rollouts, batch: Batch) -> tuple[Batch, Tensor | None]:
        """V(s_t) before the update, and its graph where one micro-batch holds everything."""
        slices = micro_batches(len(batch.mask), self.config.train.micro_batch)
        with nullcontext() if len(slices) == 1 else torch.no_grad():
            values = torch.cat([self._values(rollouts.rows(s)) for s in slices])
        batch = batch.with_(values=values.detach() * batch.mask)
        return batch, values if len(slices) == 1 else None

    def _update_critic(
        self, rollouts: Rollouts, batch: Batch, graph: Tensor | None
    ) -> dict[str, float]:
        returns = self.algorithm.returns(batch)
        self.optimizers["critic"].zero_grad()
        total = 0.0
        for s in micro_batches(len(batch.mask), self.config.train.micro_batch):
            values = graph if graph is not None else self._values(rollouts.rows(s))
            rows = batch.rows(s)
            share = float(rows.mask.sum() / batch.mask.sum())
            loss = share * self.algorithm.critic_loss(values, returns[s], rows)
            loss.backward()
            total += loss.item()
        return {"critic_loss": total, "critic_grad_norm": self._apply("critic")}

    # --- what the run leaves behind (vimpo/runs.py) -------------------------------------------

    def save(self, folder: Path) -> None:
        """The policy as a `save_pretrained` folder, with PPO's critic in `critic/` below it."""
        save_policy(self.policy, self.tokenizer, folder)
        if self.critic is not None:
            self.critic.save(folder / "critic")

    def provenance(self) -> dict:
        """What the manifest records of the training data."""
        return self.task.provenance(self.config.seed)

    def networks(self) -> list[nn.Module]:
        """All networks held in memory."""
        return [m for m in (self.policy, self.reference, self.critic) if m is not None]
