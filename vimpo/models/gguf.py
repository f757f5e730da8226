"""Models from GGUF files, which transformers reads and dequantises.

What it returns is marked as quantised and refuses to be saved, so the weights move to a fresh model
of the same configuration without that mark. A study does this once, when it makes the base policy;
whatever comes later loads an ordinary folder.
"""

from __future__ import annotations

import copy
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from vimpo.config.contents import content_digest
from vimpo.config.model_paths import gguf_file
from vimpo.storage.manifests import CONVERTED


def arguments(path: str, field: str = "path") -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` is to be told of a model's path: the place, and more by name."""
    if file := gguf_file(path, field):
        return str(file.parent), {"gguf_file": file.name}
    return str(Path(path).expanduser()), {}


def as_plain(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that says nothing of the file that they came from."""
    config = copy.deepcopy(model.config)
    del config.quantization_config
    attention = config._attn_implementation
    fresh = type(model)._from_config(config, dtype=model.dtype, attn_implementation=attention)
    fresh.load_state_dict(model.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.generation_config = model.generation_config
    return fresh.eval()


def origin(path: str | None) -> dict[str, Any]:
    """What a manifest records of a base policy's file, if it came from one of this format."""
    file = gguf_file(path) if path else None
    if file is None:
        return {}
    found = {"file": file.name, "sha256": content_digest(path), "gguf": version("gguf")}
    return {CONVERTED: found}
