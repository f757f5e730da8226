"""Reading studies from files, writing resolved ones, and the schema of such a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from vimpo.config.study import Study
from vimpo.config.types import explain, once_each
from vimpo.errors import ConfigError


def load_study(source: str | Path | dict | None = None) -> Study:
    """Read and validate a study from a YAML file, a mapping, or (None) the defaults.

    Raises ConfigError with one line per fault: field, value, allowed range.
    """
    if source is None:
        data: Any = {}
    elif isinstance(source, dict):
        data = source
    else:
        path = Path(source)
        if not path.is_file():
            raise ConfigError(f"config: '{path}' is not a file; allowed: a YAML file of a study")
        data = read_file(path) or {}
    if not isinstance(data, dict):
        raise ConfigError(f"config: {data!r} is not a mapping of fields")
    try:
        return Study.model_validate(data)
    except ValidationError as error:
        raise ConfigError(explain(error, Study)) from None
    except RecursionError:
        raise ConfigError("config: a value contains itself; allowed: finite nesting") from None


class _OneOfEachKey(yaml.SafeLoader):
    """Refuses repeated keys in a mapping, of which YAML's own loaders keep the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in lines:
                raise yaml.YAMLError(
                    f"{key.value[:80]!r} on line {lines[key.value]} is repeated on line {line}; "
                    "allowed: each key once"
                )
            lines[key.value] = line
        return node


def read_file(path: Path) -> Any:
    """The content of a YAML or JSON file. Raises ConfigError if it is invalid or repeats a key."""
    return _read_json(path) if path.suffix == ".json" else read_yaml(path)


def _read_json(path: Path) -> Any:
    """JSON is not quite YAML, which takes no tabs and reads 1e-3 as a text."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once_each)
    except (ValueError, RecursionError, OSError) as error:
        raise ConfigError(f"config: '{path}' is not valid JSON: {error}") from None


def read_yaml(path: Path) -> Any:
    """The content of a YAML file. Raises ConfigError if it is invalid or repeats a key."""
    try:
        return _OneOfEachKey(path.read_text(encoding="utf-8")).get_single_data()
    # ValueError: not UTF-8, or an impossible date; RecursionError: thousands of brackets.
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"config: '{path}' is not valid YAML: {reason}") from None


def dump_yaml(model: BaseModel) -> str:
    """Resolved configuration as YAML, with every field written out."""
    return yaml.safe_dump(model.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def study_schema() -> dict:
    """JSON schema of the study file, generated from the types."""
    return Study.model_json_schema()


def setting_differences(old: Any, new: Any, place: str) -> list[str]:
    """One line per value that differs, by its place in nested mappings and lists."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in dict.fromkeys([*old, *new])
            for line in setting_differences(old.get(key), new.get(key), f"{place}.{key}")
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            line
            for i, pair in enumerate(zip(old, new, strict=True))
            for line in setting_differences(*pair, f"{place}[{i}]")
        ]
    return [] if old == new else [f"{place}: {old} there, {new} here"]
