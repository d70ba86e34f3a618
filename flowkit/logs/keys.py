"""The key that signs log records: from a file or the environment, never from a command line, which
everybody on the host can read."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from flowkit.errors import OperatorError

VARIABLE = "FLOWKIT_LOG_KEY"
FILE_VARIABLE = "FLOWKIT_LOG_KEY_FILE"

SHORTEST = 16
"""Bytes of a key at least. ``openssl rand -hex 32`` makes a good one."""

_HINT = f"make one: (umask 077; openssl rand -hex 32 > KEYFILE); then {FILE_VARIABLE}=KEYFILE"


def find(
    path: str | os.PathLike[str] | None = None, environ: Mapping[str, str] = os.environ
) -> bytes:
    """The key in the file `path`, or in the one that ``$FLOWKIT_LOG_KEY_FILE`` names, or the text
    of ``$FLOWKIT_LOG_KEY``. Space around it is no part of it.

    Raises OperatorError if there is none, if it is too short, or if others can read the file.
    """
    path = path or environ.get(FILE_VARIABLE)
    if path is None:
        text = environ.get(VARIABLE, "")
        if not text:
            raise OperatorError("there is no key to sign log records with", _HINT)
        return _checked(text.encode(), f"the key in {VARIABLE}")
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            key = file.read(4096)
    except OSError as error:
        raise OperatorError(f"cannot read the key file {path}: {error.strerror}", _HINT) from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise OperatorError(
            f"others than its owner may use the key file {path}", f"chmod 600 {Path(path)}"
        )
    return _checked(key, f"the key in {path}")


def _checked(key: bytes, name: str) -> bytes:
    key = key.strip()
    if len(key) < SHORTEST:
        raise OperatorError(f"{name} has {len(key)} bytes, and needs {SHORTEST} or more", _HINT)
    return key
