"""What a refused configuration is told: one line for each fault, with the range that is allowed."""

from __future__ import annotations

import functools

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """One line per fault: `field: value is not allowed; why; allowed: range`."""
    lines = []
    for fault in error.errors():
        place = [str(part) for part in fault["loc"]]
        if place[:1] == ["task"]:  # tags of unions, which are not what the user wrote
            place = ["task", *place[2:]] if place[1:2] in (["chain"], ["dataset"]) else place
            if place[1:2] == ["benchmarks"] and place[3:4] in (["chain"], ["real"]):
                del place[3]
        message = fault["msg"].removeprefix("Value error, ")
        allowed = _allowed(model, place)
        if place[:1] == ["algorithms"] and len(place) > 3:
            del place[2]  # the tag of the union, which is not something that the user wrote
        # A key may hold a line break; a fault is one line.
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
    """The range of the number at `place`, read from the schema; empty where it has none."""
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
    ends = next((o for o in [node, *node.get("anyOf", [])] if "type" in o), {})
    low, above = ends.get("minimum"), ends.get("exclusiveMinimum")
    high, below = ends.get("maximum"), ends.get("exclusiveMaximum")
    if all(end is None for end in (low, above, high, below)):
        return ""
    left = f"[{low:g}" if low is not None else f"({above:g}" if above is not None else "(-inf"
    right = f"{high:g}]" if high is not None else f"{below:g})" if below is not None else "inf)"
    return (
        f"allowed: {'an integer' if ends['type'] == 'integer' else 'a number'} in {left}, {right}"
    )
