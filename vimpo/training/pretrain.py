"""Supervised warm start: a base policy is trained on demonstrations with forgotten carries.

A model with a `path` and no pretraining steps is its own base policy.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from vimpo.config import ConfigError, ModelSpec, Pretrain, Runtime, TaskConfig
from vimpo.models.networks import (
    build_policy,
    chain_tokenizer,
    load_policy,
    load_tokenizer,
    save_policy,
)
from vimpo.models.optimizer import make_optimizer
from vimpo.models.passes import last_logits
from vimpo.models.saved import check_saved
from vimpo.sampling.gap import check_sampling
from vimpo.sampling.rollouts import left_pad
from vimpo.tasks import Task, make_task
from vimpo.tasks.prompts import encode, encode_text
from vimpo.training.telemetry import Stopwatch

FINAL_RATE = 0.05  # of the peak: the cosine does not end at zero
IGNORED = -100


class Pretrainer:
    """The state of a supervised run and its step, whose draws are pure in (seed, step)."""

    phases: tuple[str, ...] = ("update",)

    def __init__(
        self,
        model: ModelSpec,
        task: TaskConfig,
        pretrain: Pretrain,
        runtime: Runtime,
        read: Task | None = None,
    ) -> None:
        """Build or load the model; read: its task, if it was already made.

        Raises ConfigError if the path holds no model, or one that samples other than it scores.
        """
        self.spec, self.pretrain, self.runtime = model, pretrain, runtime
        self.seed = pretrain.seed if model.pretrain_seed is None else model.pretrain_seed
        if model.path:
            self.tokenizer = load_tokenizer(model.path, runtime.trust_remote_code)
            self.policy = load_policy(model.path, runtime)
            check_sampling(self.policy, self.tokenizer, model.path)
        else:
            self.tokenizer = chain_tokenizer()
            policy = build_policy(model, self.tokenizer, self.seed)
            self.policy = policy.to(runtime.device, getattr(torch, runtime.dtype)).eval()  # type: ignore[arg-type]  # transformers wraps `to`
        # Without steps the model is its own base policy and needs no task.
        self.task: Task | None = None
        if model.pretrain_steps:
            self.task = read or make_task(task, self.tokenizer, batch_size=pretrain.batch_size)
        self.clock = Stopwatch(runtime.device)
        self.modules: dict[str, nn.Module] = {"policy": self.policy}
        self.optimizers = {
            "policy": make_optimizer(self.policy, model.pretrain_lr, pretrain.weight_decay)
        }

    def step(self, step: int) -> dict[str, float]:
        """One batch of fresh demonstrations; the loss is over response tokens and EOS."""
        with self.clock("update"):
            rate = self._set_rate(step)
            ids, mask, labels = self._batch(step)
            width = labels.shape[1] - 1
            logits = last_logits(self.policy, ids[:, :-1], mask[:, :-1], width)
            loss = cross_entropy(logits.transpose(1, 2), labels[:, 1:], ignore_index=IGNORED)
            optimizer = self.optimizers["policy"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.collect()
            (group,) = optimizer.param_groups
            if not loss.isfinite():
                # Not a result but an error: nothing can be compared from such a base.
                raise ConfigError(
                    f"pretrain_lr: at {self.spec.pretrain_lr} the loss is {loss.item()} at step "
                    f"{step}; allowed: a lower rate"
                )
            norm = nn.utils.clip_grad_norm_(group["params"], 1.0)
            optimizer.step()
        return {
            "step": step,
            "loss": loss.item(),
            "grad_norm": float(norm),
            "learning_rate": rate,
        }

    def _set_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine."""
        warmup = self.pretrain.warmup_steps
        progress = max(0, step - warmup) / max(1, self.spec.pretrain_steps - warmup)
        cosine = FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * progress))
        rate = self.spec.pretrain_lr * min(1.0, (step + 1) / max(1, warmup)) * cosine
        for group in self.optimizers["policy"].param_groups:
            group["lr"] = rate
        return rate

    def _batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """ids, mask, labels [B, L], left-padded; labels are ignored on prompt and padding."""
        assert self.task is not None  # a base policy without steps asks for no batch
        texts, targets = [], []
        demonstrations = self.task.demonstrations(self.seed, step, self.pretrain.batch_size)
        for prompt_text, response_text in demonstrations:
            (prompt,) = encode(self.tokenizer, [prompt_text], self.task.kept_prompt)
            response = encode_text(self.tokenizer, response_text)
            response.append(self.tokenizer.eos_token_id)
            texts.append(prompt + response)
            targets.append([IGNORED] * len(prompt) + response)
        device = self.policy.device
        ids, mask = left_pad(texts, self.tokenizer.pad_token_id, device)
        labels, _ = left_pad(targets, IGNORED, device)
        return ids, mask, labels

    def save(self, folder: Path) -> None:
        save_policy(self.policy, self.tokenizer, folder)
        check_saved(self.policy, folder, self.runtime)

    def provenance(self) -> dict:
        """What the manifest records about the training data."""
        return self.task.provenance(self.seed) if self.task else {}

    def networks(self) -> list[nn.Module]:
        return [self.policy]

    def kept(self) -> dict[str, torch.Tensor]:
        return {}

    def restore(self, kept: dict[str, torch.Tensor]) -> None:
        """Nothing was kept."""

    def outcome(self, rows: list[dict[str, float]]) -> None:
        """Never an outcome: a base policy that fails is an error."""

    def validate(self, updates: int) -> list[dict]:
        """Nothing: held-out accuracy is a matter of reinforcement learning."""
        return []
