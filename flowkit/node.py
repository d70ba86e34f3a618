"""Nodes: the classes a user writes. Declarations and hooks; nothing here knows a socket.

What a class declares is checked when the class is created and kept in its `__flowkit__`, a
`NodeInfo`, which the topology check and the runtime read.
"""

from __future__ import annotations

import difflib
import inspect
import re
import types
import typing
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from flowkit.calls import Call, Serve
from flowkit.channels import In, Out
from flowkit.errors import DeclarationError
from flowkit.message import Meta
from flowkit.units import duration

F = TypeVar("F", bound=Callable[..., Any])

HOOKS = ("setup", "run", "finish", "teardown")
_RESERVED = {*HOOKS, "drain", "read", "commit", "length", "node", "replica", "replicas", "stateful"}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


def every(interval: float | str) -> Callable[[F], F]:
    """Call the decorated method, plain or coroutine, every `interval` (seconds or ``"5s"``).

    A call that would begin while the one before still runs, or while an output is full, is skipped.
    It may come between two messages of a batch that takes long, and never within a plain handler.
    What it sends comes from the node's memory and is not replayed when the node dies, so a node
    with inputs that sends from a timer declares ``stateful = True``.
    """
    if callable(interval):
        raise DeclarationError("@every without an interval", hint='write @every("5s")')
    try:
        seconds = duration(interval)
    except ValueError as error:
        raise DeclarationError(f"every({interval!r}): {error}") from None
    if seconds <= 0:
        raise DeclarationError(f"every({interval!r}): an interval is longer than nothing")

    def mark(function: F) -> F:
        function.__flowkit_every__ = seconds  # type: ignore[attr-defined]
        return function

    return mark


@dataclass(frozen=True, slots=True)
class Handler:
    """How the handler of one input is called."""

    method: str
    coroutine: bool
    wants_meta: bool


@dataclass(frozen=True, slots=True)
class Setting:
    """One argument of a node's constructor. `default` is `inspect.Parameter.empty` if required."""

    name: str
    type: Any
    default: Any

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """Everything a node class declares.

    `tasks`: some of its handlers, timers or its `finish` are coroutines, so that several may be
    running at once. `timers` maps a method's name to seconds.
    """

    cls: type[Node]
    inputs: dict[str, In[Any]] = field(default_factory=dict)
    outputs: dict[str, Out[Any]] = field(default_factory=dict)
    handlers: dict[str, Handler] = field(default_factory=dict)
    timers: dict[str, float] = field(default_factory=dict)
    tasks: bool = False
    calls: dict[str, Call[Any, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.cls.__module__}:{self.cls.__qualname__}"

    @property
    def doc(self) -> str:
        """The first line of the class's own docstring."""
        text = self.cls.__dict__.get("__doc__") or ""
        return inspect.cleandoc(text).partition("\n")[0]

    @property
    def stateful(self) -> bool:
        return self.cls.stateful

    @property
    def source(self) -> bool:
        """Whether its stream begins here: it has no inputs."""
        return not self.inputs

    @property
    def positions(self) -> bool:
        """Whether it reads from positions, so that a later incarnation goes on where it was."""
        return issubclass(self.cls, Source)

    @property
    def silent(self) -> bool:
        """Whether nothing of it sends by itself: an application does, with `OutPort.deliver`."""
        begins = self.timers or self.positions or hasattr(self.cls, "run")
        return bool(self.outputs or self.calls) and not self.inputs and not begins

    @property
    def abstract(self) -> bool:
        """Whether it cannot be run as it is: no channels, or methods still to be written."""
        return inspect.isabstract(self.cls) or not (self.inputs or self.outputs or self.calls)

    def settings(self) -> list[Setting]:
        """The constructor's arguments, annotations resolved where that is possible."""
        parameters = list(inspect.signature(self.cls.__init__).parameters.values())[1:]
        if self.cls.__init__ is object.__init__:
            return []
        try:
            hints = typing.get_type_hints(self.cls.__init__)
        except Exception:  # an annotation that does not resolve is the author's own affair
            hints = {}
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return [
            Setting(parameter.name, hints.get(parameter.name, Any), parameter.default)
            for parameter in parameters
            if parameter.kind in named
        ]

    @property
    def open_settings(self) -> bool:
        """Whether the constructor takes ``**settings``, so that any name is accepted."""
        parameters = inspect.signature(self.cls.__init__).parameters.values()
        return self.cls.__init__ is not object.__init__ and any(
            parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters
        )


class Node:
    """A processing node: declares channels and handles what comes in.

    The handler of input ``x`` is ``on_x(self, message)`` or ``on_x(self, message, meta)``, a plain
    function or a coroutine. A handler is a transaction: what it sends takes effect when it returns,
    and if it raises, it has sent nothing.

    Set ``stateful = True`` when a replica holds something in memory that is lost if it dies; the
    run report then says so. A node with inputs that sends from `finish` or from a timer must.
    """

    stateful: ClassVar[bool] = False
    __flowkit__: ClassVar[NodeInfo]

    node: str = ""
    """The node's name in the topology; empty while nobody runs it."""
    replica: int = 0
    """This replica's number, from 0."""
    replicas: int = 1
    """How many replicas the node has."""

    _ask_drain: Callable[[], None] | None = None

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if cls.__module__ != __name__:  # `Source` and `Sink` declare nothing
            cls.__flowkit__ = _collect(cls)

    def drain(self) -> None:
        """Ask that the project end in order, as Ctrl-C does: sources stop, what is in flight is
        done, every node finishes. May be called anywhere on the loop; nothing happens while nobody
        runs the node."""
        if self._ask_drain is not None:
            self._ask_drain()

    def setup(self) -> Any:
        """Called before the first message; may be a coroutine. If it raises, the replica fails."""

    def finish(self) -> Any:
        """Called once when every input has ended; may be a coroutine, and may still send."""

    def teardown(self) -> Any:
        """Called last, always, also after an error; may be a coroutine. May not send."""


class Source(Node):
    """A node that reads from outside, with positions, so that it can go on where it was.

    `read` yields ``message, position`` pairs (or ``Many(messages), position``) and is an async or a
    plain generator. The position is the one *after* the message: anything msgpack can hold.
    A source has exactly one `Out`.
    """

    def read(self, position: Any) -> AsyncIterator[Any] | Iterator[Any]:
        """Yield messages from `position` on; None means from the beginning."""
        raise NotImplementedError  # pragma: no cover - a concrete source overrides it

    def length(self) -> int | None:
        """How many messages `read` will yield from the beginning, if that is known: for progress.

        Called once, before `read`.
        """
        return None

    async def commit(self, position: Any) -> None:
        """Called with the position below which everything is done downstream; it only grows.

        flowkit keeps positions by itself. Override this when the system that is read keeps them
        (Kafka, JetStream). It may be called again with a position it has seen.
        """


class Sink(Node):
    """A node whose input is acknowledged only when its effect is durable.

    `commit` is called after the handlers of one or more batches have returned and before those
    batches are acknowledged. If it raises, the replica dies and they are delivered again. Of a
    batch that takes long some messages may have been handled when it is called; they are
    acknowledged, or come again, with the rest.
    """

    def commit(self) -> Any:
        """Make durable what the handlers did; may be a coroutine."""


def describe(cls: type) -> NodeInfo:
    """What `cls` declares. Raises `DeclarationError` if it is no node class."""
    if not (isinstance(cls, type) and issubclass(cls, Node)) or cls in (Node, Source, Sink):
        name = getattr(cls, "__qualname__", repr(cls))
        raise DeclarationError(f"{name} is not a node class", hint="subclass flowkit.Node")
    return cls.__flowkit__


def _collect(cls: type[Node]) -> NodeInfo:
    """Read and check the declarations of `cls`, those of its bases included."""
    attributes: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base not in (object, Node, Source, Sink):
            attributes.update(base.__dict__)
    inputs = {name: value for name, value in attributes.items() if isinstance(value, In)}
    outputs = {name: value for name, value in attributes.items() if isinstance(value, Out)}
    calls = {name: value for name, value in attributes.items() if isinstance(value, Call)}
    for name in (*inputs, *outputs, *calls):
        if name in _RESERVED or name.startswith("_") or not _NAME.fullmatch(name):
            raise DeclarationError(
                f"{cls.__qualname__}.{name}: not a name for a channel",
                hint="use letters, digits and _, and none of flowkit's own names",
            )
    handlers = {name: _handler(cls, name, channel, attributes) for name, channel in inputs.items()}
    for name in attributes:
        if name.startswith("on_") and name[3:] not in inputs and callable(attributes[name]):
            close = difflib.get_close_matches(name[3:], inputs, n=1, cutoff=0.5)
            hint = (
                f"did you mean 'on_{close[0]}'?"
                if close
                else f"declare the input: {name[3:]} = In(...)"
            )
            raise DeclarationError(f"{cls.__qualname__}.{name} handles no input", hint=hint)
    timers = {
        name: value.__flowkit_every__
        for name, value in attributes.items()
        if hasattr(value, "__flowkit_every__")
    }
    _check_shape(cls, attributes, inputs, outputs)
    tasks = any(handler.coroutine for handler in handlers.values()) or any(
        inspect.iscoroutinefunction(attributes.get(name)) for name in (*timers, "finish")
    )
    return NodeInfo(cls, inputs, outputs, handlers, timers, tasks, calls)


def _handler(cls: type[Node], name: str, channel: In[Any], attributes: dict[str, Any]) -> Handler:
    method = f"on_{name}"
    where = f"{cls.__qualname__}.{method}"
    function = attributes.get(method)
    if function is None:
        near = [key for key in attributes if key.startswith("on") and callable(attributes[key])]
        close = difflib.get_close_matches(method, near, n=1, cutoff=0.5)
        hint = (
            f"did you mean '{method}' by '{close[0]}'?" if close else f"write {method}(self, ...)"
        )
        raise DeclarationError(f"{cls.__qualname__}.{name} has no handler '{method}'", hint=hint)
    if not inspect.isfunction(function):
        raise DeclarationError(f"{where} is not a method", hint=f"write def {method}(self, ...)")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise DeclarationError(
            f"{where} is a generator", hint="a handler sends with self.<output>.send(...)"
        )
    coroutine = inspect.iscoroutinefunction(function)
    if channel.concurrency > 1 and not coroutine:
        raise DeclarationError(
            f"{where} is a plain function, but In(concurrency={channel.concurrency})",
            hint="only coroutine handlers can run at the same time: write 'async def'",
        )
    parameters = list(inspect.signature(function).parameters.values())
    positional = [
        parameter
        for parameter in parameters
        if parameter.kind
        in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    ]
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = sum(
        parameter.default is inspect.Parameter.empty and parameter.kind not in variable
        for parameter in parameters
    )
    if not 2 <= len(positional) <= 3 or needed > len(positional):
        raise DeclarationError(
            f"{where} takes {len(parameters) - 1} arguments",
            hint="it is called with the message, or with the message and its meta",
        )
    _check_annotations(where, channel, function, [one.name for one in positional[1:]])
    if isinstance(channel, Serve):
        _check_answer(where, channel, function)
    return Handler(method, coroutine, wants_meta=len(positional) == 3)


def _check_annotations(
    where: str, channel: In[Any], function: Any, parameters: Sequence[str]
) -> None:
    """Refuse annotations of a handler that surely contradict what it is called with: what the
    channel carries, then meta. Says nothing when unsure.

    A type checker cannot see that the two belong together; this is its part of the work.
    """
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # names that only a type checker can resolve
        return
    given: list[Any] = [channel.type, Meta]
    if channel.batch is not None:
        given = [list[channel.type], list[Meta]]  # type: ignore[name-defined]
    facts = (
        ("its channel carries", "make the annotation and the channel agree"),
        ("its meta is", "a handler gets the message first, then what is known about it"),
    )
    for parameter, expected, (fact, hint) in zip(parameters, given, facts, strict=False):
        annotated = hints.get(parameter, Any)
        if _contradicts(annotated, expected):
            raise DeclarationError(
                f"{where} takes {_type_name(annotated)}, {fact} {_type_name(expected)}", hint
            )


def _check_answer(where: str, channel: Serve[Any, Any], function: Any) -> None:
    """Refuse a serving handler that surely returns something else than its channel's answers."""
    try:
        returned = typing.get_type_hints(function).get("return", Any)
    except Exception:  # names that only a type checker can resolve
        return
    if _contradicts(channel.answer, returned):
        raise DeclarationError(
            f"{where} returns {_type_name(returned)}, its channel answers with "
            f"{_type_name(channel.answer)}",
            hint="make the annotation and the channel agree",
        )


def _contradicts(annotated: Any, expected: Any) -> bool:
    """Whether a value of type `expected` is surely no `annotated`."""
    if Any in (annotated, expected):
        return False
    taken = typing.get_origin(annotated) or annotated
    given = typing.get_origin(expected) or expected
    if taken in (types.UnionType, typing.Union):
        return all(_contradicts(one, expected) for one in typing.get_args(annotated))
    if given in (types.UnionType, typing.Union):
        return False
    if not (isinstance(taken, type) and isinstance(given, type)):
        return False
    if (given, taken) in ((int, float), (int, complex), (float, complex)):
        return False  # PEP 484 lets these pass
    try:
        if not issubclass(given, taken):
            return True
    except TypeError:  # protocols and TypedDict cannot tell
        return False
    takes, gives = typing.get_args(annotated), typing.get_args(expected)
    if len(takes) != len(gives) or not (taken is given or given.__module__ == "builtins"):
        return False  # of other classes nobody knows which argument is which
    return any(_contradicts(one, other) for one, other in zip(takes, gives, strict=True))


def _type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not typing.get_origin(kind) else str(kind)


def _check_shape(
    cls: type[Node],
    attributes: dict[str, Any],
    inputs: dict[str, In[Any]],
    outputs: dict[str, Out[Any]],
) -> None:
    name = cls.__qualname__
    hooks = list(HOOKS)
    if issubclass(cls, Sink):
        hooks.append("commit")
    hooks += [key for key, value in attributes.items() if hasattr(value, "__flowkit_every__")]
    for hook in hooks:
        if hook in attributes:
            _check_hook(f"{name}.{hook}", attributes[hook])
    if inputs and "run" in attributes:
        raise DeclarationError(
            f"{name} has inputs and run()",
            hint="run() is for nodes whose stream begins there; use @every for a timer",
        )
    if not issubclass(cls, Source):
        return
    if inputs:
        raise DeclarationError(f"{name} is a Source and has inputs", hint="make it a Node")
    if not outputs:
        return  # a base class for sources
    if len(outputs) > 1:
        raise DeclarationError(
            f"{name} is a Source with {len(outputs)} outputs", hint="a Source has exactly one Out"
        )
    if "run" in attributes:
        raise DeclarationError(
            f"{name} is a Source with run()", hint="write read(self, position), or make it a Node"
        )
    read = attributes.get("read")
    if read is None:
        raise DeclarationError(f"{name} has no read()", hint="write read(self, position)")
    if not (inspect.isasyncgenfunction(read) or inspect.isgeneratorfunction(read)):
        raise DeclarationError(
            f"{name}.read is no generator", hint="it yields (message, position) pairs"
        )
    if len(inspect.signature(read).parameters) != 2:
        raise DeclarationError(f"{name}.read takes one argument", hint="read(self, position)")
    commit = attributes.get("commit")
    if commit is not None and len(inspect.signature(commit).parameters) != 2:
        raise DeclarationError(f"{name}.commit takes one argument", hint="commit(self, position)")


def _check_hook(where: str, function: Any) -> None:
    """A hook or timer is a method that is called without arguments, and no generator."""
    if not inspect.isfunction(function):
        raise DeclarationError(f"{where} is not a method", hint="write it as def, with self")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise DeclarationError(
            f"{where} is a generator", hint="it sends with self.<output>.send(...)"
        )
    needed = [
        parameter.name
        for parameter in list(inspect.signature(function).parameters.values())[1:]
        if parameter.default is inspect.Parameter.empty
        and parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    ]
    if needed:
        raise DeclarationError(
            f"{where} needs {', '.join(needed)}", hint="it is called without arguments"
        )
