"""Can a model be trained with these settings? Its skeleton says so, before weights are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from vimpo.config import ConfigError, ModelSpec, Runtime
from vimpo.models.kinds import check_attention, embedding_rows
from vimpo.models.lora import add_adapters, merged_tensors
from vimpo.models.passes import enable_checkpointing
from vimpo.models.weights import check_files, listed


def check_trainable(
    spec: ModelSpec,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    runtime: Runtime,
    field: str,
) -> int:
    """Rows of the model's embedding. Raises ConfigError if a model by path cannot be trained.

    For weights in a local folder that are not whole, an attention that it does not have, no cache,
    tokens beyond its embedding, no recomputation, and adapters that do not fit or cannot be merged.
    """
    folder = Path(str(spec.path)).expanduser()
    if folder.is_dir():
        check_files(folder, field)
    model = check_attention(config, runtime, field)
    rows = embedding_rows(model)
    # Tokens added later may lie beyond it, if no text and no special token leads to them.
    own = tokenizer.get_vocab().items() - tokenizer.get_added_vocab().items()
    special = [tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id]
    ids = [index for _, index in own] + [index for index in special if index is not None]
    check_tokens(ids, rows, tokenizer, field)
    if runtime.gradient_checkpointing:
        enable_checkpointing(model)
    if spec.lora:
        names = {name for name, _ in model.named_parameters()}
        add_adapters(model, spec.lora, seed=0)
        if left_out := names - merged_tensors(model).keys():
            raise ConfigError(
                f"lora.targets: adapters cannot be merged into {listed(left_out)} of a "
                f"{config.model_type}; allowed: other layers"
            )
    return rows


def check_tokens(
    ids: Sequence[int], rows: int, tokenizer: PreTrainedTokenizerBase, field: str
) -> None:
    """Raise ConfigError for token ids that the model's embedding has no row for."""
    beyond = [index for index in ids if index >= rows]
    if beyond:
        token = tokenizer.convert_ids_to_tokens(max(beyond))
        raise ConfigError(
            f"{field}: the tokenizer gives token {token!r} the id {max(beyond)}, and the model's "
            f"embedding has {rows} rows; allowed: a tokenizer and a model that belong together"
        )
