"""Can this suite train a model of this kind? Told by its configuration, before weights are loaded.

What a configuration cannot tell, such as attention to later tokens in a model's own code, the base
policy's job finds by comparing sampled with scored log-probabilities (vimpo/sampling/gap.py).
"""

from __future__ import annotations

import copy
import inspect
from typing import cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
)

from vimpo.config import ConfigError, Runtime

# What models call the cache that sampling keeps: those with attention, and those without.
ATTENDS, RECURS = "past_key_values", "cache_params"


def check_kind(config: PreTrainedConfig, path: str, field: str = "path") -> None:
    """Raise ConfigError, which names the model type, for what is no causal LM or is quantised."""
    own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    known = own_code or type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    encodes = type(config) in MODEL_FOR_MASKED_LM_MAPPING
    quantised = getattr(config.get_text_config(), "quantization_config", None) or getattr(
        config, "quantization_config", None
    )
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise ConfigError(
            f"{field}: the weights of '{path}' are quantised ({method}), and cannot be trained; "
            "allowed: the model in float32 or bfloat16"
        )
    kind = None
    if config.is_encoder_decoder:
        kind = "an encoder-decoder"
    elif encodes and getattr(config, "is_decoder", None) is False:
        kind = "an encoder, is_decoder: false"
    elif not known:
        kind = "no causal language model"
    if kind:
        raise ConfigError(
            f"{field}: '{path}' is {kind} (model type {config.model_type}); allowed: a causal "
            "language model"
        )


def skeleton(config: PreTrainedConfig, attention: str, runtime: Runtime) -> PreTrainedModel:
    """The model without its weights: on torch's meta device, where tensors take no memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            copy.deepcopy(config),
            attn_implementation=attention,
            trust_remote_code=runtime.trust_remote_code,
        )


def check_attention(
    config: PreTrainedConfig, runtime: Runtime, field: str = "path"
) -> PreTrainedModel:
    """The model's skeleton. Raises ConfigError if it has no cache or no `runtime.attention`."""
    reason = ""
    for attention in (runtime.attention, "sdpa", "eager"):
        try:
            model = skeleton(config, attention, runtime)
        except (ValueError, ImportError) as error:
            # The first sentence; the next says where to ask for it.
            reason = reason or str(error).splitlines()[0].partition(". ")[0]
            continue
        check_cache(model, field)
        if attention == runtime.attention:
            return model
        raise ConfigError(
            f"runtime.attention: '{runtime.attention}' cannot be used: {reason}; allowed: "
            f"{attention}"
        )
    raise ConfigError(
        f"{field}: a model of type {config.model_type} cannot be built: {reason}; allowed: a "
        "causal language model"
    )


def embedding_rows(model: PreTrainedModel) -> int:
    """How many token ids the model can read."""
    return cast(nn.Embedding, model.get_input_embeddings()).weight.shape[0]


def cache_argument(model: PreTrainedModel) -> str:
    """What the model calls its cache."""
    return RECURS if RECURS in inspect.signature(model.forward).parameters else ATTENDS


def check_cache(model: PreTrainedModel, field: str = "path") -> None:
    """Raise ConfigError for a model that takes no cache, or keeps part of it inside the network."""
    taken = inspect.signature(model.forward).parameters
    takes_one = cache_argument(model) in taken or "input_ids" not in taken  # passes all on
    inside = any(hasattr(module, "_setup_cache") for module in model.modules())
    if inside or not takes_one:
        raise ConfigError(
            f"{field}: {type(model).__name__} (model type {model.config.model_type}) does not keep "
            "all of its state in a cache that it is given, so rows cannot be picked from it in "
            "sampling; allowed: a model that does"
        )
