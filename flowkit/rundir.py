"""The run directory: the private place where one run of a project keeps its lock and its sockets.

It is found from the project's name and the path of its topology file, so two projects, or two
checkouts of one, have two. Whoever could write to it could take over the run's sockets. Therefore
it belongs to the user who runs the project and nobody else may enter it; a directory that is
not like that is refused and never mended silently.

The state directory, with what outlives a run, has a lock of its own: the same project may be
started with another run directory (a login has an ``$XDG_RUNTIME_DIR``, a cron job has none), and
somebody may tidy up ``/tmp``.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from flowkit.errors import AlreadyRunning, RunDirectoryError

SOCKET_PATH_LIMIT = 107 if sys.platform == "linux" else 103
"""Bytes that fit into `sockaddr_un.sun_path`, less the final NUL."""

_TRIES = 200
_PAUSE = 0.001  # seconds; a fifth of a second for a rival to write its pid into the lock file


class RunDirectory:
    """The run directory of `project`, whose topology is the file `topology_path`.

    It is a directory in `root`, else in ``$FLOWKIT_RUN_DIR``, else in ``$XDG_RUNTIME_DIR/flowkit``,
    else in ``/tmp/flowkit-<uid>``. `path` is where it is, once `acquire` has made it. `state` is
    where the project keeps what outlives a run: in ``$FLOWKIT_STATE_DIR``, else in
    ``$XDG_STATE_HOME/flowkit``, else in ``~/.local/state/flowkit``; `acquire_state` makes it.
    """

    def __init__(
        self,
        project: str,
        topology_path: str | os.PathLike[str],
        root: str | os.PathLike[str] | None = None,
        *,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        if not project or "/" in project or "\0" in project:
            raise ValueError(f"{project!r} is no name of a project")
        name = f"{project}-{_digest(topology_path)}"
        self._root = Path(os.path.abspath(root)) if root is not None else _run_root(environ)
        self.path = self._root / name
        self.state = _state_root(environ) / name
        self._lock: int | None = None
        self._state_lock: int | None = None

    @classmethod
    def find(
        cls,
        name: str | None = None,
        *,
        file: str | os.PathLike[str] | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> list[RunDirectory]:
        """The projects that run or have kept something: all, those called `name`, or those whose
        topology is `file`. They are to be looked into and not to be acquired."""
        pattern = f"{name or '*'}-{_digest(file) if file is not None else '????????'}"
        run, state = _run_root(environ), _state_root(environ)
        found = {path.name for root in (state, run) for path in root.glob(pattern)}
        return [cls._at(run, state, each) for each in sorted(found)]

    @classmethod
    def _at(cls, run: Path, state: Path, name: str) -> RunDirectory:
        one = cls.__new__(cls)
        one._root = run
        one._lock = one._state_lock = None
        one.path, one.state = run / name, state / name
        return one

    @property
    def project(self) -> str:
        """The name of the project."""
        return self.path.name[:-9]

    @property
    def lock_path(self) -> Path:
        """The file whose lock says that the project runs, and whose text says in which process."""
        return self.path / "lock"

    def holder(self) -> int | None:
        """The process that has the run directory; None if nothing runs in it."""
        try:
            fd = os.open(self.lock_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read_pid(fd) or None
        finally:
            os.close(fd)
        return None

    def check(self, socket_name_length: int) -> None:
        """Raise RunDirectoryError unless a socket name of that many bytes fits in here."""
        length = len(os.fsencode(self.path)) + 1 + socket_name_length
        if length > SOCKET_PATH_LIMIT:
            raise RunDirectoryError(
                f"the run directory {self.path} is too long a path: its sockets would have paths"
                f" of {length} bytes, the system allows {SOCKET_PATH_LIMIT}",
                hint=f"set FLOWKIT_RUN_DIR to a shorter path, such as /tmp/flowkit-{os.geteuid()}",
            )

    def acquire(self) -> list[str]:
        """Make the directory ours; returns the names of what a killed run had left in it, now gone.

        Raises AlreadyRunning if another process has it, RunDirectoryError if it cannot be had or
        is not private. Call `release` at the end; if the process is killed instead, the
        kernel gives up the lock and the next `acquire` cleans up.
        """
        if self._lock is not None:
            raise AlreadyRunning(os.getpid(), str(self.lock_path))
        try:
            self._lock = self._take()
            leftovers = sorted(entry for entry in os.listdir(self.path) if entry != "lock")
            for entry in leftovers:
                _remove(self.path / entry)
        except OSError as error:
            self._let_go()
            raise _unusable(self.path, error) from error
        return leftovers

    def acquire_state(self) -> None:
        """Make the state directory ours, and make it if there is none; `release` lets it go.

        Raises AlreadyRunning if another process has it, RunDirectoryError if it cannot be had or
        is not private.
        """
        make_private(self.state)
        path = self.state / "lock"
        pid = 0
        for _ in range(_TRIES):
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise _unusable(self.state, error) from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
                self._state_lock = fd
                return
            except BlockingIOError:
                pid = _read_pid(fd)
                os.close(fd)
                if pid and _is_alive(pid):
                    break
                time.sleep(_PAUSE)  # its new holder has not written its pid yet
            except OSError as error:
                os.close(fd)
                raise _unusable(self.state, error) from error
        raise AlreadyRunning(pid, str(path))

    def remove_sockets(self, links: Iterable[int], replica: int, incarnation: int) -> None:
        """A process that was killed has left the files of its sockets behind."""
        for link in links:
            for path in self.path.glob(f"l{link}.{replica}.{incarnation}-*"):
                path.unlink(missing_ok=True)

    def release(self) -> None:
        """Remove the directory with all that is in it, and let go of the state directory. May be
        called twice."""
        if self._state_lock is not None:
            os.close(self._state_lock)  # the file stays: nobody waits for a ghost
            self._state_lock = None
        if self._lock is None:
            return
        with suppress(OSError):
            for entry in os.listdir(self.path):
                if entry != "lock":
                    _remove(self.path / entry)
            # The lock goes last and while it is held; `_take` notices if it waits for a ghost.
            self.lock_path.unlink()
            self.path.rmdir()
        self._let_go()

    def __enter__(self) -> RunDirectory:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _take(self) -> int:
        """The descriptor of the lock file, locked and with our pid in it."""
        pid = 0
        for _ in range(_TRIES):
            make_private(self._root, ours=False)
            make_private(self.path)
            try:
                fd = os.open(
                    self.lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
                )
            except FileNotFoundError:  # a release has just removed the directory
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _same_file(fd, self.lock_path):
                    os.ftruncate(fd, 0)
                    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
                    return fd
                os.close(fd)
            except BlockingIOError:
                pid = _read_pid(fd)
                os.close(fd)
                if pid and _is_alive(pid):
                    raise AlreadyRunning(pid, str(self.lock_path)) from None
                # Its new holder has not written its pid yet, or the old one has just died.
                time.sleep(_PAUSE)
            except BaseException:
                os.close(fd)
                raise
        raise AlreadyRunning(pid, str(self.lock_path))

    def _let_go(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def make_private(path: Path, *, ours: bool = True) -> None:
    """Create the directory `path` for its owner alone, or make sure that it is such a one.

    With `ours` False it is enough that nobody can replace what lies in it: it belongs to us or to
    root, and others cannot write to it, or it is sticky, like /tmp. Raises RunDirectoryError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = path.lstat()
        if not ours and stat.S_ISLNK(found.st_mode):
            # The user's own link is the user's wish; anybody else's is a trap.
            _check_owner(path, found)
            found = path.stat()
    except OSError as error:
        raise _unusable(path, error) from error
    if stat.S_ISLNK(found.st_mode):
        raise RunDirectoryError(
            f"the directory {path} is a symbolic link, which others may have put there",
            hint="remove it, or set FLOWKIT_RUN_DIR to a directory of yours",
        )
    if not stat.S_ISDIR(found.st_mode):
        raise RunDirectoryError(
            f"{path} is not a directory", hint="remove it, or set FLOWKIT_RUN_DIR"
        )
    _check_owner(path, found, or_root=not ours)
    mode = stat.S_IMODE(found.st_mode)
    too_open = mode & 0o077 if ours else mode & 0o022 and not mode & stat.S_ISVTX
    if too_open:
        raise RunDirectoryError(
            f"the directory {path} is open to others (mode {mode:04o})",
            hint=f"chmod {'700' if ours else 'go-w'} {path}, or set FLOWKIT_RUN_DIR",
        )


def _check_owner(path: Path, found: os.stat_result, *, or_root: bool = False) -> None:
    if found.st_uid != os.geteuid() and not (or_root and found.st_uid == 0):
        raise RunDirectoryError(
            f"the directory {path} belongs to user {found.st_uid}, not to user {os.geteuid()}",
            hint="set FLOWKIT_RUN_DIR to a directory of yours",
        )


def _unusable(path: Path, error: OSError) -> RunDirectoryError:
    return RunDirectoryError(
        f"the directory {path} cannot be used: {error.strerror or error}",
        hint="set FLOWKIT_RUN_DIR to a directory that you can write to",
    )


def _digest(topology_path: str | os.PathLike[str]) -> str:
    """Eight hex digits of the real path, so that a link to the file means the same run."""
    return hashlib.sha256(os.fsencode(os.path.realpath(topology_path))).hexdigest()[:8]


def _run_root(environ: Mapping[str, str]) -> Path:
    if root := environ.get("FLOWKIT_RUN_DIR"):
        return Path(os.path.abspath(root))
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    # The specification says to ignore a relative path; a stale one is left by sudo and su.
    if os.path.isabs(runtime) and os.path.isdir(runtime) and os.access(runtime, os.W_OK):
        return Path(runtime) / "flowkit"
    return Path(f"/tmp/flowkit-{os.geteuid()}")


def _state_root(environ: Mapping[str, str]) -> Path:
    if root := environ.get("FLOWKIT_STATE_DIR"):
        return Path(os.path.abspath(root))
    home = environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(home):
        return Path(home) / "flowkit"
    return Path(os.path.expanduser("~")) / ".local" / "state" / "flowkit"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def _read_pid(fd: int) -> int:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else 0


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.EPERM
    return True
