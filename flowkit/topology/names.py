"""The rule for names of projects, nodes and channels, and why a name breaks it."""

from __future__ import annotations

import re
import unicodedata

MAX_LENGTH = 64

PATTERN = r"[A-Za-z][A-Za-z0-9_-]{0,63}"

RULE = "a letter, then letters, digits, '_' or '-', at most 64 characters, all of them ASCII"

_NAME = re.compile(PATTERN)

# Letters of other scripts that look like ASCII ones, as printed in most fonts; after the
# Unicode Consortium's table of confusables (UTS #39), Greek and Cyrillic only.
_LOOK_ALIKES = {
    **dict(zip("АВЕЅІЈКМНОРСТУХ", "ABESIJKMHOPCTYX", strict=True)),
    **dict(zip("аеіјорсѕухԁһԛԝ", "aeijopcsyxdhqw", strict=True)),
    **dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "ABEZHIKMNOPTYX", strict=True)),
    **dict(zip("ανοι", "avoi", strict=True)),
}


def valid(name: str) -> bool:
    """Whether `name` follows the rule."""
    return _NAME.fullmatch(name) is not None


def complaint(name: str) -> str:
    """What is wrong with `name`, as the end of a sentence; empty if nothing is."""
    if valid(name):
        return ""
    if not name:
        return "is empty"
    if len(name) > MAX_LENGTH:
        return f"has {len(name)} characters"
    for at, one in enumerate(name):
        if one.isascii() and (one.isalnum() or one in "_-"):
            continue
        return f"has {_describe(one)} at position {at + 1}"
    return f"begins with '{name[0]}'"


def skeleton(name: str) -> str:
    """`name` with look-alikes replaced by the ASCII letters they look like."""
    folded = unicodedata.normalize("NFKC", name)
    return "".join(_LOOK_ALIKES.get(one, one) for one in folded)


def hint(name: str) -> str:
    """The rule, preceded by the name that was probably meant, if it can be told."""
    guess = skeleton(name)
    if guess != name and valid(guess):
        return f"type it anew as '{guess}'; a name is {RULE}"
    return f"a name is {RULE}"


def shown(name: str) -> str:
    """`name` for a message: what cannot be printed is escaped, what is too long is cut."""
    printable = "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in name
    )
    return printable if len(printable) <= 40 else printable[:37] + "..."


def _describe(one: str) -> str:
    code = f"U+{ord(one):04X}"
    title = unicodedata.name(one, "")
    twin = skeleton(one)
    if twin != one and twin.isascii() and len(twin) == 1:
        return f"{code} ({title}), which only looks like '{twin}',"
    if one.isprintable() and one.isascii():
        return f"'{one}'" if one != " " else "a space"
    return f"{code} ({title})" if title else f"the control character {code}"
