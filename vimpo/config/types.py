"""Shared by all configuration modules: field types, the strict model, errors and digests."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vimpo.errors import ConfigError

BENCHMARK_TAGS = [["chain"], ["real"], ["registered"], ["own"], ["gym"]]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
LONGEST_NAME = 100  # a file system takes 255 bytes, suffixes included
LARGEST = 2**53  # whole numbers up to this are exact as floats
Name = Annotated[str, Field(pattern=NAME, max_length=LONGEST_NAME)]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Strict(BaseModel):
    """Immutable; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _countable(cls, data: Any) -> Any:
        if place := _too_large(data):
            # The value is not shown: Python refuses to print a number of five thousand digits.
            raise ValueError(f"{place}: is too large a number; allowed: up to 2^53 = {LARGEST}")
        return data


def _too_large(data: Any) -> str:
    """The place of the first whole number beyond LARGEST; empty if there is none."""
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
    """A path as the user wrote it, with `~` resolved, and whether it exists.

    Raises ConfigError, naming the field, for what cannot be a path on this machine.
    """
    try:
        local = Path(path).expanduser()
        return local, local.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long; an unknown user's `~`; a NUL
        raise ConfigError(
            f"{field}: {path[:80]!r} cannot be a path here ({type(error).__name__}); allowed: a "
            "file, a folder or a hub name"
        ) from None


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON (`object_pairs_hook`). Raises ValueError for a repeated key."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        key = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{key[:80]!r} is repeated; allowed: each key once")
    return found


def digest(value: Any) -> str:
    """Short, stable hash of models and plain data."""

    def plain(item: Any) -> Any:
        return item.model_dump(mode="json") if isinstance(item, BaseModel) else item

    text = json.dumps(value, default=plain, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def require(name: str, known: Any, field: str) -> None:
    """Raise ConfigError unless `name` is one of `known`."""
    if name not in known:
        raise ConfigError(f"{field}: '{name}' is unknown; allowed: {', '.join(known)}")


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """One line per fault: `field: value is not allowed; why; allowed: range`."""
    lines = []
    for fault in error.errors():
        place = [str(part) for part in fault["loc"]]
        if place[:1] == ["task"]:  # tags of unions, which the user did not write
            if place[1:2] in (["chain"], ["dataset"], ["reasoning_gym"]):
                del place[1]
            if place[1:2] == ["benchmarks"] and place[3:4] in BENCHMARK_TAGS:
                del place[3]
            if "extract" in place[:-1]:
                del place[place.index("extract") + 1]
        if place[:1] == ["hypotheses"] and place[2:3] == ["measure"]:
            del place[3:4]  # the tag of the union
        message = fault["msg"].removeprefix("Value error, ")
        allowed = _allowed(model, place)
        if place[:1] == ["algorithms"] and len(place) > 2:
            del place[2]  # the tag of the union
            if place[2:3] == ["beta"]:
                del place[3:4]  # likewise
        # A key may contain a line break, but a fault is one line.
        place = [part if part.isprintable() else repr(part) for part in place]
        where = ".".join([prefix] * bool(prefix) + place)
        if fault["type"] == "extra_forbidden":
            lines.append(f"{where}: unknown key; allowed: the fields of the schema")
        elif fault["type"] == "value_error":
            field_itself = message.partition(":")[0].replace(".", "").isidentifier()
            lines.append(
                message if not where else f"{where}{'.' if field_itself else ': '}{message}"
            )
        else:
            shown = repr(fault["input"])
            shown = shown if len(shown) <= 80 else shown[:77] + "..."
            why = f"{message[0].lower()}{message[1:]}"
            lines.append(f"{where}: {shown} is not allowed; {allowed or why}")
    return "\n".join(dict.fromkeys(lines))


@functools.cache
def _schema(model: type[BaseModel]) -> dict:
    return model.model_json_schema()


def _allowed(model: type[BaseModel], place: list[str]) -> str:
    """The range of the number at `place`, from the schema; empty if it has none."""
    schema = _schema(model)
    definitions, node = schema.get("$defs", {}), schema
    for part in place:
        options = [node, *node.get("anyOf", []), *node.get("oneOf", [])]
        options = [definitions.get(o.get("$ref", "").split("/")[-1], o) for o in options]
        steps = [o["properties"][part] for o in options if part in o.get("properties", {})]
        steps += [o["items"] for o in options if part.isdigit() and "items" in o]
        steps += [o["additionalProperties"] for o in options if o.get("additionalProperties")]
        if not steps:
            return ""
        node = steps[0]
    ends: dict[str, Any] = next((o for o in [node, *node.get("anyOf", [])] if "type" in o), {})
    low, above = ends.get("minimum"), ends.get("exclusiveMinimum")
    high, below = ends.get("maximum"), ends.get("exclusiveMaximum")
    if all(end is None for end in (low, above, high, below)):
        return ""
    left = f"[{low:g}" if low is not None else f"({above:g}" if above is not None else "(-inf"
    right = f"{high:g}]" if high is not None else f"{below:g})" if below is not None else "inf)"
    return (
        f"allowed: {'an integer' if ends['type'] == 'integer' else 'a number'} in {left}, {right}"
    )
