"""The models of a study, each a rung of the size ladder, and the warm start they share."""

from __future__ import annotations

from pydantic import Field, model_validator

from vimpo.config.contents import ContentDigest
from vimpo.config.types import Count, Name, Positive, Seed, Strict

NO_RESULT = {"memory_mb"}  # fields of a size that do not affect results
NO_RECIPE = {"shipped"}  # fields of the warm start that say where it comes from, not what it is


class Lora(Strict):
    """Low-rank adapters (arXiv 2106.09685), by peft; the base weights stay as they are."""

    rank: Count = 16
    alpha: Positive = Field(32.0, description="an adapter's output is scaled by alpha / rank")
    targets: list[Name] | None = Field(
        None, min_length=1, description="layer names; default: every linear layer but the output"
    )


class ModelSpec(Strict):
    """One rung of the size ladder: a Qwen3 made from scratch, or any Hugging Face causal LM."""

    path: str | None = Field(
        None,
        description="hub name, local folder, GGUF file, or package:NAME of an installed package "
        "with one; replaces the shape below",
    )
    sha256: ContentDigest = None
    hidden: Count = 64
    layers: Count = 2
    heads: Count = 2
    kv_heads: Count = 2
    intermediate: Count | None = Field(None, description="default: 3 x hidden")
    pretrain_steps: int = Field(0, ge=0, description="supervised steps that make the base policy")
    pretrain_lr: Positive = 3e-3
    pretrain_seed: Seed | None = Field(
        None,
        # Left out where it is not set, so that older digests stay valid.
        exclude_if=lambda value: value is None,
        description="default: pretrain.seed; sizes that differ only in it are several base "
        "policies of one shape",
    )
    learning_rate: Positive = Field(2e-4, description="RL rate of the policy at this size")
    memory_mb: int = Field(2000, ge=400, description="memory that a job of this size requests")
    lora: Lora | None = Field(None, description="train adapters; merged into saved models")

    @model_validator(mode="after")
    def _shape(self) -> ModelSpec:
        if self.hidden % self.heads:
            raise ValueError(f"heads: {self.heads} must divide hidden = {self.hidden}")
        if (self.hidden // self.heads) % 2:
            raise ValueError(
                f"heads: {self.heads} gives heads of odd width {self.hidden // self.heads}; "
                "rotary embeddings need an even width"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads: {self.kv_heads} must divide heads = {self.heads}")
        if self.path is None and self.pretrain_steps == 0:
            raise ValueError(
                "pretrain_steps: 0 leaves a model without a path at random weights; allowed: >= 1"
            )
        return self


def _rung(
    hidden: int, layers: int, pretrain_steps: int, pretrain_lr: float, learning_rate: float
) -> ModelSpec:
    heads = hidden // 16 if hidden < 128 else hidden // 32
    return ModelSpec(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        pretrain_steps=pretrain_steps,
        pretrain_lr=pretrain_lr,
        learning_rate=learning_rate,
    )


LADDER = {
    "xs": _rung(64, 2, 800, 8e-3, 2e-4),
    "s": _rung(96, 2, 600, 8e-3, 2e-4),
    "m": _rung(128, 4, 800, 3e-3, 1e-4),
    "l": _rung(192, 6, 1000, 2e-3, 1e-4),
    "xl": _rung(256, 8, 1200, 1e-3, 5e-5),
}


class Pretrain(Strict):
    """Supervised warm start shared by all sizes; each size has its own steps and rate."""

    batch_size: Count = 64
    warmup_steps: int = Field(20, ge=0)
    weight_decay: float = Field(0.01, ge=0, allow_inf_nan=False)
    checkpoint_every: Count = Field(200, description="steps between resumable checkpoints")
    seed: Seed = 0
    shipped: bool = Field(
        False,
        exclude_if=lambda value: not value,
        description="take base policies and pretrained critics that come with the suite "
        "(vimpo/bases) instead of making them: all machines start from the same bits",
    )
