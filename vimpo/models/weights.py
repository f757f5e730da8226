"""Are a model's weights all there, and nothing but its own? Checks of files and of what was loaded.

transformers draws whatever a file lacks at random and only warns. Here that is an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vimpo.config import ConfigError

SHOWN = 3  # names of tensors in a message
POINTER = b"version https://git-lfs"  # what a clone without git-lfs leaves instead of a large file
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def weight_files(folder: Path, field: str = "path") -> list[Path]:
    """The files that transformers reads a folder's weights from.

    Raises ConfigError if there are none, or if one of them is missing.
    """
    if (folder / INDEX).is_file() and not (folder / WHOLE).is_file():
        try:
            names = sorted(
                set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(
                f"{field}: '{folder / INDEX}' is not an index of weights; allowed: the file that "
                "save_pretrained wrote"
            ) from None
    else:
        names = [WHOLE]
    for name in names:
        if not (folder / name).is_file():
            raise ConfigError(
                f"{field}: '{folder}' holds no {name}; allowed: a folder with all of its weights, "
                "as safetensors"
            )
    return [folder / name for name in names]


def check_files(folder: Path, field: str = "path") -> None:
    """Read the headers of a folder's weights. Raises ConfigError for a file that is not whole."""
    for file in weight_files(folder, field):
        with file.open("rb") as opened:
            pointer = opened.read(len(POINTER)) == POINTER
        if pointer:
            raise ConfigError(
                f"{field}: '{file}' is a git-lfs pointer, not the weights; allowed: the file "
                "itself, which `git lfs pull` fetches"
            )
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise ConfigError(
                f"{field}: '{file}' is cut off or damaged ({error}); allowed: a whole safetensors "
                "file"
            ) from None


def check_loaded(
    model: nn.Module,
    info: Mapping[str, Any],
    path: str | Path,
    field: str = "path",
    finite: bool = True,
) -> None:
    """Raise ConfigError unless exactly the model's weights were loaded, and all are finite.

    info: `output_loading_info` of from_pretrained, which leaves out what is tied or known to be
    absent, such as old buffers. finite: False for the result of a run, which may have failed.
    """
    sizes = [
        f"{name} {list(found)} instead of {list(expected)}"
        for name, found, expected in info["mismatched_keys"]
    ]
    weights = model.named_parameters() if finite else ()
    infinite = [
        name
        for name, weight in weights
        # Without a copy, so much faster than isfinite; NaN is the minimum of what holds it.
        if weight.numel() and not all(x.isfinite() for x in weight.detach().aminmax())
    ]
    faults = {
        "lacks": info["missing_keys"],
        "has other sizes than config.json says:": sizes,
        "has tensors that the model does not:": info["unexpected_keys"],
        "has numbers that are not finite in": infinite,
    }
    file = Path(path).expanduser() / WHOLE
    place = f"'{file}'" if file.is_file() else f"the weights of '{path}'"
    for fault, names in faults.items():
        if names:
            raise ConfigError(
                f"{field}: {place} {fault} {listed(names)}; allowed: all weights of a "
                f"{type(model).__name__}, each finite, and no others"
            )


def saved_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Tensors of a module's weights that are no parameters, such as the bias of experts."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return {n: t for n, t in module.state_dict().items() if n not in parameters}


def listed(names: Iterable[str]) -> str:
    """The first few names in order, and how many more there are."""
    first, rest = sorted(names)[:SHOWN], len(list(names)) - SHOWN
    return ", ".join(first) + (f" and {rest} more" if rest > 0 else "")
