"""Held-out accuracy along training, under several decoders: the rows of validation.csv.

The training loop's own sampler answers the same problems at every look. Random draws are a pure
function of (seed, step), apart from those of training: looking changes nothing, and an interrupted
run gives the same rows.
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
from vimpo.tasks.noise import clean_rewards
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
        self.prompts = encode(
            tokenizer, [problem.prompt for problem in self.problems], task.kept_prompt
        )

    def due(self, updates: int) -> bool:
        return self.validation.due(updates, self.train.steps)

    def rows(self, sampler: Sampler, sampling: Sampling, updates: int) -> list[dict]:
        """A row per decoder, the same on every process, all of which must call it.

        sampling: of training. All decoders answer a problem together, as one group.
        """
        looked, temperature = self.validation, self.train.temperature
        names = [name for name in looked.decoders for _ in range(looked.samples_of(name))]
        decoders = [looked.decoders[name] for name in names]
        how = tuple((decoder.at(temperature), decoder.top_p) for decoder in decoders)
        sampler = sampler.with_(replace(sampling, group_size=len(names), decoders=how))
        seed = step_seed(self.seed, updates, "validation")
        marks = [
            self._marks(
                sampler.rollouts(self.prompts[s], seed, self.mine.start + s.start, looked.problems),
                s,
            )
            for s in micro_batches(len(self.prompts), max(1, self._most // len(names)))
        ]
        found = self.world.gather(torch.cat(marks)).double().cpu()
        found = found.view(looked.problems, len(names), 2)
        return [
            self._row(updates, name, found[:, [other == name for other in names]])
            for name in looked.decoders
        ]

    @property
    def _most(self) -> int:
        """Sequences that are sampled at once: no more than in a training step."""
        return self.train.prompts_per_step * self.train.group_size // self.world.size

    def _row(self, updates: int, decoder: str, marks: Tensor) -> dict:
        """marks [problems, samples, 2]: is a response right, and is it flawless too?

        flawless: their share among the right ones; NaN if none is right, or if the task grades no
        steps. stderr: of the accuracy, over problems.
        """
        right, clean = marks.unbind(-1)
        count, samples = right.shape
        graded = self.task.grade_steps is not None
        problems = right.mean(1)
        return {
            "step": updates,
            "decoder": decoder,
            "accuracy": float(problems.mean()),
            "flawless": float(clean.sum() / right.sum()) if graded else float("nan"),
            "problems": count,
            "samples": samples,
            "stderr": float(problems.std() / count**0.5) if count > 1 else float("nan"),
        }

    def _marks(self, rollouts: Rollouts, part: slice) -> Tensor:
        """Of each response: is it right, and is it right and flawless? -> [b, 2]"""
        problems, rows = self.problems[part], len(rollouts.mask)
        owners = [problem for problem in problems for _ in range(rows // len(problems))]
        texts = rollouts.texts(self.tokenizer)
        marks = self.task.rewards(owners, texts)
        right = clean_rewards(marks, rollouts.finished.tolist(), self.train.truncated)
        clean = flawless_among(self.task.grade_steps, owners, texts, right)
        return torch.tensor([right, clean]).T
