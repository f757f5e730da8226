"""What an algorithm's value knows of a step's rollouts: columns that all such algorithms share."""

from __future__ import annotations

from collections.abc import Sequence

from vimpo.algorithms.base import Algorithm, Batch
from vimpo.objectives.value import end_explained, graded_explained, outcome_explained


def known_changes(algorithm: Algorithm, batch: Batch, clean: Sequence[float]) -> dict[str, float]:
    """Explained variance of the change of value, before the step's update; {} without a value.

    change_explained         of the change to the outcome, at all prefixes
    change_explained_end     the same at the last prefix alone
    change_explained_graded  of the change by graded steps, where the task grades them

    (vimpo/objectives/value.py.) clean: rewards before noise, [B]. NaN if the rewards of every group
    are equal.
    """
    if not algorithm.has_value:
        return {}
    change, mask = algorithm.value_change(batch), batch.mask
    outcome = (batch.rewards.new_tensor(clean), batch.groups, mask)
    found = {
        "change_explained": outcome_explained(change, *outcome),
        "change_explained_end": end_explained(change, *outcome),
    }
    if batch.steps is not None:
        graded = graded_explained(change, batch.steps, batch.grades, *outcome)
        found["change_explained_graded"] = graded
    return {name: float(value) for name, value in found.items()}
