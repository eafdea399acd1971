"""The form of the files in tuned/ as a JSON schema, and the check against it.  -> records

tuned/schema.json is its dump.  Only the words of JSON Schema that stand in `SCHEMA` are understood: no dependency.
"""

from __future__ import annotations

import json
from typing import Any

from ..plan.problem import OTHER_LAYOUTS

VERSION = 1

Json = dict[str, Any]

_SIZES = ("batch", "dstate", "headdim", "ngroups", "nheads", "seqlen")


def _object(required: Json, optional: Json | None = None) -> Json:
    """An object with these members and no others."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": sorted(required),
        "additionalProperties": False,
    }


_WORD: Json = {"type": "string", "minLength": 1}
_TIME: Json = {"type": "number", "exclusiveMinimum": 0}
_TIME_OR_NULL: Json = {"type": ["number", "null"], "exclusiveMinimum": 0}
_AT_LEAST_0_OR_NULL: Json = {"type": ["number", "null"], "minimum": 0}
_POSITIVE: Json = {"type": "integer", "minimum": 1}

# an axis is a number, a switch or a word: nothing nested
_AXIS: Json = {"type": ["integer", "boolean", "string"]}

# which pass a record is for
_DIRECTIONS = (
    "forward",
    "backward",
    "decode",
    "replay",
    "conv_forward",
    "conv_backward",
    "conv_tile_forward",
    "conv_tile_backward",
    "conv_update",
    "norm_forward",
    "norm_backward",
)
_DTYPE: Json = {"type": "string", "enum": ["bfloat16", "float16", "float32", "int8"]}
# without a layout, Mamba-2's own
_LAYOUT: Json = {"type": "string", "enum": list(OTHER_LAYOUTS)}
_PROBLEM = _object({**dict.fromkeys(_SIZES, _POSITIVE), "dtype": _DTYPE}, {"layout": _LAYOUT})
_CONFIG: Json = {
    "type": "object",
    "properties": {
        "schedule": _WORD,
        "chunk": _POSITIVE,
        "segment": _POSITIVE,
        "slices": _POSITIVE,
        "kernels": {
            "type": "object",
            "additionalProperties": {"type": "object", "additionalProperties": _AXIS},
        },
    },
    "required": ["kernels", "schedule"],
    "additionalProperties": _AXIS,
}
_RECORD = _object(
    {
        "problem": _PROBLEM,
        "config": _CONFIG,
        "provenance": {"type": "string", "enum": ["measured", "predicted"]},
        "time_us": _TIME,
        "spread_us": _AT_LEAST_0_OR_NULL,
        "default_us": _TIME_OR_NULL,
        "error": _AT_LEAST_0_OR_NULL,
        "error_limit": _AT_LEAST_0_OR_NULL,
        "fingerprint": {"type": "object", "additionalProperties": _WORD},
        "space": _WORD,
    },
    # without it, the forward pass
    {"direction": {"type": "string", "enum": list(_DIRECTIONS)}},
)

IDENTITY = _object(
    {
        "arch": _WORD,
        "clocks_mhz": {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}},
        "driver": {"type": ["string", "null"]},
        "gpu": _WORD,
        "name": _WORD,
        "schema": {"type": "integer", "enum": [VERSION]},
        "torch": {"type": ["string", "null"]},
        "triton": {"type": ["string", "null"]},
    }
)
RECORDS = _object(
    {
        "kernel": _WORD,
        "records": {"type": "array", "items": _RECORD},
        "schema": {"type": "integer", "enum": [VERSION]},
    }
)

SCHEMA: Json = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "ssdgen tuned records: gpu.json, or the records of one pass",
    "anyOf": [IDENTITY, RECORDS],
}

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def document() -> str:
    """The text of tuned/schema.json."""
    return json.dumps(SCHEMA, indent=2, sort_keys=True) + "\n"


def problem_with(value: Any, schema: Json, where: str = "") -> str | None:
    """What is wrong with a parsed JSON value, or None.  where: how to name the value itself, "" for the whole file."""
    named = where or "the file"
    if "type" in schema:
        allowed = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not any(_is(value, kind) for kind in allowed):
            return f"{named} is {_short(value)}; it must be {' or '.join(allowed)}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{named} is {_short(value)}; it must be one of {', '.join(map(repr, schema['enum']))}"
    if isinstance(value, str) and len(value) < schema.get("minLength", 0):
        return f"{named} is empty"
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value < schema.get("minimum", value):
            return f"{named} is {value}; it must be at least {schema['minimum']}"
        if "exclusiveMinimum" in schema and not value > schema["exclusiveMinimum"]:
            return f"{named} is {value}; it must be more than {schema['exclusiveMinimum']}"
        if not value - value == 0:  # infinite or no number: Python's JSON lets both in
            return f"{named} is {value}; it must be finite"
    if isinstance(value, dict):
        return _object_problem(value, schema, where)
    if isinstance(value, list):
        found = (problem_with(item, schema.get("items", {}), f"{where}[{i}]") for i, item in enumerate(value))
        return next((problem for problem in found if problem), None)
    return None


def _object_problem(value: Json, schema: Json, where: str) -> str | None:
    for name in schema.get("required", ()):
        if name not in value:
            return f"{where or 'the file'} has no {name!r}"
    members = schema.get("properties", {})
    for name, member in value.items():
        rule = members.get(name, schema.get("additionalProperties", {}))
        if rule is False:
            return f"{where or 'the file'} has {name!r}, which is not known; known: {', '.join(sorted(members))}"
        if problem := problem_with(member, rule, f"{where}.{name}" if where else name):
            return problem
    return None


def _is(value: Any, kind: str) -> bool:
    # a bool is an int to Python and not to JSON
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _TYPES[kind])


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


if __name__ == "__main__":
    print(document(), end="")
