"""Which projects there are, which of them run, and which one is meant.

What is true of a run is told by the lock on its run directory, which the kernel takes away with the
process, and never by a process number that lies in a file.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from flowkit.control.recorder import RUN
from flowkit.control.records import RunRecord
from flowkit.errors import NoSuchProject, NotRunning, OperatorError
from flowkit.importing import suggest
from flowkit.rundir import RunDirectory

CONTACT = "contact.json"
"""The file in the run directory that says where the supervisor listens, and the token it wants."""

LISTED = "flowkit ls shows what there is"


class Contact(msgspec.Struct, frozen=True):
    """Where a supervisor listens, and what it wants to be shown."""

    address: str
    token: str


def leave_contact(directory: Path, address: str, token: str) -> None:
    """Written by the supervisor; the directory is private, and so is the file. Who reads it finds
    all of it or nothing."""
    path = directory / f"{CONTACT}.new"
    path.touch(mode=0o600)
    path.write_text(json.dumps({"address": address, "token": token}), encoding="utf-8")
    path.replace(directory / CONTACT)


def read_contact(directory: Path) -> Contact | None:
    """What `leave_contact` has left; None if there is none, or none that can be trusted."""
    path = directory / CONTACT
    try:
        if path.stat().st_uid != os.geteuid():
            return None
        return msgspec.json.decode(path.read_bytes(), type=Contact)
    except (OSError, msgspec.MsgspecError):
        return None


@dataclass(frozen=True)
class Place:
    """A project that runs, or has run. `pid` is the process it runs in, None if it does not."""

    directory: RunDirectory
    pid: int | None
    record: RunRecord | None

    @property
    def project(self) -> str:
        return self.directory.project

    @property
    def file(self) -> str:
        return self.record.file if self.record is not None else ""

    @property
    def state(self) -> str:
        """For people: what the record says, unless its process has gone without a word."""
        said = self.record.state if self.record is not None else "unknown"
        if self.pid is not None:
            ours = self.record is not None and self.record.pid == self.pid
            return said if ours else "starting"
        return "died" if said in ("starting", "running", "draining") else said

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.project} ({self.file})" if self.file else self.project


def places(environ: Mapping[str, str] = os.environ) -> list[Place]:
    """All projects of this user, by name."""
    return [look_at(directory) for directory in RunDirectory.find(environ=environ)]


def look_at(directory: RunDirectory) -> Place:
    """What there is to know of a project from its directories."""
    pid = directory.holder()
    try:
        record = msgspec.json.decode((directory.state / RUN).read_bytes(), type=RunRecord)
    except (OSError, msgspec.MsgspecError):
        record = None
    return Place(directory, pid, record)


def choose(
    project: str | None,
    *,
    running: bool = True,
    directory: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Place:
    """The project that is meant: by its name or its topology file, or, without either, the one of
    this `directory` (the current one).

    With `running` it must run; without, one that runs is preferred. Raises `NotRunning`,
    `NoSuchProject`, or OperatorError if it could be several.
    """
    if project is None:
        return _of_directory(directory or os.getcwd(), running, environ)
    if _is_path(project):
        found = _all(RunDirectory.find(file=project, environ=environ))
        called = f"the project of {project}"
        if not found and not os.path.exists(project):
            raise NoSuchProject(f"there is no file {project}", LISTED)
    else:
        found = _all(RunDirectory.find(project, environ=environ)) if _is_name(project) else []
        called = f"'{project}'"
        if not found and os.path.isfile(project):
            return choose(f"./{project}", running=running, environ=environ)
    alive = [place for place in found if place.pid is not None]
    if len(alive) == 1 or (len(found) == 1 and not running):
        return alive[0] if alive else found[0]
    if running and not alive:
        raise NotRunning(f"not running: {called}{_guess(project, found, environ)}", LISTED)
    if not found:
        raise NoSuchProject(f"{called} has never run here", LISTED)
    raise _ambiguous(f"there are {len(alive or found)} projects {called}", alive or found)


def _of_directory(directory: str, running: bool, environ: Mapping[str, str]) -> Place:
    here = os.path.realpath(directory)
    found = [
        place
        for place in places(environ)
        if place.record is not None
        and here in (os.path.realpath(place.record.directory), os.path.dirname(place.record.file))
    ]
    alive = [place for place in found if place.pid is not None]
    if len(alive) == 1 or (len(found) == 1 and not running):
        return alive[0] if alive else found[0]
    if not (alive if running else found):
        what = "not running: no project of this directory" if running else "no project has run here"
        hint = f"name one with -p PROJECT or -p FILE; {LISTED}"
        raise (NotRunning if running else NoSuchProject)(what, hint)
    count = len(alive or found)
    verb = "run" if alive else "have run"
    raise _ambiguous(f"{count} projects {verb} in this directory", alive or found)


def _ambiguous(what: str, found: list[Place]) -> OperatorError:
    several = len({place.project for place in found}) > 1
    names = sorted(place.project if several else place.file for place in found)
    return OperatorError(f"{what}: {', '.join(names)}", "say which one is meant with -p")


def _all(directories: list[RunDirectory]) -> list[Place]:
    return [look_at(directory) for directory in directories]


def _is_path(text: str) -> bool:
    return "/" in text or text.endswith((".yaml", ".yml", ".json"))


def _is_name(text: str) -> bool:
    return bool(text) and not set(text) & set("*?[]/\0")


def _guess(project: str, found: list[Place], environ: Mapping[str, str]) -> str:
    if found:
        return ""
    names = {place.project for place in places(environ) if place.pid is not None}
    guess = suggest(project, names)
    return f"; did you mean '{guess}'?" if guess else ""


class Presence:
    """Whether the process that runs a project is still there; made while it is."""

    def __init__(self, place: Place) -> None:
        self._process: psutil.Process | None = None
        with suppress(psutil.Error):
            if place.pid != os.getpid():
                self._process = psutil.Process(place.pid)

    def __bool__(self) -> bool:
        """Not if it has ended and nobody has waited for it yet; nor if it is this one."""
        try:
            return (
                self._process is not None
                and self._process.is_running()
                and self._process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.Error:
            return False


def kill_holder(place: Place) -> bool:
    """Kill the process that runs the project. False if nothing runs there.

    It is made sure that the process is the one that holds the lock: a number in a file may long
    belong to somebody else, who is not to be harmed.
    """
    pid = place.directory.holder()
    if pid is None:
        return False
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not _has_open(pid, place.directory.lock_path):
            raise OperatorError(
                f"process {pid}, which {place.directory.lock_path} names, does not hold that file",
                hint=f"nothing was killed; look who does with: fuser {place.directory.lock_path}",
            )
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def _has_open(pid: int, path: Path) -> bool:
    """Whether a process of ours has that file open."""
    try:
        wanted = path.stat()
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                if os.path.samestat(os.stat(f"/proc/{pid}/fd/{name}"), wanted):
                    return True
            except OSError:  # closed meanwhile
                continue
    except OSError:
        return False
    return False
