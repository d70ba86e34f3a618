"""Durations, sizes and counts as people write and read them."""

from __future__ import annotations

import math
import re

_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-zµ]*)\s*")

_SECONDS = {
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}

_BYTES = {
    "b": 1,
    "k": 1000,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "tb": 1000**4,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
    "tib": 1024**4,
}


def duration(value: str | int | float) -> float:
    """Seconds in ``500ms``, ``30s``, ``5m``, ``1h`` or a bare number of seconds.

    Several parts may follow each other, largest first or not: ``1m30s``. ValueError says what is
    wrong, for people.
    """
    if isinstance(value, bool):
        raise ValueError("a duration is a number with a unit, like 500ms, 30s or 5m")
    if isinstance(value, int | float):
        return _finite(float(value))
    text = value.strip()
    if not text:
        raise ValueError("a duration is a number with a unit, like 500ms, 30s or 5m")
    total, at = 0.0, 0
    while at < len(text):
        match = _NUMBER.match(text, at)
        if match is None:
            raise ValueError(
                f"'{value}' is no duration: write a number with a unit, like 500ms, 30s or 5m"
            )
        number, unit = match.groups()
        if not unit and (at or match.end() < len(text)):
            raise ValueError(f"'{value}' lacks a unit: one of ms, s, m, h, d")
        factor = _SECONDS.get(unit or "s")
        if factor is None:
            raise ValueError(f"'{unit}' is no unit of time: one of us, ms, s, m, h, d")
        # Dividing keeps 100ms at exactly 0.1, which multiplying by 1e-3 does not promise.
        total += float(number) / round(1 / factor) if factor < 1 else float(number) * factor
        at = match.end()
    return _finite(total)


def _finite(seconds: float) -> float:
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError("a duration is finite and not negative")
    return seconds


def size(value: str | int) -> int:
    """Bytes in ``64MiB``, ``10kB``, ``512B`` or a bare whole number of bytes.

    Powers of 1000 are written kB, MB, GB, TB; powers of 1024 KiB, MiB, GiB, TiB.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("a size is a whole number of bytes or has a unit, like 64MiB or 10kB")
    if isinstance(value, int):
        if value < 0:
            raise ValueError("a size is not negative")
        return value
    match = _NUMBER.fullmatch(value)
    if match is None:
        raise ValueError(f"'{value}' is no size: write a number with a unit, like 64MiB or 10kB")
    number, unit = match.groups()
    factor = _BYTES.get(unit.lower() or "b")
    if factor is None:
        raise ValueError(f"'{unit}' is no unit of size: one of B, kB, MB, GB, KiB, MiB, GiB")
    if "." in number:
        return int(float(number) * factor)
    return int(number) * factor


def human_count(value: float) -> str:
    """A count in at most five characters: ``999``, ``5.0k``, ``61k``, ``1.2M``."""
    if value < 0:
        return "-" + human_count(-value)
    if value < 999.5:
        return f"{value:.0f}"
    for unit in ("k", "M", "G", "T"):
        value /= 1000
        if value < 9.95:
            return f"{value:.1f}{unit}"
        if value < 999.5:
            return f"{value:.0f}{unit}"
    return f"{value:.0f}T"


def human_bytes(value: float) -> str:
    """A size for people: ``512 B``, ``8.1 MiB``, ``64 MiB``."""
    if value < 0:
        return "-" + human_bytes(-value)
    if value < 1023.5:
        return f"{value:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 9.95:
            return f"{value:.1f} {unit}"
        if value < 1023.5:
            return f"{value:.0f} {unit}"
    return f"{value:.0f} TiB"


def human_seconds(value: float) -> str:
    """A span of time for people: ``84us``, ``2.1ms``, ``84ms``, ``3.2s``, ``2m11s``, ``1h05m``."""
    if value < 0:
        return "-" + human_seconds(-value)
    if value == 0:
        return "0s"
    if value < 999.5e-6:
        return f"{value * 1e6:.0f}us"
    if value < 0.9995:
        milliseconds = value * 1e3
        return f"{milliseconds:.1f}ms" if milliseconds < 9.95 else f"{milliseconds:.0f}ms"
    if value < 59.5:
        return f"{value:.1f}s" if value < 9.95 else f"{value:.0f}s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
