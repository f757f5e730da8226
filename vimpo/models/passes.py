"""Forward passes over a batch: what a causal LM says at the last positions of padded rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from vimpo.config import ConfigError


def positions(attention_mask: Tensor) -> Tensor:
    """Position of each token in its own text, padding aside. [B, L] -> [B, L]."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


def decoder_layers(module: nn.Module) -> list[GradientCheckpointingLayer]:
    """The repeated blocks of a network, in order."""
    return [m for m in module.modules() if isinstance(m, GradientCheckpointingLayer)]


def enable_checkpointing(model: PreTrainedModel) -> None:
    """Let layers recompute their activations in the backward pass, inside :func:`recomputing`.

    Raises ConfigError for a model that does not support it.
    """
    if not model.supports_gradient_checkpointing or not decoder_layers(model):
        raise ConfigError(
            f"runtime.gradient_checkpointing: {type(model).__name__} has none; allowed: false"
        )
    model.activation_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        # A layer must be in training mode to checkpoint, which would switch on its own dropout.
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0  # type: ignore[assignment]  # a number of theirs, not a module


@contextmanager
def recomputing(module: nn.Module) -> Iterator[None]:
    """Checkpoint the layers enabled for it; sampling, with its cache, stays outside."""
    layers = [m for m in decoder_layers(module) if m.gradient_checkpointing]
    for layer in layers:
        layer.training = True  # the layer alone: its submodules stay in evaluation mode
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False


def last_states(model: PreTrainedModel, ids: Tensor, attention_mask: Tensor, last: int) -> Tensor:
    """Input of the output layer at the last positions. ids, mask [B, L] -> [B, last, H]."""
    states = model.base_model(
        input_ids=ids,
        attention_mask=attention_mask,
        position_ids=positions(attention_mask),
        use_cache=False,
    ).last_hidden_state
    return states[:, -last:]


def last_logits(model: PreTrainedModel, ids: Tensor, attention_mask: Tensor, last: int) -> Tensor:
    """Logits at the last positions. ids, attention_mask [B, L] -> [B, last, V], float32."""
    return model(
        input_ids=ids,
        attention_mask=attention_mask,
        position_ids=positions(attention_mask),
        use_cache=False,
        logits_to_keep=last,
    ).logits.float()
