"""What the terminal can show, and what happens when nobody looks.

Colours only on a terminal, unless `FORCE_COLOR` says otherwise; `NO_COLOR` stands above both.
Where the locale is not UTF-8, the ornaments that flowkit prints (bars, dots, boxes) become ASCII;
the user's own text is left as Python would write it.
"""

from __future__ import annotations

import codecs
import os
import select
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

ORNAMENTS = {
    "·": "-",
    "•": "*",
    "…": "...",
    "–": "-",
    "—": "-",
    "→": "->",
    "←": "<-",
    "×": "x",
    "µ": "u",
    "✓": "+",
    "✗": "x",
    "█": "#",
    "▏": "|",
    "▎": "|",
    "▍": "|",
    "▌": "|",
    "▋": "#",
    "▊": "#",
    "▉": "#",
    "░": ".",
    "━": "=",
    "╸": "-",
    "╺": "-",
    "─": "-",
    "│": "|",
    "┌": "+",
    "┐": "+",
    "└": "+",
    "┘": "+",
    "├": "+",
    "┤": "+",
    "┬": "+",
    "┴": "+",
    "┼": "+",
}
"""Characters that flowkit and rich print as decoration, and what stands for them in ASCII."""

_ASCII = "flowkit.ascii"
_ESCAPE = "flowkit.escape"


def use_colour(stream: TextIO | None) -> bool:
    """Whether to write ANSI colours to `stream`."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"


def use_unicode(stream: TextIO | None) -> bool:
    """Whether `stream` can show more than ASCII.

    Python itself writes UTF-8 in the C locale (PEP 538, PEP 540), and says so by setting
    LC_CTYPE; the terminal behind it is still the one that the user described with LANG=C.
    """
    encoding = (getattr(stream, "encoding", None) or "ascii").lower().replace("-", "")
    if not encoding.startswith("utf"):
        return False
    if os.name == "nt" or os.environ.get("PYTHONIOENCODING") or os.environ.get("PYTHONUTF8"):
        return True
    names = [os.environ.get(name, "") for name in ("LC_ALL", "LC_CTYPE", "LANG")]
    if names[1] in ("C.UTF-8", "C.utf8", "UTF-8") and not names[0]:
        names[1] = ""  # what Python's coercion sets
    locale = next(filter(None, names), "C")
    return locale not in ("C", "POSIX")


def width_of(stream: TextIO | None) -> int | None:
    """How many letters a line may have; None if it is no terminal, where lines have no end."""
    if stream is None or not stream.isatty():
        return None
    return shutil.get_terminal_size().columns


def prepare(stream: TextIO | None) -> None:
    """Make sure that writing to `stream` never raises UnicodeEncodeError."""
    reconfigure = getattr(stream, "reconfigure", None)
    if stream is None or reconfigure is None:
        return
    if use_unicode(stream):
        if stream.errors == "strict":  # lone surrogates: file names that are no UTF-8
            reconfigure(errors="backslashreplace")
    elif (stream.encoding or "").lower().startswith("utf"):
        reconfigure(encoding="ascii", errors=_ASCII)
    else:
        reconfigure(errors=_ESCAPE)


def _to_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    """Ornaments become ASCII; all else is data and stays UTF-8, as it came."""
    text, end = _failed_text(error)
    plain = "".join(ORNAMENTS.get(character, character) for character in text)
    return plain.encode("utf-8", "surrogateescape"), end


def _to_escapes(error: UnicodeError) -> tuple[str | bytes, int]:
    """Ornaments become ASCII; what the encoding has no letter for is shown as an escape."""
    text, end = _failed_text(error)
    plain = "".join(ORNAMENTS.get(character, character) for character in text)
    return plain.encode("ascii", "backslashreplace"), end


def _failed_text(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return error.object[error.start : error.end], error.end


codecs.register_error(_ASCII, _to_ascii)
codecs.register_error(_ESCAPE, _to_escapes)


def open_standard_streams() -> None:
    """Give closed standard streams (`>&-`) something harmless behind them.

    Without it, the next file to be opened would get their number and receive what is printed.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number is this one: those below have just been seen to be open.
            # Inheritable: the children's streams begin as copies of these.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            if getattr(sys, name) is None:
                setattr(sys, name, open(descriptor, mode, closefd=False))


@contextmanager
def without_control_echo() -> Iterator[None]:
    """Keep the terminal from showing `^C`, which would end up in the middle of a progress bar."""
    try:
        import termios

        before = termios.tcgetattr(0)
    except (ImportError, OSError, termios.error):  # no terminal, or none of this kind
        yield
        return
    quiet = list(before)
    quiet[3] &= ~termios.ECHOCTL
    termios.tcsetattr(0, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSANOW, before)


def reader_has_gone() -> bool:
    """Whether nobody reads stdout or stderr any more (`flowkit ... | head`)."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        try:
            poll.register(stream.fileno(), 0)
        except (AttributeError, OSError, ValueError):  # not a file, or closed
            continue
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def discard_output() -> None:
    """Send what is still in the buffers nowhere, so that the interpreter's exit stays quiet."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (AttributeError, ValueError):  # there is none, or it is closed
                continue
            except OSError:
                os.dup2(nowhere, stream.fileno())
    finally:
        os.close(nowhere)
