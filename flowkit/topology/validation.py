"""Data against the model: pydantic's errors become problems at the exact place."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from flowkit.errors import Problem
from flowkit.importing import did_you_mean
from flowkit.topology import names
from flowkit.topology.model import Part, what
from flowkit.topology.source import Marks, Path, Place

P = TypeVar("P", bound=Part)

_MISSING = {
    "use": "use: package.module:Class",
    "from": "from: node.channel",
    "to": "to: node.channel",
    "channel": "channel: node.channel",
    "socket": "socket: PULL",
}


def validate(
    model: type[P], data: dict[str, Any], marks: Marks, path: Path, label: str
) -> tuple[P, list[Problem]]:
    """`data` as a `model`, and every problem of it.

    What is wrong is left out and has its default, so that later checks can go on; a required part
    that is wrong or missing is an empty text or list. `label` is how
    messages name this part, like ``node 'split'``.
    """
    try:
        return model.model_validate(data), []
    except ValidationError as error:
        details = error.errors(include_url=False)
    problems = [_problem(model, one, marks, path, label) for one in details]
    wrong = {one["loc"][0] for one in details}
    rest = {key: value for key, value in data.items() if key not in wrong}
    try:
        return model.model_validate(rest), problems
    except ValidationError:
        # A required part is missing.
        for name, field in model.model_fields.items():
            alias = field.alias or name
            if field.is_required() and alias not in rest:
                rest[alias] = [] if alias in ("to", "channel") else ""
        return _construct(model, rest), problems


def _construct(model: type[P], data: dict[str, Any]) -> P:
    """The model without a look at required parts that are empty; all else is validated."""
    filled: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        alias = field.alias or name
        if alias in data:
            filled[name] = data[alias]
    blank = {name: value for name, value in filled.items() if value in ("", [])}
    stand_in = {"use": "module:Class", "from": "a.b", "to": "a.b", "channel": "a.b"}
    stand_in["socket"] = "PULL"
    valid = model.model_validate(
        {**data, **{k: v for k, v in stand_in.items() if data.get(k) in ("", [])}}
    )
    return valid.model_copy(update=blank)


def unknown_key(place: Place, label: str, name: str, known: Iterable[str]) -> Problem:
    """The problem of a key that is not one of `known`."""
    inside = f" in {label}" if label else ""
    known = list(known)
    hint = did_you_mean(name, known)
    before, colon, after = name.partition(":")
    if colon and after and before in known:
        hint = f"put a space after the colon: '{before}: {names.shown(after)}'"
    if not hint:
        hint = "known keys: " + ", ".join(known)
    return place.problem("E102", f"unknown key '{names.shown(name)}'{inside}", hint)


def _problem(
    model: type[Part], error: ErrorDetails, marks: Marks, path: Path, label: str
) -> Problem:
    location = tuple(part for part in error["loc"] if part != "[key]")
    is_key = "[key]" in error["loc"]
    where = (*path, *location)
    inner = _submodel(model, location[:-1])
    owner = f"'{location[-2]}' of {label}" if len(location) > 1 and label else label
    code = error["type"]
    if code == "extra_forbidden":
        known = [field.alias or name for name, field in inner.model_fields.items()]
        return unknown_key(marks.key(where), owner, str(location[-1]), known)
    if code == "missing":
        name = str(location[-1])
        return marks.key(path).problem(
            "E106", f"the key '{name}' is missing in {owner}", _MISSING.get(name, "")
        )
    context = error.get("ctx") or {}
    place = marks.key(where) if is_key else marks.value(where)
    if code.startswith("E"):
        message, hint = str(context.get("message", "")), str(context.get("hint", ""))
    else:
        code, hint = "E104", "see: flowkit schema"
        message = f"{_expected(error['type'])} is expected, not {what(error.get('input'))}"
    if code == "E104" and not is_key:
        named = next((str(one) for one in reversed(location) if isinstance(one, str)), "")
        message = f"'{named}': {message}" if named else message
    elif code == "E107":
        named = next((str(one) for one in reversed(location) if isinstance(one, str)), "")
        message = f"'{named}': {message}"
    return place.problem(code, message, hint)


def _expected(kind: str) -> str:
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return "a mapping"
    if kind == "list_type":
        return "a list"
    return "text" if kind == "string_type" else "another kind of value"


def _submodel(model: type[Part], location: Path) -> type[BaseModel]:
    """The model of the part at `location`, or the outer one where there is none."""
    found: type[BaseModel] = model
    for part in location:
        for name, field in found.model_fields.items():
            if part != (field.alias or name):
                continue
            annotation = field.annotation
            options = (
                typing.get_args(annotation)
                if typing.get_origin(annotation) in (typing.Union, types.UnionType)
                else (annotation,)
            )
            for option in options:
                if isinstance(option, type) and issubclass(option, BaseModel):
                    found = option
    return found
