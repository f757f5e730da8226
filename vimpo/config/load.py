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


class _OneOfEachKey:
    """Refuses repeated keys in a mapping, of which YAML's own loaders keep the last."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Called for every mapping; keys that are merged into it may be its own too."""
        lines: dict[str, int] = {}
        own = [] if hasattr(node, "merged") else [key for key, _ in node.value]
        for key in (key for key in own if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in lines:
                raise yaml.YAMLError(
                    f"{key.value[:80]!r} on line {lines[key.value]} is repeated on line {line}; "
                    "allowed: each key once"
                )
            lines[key.value] = line
        super().flatten_mapping(node)  # type: ignore[misc]
        node.merged = True  # type: ignore[attr-defined]


class _Loader(_OneOfEachKey, yaml.SafeLoader):
    """Python's own: deep nesting is an error."""


_Fastest = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


class _FastLoader(_OneOfEachKey, _Fastest):  # type: ignore[misc, valid-type]
    """By libyaml where PyYAML has it: much faster, but very deep nesting ends the process."""


# One of these opens every level of nesting; the largest published study has a fifth of DEEP.
OPENING, DEEP = "[{:-?", 5000


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
        text = path.read_text(encoding="utf-8")
        loader = _Loader if sum(map(text.count, OPENING)) > DEEP else _FastLoader
        return loader(text).get_single_data()
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
