"""A node in a test, alone: fed messages, asked what it has sent. No sockets and no processes.

::

    harness = NodeHarness(Split())
    assert harness.feed("lines", "to be").sent("words") == ["to", "be"]

What happens between is what happens in a running project, since it is the same code: messages are
encoded, decoded and validated as on a link, a handler that raises has sent nothing, lists are
filled, retries wait, sinks commit.

In a plain test function the harness has a loop of its own, whose time stands still until `advance`
moves it. In a coroutine it uses the loop that runs, with its real time, and what it is asked to do
is awaited: ``(await harness.feed("urls", url)).sent("pages")``.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable, Generator, Mapping
from typing import Any, Generic, Self, TypeVar, overload

from flowkit.calls import Serve
from flowkit.channels import In, Out
from flowkit.clock import FakeClock, monotonic
from flowkit.errors import HarnessError, MessageError
from flowkit.importing import did_you_mean
from flowkit.message import Key, Meta
from flowkit.node import Node, Source
from flowkit.protocol.engine import Phase
from flowkit.runtime.handling import theirs
from flowkit.store import DeadLetter
from flowkit.testing.loop import BEGINNING, PATIENCE, ManualLoop, aside
from flowkit.testing.rig import Rig
from flowkit.topology.plan import ErrorPolicy
from flowkit.units import duration

log = logging.getLogger("flowkit.testing")

T = TypeVar("T")
N = TypeVar("N", bound=Node)

PATIENT = 600.0
"""Seconds of a harness's own time that `finish` lets pass while handlers still wait."""

LOOK = 0.001
"""Seconds between two looks, on a loop that is not the harness's own."""

THEN = ("dead-letter", "drop", "stop")


# Whatever goes wrong is shown by pytest where the test has asked for it: `__tracebackhide__`.


class NodeHarness(Generic[N]):
    """Runs `node`, from its `setup` on.

    `on_error` is an error policy as in a topology file, ``{"retry": 2, "then": "dead-letter"}``:
    then failures are handled as it says, and dead letters are in `dead_letters`. Without it what a
    handler raises is raised by whoever has fed the message: `feed`, `advance`, or `await`.
    `replica` and `replicas` are what the node sees of itself. `links` says how messages come to an
    input, as in a topology file: ``{"words": {"route": "key", "by": "user"}}``. `answers` are
    functions, plain or coroutines, that answer what the node asks: ``{"users": lookup}``.

    Use it with ``with``, or `close` it, for its `teardown`; one that is dropped closes itself.
    """

    def __init__(
        self,
        node: N,
        *,
        on_error: Mapping[str, Any] | None = None,
        replica: int = 0,
        replicas: int = 1,
        links: Mapping[str, Mapping[str, Any]] | None = None,
        answers: Mapping[str, Callable[[Any], Any]] | None = None,
    ) -> None:
        if not isinstance(node, Node):
            what = f"{node.__name__}(...)" if isinstance(node, type) else "a node"
            raise HarnessError(f"a harness takes an object: NodeHarness({what})")
        self._info = type(node).__flowkit__
        for name in links or {}:
            self._channel("input", name)
        for name in answers or {}:
            self._channel("call", name)
        how = (_policy(on_error), (replica, replicas), links or {}, answers or {})
        self._loop: ManualLoop | None = None
        try:
            self._rig = Rig(node, asyncio.get_running_loop().time, *how)
        except RuntimeError:
            clock = FakeClock(BEGINNING)
            self._rig = Rig(node, clock, *how)
            self._loop = ManualLoop(clock)
        self._started = self._fed_end = False
        self._closing = weakref.finalize(self, _drop, self._rig, self._loop)

    @property
    def node(self) -> N:
        """The node itself, to look at what it remembers. After `crash` it is the successor."""
        node: Any = self._rig.node
        return node  # type: ignore[no-any-return]

    # -- what goes in --------------------------------------------------------------------------

    @overload
    def feed(
        self,
        channel: In[T],
        *messages: T,
        key: Key = ...,
        headers: Mapping[str, str] | None = ...,
    ) -> Self: ...
    @overload
    def feed(
        self,
        channel: str,
        *messages: Any,
        key: Key = ...,
        headers: Mapping[str, str] | None = ...,
    ) -> Self: ...
    def feed(
        self,
        channel: str | In[Any],
        *messages: Any,
        key: Key = None,
        headers: Mapping[str, str] | None = None,
    ) -> Self:
        """Send messages to an input, named (``"lines"``) or itself (``Split.lines``).

        On the harness's own loop everything that can be done at this moment is done when it
        returns; handlers that wait, and lists that fill, wait for `advance`. On another loop
        `await` what it returns; that is done when all that was fed is done.
        """
        __tracebackhide__ = True
        name = self._channel("input", channel)
        if isinstance(self._info.inputs[name], Serve):
            raise HarnessError(f"'{name}' of {self._name} serves; ask('{name}', question)")
        self._check_open()
        self._rig.feed(name, messages, key, headers)
        self._settle()
        return self

    def ask(
        self,
        channel: str | Serve[Any, Any],
        question: Any,
        *,
        key: Key = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """The answer of a node that serves. On the harness's own loop time passes until there is
        one; on another loop `await` what this returns.

        Raises `HandlerFailed`, `RequestTimeout` and whatever else `ask` of a channel may raise.
        """
        __tracebackhide__ = True
        name = self._channel("input", channel)
        if not isinstance(self._info.inputs[name], Serve):
            raise HarnessError(f"'{name}' of {self._name} does not serve; feed('{name}', message)")
        self._check_open()
        answer = self._rig.ask(name, question, key, headers)
        if self._loop is None:
            return answer
        self._loop.advance(PATIENT, answer.done)
        return answer.result()

    def read(self, position: Any = None, *, until: int | None = None) -> Self:
        """Let a `Source` read from `position` on, or a node with `run()` run, to its end.

        `until`: end it when it has sent at least so many messages; for one that has no end.
        """
        __tracebackhide__ = True
        if self._info.inputs:
            raise HarnessError(f"{self._name} has inputs; feed() it")
        if self._started:
            raise HarnessError(f"{self._name} has begun to read already; build another harness")
        if position is not None and not isinstance(self.node, Source):
            raise HarnessError(f"{self._name} is no Source and reads from no position")
        self._rig.position = position
        self._begin()
        if until is None:
            self._settle()
            if self._loop is not None and self._rig.engine.phase is not Phase.OPEN:
                self._end(None)  # its stream has ended; its last position has yet to be committed
        else:
            self._settle(lambda: sum(map(len, self._rig.taken.values())) >= until)
            self._end(until)
        return self

    def advance(self, time: float | str) -> Self:
        """Let time pass (seconds, or ``"5s"``): timers tick, lists are handed over, retries and
        coroutines go on, each at its moment. Only on the harness's own loop."""
        __tracebackhide__ = True
        if self._loop is None:
            raise HarnessError("time is not the test's on a loop that runs already; wait for it")
        self._begin()
        self._loop.advance(duration(time))
        self._check()
        return self

    def finish(self) -> Self:
        """End the input, or a source: what is left is handled, `finish` and `teardown` run.

        Handlers that still wait get up to ten minutes of the harness's own time for it.
        """
        __tracebackhide__ = True
        self._begin()
        self._end(None)
        return self

    def crash(self, successor: N) -> Self:
        """Kill the node in whatever it does, as `kill -9` would; `successor` takes its place.

        It gets what was not done, again, under the same ids and with ``meta.attempts`` counted.
        (`teardown` of the dead one does run, since it shares the process with the test.)
        """
        __tracebackhide__ = True
        self._begin()
        if self._rig.over:
            raise HarnessError(f"{self._name} has ended and cannot crash any more")
        self._rig.crash(successor)
        self._settle()
        return self

    # -- what comes out ------------------------------------------------------------------------

    @overload
    def sent(self, channel: Out[T]) -> list[T]: ...
    @overload
    def sent(self, channel: str) -> list[Any]: ...
    def sent(self, channel: str | Out[Any]) -> list[Any]:
        """All that has left an output so far, in order, as its consumer would get it."""
        __tracebackhide__ = True
        return [message for message, _ in self._seen(channel)]

    def metas(self, channel: str | Out[Any]) -> list[Meta]:
        """Id, key and headers of each message of `sent`."""
        __tracebackhide__ = True
        return [meta for _, meta in self._seen(channel)]

    @overload
    def take(self, channel: Out[T]) -> list[T]: ...
    @overload
    def take(self, channel: str) -> list[Any]: ...
    def take(self, channel: str | Out[Any]) -> list[Any]:
        """As `sent`, and forget it: the next `sent` or `take` begins after it."""
        __tracebackhide__ = True
        taken = self.sent(channel)
        self._seen(channel).clear()
        return taken

    @property
    def dead_letters(self) -> list[DeadLetter]:
        """The messages that the error policy has given up."""
        self._begin()
        return list(self._rig.letters)

    @property
    def position(self) -> Any:
        """The position below which everything that a source has read is done; None: none yet."""
        return self._rig.engine.roots.committed if self._started else None

    @property
    def idle(self) -> bool:
        """Whether all that was fed is done: no handler waits, no list is being filled."""
        self._begin()
        return self._rig.settled

    @property
    def ended(self) -> bool:
        """Whether the node has left: after `finish`, at the end of a source, or after a failure."""
        return self._rig.over

    @property
    def has_own_loop(self) -> bool:
        """Whether its time is the test's: it was not built where a loop runs."""
        return self._loop is not None

    # -- its life ------------------------------------------------------------------------------

    def close(self) -> None:
        """End it, whatever it does; `teardown` runs. Twice is fine. On a loop that runs already:
        `await aclose()`."""
        __tracebackhide__ = True
        if self._loop is None and self._closing.alive:
            raise HarnessError("await aclose(), on a loop that runs already")
        if self._closing.detach() is not None:
            _close(self._rig, self._loop)
        self._check()

    async def aclose(self) -> None:
        """As `close`, on a loop that runs already."""
        if self._loop is not None:
            self.close()
        elif self._closing.detach() is not None and self._started:
            await self._rig.close()
            self._check()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.close()
        except Exception:
            if kind is None:  # else what the test has raised says more
                raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __await__(self) -> Generator[Any, None, Self]:
        """Wait until all that was asked for is done; for the loop that runs already."""
        return self._wait().__await__()

    # -- inside --------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return self._info.cls.__name__

    def _check_open(self) -> None:
        __tracebackhide__ = True
        self._begin()
        if self._rig.over or self._fed_end:
            raise HarnessError(f"{self._name} has ended and takes no more; {self._why()}")

    def _channel(self, kind: str, channel: str | In[Any] | Out[Any]) -> str:
        __tracebackhide__ = True
        info = self._info
        kinds: dict[str, Mapping[str, Any]]
        kinds = {"input": info.inputs, "output": info.outputs, "call": info.calls}
        known = kinds[kind]
        name = channel if isinstance(channel, str) else channel.name
        if name not in known:
            hint = did_you_mean(name, known) or f"it has no {kind}s"
            raise HarnessError(f"{self._name} has no {kind} '{name}'; {hint}")
        return name

    def _seen(self, channel: str | Out[Any]) -> list[tuple[Any, Meta]]:
        __tracebackhide__ = True
        name = self._channel("output", channel)
        self._begin()
        if self._loop is None and not (self._rig.settled or self._rig.failures):
            raise HarnessError("it is not done: await what was fed before you look")
        self._check()
        return self._rig.taken[name]

    def _begin(self) -> None:
        __tracebackhide__ = True
        if not self._closing.alive and not self._started:
            raise HarnessError("the harness is closed")
        if self._started:
            return
        self._started = True
        if self._loop is None:
            self._rig.start()
        else:
            self._loop.call_soon(self._rig.start)
            self._settle(lambda: self._rig.project.started)

    def _settle(self, until: Callable[[], object] | None = None) -> None:
        __tracebackhide__ = True
        if self._loop is not None and self._closing.alive:
            self._loop.settle(until)
            self._check()

    def _end(self, until: int | None) -> None:
        __tracebackhide__ = True
        if self._fed_end:
            return
        self._fed_end = True
        if self._loop is None:
            self._ending = asyncio.get_running_loop().create_task(self._end_when(until))
            return
        self._rig.end()
        self._loop.advance(PATIENT, lambda: self._rig.over)
        self._check()
        if not self._rig.over:
            raise HarnessError(
                f"{self._name} has not finished in {PATIENT:g} s of its time: {self._rig.waiting()}"
            )

    async def _end_when(self, until: int | None) -> None:
        while not self._rig.project.started or (
            until is not None and sum(map(len, self._rig.taken.values())) < until
        ):
            if self._rig.over:
                return
            await asyncio.sleep(LOOK)
        self._rig.end()

    async def _wait(self) -> Self:
        __tracebackhide__ = True
        if self._loop is not None:
            raise HarnessError("it has a loop of its own: build it in the coroutine that awaits")
        self._begin()
        end = monotonic() + PATIENCE
        reads = not self._info.inputs
        while not self._rig.over and (reads or self._fed_end or not self._rig.settled):
            if self._rig.failures:
                break
            if monotonic() > end:
                raise HarnessError(
                    f"{self._name} is not done after {PATIENCE:g} s: {self._rig.waiting()}"
                )
            await asyncio.sleep(LOOK)
        self._check()
        return self

    def _check(self) -> None:
        """Raise what has gone wrong since."""
        __tracebackhide__ = True
        if not self._rig.failures:
            return
        failures = list({id(one): one for one in self._rig.failures}.values())
        self._rig.failures.clear()
        first = failures[0]
        if len(failures) > 1:
            first.add_note(f"and {len(failures) - 1} more: {failures[1]!r:.200}")
        if isinstance(first, MessageError):  # it has come through flowkit alone
            raise first.with_traceback(None) from None
        raise first.with_traceback(theirs(first))

    def _why(self) -> str:
        return self._rig.project.reason or "build another harness"


def _policy(given: Mapping[str, Any] | None) -> ErrorPolicy | None:
    if given is None:
        return None
    for name in given:
        if name not in ("retry", "then"):
            raise HarnessError(f"on_error has no '{name}'; there is 'retry' and 'then'")
    policy = ErrorPolicy(**given)
    if policy.then not in THEN:
        raise HarnessError(f"on_error: then: {policy.then!r} is none of {', '.join(THEN)}")
    return policy


def _close(rig: Rig, loop: ManualLoop | None) -> None:
    """End a harness that has a loop of its own; any other ends with the loop it is on."""
    if loop is None:
        return
    with aside():
        task = loop.create_task(rig.close())
        loop.advance(PATIENT, task.done)
        loop.close()


def _drop(rig: Rig, loop: ManualLoop | None) -> None:
    """Nobody refers to the harness any more."""
    _close(rig, loop)
    for error in rig.failures:
        log.error("after the last look at a harness: %r", error)
