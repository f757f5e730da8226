"""Value pretraining: PPO's critic is fitted to the base policy before the first step.

A critic that starts at zero explains nothing for its first hundred updates, and until then PPO
compares with a batch's mean (VC-PPO, arXiv 2503.01491, pretrains its value model for the same
reason). Each update reads fresh rollouts of the frozen base policy, graded under the cell's noise:

    L = 1/2 mean_t (V(s_t) - R)^2

Every `check_every` updates, the explained variance of the change along held-out rollouts is
measured (vimpo/objectives/value.py), also under the cell's noise: no clean label is read. It ends
when that has stopped rising; the best critic is kept. Seeds share it, and it is made like any other
run (vimpo/training/runs.py), whose metrics.csv has a row for each measurement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from vimpo.config import CellConfig, ConfigError, CriticPretraining
from vimpo.models.distributed import named_weights
from vimpo.models.memory import HELD_OUT_GROUP, PRETRAINING_ROWS, SAMPLED_UPDATES
from vimpo.models.networks import Critic, load_policy, load_tokenizer
from vimpo.models.optimizer import make_optimizer
from vimpo.models.passes import enable_checkpointing
from vimpo.objectives.ppo import critic_loss
from vimpo.objectives.value import end_explained, outcome_explained
from vimpo.sampling import make_sampler
from vimpo.sampling.rollouts import Rollouts, joined, micro_batches, sampling_of, seed_of
from vimpo.tasks import Problem, Task, load_task
from vimpo.tasks.noise import clean_rewards, noisy_rewards
from vimpo.tasks.prompts import encode
from vimpo.training.outcomes import Outcome
from vimpo.training.telemetry import Stopwatch

FINAL_RATE = 0.05  # least share of the rate


class CriticPretrainer:
    """The state of a pretraining; a step is `check_every` updates and a measurement."""

    phases: tuple[str, ...] = ("rollout", "critic")

    def __init__(
        self, config: CellConfig, settings: CriticPretraining, base: Path, read: Task | None = None
    ) -> None:
        """Load the base policy, which stays as it is. read: the task, if it was already made.

        Raises ConfigError if `base` holds no policy.
        """
        self.config, self.settings = config, settings
        runtime, train = config.runtime, config.train
        self.tokenizer = load_tokenizer(base, runtime.trust_remote_code)
        self.policy = load_policy(base, runtime)
        if runtime.gradient_checkpointing:
            enable_checkpointing(self.policy)
        self.critic = Critic.from_policy(self.policy)
        self.policy.requires_grad_(False)
        self.task = read or load_task(config, self.policy, self.tokenizer)
        self.clock = Stopwatch(runtime.device)
        self.modules: dict[str, nn.Module] = {"critic": self.critic}
        rate, decay = settings.learning_rate, config.pretrain.weight_decay
        self.optimizers = {"critic": make_optimizer(self.critic, rate, decay)}
        sampling = sampling_of(train, self.policy, self.tokenizer, 1, train.max_response)
        self.sampler = make_sampler(self.policy, base, sampling, runtime)
        self.sampler.sync(lambda: named_weights(self.policy))
        self._best, self._best_weights = -math.inf, self._weights()

    def step(self, step: int) -> dict[str, float]:
        """Updates up to the next measurement, and that."""
        first = step * self.settings.check_every
        last = min(first + self.settings.check_every, self.settings.updates)
        losses = []
        for update in range(first, last, SAMPLED_UPDATES):
            draws = range(update, min(update + SAMPLED_UPDATES, last))
            with self.clock("rollout"):
                batches = self._graded([self._held_out_draws + draw for draw in draws])
            for draw, (rollouts, rewards, _) in zip(draws, batches, strict=True):
                self._set_rate(draw)
                losses.append(self._update(rollouts, rewards))
        explained, at_end = self._measure()
        if not explained <= self._best:  # NaN: nothing to choose by, so the latest
            self._best_weights = self._weights()
            self._best = self._best if math.isnan(explained) else explained
        return {
            "step": step,
            "updates": last,
            "loss": sum(losses) / len(losses),
            "held_out_explained": explained,
            "held_out_end": at_end,
        }

    def validate(self, updates: int) -> list[dict]:
        return []  # its steps measure it

    def outcome(self, rows: Sequence[dict[str, float]]) -> Outcome | None:
        """The end, if the held-out explained variance has stopped rising."""
        if not stopped_rising(rows, self.settings):
            return None
        reason = f"best held-out explained variance of the change: {self._best:.3f}"
        return Outcome("finished", int(rows[-1]["step"]), reason)

    def save(self, folder: Path) -> None:
        """The best critic."""
        self.critic.save(folder, self._best_weights)
        Critic.load(folder, self.policy)

    def kept(self) -> dict[str, Tensor]:
        """The best critic so far, and how good it is."""
        best = torch.tensor(self._best, dtype=torch.float64)
        return {"best": best, **{f"weights.{k}": v for k, v in self._best_weights.items()}}

    def restore(self, kept: dict[str, Tensor]) -> None:
        self._best = float(kept.pop("best"))
        self._best_weights = {k.removeprefix("weights."): v for k, v in kept.items()}

    def provenance(self) -> dict:
        """What the manifest records about the training data."""
        return self.task.provenance(self._seed)

    def networks(self) -> list[nn.Module]:
        return [self.policy, self.critic]

    # --- one update -------------------------------------------------------------------------------

    @property
    def _seed(self) -> int:
        """Of all problems and rollouts; no run draws with it."""
        return seed_of("critic", self.config.pretrain.seed) % 2**31

    def _weights(self) -> dict[str, Tensor]:
        return {name: w.detach().clone() for name, w in self.critic.state_dict().items()}

    def _set_rate(self, update: int) -> None:
        """Falls in a straight line: at a constant rate, what is learned late comes and goes."""
        share = max(FINAL_RATE, 1 - update / self.settings.updates)
        (group,) = self.optimizers["critic"].param_groups
        group["lr"] = share * self.settings.learning_rate

    def _update(self, rollouts: Rollouts, rewards: Tensor) -> float:
        """One update. Returns the loss before it."""
        optimizer, total = self.optimizers["critic"], 0.0
        with self.clock("critic"):
            optimizer.zero_grad()
            for rows in micro_batches(len(rewards), self._rows):
                part, returns = rollouts.rows(rows).trimmed(), rewards[rows]
                values = self.critic(*part.inputs(), part.width)
                targets = returns[:, None].expand_as(values)
                share = float(part.mask.sum() / rollouts.mask.sum())
                loss = share * critic_loss(values, targets, values, part.mask, None)
                loss.backward()
                optimizer.collect()
                total += loss.item()
            if not math.isfinite(total):
                raise ConfigError(
                    f"critic_pretrain.learning_rate: at {self.settings.learning_rate} the loss is "
                    f"{total}; allowed: a lower rate"
                )
            (group,) = optimizer.param_groups
            nn.utils.clip_grad_norm_(group["params"], 1.0)
            optimizer.step()
        return total

    def _problems(self, draw: int) -> list[Problem]:
        """As many as an update has rollouts, in turn if the task has fewer."""
        count = self.settings.rollouts
        distinct = self.task.training_problems(self._seed, draw, min(count, self.task.supply()))
        return [distinct[i % len(distinct)] for i in range(count)]

    def _graded(
        self, draws: Sequence[int], index: int = 0
    ) -> list[tuple[Rollouts, Tensor, list[str]]]:
        """A rollout of each problem of these draws, sampled together.

        For each draw: rollouts, shortest first, with their noisy rewards [B] and problems' ids.
        index: of these rollouts among those of their problems.
        """
        count, noise = self.settings.rollouts, self.config.noise
        problems = [problem for draw in draws for problem in self._problems(draw)]
        prompts = encode(
            self.tokenizer, [problem.prompt for problem in problems], self.task.kept_prompt
        )
        rollouts = self.sampler.rollouts(prompts, seed_of("critic", self._seed, draws[0], index))
        marks = self.task.rewards(problems, rollouts.texts(self.tokenizer))
        right = clean_rewards(marks, rollouts.finished.tolist(), self.config.train.truncated)
        found = []
        for i, draw in enumerate(draws):
            rows = slice(i * count, (i + 1) * count)
            part, ids = rollouts.rows(rows), [problem.id for problem in problems[rows]]
            # A place of its own for each, also where a draw holds a problem twice.
            places = range(index * count, (index + 1) * count)
            noisy = noisy_rewards(noise, right[rows], ids, places, seed=self._seed, step=draw)
            order = part.by_length()
            rewards = torch.tensor(noisy, device=order.device)[order]
            found.append((part.rows(order), rewards, [ids[k] for k in order.tolist()]))
        return found

    @property
    def _rows(self) -> int:
        """Rollouts of one forward pass: no more than a step of training has."""
        train = self.config.train
        return min(PRETRAINING_ROWS, train.micro_batch or train.prompts_per_step * train.group_size)

    # --- measuring --------------------------------------------------------------------------------

    @property
    def _held_out_draws(self) -> int:
        """Draws of problems for the held-out rollouts; those for updates come after them."""
        return -(-self.settings.held_out // self.settings.rollouts)

    @cached_property
    def _held_out(self) -> list[tuple[Rollouts, Tensor, Tensor]]:
        """Rollouts of the held-out problems, with their rewards and groups.

        A group's mean is its problem's V(s_0).
        """
        draws, found = range(self._held_out_draws), []
        places: dict[str, int] = {}
        for index in range(HELD_OUT_GROUP):
            for rollouts, rewards, ids in (self._graded([draw], index)[0] for draw in draws):
                for name in ids:
                    places.setdefault(name, len(places))
                groups = torch.tensor([places[name] for name in ids], device=rewards.device)
                found.append((rollouts, rewards, groups))
        return found

    @torch.no_grad()
    def _measure(self) -> tuple[float, float]:
        """Held-out explained variance of the change, at all prefixes and at the last.

        NaN if every group has equal rewards.
        """
        with self.clock("rollout"):
            batches = self._held_out
        with self.clock("critic"):
            changes, masks = [], []
            for rollouts, _, _ in batches:
                for rows in micro_batches(len(rollouts.mask), self._rows):
                    part = rollouts.rows(rows).trimmed()
                    values = self.critic(*part.inputs(), part.width)
                    changes.append((values - values[:, :1]) * part.mask)
                    masks.append(part.mask)
            width = max(mask.shape[1] for mask in masks)
            change, mask = joined(changes, width), joined(masks, width)
            rewards = torch.cat([rewards for _, rewards, _ in batches])
            groups = torch.cat([groups for _, _, groups in batches])
            outcome = (rewards, groups, mask)
            return (
                float(outcome_explained(change, *outcome)),
                float(end_explained(change, *outcome)),
            )


def stopped_rising(rows: Sequence[dict[str, float]], settings: CriticPretraining) -> bool:
    """Has the held-out explained variance not risen for `patience` updates, after the least?

    rows: one for each measurement, with `updates` and `held_out_explained`, which may be NaN.
    """
    done = rows[-1]["updates"]
    known = [row for row in rows if not math.isnan(row["held_out_explained"])]
    best = max(known, key=lambda row: row["held_out_explained"], default=rows[0])["updates"]
    return done >= settings.least and done - best >= settings.patience
