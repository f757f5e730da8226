"""What algorithms are called, in tables, sentences and figures."""

from __future__ import annotations

LABELS = {
    "base": "base policy",
    "vimpo": "VIMPO",
    "ppo": "PPO",
    "ppo_pretrained": "PPO, pretrained critic",
    "grpo": "GRPO",
    "vimpo_value_only": "VIMPO value-only",
    "grpo_naive": "naive GRPO",
    "grpo_kl": "GRPO with KL",
    "dapo": "DAPO",
    "grpo_corrected": "GRPO corrected for noise",
    "dr_grpo": "Dr. GRPO",
    "gspo": "GSPO",
    "rloo": "RLOO",
    "reinforce_pp": "REINFORCE++",
    "tbrm": "TBRM",
    "vineppo": "VinePPO",
    "oracle": "process oracle",
    "oracle_shuffled": "shuffled oracle",
    "entropy": "entropy minimiser",
}


def label(algorithm: str) -> str:
    """An algorithm that the study itself defined is called by its name there."""
    return LABELS.get(algorithm, algorithm)
