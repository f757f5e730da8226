"""Digests of local data and models: a result belongs to their content, and not to their path."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo

from vimpo.config.cache import remembered
from vimpo.config.model_paths import gguf_file
from vimpo.config.types import local_path
from vimpo.errors import ConfigError

# What transformers reads from a model's folder.
MODEL_FILES = {".json", ".safetensors", ".model", ".txt", ".tiktoken", ".jinja", ".py"}
# What definitions in lm-eval's format consist of, and what problems may lie beside them.
DEFINITION_FILES = {".yaml", ".yml", ".py", ".json", ".jsonl", ".parquet", ".csv", ".tsv"}
CACHED_FROM = 2**20  # bytes; smaller files are read again
SETTLED = 2.0  # seconds since the last change after which a clock's tick hides no other


def content_digest(path: str | None) -> str | None:
    """sha256 of a local file, or over the files of a model's folder; None for a hub name.

    A GGUF file may be named by its package (model_paths.py).

    Also None for what cannot be read: the checks before a run name such faults.
    """
    if path is None:
        return None
    try:
        local = gguf_file(path) or local_path(path, "path")[0]
        if local.is_file():
            return _file_digest(local)
        if not local.is_dir():
            return None
        files = [f for f in local.iterdir() if f.suffix in MODEL_FILES and f.is_file()]
        files += [f for f in local.glob("additional_chat_templates/*") if f.is_file()]
        names = {str(f.relative_to(local)): _file_digest(f) for f in files}
        lines = "".join(f"{value}  {name}\n" for name, value in sorted(names.items()))
        return hashlib.sha256(lines.encode()).hexdigest()
    except (ConfigError, OSError):
        return None


def definitions_digest(path: str | None) -> str | None:
    """sha256 over lm-eval's definitions in a folder and what lies with them; None if none is there.

    Problems elsewhere are not part of it.
    """
    if path is None:
        return None
    try:
        folder, _ = local_path(path, "include_path")
        files = [f for f in folder.rglob("*") if f.suffix in DEFINITION_FILES and f.is_file()]
        names = {f.relative_to(folder).as_posix(): _file_digest(f) for f in files}
    except (ConfigError, OSError):
        return None
    lines = "".join(f"{value}  {name}\n" for name, value in sorted(names.items()))
    return hashlib.sha256(lines.encode()).hexdigest() if names else None


def check_content(
    field: str,
    path: str | None,
    sha256: str | None,
    find: Callable[[str | None], str | None] = content_digest,
) -> None:
    """Raise ConfigError if a path holds other content than when the study was resolved."""
    if sha256 and find(path) != sha256:
        raise ConfigError(
            f"{field}: '{path}' has changed since this study was resolved (sha256 is not "
            f"{sha256[:12]}...); allowed: the same content, or a study without `sha256`"
        )


def _file_digest(file: Path) -> str:
    """sha256 of a file; that of a large one is kept until the file changes.

    A workflow starts a process per job, and a model may take minutes to read. A change of content
    changes the time of the inode, even if sizes and modification times are made equal.
    """

    def find() -> str:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()

    stat = file.stat()
    if stat.st_size < CACHED_FROM or time.time() - stat.st_ctime <= SETTLED:
        return find()
    key = [file.resolve(), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    return remembered("sha256", "\n".join(map(str, key)), find)


def _filled_in(value: str | None, info: ValidationInfo) -> str | None:
    """A given digest is kept, so a resolved study can be loaded without its data."""
    return value or content_digest(info.data.get("path"))


def _definitions_filled_in(value: str | None, info: ValidationInfo) -> str | None:
    return value or definitions_digest(info.data.get("include_path"))


_DIGEST = Field(
    pattern="^[0-9a-f]{64}$",
    exclude_if=lambda value: value is None,
    description="of the local content; filled in, so that what is replaced is run again",
)
# Declared after `path`. Left out of digests and files where there is none, as for hub names.
ContentDigest = Annotated[str | None, _DIGEST, AfterValidator(_filled_in)]
# Declared after `include_path`.
DefinitionsDigest = Annotated[str | None, _DIGEST, AfterValidator(_definitions_filled_in)]
