"""Forward passes over a batch: what a causal LM says at the last positions of padded rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from vimpo.config import ConfigError
from vimpo.models.kinds import ATTENDS, cache_argument

PADDING = -1  # no token's number


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


# --- Outputs at the last positions ----------------------------------------------------------------


def last_states(
    model: PreTrainedModel,
    ids: Tensor,
    attention_mask: Tensor,
    last: int,
    prompts: Prompts | None = None,
) -> Tensor:
    """Input of the output layer at the last positions. ids, mask [B, L] -> [B, last, H].

    prompts: as in :func:`last_logits`.
    """
    return _last(_states, model, ids, attention_mask, last, prompts)


def last_logits(
    model: PreTrainedModel,
    ids: Tensor,
    attention_mask: Tensor,
    last: int,
    prompts: Prompts | None = None,
) -> Tensor:
    """Logits at the last positions. ids, attention_mask [B, L] -> [B, last, V], float32.

    prompts: what :func:`read_prompts` made of the first L - last + 1 tokens, which are not read
    again.
    """
    return _last(_logits, model, ids, attention_mask, last, prompts)


Output = Callable[..., Tensor]


def _states(model: PreTrainedModel, kept: int | Tensor, **inputs: Any) -> Tensor:
    states = model.base_model(**inputs).last_hidden_state
    return states[:, -kept:] if isinstance(kept, int) else states[:, kept]


def _logits(model: PreTrainedModel, kept: int | Tensor, **inputs: Any) -> Tensor:
    """kept: how many of the last positions, or the indices of some."""
    return model(**inputs, logits_to_keep=kept).logits.float()


def _last(
    output: Output,
    model: PreTrainedModel,
    ids: Tensor,
    attention_mask: Tensor,
    last: int,
    prompts: Prompts | None,
) -> Tensor:
    if prompts is None:
        inputs = {"input_ids": ids, "attention_mask": attention_mask, "use_cache": False}
        return output(model, last, **inputs, position_ids=positions(attention_mask))
    first, new = prompts.last[prompts.which], last - 1  # the prompt predicts the first token
    if not new:
        return first
    mask = torch.cat([prompts.mask[prompts.which], attention_mask[:, -new:]], 1)
    rest = output(
        model,
        new,
        input_ids=ids[:, -new:],
        attention_mask=mask,
        position_ids=positions(mask)[:, -new:],
        past_key_values=prompts.cache(model.config),
        use_cache=True,
    )
    return torch.cat([first, rest], 1)


# --- Prompts that rows share ----------------------------------------------------------------------

# A pass of their own is worth it where it saves this share of a batch's tokens.
WORTH = 0.1


@dataclass(frozen=True)
class Prompts:
    """Prompts, each read once for all B rows that continue it (arXiv 2506.05433).

    layers: keys and values [N, heads, P, D] of each layer, and last [N, 1, V or H]: the output at
    the last token, all with their graph; mask [N, P]; which [B]: the prompt of each row.
    """

    layers: list[tuple[Tensor, Tensor]]
    last: Tensor
    mask: Tensor
    which: Tensor

    def rows(self, index: slice | Tensor) -> Prompts:
        return replace(self, which=self.which[index])

    def cache(self, config: PreTrainedConfig) -> DynamicCache:
        """The keys and values of the rows, for the tokens that come next."""
        cache = DynamicCache(config=config)
        for i, (keys, values) in enumerate(self.layers):
            cache.update(keys[self.which], values[self.which], i)
        return cache


def read_prompts(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, tokens: int, logits: bool = True
) -> Prompts | None:
    """Read the distinct ones of B prompts, left-padded, ids and mask [B, P].

    None where that is not possible, or saves little of the `tokens` of the batch, padding aside: if
    no two rows are equal, if layers are recomputed, if they keep more than keys and values of all
    tokens, or if the model's code is not that of transformers. logits: for :func:`last_logits`;
    else for :func:`last_states`.
    """
    if not type(model).__module__.startswith("transformers."):
        return None
    cache = DynamicCache(config=model.config)
    whole = all(type(layer) is DynamicLayer for layer in cache.layers)
    recomputed = any(layer.gradient_checkpointing for layer in decoder_layers(model))
    if not whole or recomputed or cache_argument(model) != ATTENDS:
        return None
    texts, which = torch.where(mask.bool(), ids, PADDING).unique(dim=0, return_inverse=True)
    shown = texts != PADDING
    if mask.sum() - shown.sum() < WORTH * tokens:
        return None
    # An index, for a copy of these states: torch multiplies a view of them in another way, and with
    # other rounding, if the weights need no gradient. A policy would differ from its reference.
    end = torch.tensor([texts.shape[1] - 1], device=ids.device)
    last = (_logits if logits else _states)(
        model,
        end,
        input_ids=texts.where(shown, ids.new_zeros(())),
        attention_mask=shown.long(),
        position_ids=positions(shown),
        past_key_values=cache,
        use_cache=True,
    )
    layers = cast(list[DynamicLayer], cache.layers)
    pairs = [(cast(Tensor, x.keys), cast(Tensor, x.values)) for x in layers]
    return Prompts(pairs, last, shown.long(), which)
