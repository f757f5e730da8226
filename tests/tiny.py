"""A study that trains in a second."""

from __future__ import annotations

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


def merged(base: dict, changes: dict) -> dict:
    both = {k: merged(base[k], v) for k, v in changes.items() if isinstance(base.get(k), dict)}
    return base | changes | both
