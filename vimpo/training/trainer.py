"""The one training loop; algorithms differ only by their objective (vimpo/algorithms/).

A step: draw prompts, sample rollouts, grade them, flip rewards, update. Every draw is a pure
function of (seed, step), so an interrupted run resumes from its last checkpoint and ends with the
same bytes as an uninterrupted one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vimpo.algorithms import Batch, Setup, Share, known_changes, make_algorithm
from vimpo.algorithms.ppo import Ppo
from vimpo.config import CellConfig, PPOConfig
from vimpo.config.task import check_splitting, check_step_grades
from vimpo.models.distributed import Alone, full, named_weights
from vimpo.models.lora import add_adapters, merged_tensors, without_adapters
from vimpo.models.networks import (
    Critic,
    check_plain_head,
    frozen_copy,
    load_policy,
    load_tokenizer,
    save_policy,
)
from vimpo.models.optimizer import make_optimizer, norm_limit
from vimpo.models.passes import Prompts, enable_checkpointing
from vimpo.models.saved import check_saved
from vimpo.models.scoring import Reader, Reading, Scorer, Scores
from vimpo.objectives.common import masked_mean, response_kl
from vimpo.sampling import make_sampler
from vimpo.sampling.rollouts import Rollouts, joined, micro_batches, sampling_of, step_seed
from vimpo.tasks import Task, load_task
from vimpo.training.collecting import Collector
from vimpo.training.outcomes import Outcome, Watch, outcome_of
from vimpo.training.pieces import pieces, price_of_pass
from vimpo.training.replay import Replay
from vimpo.training.telemetry import Stopwatch
from vimpo.training.validation import Validator

SAME_REWARD = 1e-6  # rewards of a group that differ by less are equal
# What the reference says is kept for the next pass over a batch if a token has no more numbers:
# hidden states, and the logits of a small vocabulary.
KEPT_WIDTH = 8192

T = TypeVar("T")
Said = dict[int, dict[int, Reading]]
"""What the reference said of a batch, by the first row of a micro-batch and the place of a part."""


class Trainer:
    """The state of one run, a policy and perhaps a critic, and its training step."""

    phases: tuple[str, ...] = ("rollout", "reference", "critic", "update")

    def __init__(
        self,
        config: CellConfig,
        base: Path,
        world: Alone | None = None,
        task: Task | None = None,
        critic: Path | None = None,
    ) -> None:
        """Load the base policy. Raises ConfigError if `base` holds none.

        world: the processes that train together (models/distributed.py); default: this one alone.
        task: default: read here. critic: a pretrained one; default: one that starts at zero.
        """
        self.config = config
        self.world = world = world or Alone(config.runtime.device)
        setup = Setup(config.train.max_response, config.noise)
        self.algorithm = make_algorithm(config.objective, setup)
        if self.algorithm.needs_steps:
            check_step_grades(f"algorithms.{config.algorithm}", config.task)
        if states := config.objective.continued:
            check_splitting(f"algorithms.{config.algorithm}", states.interval, config.task)
        self.clock, self.watch, self._base = Stopwatch(world.device), Watch(), base
        self._how = (config.train.temperature, config.runtime.logit_chunk)
        self._load(base, critic)
        self.task = task or load_task(config, self.policy, self.tokenizer)
        self._price = price_of_pass(self.policy)
        self.modules: dict[str, nn.Module] = {"policy": self.policy}
        rate = config.model.learning_rate
        self.rates = {"policy": rate * config.objective.scale_at(config.size)}
        self.replay = Replay(1)
        if isinstance(config.objective, PPOConfig) and self.critic is not None:
            scaled = rate * config.objective.critic_lr_scale
            self.rates["critic"] = config.objective.critic_lr or scaled
            self.modules["critic"] = self.critic
            self.replay = Replay(config.objective.critic_replay)
        self._spread()
        self.optimizers = {
            name: make_optimizer(module, self.rates[name], config.train.weight_decay)
            for name, module in self.modules.items()
        }
        if self.reference is not None and self._refreshed:
            self.modules["reference"] = self.reference  # part of the state, so of checkpoints
        train = config.train
        sampling = sampling_of(
            train, self.policy, self.tokenizer, train.group_size, train.max_response
        )
        whole = partial(world.whole, self.scorer)
        sampler = make_sampler(self.policy, base, sampling, config.runtime, world, whole)
        self.collector = Collector(
            config,
            self.algorithm,
            self.task,
            self.policy,
            self.tokenizer,
            sampler,
            sampling,
            world,
        )
        self.validator = (
            Validator(train.validation, train, config.seed, self.task, self.tokenizer, world)
            if train.validation
            else None
        )

    def _load(self, base: Path, critic: Path | None) -> None:
        """Tokenizer and networks; with adapters, the policy is its own reference."""
        config, runtime = self.config, self.config.runtime
        self.tokenizer = load_tokenizer(base, runtime.trust_remote_code)
        self.policy = self._load_network()
        if runtime.logit_chunk:
            check_plain_head(self.policy)
        if config.model.lora:
            add_adapters(self.policy, config.model.lora, step_seed(config.seed, 0, "adapters"))
        own_reference = config.objective.needs_reference and not config.model.lora
        self.reference = frozen_copy(self.policy) if own_reference else None
        if runtime.gradient_checkpointing:
            enable_checkpointing(self.policy)
        self.critic = None
        if self.algorithm.needs_critic:
            load = partial(Critic.load, critic) if critic else Critic.from_policy
            self.critic = load(self.policy)

    def _load_network(self) -> PreTrainedModel:
        here = self.config.runtime.model_copy(update={"device": self.world.device})
        return load_policy(self._base, here)

    def _spread(self) -> None:
        """Wrap the networks for all processes; from now on each is called through one module."""
        ids = torch.full((1, 2), self.tokenizer.eos_token_id, device=self.world.device)
        self._example = ids, mask = ids, torch.ones_like(ids)
        self.scorer, self._calls = Scorer(self.policy, self.config.objective, *self._how), {}
        self._calls["policy"] = self.world.spread(self.scorer, ids, mask, ids, mask)
        self._reader: Reader = self.scorer  # of the reference: with adapters, the policy's own
        if self.reference is not None:
            self._reader = Reader(self.reference, *self._how)
            self._calls["reference"] = self.world.spread(self._reader, ids, mask, 1)
        if self.critic is not None:
            self._calls["critic"] = self.world.spread(self.critic, ids, mask, 1)

    # --- one step ---------------------------------------------------------------------------

    def step(self, step: int) -> dict[str, float]:
        """Sample, grade, update once (or `epochs` times). Returns the row of metrics.csv."""
        c = self.config
        self._set_rates(step)
        with self.clock("rollout"):
            collected = self.collector.collect(step)
        rollouts, clean, batch = collected.rollouts, collected.clean, collected.batch
        critic_metrics: dict[str, float] = {}
        value_graph = None
        if self.critic is not None:
            with self.clock("critic"):
                batch, value_graph = self._estimate_values(rollouts, batch)
                self.replay.add(rollouts, batch)
        warming_up = step < getattr(self.config.objective, "critic_warmup", 0)
        # Without a difference within a group, what is left of a comparison is rounding, and AdamW
        # would make a whole step of it.
        compared = (batch.rewards - batch.baseline).abs().max()
        no_signal = bool(compared < SAME_REWARD)
        idle = no_signal and c.train.skip_without_signal and c.objective.needs_group
        updates: list[dict[str, float]] = []
        said: Said = defaultdict(dict)
        for _ in range(self.config.train.epochs):
            if self.critic is not None:
                with self.clock("critic"):
                    critic_metrics = self._update_critic_often(rollouts, batch, value_graph)
                value_graph = None
            with self.clock("update"):
                batch, metrics = self._update_policy(
                    rollouts, batch, said, apply=not (warming_up or idle)
                )
            updates.append(metrics)
            if self.watch.fault:
                break
        self._drawn = rollouts, batch.old_logp, batch.ref_logp
        if self._refreshed and (step + 1) % self._refreshed == 0:
            self._refresh_reference()
        return {
            "step": step,
            "accuracy": sum(clean) / len(clean),
            "reward": float(batch.rewards.mean()),
            "response_length": float(batch.mask.sum(1).mean()),
            "no_signal": float(no_signal),
            **collected.metrics,
            "truncated": float(self.world.gather((~rollouts.finished).float()).mean()),
            "learning_rate": self.optimizers["policy"].param_groups[0]["lr"],
            **updates[-1],
            **critic_metrics,
            **self._distance(step, batch),
            **self.algorithm.metrics(batch),
            **known_changes(self.algorithm, batch, clean),
        }

    def _set_rates(self, step: int) -> None:
        warmup = self.config.train.warmup_steps
        share = min(1.0, (step + 1) / warmup) if warmup else 1.0
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self.rates[name] * share

    # --- policy -------------------------------------------------------------------------------

    def _pieces(self, rollouts: Rollouts, *shared: Prompts | None) -> list[tuple[Any, ...]]:
        """Sorted rows in parts for separate forward passes (vimpo/training/pieces.py).

        Each is none wider than necessary, and followed by its rows of what is shared. One part if
        there are several processes: DDP and FSDP2 expect the same calls from all.
        """
        cuts = [slice(0, len(rollouts.mask))]
        if self.world.size == 1:
            cuts = pieces(rollouts.mask.sum(1).int().tolist(), self._price)
        return [
            (rollouts.rows(s).trimmed(), *(each and each.rows(s) for each in shared)) for s in cuts
        ]

    def _prompts(self, reader: Reader | Critic, rollouts: Rollouts) -> Prompts | None:
        """The prompts of all parts, each read once; None if every part reads its own."""
        if self.world.size > 1:
            return None
        tokens = int(rollouts.prompt_mask.sum() + rollouts.mask.sum())
        return reader.read_prompts(rollouts.prompt_ids, rollouts.prompt_mask, tokens)

    def _score(self, rollouts: Rollouts, kept: dict[int, Reading] | None = None) -> Scores:
        """Log-probabilities at the sampling temperature, with graph; the rest without.

        kept: what the reference said of each part; read here, or filled in.
        """
        kept = {} if kept is None else kept
        own, base = self._prompts(self.scorer, rollouts), None
        if own and not kept:
            # The reference reads as the policy does: equal weights then say the same bytes.
            base = self._of_reference(lambda: self._prompts(self._reader, rollouts))
        cut = enumerate(self._pieces(rollouts, own, base))
        parts = [self._score_piece(kept, place, *piece) for place, piece in cut]
        columns = (joined(column, rollouts.width) for column in zip(*parts, strict=True))
        scores = Scores(*columns)
        return scores if scores.start is None else replace(scores, start=scores.start[:, 0])

    def _score_piece(
        self,
        kept: dict[int, Reading],
        place: int,
        rollouts: Rollouts,
        own: Prompts | None,
        base: Prompts | None,
    ) -> tuple[Tensor | None, ...]:
        """The fields of :class:`Scores`. own, base: the prompts by policy and reference."""
        ids, attention_mask = rollouts.inputs()
        if (reference := kept.get(place)) is None:
            read = self._calls["reference"] if self.reference is not None else self.scorer.read
            reference = self._of_reference(lambda: read(ids, attention_mask, rollouts.width, base))
            if reference and self._read_again and reference[0].shape[-1] <= KEPT_WIDTH:
                kept[place] = reference
        tokens = (rollouts.response_ids, rollouts.mask)
        scores = self._calls["policy"](ids, attention_mask, *tokens, reference, own)
        if self.reference is not None:
            self.world.release(self._calls["reference"])
        return scores

    @torch.no_grad()
    def _of_reference(self, read: Callable[[], T]) -> T | None:
        """What is read of the reference, timed; None if the objective needs none."""
        if not self.config.objective.needs_reference:
            return None
        own = nullcontext() if self.reference is not None else without_adapters(self.policy)
        with self.clock("reference"), own:
            return read()

    @property
    def _read_again(self) -> bool:
        """Does a batch go through the networks several times, by this process alone?"""
        train = self.config.train
        twice = train.micro_batch is not None and self.algorithm.advantage_reads_policy
        return self.world.size == 1 and (train.epochs > 1 or twice)

    def _update_policy(
        self, rollouts: Rollouts, batch: Batch, said: Said, apply: bool
    ) -> tuple[Batch, dict[str, float]]:
        """One update over all micro-batches; a single one needs a single forward pass.

        Several need a first pass if the advantage is computed from the policy's own
        log-probabilities, because it is whitened over the whole batch. said: what the reference
        said of each micro-batch in earlier passes.
        """
        c, gather = self.config, self.world.gather
        slices = micro_batches(len(rollouts.mask), c.train.micro_batch)
        whole = self._score(rollouts, said[0]) if len(slices) == 1 else None
        if whole is not None:
            batch = batch.with_(**{k: gather(v) for k, v in whole.detached().items()})
        elif self.algorithm.advantage_reads_policy:
            with torch.no_grad():
                parts = [self._score(rollouts.rows(s), said[s.start]).detached() for s in slices]
            batch = batch.with_(**{k: gather(torch.cat([p[k] for p in parts])) for k in parts[0]})
        batch = batch.with_(advantage=self._advantage(batch, slices))
        batch = self.algorithm.prepared(batch, self.optimizers["policy"].param_groups[0])

        self.optimizers["policy"].zero_grad()
        own = batch.rows(self.world.share(len(batch.mask)))
        loss_sum, entropy_sum, clipped, logps, ref_logps = 0.0, 0.0, 0.0, [], []
        for s in slices:
            scores = whole or self._score(rollouts.rows(s), said[s.start])
            rows = own.rows(s).with_(**scores.detached())
            if rows.old_logp is None:
                rows = rows.with_(old_logp=rows.logp)
            responses = len(rows.mask) / len(batch.mask)
            tokens = float(rows.mask.sum() / batch.mask.sum())
            share = Share(responses, responses if self._apart else tokens)
            if scores.start is not None:
                rows = rows.with_(start=scores.start)  # with its graph
            loss = self.algorithm.loss(scores.logp, rows, share)
            if apply:
                self._backward("policy", loss)
            loss_sum += loss.item()
            clipped += tokens * float(self.algorithm.clip_fraction(rows))
            entropy_sum += tokens * float(masked_mean(scores.entropy, rows.mask))
            logps.append(rows.logp)
            ref_logps.append(rows.ref_logp)
        batch = batch.with_(logp=gather(torch.cat(logps)))
        if batch.old_logp is None:
            batch = batch.with_(old_logp=batch.logp)
        if ref_logps[0] is not None:
            batch = batch.with_(ref_logp=gather(torch.cat(ref_logps)))
        loss_sum, clipped, entropy_sum = self.world.total(loss_sum, clipped, entropy_sum)
        self.watch.sound("the loss", loss_sum)
        self.watch.sound_ratios(batch.mask, batch.logp, batch.old_logp, batch.ref_logp)
        norm, held = self._apply("policy") if apply else (0.0, 0.0)
        ratio = batch.old_logp - batch.logp
        return batch, {
            "loss": loss_sum,
            "grad_norm": norm,
            "grad_clipped": held,
            "clip_fraction": clipped,
            "entropy": entropy_sum,
            "approx_kl": float(masked_mean(ratio.exp() - 1 - ratio, batch.mask)),
            "advantage_std": float(masked_mean(batch.advantage.square(), batch.mask).sqrt()),
        }

    @property
    def _apart(self) -> bool:
        """Does each micro-batch have statistics of its own?"""
        return self.config.train.statistics == "micro_batch"

    def _advantage(self, batch: Batch, slices: Sequence[slice]) -> Tensor:
        """Over the whole batch, or over each micro-batch if no response is compared with others."""
        if not (self._apart and self.algorithm.advantage_reads_policy):
            return self.algorithm.advantage(batch)
        own = batch.rows(self.world.share(len(batch.mask)))
        parts = [self.algorithm.advantage(own.rows(s)) for s in slices]
        return self.world.gather(torch.cat(parts))

    def _backward(self, name: str, loss: Tensor) -> None:
        self.world.backward(loss)
        self.optimizers[name].collect()

    def _apply(self, name: str) -> tuple[float, float]:
        """Clip and update, unless a number of this step is not finite.

        -> the gradient norm before, and 1 if it was clipped, else 0.
        """
        (group,) = self.optimizers[name].param_groups
        train = self.config.train
        limit = train.grad_clip
        if train.grad_clip_mode == "relative":
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            norm = float(full(nn.utils.get_total_norm(gradients)))
            limit *= norm_limit(self.optimizers[name], norm)
        norm = float(full(nn.utils.clip_grad_norm_(group["params"], limit)))
        if self.watch.sound(f"the {name}'s gradient norm", norm):
            self.optimizers[name].step()
        return norm, float(norm > limit)

    @property
    def _refreshed(self) -> int:
        """Steps after which the reference becomes the policy; 0: never."""
        return getattr(self.config.objective, "refresh_every", None) or 0

    @torch.no_grad()
    def _refresh_reference(self) -> None:
        assert self.reference is not None
        pairs = zip(self.reference.parameters(), self.policy.parameters(), strict=True)
        for old, new in pairs:
            old.copy_(new)

    # --- failure (vimpo/training/outcomes.py) -----------------------------------------------------

    def outcome(self, rows: Sequence[dict[str, float]]) -> Outcome | None:
        """How the run failed in the last of its rows, or None; every process must call it."""
        return outcome_of(rows, self.watch, self.config.train.collapse, self._reference_kl)

    def _distance(self, step: int, batch: Batch) -> dict[str, float]:
        """`reference_kl`, as in :meth:`_reference_kl`: where the reference is read, and where due.

        Algorithms that need a KL per token have their own, over the whole vocabulary.
        """
        last = self.config.train.steps - 1
        due = self.validator and (step == last or self.validator.due(step))
        if batch.token_kl is not None or not (due or batch.ref_logp is not None):
            return {}
        return {"reference_kl": self._reference_kl()}

    def _reference_kl(self) -> float:
        """KL(pi || base) in nats, summed over a response, mean over those of the last step, by k3.

        pi is the policy that drew them.
        """
        rollouts, logp, ref_logp = self._drawn
        if ref_logp is None or self._refreshed:  # a refreshed reference is not the base
            with self.clock("validation"):
                ref_logp = self.world.gather(self._base_logp(rollouts))
        return response_kl(logp, ref_logp, self.world.gather(rollouts.mask))

    @torch.no_grad()
    def _base_logp(self, rollouts: Rollouts) -> Tensor:
        """log pi_ref of the tokens, for a loss that reads no reference: it is loaded for this."""
        slices = micro_batches(len(rollouts.mask), self.config.train.micro_batch)
        inputs = [piece for s in slices for (piece,) in self._pieces(rollouts.rows(s))]
        if not self.config.model.lora:
            base = Scorer(self._load_network().eval(), self.config.objective, *self._how)
            scorer = self.world.spread(base.requires_grad_(False), *self._example, *self._example)
            found = [scorer(*p.inputs(), p.response_ids, p.mask)[0] for p in inputs]
        else:
            with without_adapters(self.policy):
                scorer = self._calls["policy"]
                found = [scorer(*p.inputs(), p.response_ids, p.mask)[0] for p in inputs]
        return joined(found, rollouts.width)

    # --- held-out problems (vimpo/training/validation.py) -----------------------------------------

    def validate(self, updates: int) -> list[dict]:
        """Rows of validation.csv after so many updates; none where none is due."""
        if self.validator is None or not self.validator.due(updates):
            return []
        with self.clock("validation"):
            sampler = self.collector.sampler
            sampler.sync(lambda: named_weights(self.policy))
            return self.validator.rows(sampler, self.collector.sampling, updates)

    # --- critic -------------------------------------------------------------------------------

    def _values(self, rollouts: Rollouts) -> Tensor:
        assert self.critic is not None
        parts = self._pieces(rollouts, self._prompts(self.critic, rollouts))
        values = [self._calls["critic"](*part.inputs(), part.width, own) for part, own in parts]
        return joined(values, rollouts.width)

    def _estimate_values(self, rollouts: Rollouts, batch: Batch) -> tuple[Batch, Tensor | None]:
        """V(s_t) before the update, and its graph if one micro-batch holds everything."""
        slices = micro_batches(len(rollouts.mask), self.config.train.micro_batch)
        with nullcontext() if len(slices) == 1 else torch.no_grad():
            values = torch.cat([self._values(rollouts.rows(s)) for s in slices])
        batch = batch.with_(values=self.world.gather(values.detach()) * batch.mask)
        return batch, values if len(slices) == 1 else None

    def _update_critic_often(
        self, rollouts: Rollouts, batch: Batch, graph: Tensor | None
    ) -> dict[str, float]:
        """All updates of the critic for one of the policy; returns the metrics of the first."""
        metrics = self._update_critic(rollouts, batch, graph)
        count = cast(PPOConfig, self.config.objective).critic_updates
        for earlier in self.replay.others(count - 1):
            if self.watch.fault:
                break
            self._update_critic(*earlier, None)
        return metrics

    def _update_critic(
        self, rollouts: Rollouts, batch: Batch, graph: Tensor | None
    ) -> dict[str, float]:
        self.optimizers["critic"].zero_grad()
        mine = self.world.share(len(batch.mask))
        algorithm = cast(Ppo, self.algorithm)  # the only one with a critic
        own, returns = batch.rows(mine), algorithm.returns(batch)[mine]
        total = 0.0
        for s in micro_batches(len(rollouts.mask), self.config.train.micro_batch):
            values = graph if graph is not None else self._values(rollouts.rows(s))
            rows = own.rows(s)
            share = float(rows.mask.sum() / batch.mask.sum())
            loss = share * algorithm.critic_loss(values, returns[s], rows)
            self._backward("critic", loss)
            total += loss.item()
        (total,) = self.world.total(total)
        self.watch.sound("the critic's loss", total)
        return {"critic_loss": total, "critic_grad_norm": self._apply("critic")[0]}

    # --- what the run leaves behind (vimpo/training/runs.py) --------------------------------------

    def save(self, folder: Path) -> None:
        """The policy as a `save_pretrained` folder, with PPO's critic in `critic/` inside it.

        Adapters are merged. Every process must call it; the main one writes.
        """
        policy = self._tensors(self.policy)
        critic = self._tensors(self.critic) if self.critic is not None else None
        if self.world.main:
            save_policy(self.policy, self.tokenizer, folder, policy)
            again = check_saved(self.policy, folder, self.config.runtime, policy)
            if self.critic is not None:
                self.critic.save(folder / "critic", critic)
                Critic.load(folder / "critic", again)

    def _tensors(self, module: nn.Module) -> dict[str, Tensor] | None:
        """Weights to save, by name; None if they are simply the module's own."""
        if self.config.model.lora:
            return merged_tensors(module)
        if self.world.size == 1:
            return None
        weights = named_weights(module)
        return {name: tensor.cpu() for name, tensor in weights if self.world.main}

    def provenance(self) -> dict:
        """What the manifest records about the training data."""
        return self.task.provenance(self.config.seed)

    def kept(self) -> dict[str, Tensor]:
        """Batches that the critic will see again."""
        return self.replay.tensors()

    def restore(self, kept: dict[str, Tensor]) -> None:
        self.replay.load({name: tensor.to(self.world.device) for name, tensor in kept.items()})

    def networks(self) -> list[nn.Module]:
        """All networks held in memory."""
        return [m for m in (self.policy, self.reference, self.critic) if m is not None]
