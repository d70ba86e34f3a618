"""`flowkit top`: the live screen of a running project."""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TextIO

import click

from flowkit.cli import terminal, view
from flowkit.cli.live import Action, Look, Quit, Restart, Scale, Screen, keys_of
from flowkit.cli.projects import (
    Duration,
    connect,
    format_option,
    one_project,
    with_project,
)
from flowkit.clock import monotonic
from flowkit.control.client import Client
from flowkit.control.places import Place
from flowkit.errors import FlowkitError, OperatorError
from flowkit.status import Status

EVERY = 1.0
"""Seconds between looks at the project."""

SHORTEST = 0.1
"""The same, at least."""

LAST = 2.0
"""Seconds that an action which is under way gets to be confirmed when the screen is left."""

ENTER = "\x1b[?1049h\x1b[?25l"
LEAVE = "\x1b[?25h\x1b[?1049l"
HOME, TO_LINE_END, BELOW = "\x1b[H", "\x1b[K", "\x1b[J"


@click.command("top", short_help="Watch a running project live, and change it.")
@with_project
@click.option("--once", is_flag=True, help="Print it once, and leave.")
@click.option("--every", type=Duration(), default=EVERY, help="How long between two looks (1s).")
@format_option
def command(named: str | None, project: str | None, once: bool, every: float, format_: str) -> None:
    """Watch a running project: every replica and every link, and what limits the flow. Rates,
    shares and percentiles are of the last five seconds.

    Keys: q leaves, up and down select a replica, s sorts, + and - scale its node, r restarts it,
    l shows the links or not, ? explains. Exits with 6 if the project does not run.
    """
    with connect(one_project(named, project)) as client:
        if once or format_ == "json":
            _print(client.status(), format_ == "json")
            return
        if not can_be_live():
            raise OperatorError(
                "top needs a terminal", hint="flowkit top --once prints it once; so does flowkit ps"
            )
        live = Live(_hands(client), sys.stdout, sys.stdin.fileno(), max(every, SHORTEST))
        try:
            live.run()
        except KeyboardInterrupt:
            pass  # as good as q
        if said := live.finish():
            click.echo(said)


def _print(status: Status, as_json: bool) -> None:
    colour = terminal.use_colour(sys.stdout)
    if as_json:
        lines = list(view.json_lines(status))
    else:
        lines = once_lines(status, terminal.width_of(sys.stdout), colour)
    for line in lines:
        print(line)


def _hands(client: Client) -> Hands:
    place: Place = client.place

    # A client each, since a client is one thread's.
    def scale(node: str, replicas: int) -> str:
        with Client(place) as mine:
            return mine.scale({node: replicas}).text

    def restart(node: str, replica: int) -> str:
        with Client(place) as mine:
            return mine.restart(node, replica).text

    return Hands(client.status, scale, restart)


class Hands(NamedTuple):
    """What the screen does with a project: look at it, and change it. The last two return what
    they have done, for people; they are called in a thread of their own, and may take long."""

    fetch: Callable[[], Status]
    scale: Callable[[str, int], str]
    restart: Callable[[str, int], str]


def once_lines(status: Status, width: int | None, colour: bool) -> list[str]:
    """What `top --once` prints."""
    return [
        view.title_line(status, colour),
        view.verdict_line(status.verdict, colour),
        "",
        *view.replica_lines(status.replicas, view.TOP, status.verdict, width, colour),
        "",
        *view.link_lines(status.links, width, colour),
    ]


class Live:
    """Shows a project on a terminal until `q` is pressed; raises what `fetch` raises."""

    def __init__(self, hands: Hands, output: TextIO, keyboard: int, every: float = EVERY) -> None:
        self._hands = hands
        self._output = output
        self._keyboard = keyboard
        self._every = every
        self._screen = Screen()
        self._colour = terminal.use_colour(output)
        self._doing: threading.Thread | None = None

    def run(self) -> None:
        """Return when it is left."""
        with _keys_as_they_come(self._keyboard), self._alternate_screen():
            due = 0.0
            while True:
                now = monotonic()
                if now >= due:
                    self._screen.show(self._hands.fetch())
                    due = now + self._every
                self._draw()
                for key in self._read(max(0.0, due - monotonic())):
                    action = self._screen.press(key)
                    if isinstance(action, Quit):
                        return
                    if isinstance(action, Look):
                        due = 0.0
                    elif action is not None:
                        self._do(action)

    def finish(self) -> str:
        """Wait a little for an action that is under way; what is to be said of it."""
        if self._doing is None:
            return ""
        self._doing.join(LAST)
        if self._doing.is_alive():
            return f"{self._screen.note}: still under way, and goes on"
        return self._screen.note

    # -- inside --------------------------------------------------------------------------------

    def _draw(self) -> None:
        # Asked for each time: the window may have another size by now.
        width, height = os.get_terminal_size(self._output.fileno())
        lines = self._screen.lines(width, height, self._colour)
        text = "\n".join(f"{line}{TO_LINE_END}" for line in lines)
        self._output.write(f"{HOME}{text}{BELOW}")
        self._output.flush()

    def _read(self, seconds: float) -> list[str]:
        """The keys pressed within that time; earlier if there are some, or something is done."""
        ready, _, _ = select.select([self._keyboard], [], [], min(seconds, 0.25))
        if not ready:
            return []
        data = os.read(self._keyboard, 1024)
        return keys_of(data.decode("utf-8", "replace")) if data else ["q"]

    def _do(self, action: Action) -> None:
        if self._doing is not None and self._doing.is_alive():
            self._screen.note = "one thing at a time: the last one is not done yet"
            return
        if isinstance(action, Scale):
            self._screen.note = f"scaling {action.node} to {action.replicas} ..."
            work = (self._hands.scale, action.node, action.replicas)
        else:
            assert isinstance(action, Restart)
            self._screen.note = f"restarting {action.node}.{action.replica} ..."
            work = (self._hands.restart, action.node, action.replica)
        # A daemon: what has begun goes on in the supervisor, whoever waits for it.
        self._doing = threading.Thread(target=self._carry_out, args=work, daemon=True)
        self._doing.start()

    def _carry_out(self, change: Callable[[str, int], str], node: str, number: int) -> None:
        try:
            self._screen.note = change(node, number)
        except FlowkitError as error:
            self._screen.note = f"{error}"

    @contextmanager
    def _alternate_screen(self) -> Iterator[None]:
        self._output.write(ENTER)
        try:
            yield
        finally:
            self._output.write(LEAVE)
            self._output.flush()


@contextmanager
def _keys_as_they_come(descriptor: int) -> Iterator[None]:
    """Let the terminal hand over each key at once, and show none. Ctrl-C still interrupts; Ctrl-Z
    does nothing, since it would leave the shell on this screen."""
    import termios
    import tty

    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor, termios.TCSADRAIN)
    now = termios.tcgetattr(descriptor)
    now[6][termios.VSUSP] = b"\x00"
    termios.tcsetattr(descriptor, termios.TCSADRAIN, now)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def can_be_live() -> bool:
    """Whether there is a terminal to show it on, and one to press keys on."""
    streams = (sys.stdin, sys.stdout)
    return all(one is not None and one.isatty() for one in streams) and (
        os.environ.get("TERM") != "dumb"
    )
