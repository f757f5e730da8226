"""What `check --sample` says of a base model: can anything be learned from its responses?"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vimpo.config import Study
from vimpo.storage.integrity import check_model
from vimpo.storage.shipped import shipped_source

if TYPE_CHECKING:
    from vimpo.tasks import Task

NEXT_TO_NOTHING = 0.05  # accuracy at or below which, or above one minus which, there is a warning
WARNING = "warning: "


@dataclass(frozen=True)
class Sampled:
    """Of `responses` to as many training problems: how many are right, hold an answer, were cut.

    length: mean, in tokens.
    """

    responses: int
    right: int
    answered: int
    cut_off: int
    length: float

    @property
    def accuracy(self) -> float:
        return self.right / self.responses

    def __str__(self) -> str:
        counts = {"right": self.right, "with an answer": self.answered, "cut off": self.cut_off}
        shares = ", ".join(f"{n} {name} ({n / self.responses:.0%})" for name, n in counts.items())
        return f"{self.responses} responses: {shares}; {self.length:.1f} tokens on average"

    def warning(self, group_size: int) -> str | None:
        """Why groups of responses will differ in nothing; None if they will."""
        if NEXT_TO_NOTHING < self.accuracy < 1 - NEXT_TO_NOTHING:
            return None
        which = "hardly any" if self.accuracy < 0.5 else "nearly every"
        equal = self.accuracy**group_size + (1 - self.accuracy) ** group_size
        text = (
            f"the base model gets {which} training problem right ({self.right} of "
            f"{self.responses}): at this rate, all {group_size} responses of a group earn the same "
            f"in {equal:.0%} of groups, and teach little"
        )
        if self.accuracy < 0.5 and self.answered < self.responses / 2:
            text += "; most hold no answer: see task.prompt and task.boxed_only"
        if self.accuracy < 0.5 and self.cut_off > self.responses / 2:
            text += "; most are cut off: see train.max_response"
        return text


def sample_bases(
    study: Study, count: int, tasks: Mapping[str, Task], say: Callable[[str], None]
) -> None:
    """Sample each size's base model on training problems; warnings go to stderr.

    tasks: the datasets that were already read, by size. Nothing is written.
    """
    for size in study.used_sizes():
        model, what = base_model(study, size)
        if model is None:
            say(
                f"{size}: no base policy to sample yet; `python -m vimpo pretrain --size {size}` "
                "makes it"
            )
            continue
        found = sampled(study, model, count, tasks.get(size))
        say(f"{size}: {what}, {found}")
        if warning := found.warning(study.train.group_size):
            print(f"{WARNING}sizes.{size}: {warning}", file=sys.stderr)


def base_model(study: Study, size: str) -> tuple[Path | None, str]:
    """The model that training of a size would start from, or else the nearest to it; and its name.

    Raises DamagedError for a base policy that is not what was written.
    """
    from vimpo.training.runs import is_complete

    folder, spec = study.base_folder(size), study.sizes[size]
    if is_complete(folder, study.base_digest(size)):
        check_model(folder)
        return folder / "model", "the base policy"
    if shipped := shipped_source(study, size, study.base_folder(size)):
        check_model(shipped)
        return shipped / "model", "the base policy"
    if spec.path is None:
        return None, ""
    early = " before its supervised steps" if spec.pretrain_steps else ""
    return Path(spec.path).expanduser(), f"'{spec.path}'{early}"


def sampled(study: Study, model: Path, count: int, task: Task | None) -> Sampled:
    """Sample `count` responses, graded as in training."""
    from vimpo.models.networks import set_up_torch
    from vimpo.training.base_responses import BasePolicy

    set_up_torch(study.runtime)
    base = BasePolicy(study, model, task)
    right = answered = cut_off = 0
    lengths: list[int] = []
    for found in base.answers(count, "check"):
        right += sum(found.right)
        answered += sum(base.task.answered(found.texts))
        cut_off += int((~found.rollouts.finished).sum())
        lengths += [len(tokens) for tokens in found.rollouts.token_lists()]
    return Sampled(len(lengths), right, answered, cut_off, statistics.fmean(lengths))
