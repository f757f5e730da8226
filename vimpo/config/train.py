"""Training: what all algorithms share, and when a run has collapsed."""

from __future__ import annotations

from pydantic import Field

from vimpo.config.types import Count, Positive, Strict


class Collapse(Strict):
    """When a run has collapsed: it stops, and that is its result (vimpo/training/outcomes.py)."""

    steps: Count = Field(5, description="steps in a row without a right rollout, after there were")
    kl: Positive = Field(
        10.0,
        description="and a KL to the base policy above this (nats, summed over a response), which "
        "tells a lost policy from bad luck on hard problems",
    )


class Train(Strict):
    """What all algorithms share: prompts, sampler, optimiser, schedule, batch, token budget."""

    steps: Count = 32
    prompts_per_step: Count = 16
    group_size: Count = Field(8, description="rollouts of one prompt (paper: 8)")
    epochs: Count = Field(1, description="updates on one batch of rollouts (paper: 1)")
    micro_batch: Count | None = Field(None, description="rollouts per backward pass; default: all")
    max_response: int = Field(64, ge=2, le=65536, description="response tokens, EOS included")
    temperature: Positive = Field(1.0, description="of the rollouts (paper: 1.0)")
    warmup_steps: int = Field(10, ge=0, description="linear warm-up of the rate (paper: 10)")
    weight_decay: float = Field(0.1, ge=0, allow_inf_nan=False, description="AdamW (paper: 0.1)")
    grad_clip: Positive = Field(1.0, description="largest gradient norm (paper: 1.0)")
    checkpoint_every: Count = Field(10, description="steps between resumable checkpoints")
    collapse: Collapse = Collapse()
