"""The JSON Schema of topology files, for editors; derived from the model."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from flowkit.protocol.sockets import SOCKETS
from flowkit.topology import names
from flowkit.topology.model import (
    MAX_REPLICAS,
    OPTIONS,
    EndpointModel,
    LinkModel,
    NodeModel,
    OnError,
    Restart,
    Top,
)

DRAFT = "https://json-schema.org/draft/2020-12/schema"

_VARIABLE = {"type": "string", "pattern": r"\$\{[^}]+\}"}
"""Text that holds a reference to a variable: allowed wherever a value of any type is."""

_DURATION = r"^\s*([0-9]+(\.[0-9]+)?\s*(us|µs|ms|s|m|min|h|d)\s*)+$"
_SIZE = r"^\s*[0-9]+(\.[0-9]+)?\s*([kK]|[kKmMgGtT]?[bB]|[kKmMgGtT][iI][bB])\s*$"
_REFERENCE = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$"
_END = rf"^{names.PATTERN}\.{names.PATTERN}$"


def _duration(*, positive: bool) -> dict[str, Any]:
    number: dict[str, Any] = {"type": "number"}
    number["exclusiveMinimum" if positive else "minimum"] = 0
    return _either(number, {"type": "string", "pattern": _DURATION})


def _either(*options: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [*options, _VARIABLE]}


def _text(pattern: str) -> dict[str, Any]:
    return _either({"type": "string", "pattern": pattern})


_ENVIRONMENT: dict[str, Any] = {
    "type": "object",
    "propertyNames": {"pattern": "^[^=\\x00]+$"},
    "additionalProperties": {"type": ["string", "number"]},
}

_TEXTS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}

_TYPE = _text("^(" + "|".join([*SOCKETS, *map(str.lower, SOCKETS)]) + ")$")

_WINDOW = _either(
    {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}, {"type": "string", "pattern": _SIZE}
)

_FORMS: dict[tuple[type[BaseModel], str], dict[str, Any]] = {
    (NodeModel, "use"): _text(_REFERENCE),
    (NodeModel, "with"): {"type": "object"},
    (NodeModel, "replicas"): _either({"type": "integer", "minimum": 1, "maximum": MAX_REPLICAS}),
    (NodeModel, "restart"): {"$ref": "#/$defs/restart"},
    (NodeModel, "on_error"): {"$ref": "#/$defs/on_error"},
    (NodeModel, "watchdog"): _duration(positive=True),
    (NodeModel, "blocked"): _duration(positive=False),
    (NodeModel, "env"): {"$ref": "#/$defs/env"},
    (Restart, "max"): _either(
        {"type": "integer", "minimum": 0, "maximum": 1_000_000}, {"const": "unlimited"}
    ),
    (Restart, "window"): _duration(positive=True),
    (Restart, "backoff"): _duration(positive=False),
    (Restart, "backoff_max"): _duration(positive=False),
    (OnError, "retry"): _either({"type": "integer", "minimum": 0, "maximum": 1000}),
    (LinkModel, "from"): _text(_END),
    (LinkModel, "to"): {
        "anyOf": [_text(_END), {"type": "array", "items": _text(_END), "minItems": 1}]
    },
    (LinkModel, "fsync"): _text(r"^(group|never|interval:.+)$"),
    (LinkModel, "by"): _text(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$"),
    (LinkModel, "topics"): {"type": "array", "items": {"type": "string"}},
    (LinkModel, "window"): _WINDOW,
    (EndpointModel, "channel"): {
        "anyOf": [
            _text(_END),
            {"type": "array", "items": _text(_END), "minItems": 1, "maxItems": 2},
        ]
    },
    (EndpointModel, "socket"): _TYPE,
    (EndpointModel, "peer"): _TYPE,
    (EndpointModel, "bind"): _TEXTS,
    (EndpointModel, "connect"): _TEXTS,
    (EndpointModel, "topics"): _TEXTS,
    (EndpointModel, "identity"): {"type": "string", "minLength": 1, "maxLength": 255},
    (EndpointModel, "to"): {"type": "string", "minLength": 1, "maxLength": 255},
    (EndpointModel, "window"): _WINDOW,
    (EndpointModel, "timeout"): _duration(positive=True),
    (EndpointModel, "aside"): _either({"type": "boolean"}),
    (EndpointModel, "insecure"): _either({"type": "boolean"}),
    (EndpointModel, "options"): {
        "type": "object",
        "properties": {
            name: {"type": ["integer", "boolean"] if kind is int else "string"}
            for name, kind in OPTIONS.items()
        },
        "additionalProperties": False,
    },
    (Top, "flowkit"): {"const": 1},
    (Top, "project"): _text(f"^{names.PATTERN}$"),
    (Top, "include"): {
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]
    },
    (Top, "env"): {"$ref": "#/$defs/env"},
}


def schema() -> dict[str, Any]:
    """A JSON Schema (draft 2020-12) that accepts what `check` accepts as the shape of a file."""
    top = _object(Top)
    top["properties"] |= {
        "nodes": {
            "description": "The nodes, by name.",
            "type": ["object", "null"],
            "patternProperties": {f"^{names.PATTERN}$": {"$ref": "#/$defs/node"}},
            "additionalProperties": False,
        },
        "links": {
            "description": "Which output goes to which input.",
            "type": ["array", "null"],
            "items": {"$ref": "#/$defs/link"},
        },
        "endpoints": {
            "description": "Sockets for foreign peers: programs that use plain ZeroMQ.",
            "type": ["array", "null"],
            "items": {"$ref": "#/$defs/endpoint"},
        },
    }
    top["patternProperties"] = {
        "^x-": {"description": "Ignored: a place for YAML anchors that other parts refer to."}
    }
    # Included files need neither a version nor nodes, so nothing is required at the top.
    return {
        "$schema": DRAFT,
        "title": "flowkit topology",
        **top,
        "$defs": {
            "node": _object(NodeModel),
            "link": _object(LinkModel),
            "endpoint": _object(EndpointModel),
            "restart": _object(Restart),
            "on_error": _object(OnError),
            "env": _ENVIRONMENT,
        },
    }


def _object(model: type[BaseModel]) -> dict[str, Any]:
    properties, required = {}, []
    for name, field in model.model_fields.items():
        key = field.alias or name
        properties[key] = _property(model, key, field)
        if field.is_required():
            required.append(key)
    result: dict[str, Any] = {
        "description": (model.__doc__ or "").partition("\n")[0],
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }
    if required:
        result["required"] = required
    return result


def _property(model: type[BaseModel], key: str, field: FieldInfo) -> dict[str, Any]:
    form = _FORMS.get((model, key))
    if field.annotation is bool:
        form = _either({"type": "boolean"})
    result: dict[str, Any] = {"description": field.description or ""}
    if form is None:
        form = _either({"enum": _choices(field.annotation)})
    if isinstance(field.default, str | int | float) and not isinstance(field.default, bool):
        result["default"] = field.default
    return {**result, **form}


def _choices(annotation: Any) -> list[str]:
    """The words of a Literal, also of one in a union with None."""
    found: list[str] = []
    for one in get_args(annotation):
        if isinstance(one, str):
            found.append(one)
        else:
            found += _choices(one)
    return found
