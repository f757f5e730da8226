"""What is probed: a run's policy with its base policy and, for PPO, its critic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vimpo.config import Cell, CellConfig, PPOConfig, Probes, Study, Train, VimpoConfig
from vimpo.models.ends import before_end, ends_of
from vimpo.models.networks import Critic, check_plain_head, load_policy, load_tokenizer
from vimpo.models.scoring import Reader, Scorer
from vimpo.objectives.vimpo import implied_td
from vimpo.probes import READ_ROWS, SAMPLE_ROWS, read_together, sampled_together
from vimpo.sampling import make_sampler
from vimpo.sampling.rollouts import (
    Rollouts,
    Sampler,
    TorchSampler,
    joined,
    left_pad,
    micro_batches,
    sampling_of,
    step_seed,
)
from vimpo.storage.surprisal import known_beta
from vimpo.tasks import Problem, Task, load_task
from vimpo.tasks.prompts import encode
from vimpo.tasks.steps import decoded


@dataclass(frozen=True)
class Reading:
    """The networks on a batch of rollouts; all [B, T], float32, 0 off mask.

    log_ratio = log pi - log pi_ref and token_kl in nats; td = beta (log_ratio - token_kl); values:
    the critic's V(s_t), None without a critic; logp: log pi, None where nothing needs it.
    """

    mask: Tensor
    log_ratio: Tensor
    token_kl: Tensor
    td: Tensor
    values: Tensor | None
    logp: Tensor | None = None


@dataclass(frozen=True)
class Subject:
    """A trained policy and everything needed to read values out of it.

    beta: scale of the implied value; lam: lambda of the algorithm's GAE, 1 if it has none;
    sampler: default: torch, from the policy; sample_rows, read_rows: sequences sampled together,
    and read in one forward pass; chunk: tokens whose logits are held at once.
    """

    policy: PreTrainedModel
    reference: PreTrainedModel
    critic: Critic | None
    tokenizer: PreTrainedTokenizerBase
    task: Task
    train: Train
    probes: Probes
    beta: float
    lam: float
    sampler: Sampler | None = None
    sample_rows: int = SAMPLE_ROWS
    read_rows: int = READ_ROWS
    chunk: int | None = None

    @classmethod
    def load(cls, study: Study, cell: Cell, step: int | None = None) -> Subject:
        """The finished run of `cell`, or its snapshot, whose files `check_model` found intact."""
        config = study.cell_config(cell)
        runtime, train = config.runtime, config.train
        folder = study.run_folder(cell, step) / "model"
        base = study.base_folder(cell.size) / "model"
        policy = load_policy(folder, runtime, finite=False).eval().requires_grad_(False)
        if runtime.logit_chunk:
            check_plain_head(policy)
        tokenizer = load_tokenizer(folder, runtime.trust_remote_code)
        sampling = sampling_of(train, policy, tokenizer, 1, train.max_response)
        return cls(
            policy=policy,
            reference=load_policy(base, runtime).eval().requires_grad_(False),
            critic=_load_critic(config, folder, policy),
            tokenizer=tokenizer,
            task=load_task(config, policy, tokenizer),
            train=train,
            probes=study.probes,
            beta=known_beta(study, cell.size, study.readout_beta(cell.algorithm)),
            lam=getattr(config.objective, "lam", 1.0),
            sampler=make_sampler(policy, folder, sampling, runtime),
            sample_rows=sampled_together(study),
            read_rows=read_together(study),
            chunk=runtime.logit_chunk,
        )

    def problems(
        self, count: int, purpose: int, operators: Sequence[int] | None = None
    ) -> list[Problem]:
        """`count` training problems, a pure function of the probes' seed and `purpose`.

        Distinct, unless the task supplies fewer and they repeat. operators: the lengths to draw
        from, for chains only.
        """
        lengths = () if operators is None else (operators,)
        distinct = min(count, self.task.supply(*lengths))
        drawn = self.task.training_problems(self.probes.seed, purpose, distinct, *lengths)
        return [drawn[i % len(drawn)] for i in range(count)]

    def encode(self, problem: Problem) -> list[int]:
        (ids,) = encode(self.tokenizer, [problem.prompt], self.task.kept_prompt)
        return ids

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        purpose: str,
        group_size: int = 1,
        spent: Sequence[int] | None = None,
        base: bool = False,
    ) -> list[Rollouts]:
        """Rollouts at the training temperature, in ordered chunks of whole groups.

        Random draws are a pure function of the probes' seed and `purpose`, the same for every
        algorithm. spent: response tokens that each prompt already contains; base: of the base
        policy.
        """
        spent = spent or [0] * len(prompts)
        limits = [self.train.max_response - n for n in spent]
        sampling = sampling_of(self.train, self.policy, self.tokenizer, group_size, max(limits))
        sampler: Sampler = TorchSampler(self.reference if base else self.policy, sampling)
        if self.sampler and not base:
            sampler = self.sampler.with_(sampling)
        seed = step_seed(self.probes.seed, 0, purpose)
        return [
            sampler.rollouts(prompts[s], seed, s.start, len(prompts), limits[s])
            for s in micro_batches(len(prompts), max(1, self.sample_rows // group_size))
        ]

    def written(
        self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
    ) -> list[Rollouts]:
        """Given responses as if they had been sampled, in ordered chunks that are read at once."""
        pad, device = int(self.tokenizer.pad_token_id), self.policy.device
        chunks = []
        for s in micro_batches(len(prompts), self.read_rows):
            prompt_ids, prompt_mask = left_pad(prompts[s], pad, device)
            rows, width = responses[s], max(map(len, responses[s]))
            ids = [[*row, *[pad] * (width - len(row))] for row in rows]
            mask = [[1.0] * len(row) + [0.0] * (width - len(row)) for row in rows]
            tokens, on = torch.tensor(ids, device=device), torch.tensor(mask, device=device)
            ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
            nothing = torch.zeros_like(on)
            chunks.append(Rollouts(prompt_ids, prompt_mask, tokens, on, nothing, ended))
        return chunks

    def rewards(
        self,
        problems: Sequence[Problem],
        responses: Sequence[Sequence[int]],
        finished: Sequence[bool],
    ) -> list[float]:
        """Clean rewards of whole responses, ends included; 0 for one that did not end.

        Unless training grades these too.
        """
        graded = self.train.truncated == "graded"
        ended = [i for i, done in enumerate(finished) if done or graded]
        texts = [self.text(responses[i]) for i in ended]
        marks = dict(
            zip(ended, self.task.rewards([problems[i] for i in ended], texts), strict=True)
        )
        return [marks.get(i, 0.0) for i in range(len(responses))]

    def text(self, response: Sequence[int]) -> str:
        """A response up to its end, as training judges it."""
        return decoded(self.tokenizer, before_end(response, ends_of(self.policy, self.tokenizer)))

    @torch.no_grad()
    def read(self, rollouts: Rollouts) -> Reading:
        """Log-ratio, KL, td and critic on every token of the rollouts."""
        chunks = [
            self._read(rollouts.rows(s)) for s in micro_batches(len(rollouts.mask), self.read_rows)
        ]
        return joined_readings(chunks, rollouts.width)

    def _read(self, rollouts: Rollouts) -> Reading:
        """As training scores VIMPO's rollouts (vimpo/models/scoring.py), with the exact KL."""
        inputs, width, mask = rollouts.inputs(), rollouts.width, rollouts.mask
        how = (self.train.temperature, self.chunk)
        reference = Reader(self.reference, *how).read(*inputs, width)
        scorer = Scorer(self.policy, VimpoConfig(), *how)
        logp, _, ref_logp, kl, *_ = scorer(*inputs, rollouts.response_ids, mask, reference)
        td = implied_td(logp, ref_logp, kl, mask, self.beta)
        values = None if self.critic is None else (self.critic(*inputs, width) * mask).cpu()
        on = mask.bool()
        return Reading(
            mask=mask.cpu(),
            log_ratio=torch.where(on, logp - ref_logp, 0.0).cpu(),
            token_kl=torch.where(on, kl, 0.0).cpu(),
            td=td.cpu(),
            values=values,
            logp=torch.where(on, logp, 0.0).cpu(),
        )


def _load_critic(config: CellConfig, folder: Path, policy: PreTrainedModel) -> Critic | None:
    if not isinstance(config.objective, PPOConfig):
        return None
    return Critic.load(folder / "critic", policy).eval().requires_grad_(False)


def joined_readings(parts: Sequence[Reading], width: int) -> Reading:
    """One batch of all rows, right-padded to `width`."""
    columns: dict[str, Any] = {
        field.name: joined([getattr(part, field.name) for part in parts], width)
        for field in fields(Reading)
    }
    return Reading(**columns)


def responses(chunks: Sequence[Rollouts]) -> tuple[list[list[int]], list[bool]]:
    """Token lists without padding, ends included, and whether each has one."""
    tokens = [ids for chunk in chunks for ids in chunk.token_lists()]
    return tokens, [done for chunk in chunks for done in chunk.finished.tolist()]
