"""Held-out accuracy along training, under several decoders: the rows of validation.csv.

The training loop's own sampler answers the same problems at every look. Random draws are a pure
function of (seed, step, decoder), apart from those of training, so looking changes nothing and an
interrupted run gives the same rows.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vimpo.config import Train, Validation
from vimpo.models.distributed import Alone
from vimpo.sampling.rollouts import Rollouts, Sampler, Sampling, micro_batches, step_seed
from vimpo.tasks import Task
from vimpo.tasks.prompts import encode
from vimpo.tasks.steps import flawless_among

COLUMNS = ["step", "decoder", "accuracy", "flawless", "problems", "samples", "stderr"]


class Validator:
    """Looks at the policy that the sampler draws from."""

    def __init__(
        self,
        validation: Validation,
        train: Train,
        seed: int,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        world: Alone,
    ) -> None:
        """Draw the problems and encode this process's part of them."""
        self.validation, self.train, self.seed = validation, train, seed
        self.task, self.tokenizer, self.world = task, tokenizer, world
        problems = list(task.held_out(validation.problems))
        self.mine = world.share(len(problems))
        self.problems = problems[self.mine]
        self.prompts = encode(tokenizer, [problem.prompt for problem in self.problems])

    def due(self, updates: int) -> bool:
        return self.validation.due(updates, self.train.steps)

    def rows(self, sampler: Sampler, sampling: Sampling, updates: int) -> list[dict]:
        """A row per decoder, the same on every process, all of which must call it.

        sampling: of training. flawless: the share of right responses without a wrong step; NaN if
        none is right, or if the task grades no steps. stderr: of the accuracy, over problems.
        """
        return [self._row(name, sampler, sampling, updates) for name in self.validation.decoders]

    def _row(self, name: str, sampler: Sampler, sampling: Sampling, updates: int) -> dict:
        decoder, k = self.validation.decoders[name], self.validation.samples_of(name)
        temperature = decoder.at(self.train.temperature)
        sampler = sampler.with_(
            replace(sampling, group_size=k, temperature=temperature, top_p=decoder.top_p)
        )
        seed = step_seed(self.seed, updates, f"validation:{name}")
        # No more sequences at once than a training step has.
        rows = self.train.prompts_per_step * self.train.group_size // self.world.size
        marks = [
            self._marks(
                sampler.rollouts(
                    self.prompts[s], seed, self.mine.start + s.start, self.validation.problems
                ),
                s,
                k,
            )
            for s in micro_batches(len(self.prompts), max(1, rows // k))
        ]
        right, clean = self.world.gather(torch.cat(marks)).double().cpu().unbind(1)
        problems = right.view(-1, k).mean(1)
        count = len(problems)
        graded = self.task.grade_steps is not None
        return {
            "step": updates,
            "decoder": name,
            "accuracy": float(problems.mean()),
            "flawless": float(clean.sum() / right.sum()) if graded else float("nan"),
            "problems": count,
            "samples": k,
            "stderr": float(problems.std() / count**0.5) if count > 1 else float("nan"),
        }

    def _marks(self, rollouts: Rollouts, part: slice, k: int) -> Tensor:
        """Of each response: is it right, and is it right and flawless? -> [b, 2]"""
        owners = [problem for problem in self.problems[part] for _ in range(k)]
        texts = rollouts.texts(self.tokenizer)
        marks = self.task.rewards(owners, texts)
        # A response that was cut off is wrong, as in training.
        right = [m * done for m, done in zip(marks, rollouts.finished.tolist(), strict=True)]
        clean = flawless_among(self.task.grade_steps, owners, texts, right)
        return torch.tensor([right, clean]).T
