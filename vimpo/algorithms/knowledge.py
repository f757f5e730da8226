"""What an algorithm's value knows of a step's rollouts: columns that all such algorithms share."""

from __future__ import annotations

from collections.abc import Sequence

from vimpo.algorithms.base import Algorithm, Batch
from vimpo.objectives.value import graded_explained, outcome_explained


def known_changes(algorithm: Algorithm, batch: Batch, clean: Sequence[float]) -> dict[str, float]:
    """Explained variance of the change of value, before the step's update; {} without a value.

    change_explained        of the change to the outcome
    change_explained_graded of the change of the value by graded steps, where the task grades them

    clean: rewards before noise, [B]. NaN if the rewards of every group are equal.
    """
    if not algorithm.has_value:
        return {}
    change = algorithm.value_change(batch)
    rewards = batch.rewards.new_tensor(clean)
    found = {
        "change_explained": float(outcome_explained(change, rewards, batch.groups, batch.mask))
    }
    if batch.steps is not None:
        graded = graded_explained(
            change, batch.steps, batch.grades, rewards, batch.groups, batch.mask
        )
        found["change_explained_graded"] = float(graded)
    return found
