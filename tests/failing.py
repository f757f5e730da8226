"""Runs of the tiny study that fail, and how they ended."""

from __future__ import annotations

import csv
import json

from vimpo.algorithms.grpo import Grpo
from vimpo.algorithms.ppo import Ppo
from vimpo.algorithms.vimpo import Vimpo
from vimpo.config import Cell

ALGORITHMS = {"vimpo": Vimpo, "ppo": Ppo, "grpo": Grpo}
NAN = float("nan")


class Killed(Exception):  # noqa: N818
    """In place of a signal, which would end the tests too."""


def cell(algorithm, **changes):
    fields = {"size": "tiny", "noise": "rollout-0.25", "seed": 1} | changes
    return Cell(algorithm, **fields)


def rows_of(folder):
    return list(csv.DictReader((folder / "metrics.csv").open()))


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


# The actor of VIMPO amplifies its own log-ratios where c_A is large.
UNSTABLE = {"vimpo": {"objective": "vimpo", "beta": 0.02, "actor_coef": 1.0}}


def collapsing(tiny_study, **changes):
    train = {"steps": 60, "warmup_steps": 0, "collapse": {"steps": 3, "kl": 5}}
    sizes = {"tiny": {"learning_rate": 0.05}}
    return tiny_study(train=train, sizes=sizes, algorithms=UNSTABLE, **changes)
