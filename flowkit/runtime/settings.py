"""A node's settings from the topology, checked against and converted for its constructor."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import msgspec

from flowkit.errors import SettingsError
from flowkit.importing import did_you_mean
from flowkit.node import NodeInfo, Setting
from flowkit.topology.compatible import type_name


def fit(info: NodeInfo, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments for ``info.cls``: `settings` converted to the annotated types.

    Raises SettingsError, whose `setting` names the first one that is missing, unknown or of another
    type. Runs no constructor of the node.
    """
    problems, fitted = examine(info, settings)
    if problems:
        raise problems[0]
    return fitted


def examine(
    info: NodeInfo, settings: Mapping[str, Any]
) -> tuple[list[SettingsError], dict[str, Any]]:
    """As `fit`, but with every problem, and what did fit."""
    known = {setting.name: setting for setting in info.settings()}
    problems: list[SettingsError] = []
    fitted: dict[str, Any] = {}
    for name, value in settings.items():
        setting = known.get(name)
        if setting is None:
            if info.open_settings:
                fitted[name] = value
                continue
            hint = did_you_mean(name, known)
            if not known:
                hint = f"{info.cls.__qualname__} takes no settings"
            elif not hint:
                hint = "its settings are " + ", ".join(known)
            problems.append(
                SettingsError(f"{info.cls.__qualname__} has no setting '{name}'", name, hint)
            )
            continue
        try:
            fitted[name] = convert(setting, value)
        except SettingsError as error:
            problems.append(error)
    for setting in known.values():
        if setting.required and setting.name not in settings:
            problems.append(
                SettingsError(
                    f"{info.cls.__qualname__} needs the setting '{setting.name}'",
                    None,
                    f"add it under 'with:' ({setting.name}: {type_name(setting.type)})",
                )
            )
    return problems, fitted


def convert(setting: Setting, value: Any) -> Any:
    """`value` as the type of `setting`; SettingsError if it is none."""
    if setting.type is Any:
        return value
    try:
        return msgspec.convert(value, setting.type, dec_hook=_hook)
    except msgspec.ValidationError as error:
        hint = ""
        if unquotable(setting, value):
            hint = "remove the quotes"
        elif (
            isinstance(value, bool | int | float)
            and not isinstance(value, str)
            and _accepts_text(setting)
        ):
            hint = "quote it if text is meant"
        raise SettingsError(
            f"setting '{setting.name}' is {type_name(setting.type)}"
            + (_inside(str(error)) or f", not {_shown(value)}"),
            setting.name,
            hint,
        ) from None
    except Exception:
        # A type msgspec does not know: whoever wrote the constructor checks it.
        return value


def unquotable(setting: Setting, value: Any) -> bool:
    """Whether text would fit if it were written without quotes."""
    if not isinstance(value, str):
        return False
    try:
        msgspec.convert(value, setting.type, strict=False, dec_hook=_hook)
    except Exception:
        return False
    return True


def _accepts_text(setting: Setting) -> bool:
    try:
        msgspec.convert("", setting.type, dec_hook=_hook)
    except Exception:
        return False
    return True


def _hook(kind: type, value: Any) -> Any:
    if isinstance(kind, type) and issubclass(kind, pathlib.PurePath):
        if isinstance(value, str):
            return kind(value)
        raise TypeError(f"Expected `str`, got `{type(value).__name__}`")
    raise NotImplementedError(kind)


def _inside(text: str) -> str:
    """What msgspec says, and where inside the value, if not about the value as a whole."""
    said, at, where = text.partition(" - at `")
    where = where.rstrip("`").removeprefix("$").removeprefix(".")
    return f": {said.replace('`', '')} at {where}" if at and where else ""


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'the text "{value if len(value) <= 40 else value[:37] + "..."}"'
    if isinstance(value, list | tuple):
        return "a list"
    return "a mapping" if isinstance(value, dict) else str(value)
