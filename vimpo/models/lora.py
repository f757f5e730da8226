"""Low-rank adapters by peft, injected into the model, so whatever calls the model uses them.

The reference is the same network with its adapters switched off. A saved model has them merged into
its weights, so it loads like any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vimpo.config import ConfigError, Lora
from vimpo.models.weights import saved_buffers


def add_adapters(model: PreTrainedModel, config: Lora, seed: int) -> None:
    """Freeze the model and add trainable adapters that initially change nothing.

    Raises ConfigError if no layer matches `targets`.
    """
    from peft import LoraConfig, inject_adapter_in_model

    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft divides it by the rank: any number
        lora_dropout=0.0,  # what is sampled is what is trained
        target_modules=config.targets or "all-linear",
    )
    torch.manual_seed(seed)
    try:
        inject_adapter_in_model(settings, model)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"lora.targets: {config.targets} do not fit: {reason}") from None
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()  # whatever the base's precision
    model.eval()


def _layers(module: nn.Module) -> dict[str, Any]:
    """Layers of peft by name. Does not import peft, which most runs never need."""
    return {n: m for n, m in module.named_modules() if hasattr(m, "lora_A")}


@contextmanager
def without_adapters(module: nn.Module) -> Iterator[None]:
    """The network as it was before training."""
    layers = _layers(module).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merged_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Weights with adapters merged, under their names without adapters."""
    # A layer of peft adapts one parameter; layers of one module, such as experts, are nested.
    adapters = {
        f"{plain_name(owner)}.{getattr(layer, 'parameter_name', 'weight')}": layer
        for owner, layer in _layers(module).items()
    }
    tensors = {}
    for name, parameter in module.named_parameters():
        if ".lora_" in name:
            continue
        plain, value = plain_name(name), parameter.detach()
        if plain in adapters:
            change = adapters[plain].get_delta_weight("default").detach()
            value = (value.float() + change.float()).to(parameter.dtype)
        tensors[plain] = value
    return tensors | {plain_name(name): t for name, t in saved_buffers(module).items()}


def plain_name(name: str) -> str:
    """The name that a module or parameter has without adapters."""
    return name.replace(".base_layer", "")
