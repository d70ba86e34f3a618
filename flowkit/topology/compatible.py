"""Whether what one end of a link sends can be decoded as what the other end expects.

Conservative: an answer is given only when decoding must fail. Whatever cannot be told, types that
only a type checker understands among them, counts as compatible.

Types are compared as msgspec's msgpack decoder reads them: an `int` is a `float` too, but no
other scalar becomes another; records (Struct, dataclass, TypedDict, attrs) are compared field by
field, by the names on the wire.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import decimal
import enum
import types
import typing
import uuid
from typing import Any, TypeGuard

import msgspec

_SCALARS: dict[Any, frozenset[str]] = {
    bool: frozenset({"bool"}),
    int: frozenset({"int"}),
    float: frozenset({"float"}),
    str: frozenset({"str"}),
    bytes: frozenset({"bin"}),
    bytearray: frozenset({"bin"}),
    memoryview: frozenset({"bin"}),
    type(None): frozenset({"nil"}),
    datetime.datetime: frozenset({"str", "ext"}),
    datetime.date: frozenset({"str"}),
    datetime.time: frozenset({"str"}),
    datetime.timedelta: frozenset({"str"}),
    uuid.UUID: frozenset({"str"}),
    decimal.Decimal: frozenset({"str"}),
}
"""What a value of the type is on the wire."""

_READS: dict[Any, frozenset[str]] = {
    float: frozenset({"int", "float"}),
    uuid.UUID: frozenset({"str", "bin"}),
    decimal.Decimal: frozenset({"str", "int", "float"}),
}
"""What else than its own form is read as the type."""

_ARRAYS = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Set)
_MAPS = (dict, collections.abc.Mapping)

_ARRAY_ORIGINS = (
    *_ARRAYS,
    collections.abc.MutableSequence,
    collections.abc.Collection,
    collections.abc.MutableSet,
)
_MAP_ORIGINS = (*_MAPS, collections.abc.MutableMapping)

_UNKNOWN = None


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """A field of a record: its name on the wire, its type, whether a decoder insists on it, and
    whether an encoder always sends it."""

    name: str
    type: Any
    required: bool
    sent: bool


def mismatch(produced: Any, consumed: Any, *, json: bool = False) -> str | None:
    """Why a `produced` can surely not be decoded as a `consumed`; None if it may.

    `json`: they travel as JSON, where bytes are text, and so are the keys of mappings.
    """
    return _Comparison(json).compare(produced, consumed)


class _Comparison:
    def __init__(self, json: bool) -> None:
        self._json = json
        # Types refer to themselves: a pair that is being compared is taken to fit.
        self._open: set[tuple[int, int]] = set()

    def compare(self, produced: Any, consumed: Any) -> str | None:
        produced, consumed = unwrap(produced), unwrap(consumed)
        if produced is consumed or consumed in (Any, object) or produced in (Any, object):
            return None
        pair = (id(produced), id(consumed))
        if pair in self._open:
            return None
        self._open.add(pair)
        try:
            return self._compare(produced, consumed)
        finally:
            self._open.discard(pair)

    def _compare(self, produced: Any, consumed: Any) -> str | None:
        made = _members(produced)
        wanted = _members(consumed)
        if len(made) > 1 or len(wanted) > 1:
            # Some of what is sent may be decoded: only when none can is it surely wrong.
            for one in made:
                if any(self.compare(one, other) is None for other in wanted):
                    return None
            return f"{type_name(produced)} cannot be read as {type_name(consumed)}"
        forms, reads = _forms(produced), _reads(consumed)
        if forms is _UNKNOWN or reads is _UNKNOWN:
            return None
        if self._json:
            forms, reads = _in_json(forms), _in_json(reads)
        if not forms & reads:
            return f"{type_name(produced)} cannot be read as {type_name(consumed)}"
        if forms == {"array"}:
            return self._arrays(produced, consumed)
        if forms == {"map"}:
            return self._maps(produced, consumed)
        if typing.get_origin(produced) is typing.get_origin(consumed) is typing.Literal:
            if not set(typing.get_args(produced)) & set(typing.get_args(consumed)):
                return f"{type_name(produced)} cannot be read as {type_name(consumed)}"
        return None

    def _arrays(self, produced: Any, consumed: Any) -> str | None:
        made, wanted = _items(produced), _items(consumed)
        if made is _UNKNOWN or wanted is _UNKNOWN:
            return None
        if isinstance(made, tuple) and isinstance(wanted, tuple):
            if len(made) != len(wanted):
                return f"{len(made)} items are sent, {len(wanted)} are expected"
            pairs = list(zip(made, wanted, strict=True))
        elif isinstance(made, tuple):
            pairs = [(one, wanted) for one in made]
        elif isinstance(wanted, tuple):
            pairs = [(made, one) for one in wanted]
        else:
            pairs = [(made, wanted)]
        for one, other in pairs:
            reason = self.compare(one, other)
            if reason:
                return f"items: {reason}"
        return None

    def _maps(self, produced: Any, consumed: Any) -> str | None:
        made, wanted = fields(produced), fields(consumed)
        if made is None and wanted is None:
            ours, theirs = _entries(produced), _entries(consumed)
            keys = self.compare(ours[0], theirs[0])
            if keys and not self._json:
                return f"keys: {keys}"
            values = self.compare(ours[1], theirs[1])
            return f"values: {values}" if values else None
        if wanted is None:
            return self._record_to_map(made or [], *_entries(consumed))
        if made is None:
            key, value = _entries(produced)
            if wanted and self.compare(key, str):
                return f"its fields are named, the keys of {type_name(produced)} are no text"
            for field in wanted:
                reason = self.compare(value, field.type) if field.required else None
                if reason:
                    return f"field '{field.name}': {reason}"
            return None
        return self._records(produced, made, consumed, wanted)

    def _record_to_map(self, made: list[Field], key: Any, value: Any) -> str | None:
        if made and not self._json and self.compare(str, key):
            return f"field names are text, its keys are {type_name(key)}"
        for field in made:
            reason = self.compare(field.type, value)
            if reason:
                return f"field '{field.name}': {reason}"
        return None

    def _records(
        self, produced: Any, made: list[Field], consumed: Any, wanted: list[Field]
    ) -> str | None:
        ours, theirs = _tag(produced), _tag(consumed)
        if ours and theirs and ours[0] == theirs[0] and ours[1] != theirs[1]:
            return f"they are tagged {ours[1]!r} and {theirs[1]!r}"
        sent = {field.name: field for field in made}
        for field in wanted:
            if field.name not in sent:
                if field.required:
                    return (
                        f"{type_name(consumed)} needs '{field.name}', "
                        f"which {type_name(produced)} has not"
                    )
                continue
            reason = self.compare(sent[field.name].type, field.type)
            if reason:
                return f"field '{field.name}': {reason}"
        if _closed(consumed):
            known = {field.name for field in wanted}
            for extra in made:
                if extra.sent and extra.name not in known:
                    return f"{type_name(consumed)} forbids the field '{extra.name}'"
        return None


# -- what a type is on the wire --------------------------------------------------------------


def _forms(kind: Any) -> frozenset[str] | None:
    """The msgpack forms a value of `kind` is sent as; None if unknown."""
    if typing.get_origin(kind) is typing.Literal:
        found: frozenset[str] = frozenset()
        for value in typing.get_args(kind):
            forms = _SCALARS.get(type(value))
            if forms is None:
                return _UNKNOWN
            found |= forms
        return found
    if kind in _SCALARS:
        return _SCALARS[kind]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _enum_forms(kind)
    if _is_array(kind):
        return frozenset({"array"})
    if _is_map(kind):
        return frozenset({"map"})
    return _UNKNOWN


def _reads(kind: Any) -> frozenset[str] | None:
    """The msgpack forms that may be decoded as `kind`; None if unknown."""
    if typing.get_origin(kind) is None and kind in _READS:
        return _READS[kind]
    return _forms(kind)


def _in_json(forms: frozenset[str]) -> frozenset[str]:
    return frozenset("str" if form in ("bin", "ext") else form for form in forms)


def _enum_forms(kind: type[enum.Enum]) -> frozenset[str] | None:
    found: frozenset[str] = frozenset()
    for member in kind:
        forms = _SCALARS.get(type(member.value))
        if forms is None:
            return _UNKNOWN
        found |= forms
    return found or _UNKNOWN


def _is_struct(kind: Any) -> TypeGuard[type[msgspec.Struct]]:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _is_array(kind: Any) -> bool:
    origin = typing.get_origin(kind) or kind
    if _is_struct(origin):
        return bool(origin.__struct_config__.array_like)
    if origin in _ARRAY_ORIGINS:
        return True
    return isinstance(origin, type) and issubclass(origin, tuple)


def _is_map(kind: Any) -> bool:
    origin = typing.get_origin(kind) or kind
    return (origin in _MAP_ORIGINS) or fields(kind) is not None


def _items(kind: Any) -> Any:
    """The item type, a tuple of item types, or None if unknown."""
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if _is_struct(origin) or (origin is not tuple and issubclass(origin, tuple)):
        return _UNKNOWN
    if not arguments:
        return Any
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return arguments[0]
        return () if arguments == ((),) else arguments
    return arguments[0]


def _entries(kind: Any) -> tuple[Any, Any]:
    arguments = typing.get_args(kind)
    return (arguments[0], arguments[1]) if len(arguments) == 2 else (Any, Any)


def fields(kind: Any) -> list[Field] | None:
    """The fields of a record type; None if `kind` is none, or they cannot be told."""
    origin = typing.get_origin(kind) or kind
    if not isinstance(origin, type):
        return None
    try:
        if _is_struct(origin):
            if origin.__struct_config__.array_like:
                return None
            return [
                Field(
                    one.encode_name,
                    one.type,
                    one.required,
                    one.required or not origin.__struct_config__.omit_defaults,
                )
                for one in msgspec.structs.fields(kind)
            ]
        if typing.is_typeddict(origin):
            hints = typing.get_type_hints(origin)
            needed = origin.__required_keys__  # type: ignore[attr-defined]
            return [
                Field(name, hint, name in needed, name in needed) for name, hint in hints.items()
            ]
        if dataclasses.is_dataclass(origin):
            hints = typing.get_type_hints(origin)
            return [
                Field(
                    one.name,
                    hints.get(one.name, Any),
                    one.default is dataclasses.MISSING
                    and one.default_factory is dataclasses.MISSING,
                    True,
                )
                for one in dataclasses.fields(origin)
                if one.init
            ]
    except Exception:  # annotations that do not resolve: nothing can be said
        return None
    return None


def _tag(kind: Any) -> tuple[str, Any] | None:
    origin = typing.get_origin(kind) or kind
    if not _is_struct(origin):
        return None
    config = origin.__struct_config__
    return (config.tag_field, config.tag) if config.tag_field is not None else None


def _closed(kind: Any) -> bool:
    origin = typing.get_origin(kind) or kind
    return _is_struct(origin) and bool(origin.__struct_config__.forbid_unknown_fields)


# -- forms of types --------------------------------------------------------------------------


def unwrap(kind: Any) -> Any:
    """`kind` without Annotated, NewType, aliases; Any for what only a type checker knows."""
    for _ in range(20):
        origin = typing.get_origin(kind)
        if origin in (typing.Annotated, typing.Final, typing.ClassVar) or origin in (
            typing.Required,
            typing.NotRequired,
        ):
            kind = typing.get_args(kind)[0]
        elif hasattr(kind, "__supertype__"):
            kind = kind.__supertype__
        elif type(kind).__name__ == "TypeAliasType":
            kind = kind.__value__
        elif kind is None:
            return type(None)
        elif isinstance(kind, typing.TypeVar | typing.ForwardRef | str):
            return Any
        else:
            return kind
    return Any


def _members(kind: Any) -> tuple[Any, ...]:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return typing.get_args(kind)
    return (kind,)


def scalar(kind: Any) -> bool | None:
    """Whether a message of this type can itself be a key: True, False, or None if unknown."""
    kind = unwrap(kind)
    if kind in (Any, object):
        return None
    answers = set()
    for member in _members(kind):
        forms = _forms(unwrap(member))
        answers.add(None if forms is _UNKNOWN else not forms & {"array", "map"})
    return answers.pop() if len(answers) == 1 else None


def field_path(kind: Any, path: str) -> tuple[str, str, list[str]] | None:
    """The first step of `path` that surely does not exist: (step, the type's name, its fields)."""
    for step in path.split("."):
        kind = unwrap(kind)
        if kind in (Any, object) or len(_members(kind)) > 1:
            return None
        known = attribute_types(kind)
        if known is None:
            forms = _forms(kind)
            if forms is not _UNKNOWN and not forms & {"map", "array"}:
                return step, type_name(kind), []
            if _is_map(kind):
                kind = _entries(kind)[1]
                continue
            return None
        if step not in known:
            return step, type_name(kind), list(known)
        kind = known[step]
    return None


def attribute_types(kind: Any) -> dict[str, Any] | None:
    """The attributes (keys of a TypedDict) of a record, by their names in code."""
    origin = typing.get_origin(kind) or kind
    if not isinstance(origin, type):
        return None
    if _is_struct(origin):
        try:
            found = {one.name: one.type for one in msgspec.structs.fields(kind)}
        except Exception:
            return None
    else:
        listed = fields(kind)
        if listed is None:
            return None
        found = {one.name: one.type for one in listed}
    for name in dir(origin):
        # Properties and class attributes are attribute paths too.
        if not name.startswith("_") and not typing.is_typeddict(origin):
            found.setdefault(name, Any)
    return found


def type_name(kind: Any) -> str:
    """A type as it is written in code: ``Event``, ``list[str]``, ``int | None``."""
    kind = type(None) if kind is None else kind
    if kind is type(None):
        return "None"
    if kind is Any:
        return "Any"
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(type_name(one) for one in arguments)
    if origin is typing.Literal:
        return "Literal[" + ", ".join(repr(one) for one in arguments) + "]"
    if origin is typing.Annotated:
        return type_name(arguments[0])
    if origin is not None and arguments:
        name = getattr(origin, "__name__", str(origin))
        inner = ", ".join("..." if one is Ellipsis else type_name(one) for one in arguments)
        return f"{name}[{inner}]"
    return str(getattr(kind, "__qualname__", getattr(kind, "__name__", kind)))
