"""Entries of reasoning-gym: a question, its answer and metadata, each from one seed of its own.

reasoning-gym draws entry i of a data set from seed + i, so data sets whose seeds are near each
other share entries. Here every entry is the first of a data set of its own, and training and
held-out entries have seeds from ranges that are far apart.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

# Below 2^31, the largest seed that all random generators take.
TRAINING_SEEDS = range(2**30)
HELD_OUT_SEEDS = range(2**30 + 2**29, 2**31)


def canonical(settings: dict[str, Any]) -> str:
    """Settings as one text, whatever the order of their fields."""
    return json.dumps(settings, sort_keys=True)


def data_set(name: str, settings: str, seed: int) -> Any:
    """The data set whose first entry is the one of this seed; settings: see `canonical`."""
    from reasoning_gym.factory import create_dataset

    return create_dataset(name, seed=seed, size=1, **json.loads(settings))


def fingerprint(entry: dict[str, Any]) -> str:
    """By which two processes find that they drew the same entry."""
    text = json.dumps([str(entry["question"]), str(entry["answer"])])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
