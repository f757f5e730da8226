"""Shared fixtures: a study that trains in a second, and its base policy, made once a session."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from vimpo.config import Cell, Study, load_study

if TYPE_CHECKING:
    from vimpo.training.trainer import Trainer

TINY = {
    "study": "tiny",
    "task": {
        "largest": 5,
        "pretrain_operators": [1],
        "train_operators": [1],
        "step_error": 0.0,
        "benchmarks": {"chain_easy": {"operators": 4, "problems": 20}},
    },
    "sizes": {
        "tiny": {
            "hidden": 16,
            "layers": 1,
            "pretrain_steps": 120,
            "pretrain_lr": 0.02,
            "learning_rate": 0.002,
        }
    },
    "pretrain": {"batch_size": 20, "warmup_steps": 5, "checkpoint_every": 50},
    "train": {
        "steps": 6,
        "prompts_per_step": 6,
        "group_size": 4,
        "max_response": 10,
        "warmup_steps": 2,
        "checkpoint_every": 2,
    },
    "grid": {
        "algorithms": ["vimpo", "ppo", "grpo"],
        "sizes": ["tiny"],
        "noise": [0.25],
        "noise_mode": "rollout",
        "seeds": [1],
    },
}


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


def merged(base: dict, changes: dict) -> dict:
    both = {k: merged(base[k], v) for k, v in changes.items() if isinstance(base.get(k), dict)}
    return base | changes | both


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    """Folder of a base policy that answers about one problem in seven; read only."""
    from vimpo.training.runs import pretrain_base

    results = tmp_path_factory.mktemp("base")
    return pretrain_base(load_study(TINY | {"results": str(results)}), "tiny", quiet=True)


@pytest.fixture
def tiny_study(tiny_base, tmp_path) -> Callable[..., Study]:
    """Makes the tiny study with changed sections, in a fresh folder that holds its base."""

    def make(folder: str = "results", **changes) -> Study:
        study = load_study(merged(TINY, changes) | {"results": str(tmp_path / folder)})
        if not study.base_folder("tiny").exists():
            shutil.copytree(tiny_base, study.base_folder("tiny"))
        return study

    return make


@pytest.fixture
def make_trainer(tiny_study) -> Callable[..., Trainer]:
    """Makes a trainer of the tiny study; what is not named is a setting of `train`."""
    from vimpo.training.trainer import Trainer

    def make(
        algorithm="vimpo", *, noise="rollout-0.25", objective=None, size=None, runtime=None, **train
    ):
        changes = {"algorithms": {algorithm: objective}} if objective else {}
        changes |= {"sizes": {"tiny": size}} if size else {}
        study = tiny_study(train=train, runtime=runtime or {}, **changes)
        config = study.cell_config(Cell(algorithm, "tiny", noise, 1))
        return Trainer(config, study.base_folder("tiny") / "model")

    return make
