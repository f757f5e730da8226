"""What the modules of the configuration share: field types, the strict model, error and digest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
LONGEST_NAME = 100  # a file system takes 255 bytes, suffixes included
LARGEST = 2**53  # of a whole number: what arithmetic in floats still counts by ones
Name = Annotated[str, Field(pattern=NAME, max_length=LONGEST_NAME)]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class ConfigError(ValueError):
    """A configuration that cannot run: the message names field, value and allowed range."""


class DamagedError(ConfigError):
    """A file that is not what was written: the message names it and says what makes it again."""


class Strict(BaseModel):
    """Immutable; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _countable(cls, data: Any) -> Any:
        if place := _too_large(data):
            # Not shown: Python refuses to write out a number of five thousand digits.
            raise ValueError(f"{place}: is too large a number; allowed: up to 2^53 = {LARGEST}")
        return data


def _too_large(data: Any) -> str:
    """Where the first whole number beyond LARGEST stands; empty where there is none."""
    if not isinstance(data, dict | list):
        return ""
    for key, value in data.items() if isinstance(data, dict) else enumerate(data):
        key = key if str(key).isprintable() else repr(key)
        if isinstance(value, int) and abs(value) > LARGEST:
            return str(key)
        if inner := _too_large(value):
            return f"{key}.{inner}"
    return ""


def local_path(path: str, field: str) -> tuple[Path, bool]:
    """A path as the user wrote it, `~` resolved, and whether there is such a file or folder.

    Raises ConfigError that names the field for what cannot be a path on this machine.
    """
    try:
        local = Path(path).expanduser()
        return local, local.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long; an unknown user's `~`; a NUL
        raise ConfigError(
            f"{field}: {path[:80]!r} cannot be a path here ({type(error).__name__}); allowed: a "
            "file, a folder or a hub name"
        ) from None


def digest(value: Any) -> str:
    """Short stable hash of models and plain data."""

    def plain(item: Any) -> Any:
        return item.model_dump(mode="json") if isinstance(item, BaseModel) else item

    text = json.dumps(value, default=plain, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def require(name: str, known: Any, field: str) -> None:
    """Raise ConfigError unless `name` is one of `known`."""
    if name not in known:
        raise ConfigError(f"{field}: '{name}' is unknown; allowed: {', '.join(known)}")
