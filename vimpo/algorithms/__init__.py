"""The algorithms, one file each: everything that differs between them in the training loop.

An algorithm turns a batch of rollouts into per-token advantages and a loss. Everything else
(prompts, sampler, rewards and their noise, optimiser, schedule, clipping of gradients) is shared.
Each file states its equation, its source and, numbered, its departures from that source.
"""

from __future__ import annotations

from typing import Any

from vimpo.algorithms.base import Algorithm, Batch, PolicyGradient, Share, make_batch
from vimpo.algorithms.grpo import Grpo
from vimpo.algorithms.own import own_algorithm
from vimpo.algorithms.ppo import Ppo
from vimpo.algorithms.vimpo import Vimpo
from vimpo.config import AlgorithmConfig, OwnConfig

__all__ = ["Algorithm", "Batch", "PolicyGradient", "Share", "make_algorithm", "make_batch"]

# The class of each `objective` of vimpo/config/algorithms.py. Each takes its own type of settings,
# which the objective decides and a type checker cannot know.
CLASSES: dict[str, Any] = {"vimpo": Vimpo, "ppo": Ppo, "grpo": Grpo}


def make_algorithm(config: AlgorithmConfig) -> Algorithm:
    """Raises ConfigError for a user-supplied file that holds no algorithm."""
    if isinstance(config, OwnConfig):
        return own_algorithm(config)
    return CLASSES[config.objective](config)
