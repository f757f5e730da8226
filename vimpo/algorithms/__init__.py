"""The algorithms, one file each: everything that differs between them in the training loop.

An algorithm turns a batch of rollouts into per-token advantages and a loss. Everything else
(prompts, sampler, rewards and their noise, optimiser, schedule, clipping of gradients) is shared.
Each file states its equation, its source and, numbered, its departures from that source.
"""

from __future__ import annotations

from typing import Any

from vimpo.algorithms.base import Algorithm, Batch, PolicyGradient, Setup, Share, make_batch
from vimpo.algorithms.dr_grpo import DrGrpo
from vimpo.algorithms.entropy import Entropy
from vimpo.algorithms.grpo import Grpo
from vimpo.algorithms.grpo_corrected import CorrectedGrpo
from vimpo.algorithms.gspo import Gspo
from vimpo.algorithms.knowledge import known_changes
from vimpo.algorithms.oracle import Oracle
from vimpo.algorithms.own import own_algorithm
from vimpo.algorithms.ppo import Ppo
from vimpo.algorithms.reinforce import Reinforce
from vimpo.algorithms.rloo import Rloo
from vimpo.algorithms.tbrm import Tbrm
from vimpo.algorithms.vimpo import Vimpo
from vimpo.algorithms.vineppo import VinePpo
from vimpo.config import AlgorithmConfig, OwnConfig

__all__ = [
    "Algorithm",
    "Batch",
    "PolicyGradient",
    "Setup",
    "Share",
    "known_changes",
    "make_algorithm",
    "make_batch",
]

# The class of each `objective` of vimpo/config/algorithms.py. Each takes its own type of settings,
# which the objective decides and a type checker cannot know.
CLASSES: dict[str, Any] = {
    "vimpo": Vimpo,
    "ppo": Ppo,
    "grpo": Grpo,
    "grpo_corrected": CorrectedGrpo,
    "dr_grpo": DrGrpo,
    "gspo": Gspo,
    "rloo": Rloo,
    "reinforce_pp": Reinforce,
    "tbrm": Tbrm,
    "vineppo": VinePpo,
    "oracle": Oracle,
    "entropy": Entropy,
}


def make_algorithm(config: AlgorithmConfig, setup: Setup | None = None) -> Algorithm:
    """The algorithm of a run; without a setup, only to look at it.

    Raises ConfigError for a user-supplied file that holds no algorithm.
    """
    if isinstance(config, OwnConfig):
        algorithm = own_algorithm(config)
    else:
        algorithm = CLASSES[config.objective](config)
    if setup is not None:
        algorithm.setup = setup
    return algorithm
