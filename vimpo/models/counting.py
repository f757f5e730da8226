"""Parameters of a model by its own code, from its configuration alone."""

from __future__ import annotations

from pathlib import Path

from vimpo.config import Runtime
from vimpo.models.kinds import skeleton
from vimpo.models.networks import load_model_config

# What configurations call the number of experts, and how many of them a token uses.
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
USED = ("num_experts_per_tok", "num_experts_per_token", "moe_topk")


def count_parameters(path: Path | str) -> tuple[int, int]:
    """All parameters of a model by its local path, and those that one token uses.

    They differ for mixtures of experts. Built on torch's meta device, without weights. Raises
    ConfigError, or whatever the model's code raises, if it cannot be built.
    """
    config = load_model_config(path)
    model = skeleton(config, "eager", Runtime())
    total = sum(p.numel() for p in model.parameters())
    routed = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    text = config.get_text_config()
    experts, used = (
        next((n for name in names if (n := getattr(text, name, None))), 1)
        for names in (EXPERTS, USED)
    )
    return total, total - routed + routed * used // experts
