"""What is probed: a run's policy beside its base policy and, for PPO, its critic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vimpo.config import Cell, ChainTask, ConfigError, PPOConfig, Probes, Study, Train
from vimpo.models import Critic, last_logits, load_policy, load_tokenizer
from vimpo.objectives.common import exact_kl
from vimpo.objectives.vimpo import implied_td
from vimpo.rollout import Rollouts, sample
from vimpo.tasks.chain import Problem, is_right, training_problems
from vimpo.trainer import step_seed

SAMPLE_ROWS = 640  # sequences that are sampled together
READ_ROWS = 256  # sequences in one forward pass


@dataclass(frozen=True)
class Reading:
    """The networks on a batch of rollouts; all [B, T], float32, 0 off mask.

    log_ratio = log pi - log pi_ref and token_kl in nats; td = beta (log_ratio - token_kl); values:
    the critic's V(s_t), None without a critic.
    """

    mask: Tensor
    log_ratio: Tensor
    token_kl: Tensor
    td: Tensor
    values: Tensor | None


@dataclass(frozen=True)
class Subject:
    """A trained policy with what its values are read against.

    beta: scale of the implied value; lam: lambda of the algorithm's GAE, 1 where it has none.
    """

    policy: PreTrainedModel
    reference: PreTrainedModel
    critic: Critic | None
    tokenizer: PreTrainedTokenizerBase
    task: ChainTask
    train: Train
    probes: Probes
    beta: float
    lam: float

    @classmethod
    def load(cls, study: Study, cell: Cell) -> Subject:
        """The finished run of `cell`. Raises ConfigError where a part of it is missing."""
        config = study.cell_config(cell)
        folder, base = study.run_folder(cell) / "model", study.base_folder(cell.size) / "model"
        critic = None
        if isinstance(config.objective, PPOConfig):
            if not (folder / "critic" / "critic.safetensors").is_file():
                raise ConfigError(f"model: '{folder}' holds no critic; allowed: a finished PPO run")
            critic = Critic.load(folder / "critic", config.runtime).eval().requires_grad_(False)
        return cls(
            policy=load_policy(folder, config.runtime).eval().requires_grad_(False),
            reference=load_policy(base, config.runtime).eval().requires_grad_(False),
            critic=critic,
            tokenizer=load_tokenizer(folder),
            task=config.task,
            train=config.train,
            probes=study.probes,
            beta=study.readout_beta(cell.algorithm),
            lam=getattr(config.objective, "lam", 1.0),
        )

    def problems(
        self, count: int, purpose: int, operators: Sequence[int] | None = None
    ) -> list[Problem]:
        """`count` training problems, a pure function of the probes' seed and `purpose`.

        Distinct, but for a task with fewer than twice as many, whose problems come round again.
        """
        lengths = operators or self.task.train_operators
        supply = sum(self.task.problem_space(n) for n in set(lengths)) // 2
        drawn = training_problems(
            self.task, self.probes.seed, purpose, min(count, supply), operators
        )
        return [drawn[i % len(drawn)] for i in range(count)]

    def encode(self, problem: Problem) -> list[int]:
        return list(self.tokenizer(problem.prompt, add_special_tokens=False).input_ids)

    def sample(
        self, prompts: Sequence[Sequence[int]], purpose: str, group_size: int = 1, spent: int = 0
    ) -> list[Rollouts]:
        """Rollouts at the training temperature, in chunks of whole groups that keep the order.

        The luck is a pure function of the probes' seed and `purpose`, the same for every
        algorithm. spent: response tokens that every prompt already holds.
        """
        generator = torch.Generator().manual_seed(step_seed(self.probes.seed, 0, purpose))
        width = max(1, SAMPLE_ROWS // group_size)
        return [
            sample(
                self.policy,
                prompts[start : start + width],
                group_size=group_size,
                max_response=self.train.max_response - spent,
                temperature=self.train.temperature,
                eos=self.tokenizer.eos_token_id,
                pad=self.tokenizer.pad_token_id,
                generator=generator,
            )
            for start in range(0, len(prompts), width)
        ]

    def reward(self, problem: Problem, response: Sequence[int], finished: bool) -> bool:
        """The clean reward of a whole response, EOS and all."""
        if not finished:
            return False
        return is_right(problem.answer, self.text(response))

    def text(self, response: Sequence[int]) -> str:
        return self.tokenizer.decode(list(response), skip_special_tokens=True)

    @torch.no_grad()
    def read(self, rollouts: Rollouts) -> Reading:
        """Log-ratio, KL, td and critic on every token of the rollouts."""
        chunks = [
            self._read(rollouts.rows(slice(start, start + READ_ROWS)))
            for start in range(0, len(rollouts.mask), READ_ROWS)
        ]
        values = None if self.critic is None else torch.cat([c.values for c in chunks])
        names = ("mask", "log_ratio", "token_kl", "td")
        return Reading(*(torch.cat([getattr(c, n) for c in chunks]) for n in names), values)

    def _read(self, rollouts: Rollouts) -> Reading:
        inputs, width, mask = rollouts.inputs(), rollouts.width, rollouts.mask
        temperature = self.train.temperature
        logits = last_logits(self.policy, *inputs, width) / temperature
        ref_logits = last_logits(self.reference, *inputs, width) / temperature
        index = rollouts.response_ids[..., None]
        logp = logits.log_softmax(-1).gather(-1, index).squeeze(-1)
        ref_logp = ref_logits.log_softmax(-1).gather(-1, index).squeeze(-1)
        kl = exact_kl(logits, ref_logits)
        td = implied_td(logp, ref_logp, kl, mask, self.beta)
        values = None if self.critic is None else (self.critic(*inputs, width) * mask).cpu()
        on = mask.bool()
        return Reading(
            mask=mask.cpu(),
            log_ratio=torch.where(on, logp - ref_logp, 0.0).cpu(),
            token_kl=torch.where(on, kl, 0.0).cpu(),
            td=td.cpu(),
            values=values,
        )


def responses(chunks: Sequence[Rollouts]) -> tuple[list[list[int]], list[bool]]:
    """Token lists without padding, EOS included, and whether each ended by itself."""
    tokens = [
        ids[:length]
        for chunk in chunks
        for ids, length in zip(
            chunk.response_ids.tolist(), chunk.mask.sum(1).long().tolist(), strict=True
        )
    ]
    return tokens, [done for chunk in chunks for done in chunk.finished.tolist()]
