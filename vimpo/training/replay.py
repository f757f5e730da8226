"""The latest batches of a run, which a critic learns from again.

A critic falls behind a policy that learns fast: one update on each batch does not follow it, and
several updates on the same batch fit that batch alone. Older batches keep the targets and values
that they had when they were sampled.
"""

from __future__ import annotations

from dataclasses import fields

from torch import Tensor

from vimpo.algorithms import Batch
from vimpo.sampling.rollouts import Rollouts

READ = ("rewards", "groups", "baseline", "values")  # of a batch, by a critic's update
ROLLOUTS = tuple(f.name for f in fields(Rollouts))


class Replay:
    """At most `size` batches, newest first."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._batches: list[tuple[Rollouts, Batch]] = []

    def add(self, rollouts: Rollouts, batch: Batch) -> None:
        """Put a batch in front, with `values`; the oldest falls out if there are too many."""
        read = Batch(rollouts.mask, **{name: getattr(batch, name) for name in READ})
        self._batches = [(rollouts, read), *self._batches][: self.size]

    def others(self, count: int) -> list[tuple[Rollouts, Batch]]:
        """The next `count` batches in turn: those before the newest, then the newest again."""
        found = self._batches
        return [found[(i + 1) % len(found)] for i in range(count)]

    def tensors(self) -> dict[str, Tensor]:
        """All that the next step will still read, by name: the oldest falls out there."""
        named: dict[str, Tensor] = {}
        for i, (rollouts, batch) in enumerate(self._batches[: self.size - 1]):
            named |= {f"{i}.rollouts.{name}": getattr(rollouts, name) for name in ROLLOUTS}
            named |= {f"{i}.batch.{name}": getattr(batch, name) for name in READ}
        return named

    def load(self, named: dict[str, Tensor]) -> None:
        """Take back what :meth:`tensors` returned."""
        count = 1 + max((int(name.partition(".")[0]) for name in named), default=-1)
        self._batches = []
        for i in range(count):
            rollouts = Rollouts(**{name: named[f"{i}.rollouts.{name}"] for name in ROLLOUTS})
            read = {name: named[f"{i}.batch.{name}"] for name in READ}
            self._batches.append((rollouts, Batch(rollouts.mask, **read)))
