"""The tokens that end a response: all that a model and its tokenizer declare.

Instruction-tuned models often declare several, such as an end of the text and an end of the turn.
Each of them ends a response wherever responses are drawn, and none is part of a response's text.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from transformers import (
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from vimpo.config.model_paths import gguf_file


def declared_ends(
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    generation: GenerationConfig | None,
) -> tuple[int, ...]:
    """Tokens of the model's vocabulary that one of the three names as `eos_token_id`, in order."""
    text = config.get_text_config()
    found: set[int] = set()
    for source in (tokenizer, config, text, generation):
        ids = getattr(source, "eos_token_id", None)
        found.update(ids if isinstance(ids, list | tuple) else [] if ids is None else [ids])
    vocabulary = getattr(text, "vocab_size", None) or len(tokenizer)
    # Some configurations say -1 for none.
    return tuple(sorted(i for i in found if 0 <= i < vocabulary))


def generation_config(path: str) -> GenerationConfig | None:
    """The generation settings that a folder or hub name holds; None if there are none.

    A GGUF file has none beside its model's configuration.
    """
    if gguf_file(path):
        return None
    try:
        return GenerationConfig.from_pretrained(str(Path(path).expanduser()))
    except (OSError, ValueError):
        return None


def ends_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end a response of a loaded model."""
    return declared_ends(tokenizer, model.config, getattr(model, "generation_config", None))


def declare_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Name ends and padding in the model's configurations, where everything that loads it looks."""
    ends = ends_of(model, tokenizer)
    for config in (model.config, model.generation_config):
        config.eos_token_id = ends[0] if len(ends) == 1 else list(ends)
        config.pad_token_id = tokenizer.pad_token_id


def before_end(tokens: Sequence[int], ends: Collection[int]) -> list[int]:
    """The tokens before the first end; all of them if there is none."""
    stop = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return list(tokens[:stop])
