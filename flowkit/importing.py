"""Names of things in code, ``package.module:attribute``, and what the user may have meant."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from flowkit.errors import FlowkitError


class NotImportable(FlowkitError):
    """A reference names nothing: badly written, no such module, or no such attribute in it.

    `part` is the piece of the reference that is wrong, `hint` a suggestion or empty. An error
    *inside* a module that does exist is not one of these: it propagates as it was raised.
    """

    def __init__(self, text: str, reference: str, part: str = "", hint: str = "") -> None:
        self.reference = reference
        self.part = part or reference
        self.hint = hint
        super().__init__(text)


def suggest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that `name` most probably is a slip of, or None if none is close."""
    pool = [candidate for candidate in candidates if candidate != name]
    lowered = {candidate.lower(): candidate for candidate in pool}
    if name.lower() in lowered:
        return lowered[name.lower()]
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    return lowered[close[0]] if close else None


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """``did you mean 'x'?``, else the list of what exists when it is short, else empty."""
    known = list(dict.fromkeys(candidates))
    guess = suggest(name, known)
    if guess is not None:
        return f"did you mean '{guess}'?"
    if 0 < len(known) <= 8:
        return "there is " + ", ".join(f"'{one}'" for one in known)
    return ""


def split_reference(reference: str) -> tuple[str, str]:
    """``package.module:Class`` as (module, attribute path); NotImportable if it is not one."""
    module, colon, attribute = reference.partition(":")
    if not colon and "." in module:
        guess = ":".join(module.rsplit(".", 1))
        raise NotImportable(
            f"'{reference}' does not say where the class is: write package.module:Class",
            reference,
            hint=f"did you mean '{guess}'?",
        )
    parts = module.split(".") + attribute.split(".")
    if not colon or not all(part.isidentifier() for part in parts):
        raise NotImportable(
            f"'{reference}' is not of the form package.module:Class",
            reference,
            hint="dots between packages, one colon before the class",
        )
    return module, attribute


def load_object(reference: str) -> Any:
    """Import what ``package.module:attribute`` names.

    Raises NotImportable if the reference is malformed, or names no module or no attribute.
    Whatever the module itself raises while it is imported, an ImportError too, passes through.
    """
    module_name, attribute = split_reference(reference)
    found: Any = load_module(module_name, reference)
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            public = [one for one in vars(found) if not one.startswith("_")]
            classes = [one for one in public if isinstance(getattr(found, one, None), type)]
            guess = suggest(name, classes) or suggest(name, public)
            raise NotImportable(
                f"module '{module_name}' has no '{attribute}'",
                reference,
                part=attribute,
                hint=f"did you mean '{guess}'?" if guess else "",
            ) from None
    return found


def load_module(name: str, reference: str = "") -> ModuleType:
    """Import the module called `name`; NotImportable if there is none.

    `reference` is where the name comes from, for the error. What the module raises passes through.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        raise NotImportable(f"'{name}' is not the name of a module", reference or name)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Only a missing module on the way to ours is the reference's fault; one that our
        # module fails to import is a true error of that module.
        missing = error.name
        if missing is None or not (name + ".").startswith(missing + "."):
            raise
        raise NotImportable(
            f"there is no module '{missing}'",
            reference or name,
            part=name,
            hint=_module_hint(missing),
        ) from None


def _module_hint(missing: str) -> str:
    """A sibling of the missing module that is spelled alike, or where modules are looked for."""
    import pkgutil

    parent, _, leaf = missing.rpartition(".")
    if parent:
        package = sys.modules.get(parent)
        search = getattr(package, "__path__", None)
        if search is None:
            return f"'{parent}' is a module, not a package"
    else:
        search = None
    siblings = {info.name for info in pkgutil.iter_modules(search)}
    if not parent:
        siblings -= sys.stdlib_module_names  # nobody has nodes there
    guess = suggest(leaf, siblings)
    if guess:
        return f"did you mean '{parent + '.' if parent else ''}{guess}'?"
    return "modules are looked for in the current directory, then where Python looks"
