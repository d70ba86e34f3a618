"""Node classes: what may be declared, and what is refused when the class is created."""

from __future__ import annotations

import collections.abc
import inspect
import re
from abc import abstractmethod
from collections.abc import Callable
from functools import partialmethod
from types import FunctionType
from typing import Any, NewType, Protocol, TypedDict

import msgspec
import pytest

from flowkit import Call, In, Many, Meta, Node, Out, Serve, Sink, Source, every
from flowkit.errors import DeclarationError, SendError
from flowkit.node import Handler, describe


class Row(msgspec.Struct):
    user: str


class Line(TypedDict):
    text: str


class Other(TypedDict):
    text: str


class Sized(Protocol):
    size: int


UserId = NewType("UserId", int)


def make(bases: tuple[type, ...], body: dict[str, Any]) -> type:
    return type(bases[0])("Wrong", bases, {"__module__": __name__, **body})


def takes(self: Any, message: Any) -> None: ...


async def waits(self: Any, message: Any) -> None: ...


def nothing(self: Any) -> None: ...


def yields(self: Any) -> Any:
    yield 1


async def yields_later(self: Any) -> Any:
    yield 1


def read(self: Any, position: Any) -> Any:
    yield 1, 1


def _timer(function: Any) -> Any:
    """A timer like `function`, which stays as it is."""
    copy = FunctionType(function.__code__, function.__globals__, function.__name__)
    return every("1s")(copy)


def _with(*bases: type, **body: Any) -> Callable[[], type]:
    return lambda: make(bases or (Node,), body)


def _annotated(kind: Any, into: In[Any]) -> Callable[[], type]:
    def on_x(self: Any, message: Any) -> None: ...

    on_x.__annotations__ = {"message": kind}
    return _with(x=into, on_x=on_x)


def _metaed(kind: Any, into: In[Any]) -> Callable[[], type]:
    def on_x(self: Any, message: Any, meta: Any) -> None: ...

    on_x.__annotations__ = {"meta": kind}
    return _with(x=into, on_x=on_x)


# What is wrong, and what the error says: the thing by name, and how to mend it.
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "no handler": (_with(x=In(int)), r"Wrong\.x has no handler 'on_x'; write on_x\(self, \.\.\.\)"),
    "misspelt handler": (
        _with(lines=In(int), on_line=takes),
        "'on_lines'.*did you mean 'on_lines' by 'on_line'",
    ),
    "handler without underscore": (
        _with(lines=In(int), onlines=takes),
        "did you mean 'on_lines' by 'onlines'",
    ),
    "no channel": (
        _with(lines=In(int), on_lines=takes, on_line=takes),
        r"on_line handles no input; did you mean 'on_lines'\?",
    ),
    "no channel at all": (
        _with(on_lines=takes),
        r"on_lines handles no input; declare the input: lines = In\(\.\.\.\)",
    ),
    "handler of an output": (
        _with(x=In(int), on_x=takes, words=Out(int), on_words=takes),
        "on_words handles no input",
    ),
    "the class In": (_with(x=In, on_x=takes), "on_x handles no input"),
    "reserved name": (_with(run=In(int), on_run=takes), r"Wrong\.run: not a name for a channel"),
    "reserved output": (_with(x=In(int), on_x=takes, replica=Out(int)), r"Wrong\.replica: not a"),
    "private name": (_with(_x=In(int), on__x=takes), r"Wrong\._x: not a name for a channel"),
    "not ascii": (_with(zähler=In(int), on_zähler=takes), "use letters, digits and _"),
    "long name": (_with(**{"x" * 65: In(int), "on_" + "x" * 65: takes}), "not a name"),
    "handler is a string": (_with(x=In(int), on_x="later"), r"on_x is not a method; write def"),
    "static handler": (_with(x=In(int), on_x=staticmethod(takes)), "on_x is not a method"),
    "class method": (_with(x=In(int), on_x=classmethod(takes)), "on_x is not a method"),
    "partial method": (_with(x=In(int), on_x=partialmethod(takes)), "on_x is not a method"),
    "generator": (_with(x=In(int), on_x=read), r"on_x is a generator; a handler sends with"),
    "async generator": (_with(x=In(int), on_x=yields_later), "on_x is a generator"),
    "no message": (_with(x=In(int), on_x=nothing), r"on_x takes 0 arguments; it is called with"),
    "too many": (
        _with(x=In(int), on_x=lambda self, message, meta, more: None),
        "on_x takes 3 arguments",
    ),
    "required keyword": (
        _with(x=In(int), on_x=lambda self, message, *, flag: None),
        "on_x takes 2 arguments",
    ),
    "concurrency of a plain handler": (
        _with(x=In(int, concurrency=9), on_x=takes),
        r"on_x is a plain function, but In\(concurrency=9\); only coroutine.*'async def'",
    ),
    "other annotation": (
        _annotated(str, In(int)),
        "on_x takes str, its channel carries int; make the annotation and the channel agree",
    ),
    "annotation of a struct": (_annotated(str, In(Row)), "on_x takes str, .* carries Row"),
    "annotation of a dict": (_annotated(str, In(Line)), "on_x takes str, .* carries Line"),
    "annotation of an alias": (_annotated(str, In(dict[str, int])), "takes str, .*carries dict"),
    "one message of a batch": (
        _annotated(Row, In(Row, batch=5)),
        r"on_x takes Row, its channel carries list\[.*Row\]",
    ),
    "values of others": (
        _annotated(dict[str, str], In(dict[str, int])),
        r"takes dict\[str, str\], its channel carries dict\[str, int\]",
    ),
    "a list of lists of others": (_annotated(list[list[str]], In(list[int], batch=5)), "takes "),
    "a sequence of others": (
        _annotated(collections.abc.Sequence[str], In(int, batch=5)),
        r"takes collections.abc.Sequence\[str\]",
    ),
    "text for meta": (
        _metaed(str, In(int)),
        "on_x takes str, its meta is Meta; a handler gets the message first",
    ),
    "one meta of a batch": (
        _metaed(Meta, In(int, batch=5)),
        r"on_x takes Meta, its meta is list\[flowkit.message.Meta\]",
    ),
    "a batch of others": (_annotated(list[str], In(int, batch=5)), r"takes list\[str\]"),
    "batch of nothing": (lambda: In(int, batch=0), r"In\(batch=0\): .* at least one message"),
    "batch is a flag": (lambda: In(int, batch=True), r"In\(batch=True\)"),
    "within without batch": (lambda: In(int, within=1.0), "without batch=.* how many messages"),
    "within no time": (lambda: In(int, batch=5, within="soon"), r"In\(within=\.\.\.\): .*soon"),
    "no concurrency": (lambda: In(int, concurrency=0), r"In\(concurrency=0\): at least one"),
    "hook is a value": (
        _with(x=In(int), on_x=takes, setup=5),
        "setup is not a method; write it as def",
    ),
    "setup takes something": (
        _with(x=In(int), on_x=takes, setup=takes),
        "setup needs message; it is called without arguments",
    ),
    "finish takes something": (_with(x=In(int), on_x=takes, finish=takes), "finish needs message"),
    "finish yields": (_with(x=In(int), on_x=takes, finish=yields), "finish is a generator; .*send"),
    "setup yields": (_with(x=In(int), on_x=takes, setup=yields), "setup is a generator"),
    "teardown yields": (
        _with(x=In(int), on_x=takes, teardown=yields_later),
        "teardown is a generator",
    ),
    "run yields": (_with(x=Out(int), run=yields_later), "run is a generator"),
    "run takes something": (_with(x=Out(int), run=takes), "run needs message"),
    "run and inputs": (
        _with(x=In(int), on_x=takes, run=nothing),
        "has inputs and run.*; .*use @every for a timer",
    ),
    "timer of nothing": (lambda: every(0), "every.0.: an interval is longer than nothing"),
    "timer that goes back": (lambda: every(-1), r"every\(-1\)"),
    "timer of no time": (lambda: every("often"), r"every\('often'\): .*often"),
    "timer without interval": (lambda: every(nothing), 'write @every\\("5s"\\)'),  # type: ignore
    "timer that yields": (
        lambda: make((Node,), {"x": In(int), "on_x": takes, "t": _timer(yields)}),
        "t is a generator",
    ),
    "timer takes something": (
        lambda: make((Node,), {"x": In(int), "on_x": takes, "t": _timer(takes)}),
        "t needs message",
    ),
    "source with inputs": (
        _with(Source, x=In(int), on_x=takes, out=Out(int), read=read),
        "is a Source and has inputs; make it a Node",
    ),
    "source with two outputs": (
        _with(Source, a=Out(int), b=Out(int), read=read),
        "is a Source with 2 outputs; a Source has exactly one Out",
    ),
    "source with run": (
        _with(Source, out=Out(int), run=nothing),
        r"is a Source with run\(\); write read\(self, position\)",
    ),
    "source without read": (_with(Source, out=Out(int)), r"has no read\(\); write read\(self, pos"),
    "read that returns": (_with(Source, out=Out(int), read=takes), "read is no generator"),
    "read without position": (_with(Source, out=Out(int), read=yields), "read takes one argument"),
    "commit without position": (
        _with(Source, out=Out(int), read=read, commit=nothing),
        "commit takes one argument",
    ),
    "commit of a sink with position": (
        _with(Sink, x=In(int), on_x=takes, commit=takes),
        "commit needs message",
    ),
    "commit of a sink that yields": (
        _with(Sink, x=In(int), on_x=takes, commit=yields),
        "commit is a generator",
    ),
    "commit is a value": (_with(Sink, x=In(int), on_x=takes, commit=1), "commit is not a method"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_declaration_fails_at_once_and_says_what_to_do(name: str) -> None:
    build, text = WRONG[name]
    with pytest.raises(DeclarationError) as caught:
        build()
    assert re.search(text, str(caught.value), re.DOTALL), caught.value
    # A TypeError like that of any other class that cannot be created.
    assert isinstance(caught.value, TypeError)


RIGHT: dict[str, Callable[[], type]] = {
    "no annotation": _with(x=In(int), on_x=takes),
    "a coroutine": _with(x=In(int, concurrency=2), on_x=waits),
    "Any": _annotated(Any, In(int)),
    "any type": _annotated(str, In(Any)),
    "object": _annotated(object, In(int)),
    "the type": _annotated(int, In(int)),
    "a base": _annotated(msgspec.Struct, In(Row)),
    "a flag is a number": _annotated(int, In(bool)),
    "a number is a float": _annotated(float, In(int)),
    "a union": _annotated(int | None, In(int)),
    "a typed dict": _annotated(Line, In(Line)),
    "a typed dict like it": _annotated(Other, In(Line)),
    "a typed dict for a dict": _annotated(Line, In(dict)),
    "a dict for a typed dict": _annotated(dict, In(Line)),
    "a mapping": _annotated(collections.abc.Mapping, In(dict[str, int])),
    "an alias": _annotated(dict[str, int], In(dict[str, int])),
    "a protocol": _annotated(Sized, In(Row)),
    "a new type": _annotated(UserId, In(int)),
    "channel of a new type": _annotated(int, In(UserId)),
    "a name nobody knows": _annotated("Nowhere", In(int)),
    "a list": _annotated(list[int], In(int, batch=5)),
    "a list for batch": _annotated(list, In(int, batch=5)),
    "a list of Any": _annotated(list[Any], In(int, batch=5)),
    "a sequence": _annotated(collections.abc.Sequence, In(int, batch=5)),
    "an iterable of it": _annotated(collections.abc.Iterable[int], In(int, batch=5)),
    "a list as the message": _annotated(list[int], In(list[int])),
    "a mapping of it": _annotated(collections.abc.Mapping[str, int], In(dict[str, int])),
    "a tuple of any length": _annotated(tuple[str, ...], In(tuple[str, str])),
    "an iterable of keys": _annotated(collections.abc.Iterable[str], In(dict[str, int])),
    "meta": _metaed(Meta, In(int)),
    "some meta": _metaed(Meta | None, In(int)),
    "a list of meta": _metaed(list[Meta], In(int, batch=5)),
    "a bare list as the message": _annotated(list[int], In(list)),
    "meta by default": _with(x=In(int), on_x=lambda self, message, meta=None: None),
    "more by star": _with(x=In(int), on_x=lambda self, message, *rest: None),
    "more by two stars": _with(x=In(int), on_x=lambda self, message, *rest, **more: None),
    "optional keyword": _with(x=In(int), on_x=lambda self, message, *, flag=1: None),
    "hook with a default": _with(x=In(int), on_x=takes, setup=lambda self, fast=True: None),
    "a timer alone": _with(out=Out(int), tick=_timer(nothing)),
    "run alone": _with(out=Out(int), run=nothing),
    "a plain source": _with(Source, out=Out(int), read=read),
    "a base of sources": _with(Source),
    "a node without channels": _with(),
    "on without underscore": _with(x=In(int), on_x=takes, once=nothing),
    "on_ as a value": _with(x=In(int), on_x=takes, on_time=5),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_may_be_declared(name: str) -> None:
    cls = RIGHT[name]()
    assert describe(cls).cls is cls


class Everything(Node):
    """Does it all.

    And more.
    """

    stateful = True
    rows = In(Row, batch=5, within="500ms")
    urls = In(str, concurrency=4)
    good = Out(int, key="user.id", codec="json")
    bad = Out(str)

    def __init__(self, top: int, /, name: str = "x", *, deep: list[int] | None = None) -> None:
        self.top = top

    def on_rows(self, rows: list[Row], metas: list[Meta]) -> None: ...

    async def on_urls(self, url: str) -> None: ...

    @every("5s")
    def report(self) -> None: ...

    @every(0.5)
    async def poll(self) -> None: ...


def test_what_is_known_of_a_class() -> None:
    info = describe(Everything)
    assert info.name == f"{__name__}:Everything"
    assert info.doc == "Does it all."
    assert list(info.inputs) == ["rows", "urls"] and list(info.outputs) == ["good", "bad"]
    assert (info.inputs["rows"].batch, info.inputs["rows"].within) == (5, 0.5)
    assert (info.outputs["good"].key, info.outputs["good"].codec) == ("user.id", "json")
    assert info.handlers == {
        "rows": Handler("on_rows", coroutine=False, wants_meta=True),
        "urls": Handler("on_urls", coroutine=True, wants_meta=False),
    }
    assert info.timers == {"report": 5.0, "poll": 0.5}
    assert info.stateful and info.tasks and not info.source and not info.abstract


def test_the_settings_are_the_constructors_arguments() -> None:
    class Settings(Node):
        x = In(int)
        on_x = takes

        def __init__(self, top: int, name: str = "x", *rest: int, deep: Any = None) -> None: ...

    settings = describe(Settings).settings()
    assert [(one.name, one.type, one.required) for one in settings] == [
        ("top", int, True),
        ("name", str, False),
        ("deep", Any, False),
    ]
    assert settings[1].default == "x"
    assert not describe(Settings).open_settings


def test_settings_of_a_class_without_a_constructor_and_of_an_open_one() -> None:
    class Bare(Node):
        x = In(int)
        on_x = takes

    class Open(Bare):
        def __init__(self, a: Nowhere, **rest: Any) -> None: ...  # type: ignore  # noqa: F821

    assert describe(Bare).settings() == [] and not describe(Bare).open_settings
    assert [(one.name, one.type) for one in describe(Open).settings()] == [("a", Any)]
    assert describe(Open).open_settings


@pytest.mark.parametrize("thing", [Node, Source, Sink, int, 5, "x", None, Everything(1)])
def test_only_node_classes_are_described(thing: Any) -> None:
    with pytest.raises(DeclarationError, match="is not a node class; subclass flowkit.Node"):
        describe(thing)


# -- inheritance ---------------------------------------------------------------------------------


class Base(Node):
    x = In(int)
    out = Out(int)

    def on_x(self, message: int) -> None:
        self.out.send(message)

    @every("1s")
    def tick(self) -> None: ...


def test_a_subclass_has_the_channels_of_its_base() -> None:
    class Derived(Base):
        more = Out(str)

    info = describe(Derived)
    assert list(info.inputs) == ["x"] and list(info.outputs) == ["out", "more"]
    assert info.timers == {"tick": 1.0}
    assert list(describe(Base).outputs) == ["out"]


def test_a_subclass_may_replace_handler_channel_and_timer() -> None:
    class Derived(Base):
        x = In(str, concurrency=3)

        async def on_x(self, message: str, meta: Meta) -> None: ...  # type: ignore[override]

        def tick(self) -> None: ...

    info = describe(Derived)
    assert info.inputs["x"].type is str
    assert info.handlers["x"] == Handler("on_x", coroutine=True, wants_meta=True)
    assert info.timers == {} and info.tasks
    assert not describe(Base).tasks


def test_a_subclass_is_checked_as_a_whole() -> None:
    with pytest.raises(DeclarationError, match=r"Derived\.y has no handler"):

        class Derived(Base):
            y = In(int)

    with pytest.raises(DeclarationError, match="on_x takes int, its channel carries str"):

        class Changed(Base):
            x = In(str)


def test_channels_may_come_from_a_mixin_that_is_no_node() -> None:
    class Errors:
        errors = Out(str)

        def fail(self, text: str) -> None:
            self.errors.send(text)

    class Both(Errors, Base):
        pass

    node = Both()
    node.fail("broken")
    assert list(describe(Both).outputs) == ["out", "errors"]
    assert node.errors.sent == ["broken"]


def test_an_abstract_base_is_no_node_to_run() -> None:
    class Parser(Node):
        """A base."""

        lines = In(str)
        rows = Out(dict)

        def on_lines(self, line: str) -> None:
            self.rows.send(self.parse(line))

        @abstractmethod
        def parse(self, line: str) -> dict[str, Any]: ...

    class Json(Parser):
        def parse(self, line: str) -> dict[str, Any]:
            return {"line": line}

    class Nothing(Node):
        """Settings that several nodes share."""

    assert describe(Nothing).abstract
    assert not describe(Json).abstract
    assert describe(Json).doc == ""
    node = Json()
    node.on_lines("a")
    assert node.rows.sent == [{"line": "a"}]


def test_a_base_of_sources_may_leave_the_output_to_others() -> None:
    class Follow(Source):
        def read(self, position: Any) -> Any:
            yield "line", 1

    class Lines(Follow):
        lines = Out(str)

    assert describe(Follow).abstract and not describe(Lines).abstract
    assert list(describe(Lines).outputs) == ["lines"] and describe(Lines).source


def test_class_arguments_go_on_to_the_next_base() -> None:
    seen: list[str] = []

    class Registered:
        def __init_subclass__(cls, tag: str = "", **rest: Any) -> None:
            seen.append(tag)
            super().__init_subclass__(**rest)

    class Tagged(Node, Registered, tag="a"):
        x = In(int)
        on_x = takes

    assert seen == ["a"]


# -- a node that nobody runs ---------------------------------------------------------------------


class Words(Node):
    lines = In(str)
    words = Out(str)
    lengths = Out(int)

    def on_lines(self, line: str) -> None:
        for word in line.split():
            self.words.send(word, key=word[0])
        self.lengths.send(len(line))

    async def slow(self) -> None:
        await self.words.room()
        self.words.send_many(["x", "y"])


def test_a_node_can_be_called_without_anything_running() -> None:
    node = Words()
    node.on_lines("a bc")
    assert (node.words.sent, node.lengths.sent) == (["a", "bc"], [4])
    assert (node.node, node.replica, node.replicas) == ("", 0, 1)
    for hook in (node.setup, node.finish, node.teardown):
        assert hook() is None


def test_two_nodes_of_a_class_share_nothing() -> None:
    one, two = Words(), Words()
    one.on_lines("a")
    assert two.words.sent == []
    assert one.words is one.words and one.words is not two.words
    assert isinstance(Words.words, Out) and isinstance(Words.lines, In)


def test_a_coroutine_of_a_node_can_be_called_without_anything_running() -> None:
    import asyncio

    node = Words()
    asyncio.run(node.slow())
    assert node.words.sent == ["x", "y"]


def test_what_a_source_reads_can_be_tried_without_anything_running() -> None:
    class Lines(Source):
        out = Out(str)

        def read(self, position: int | None) -> Any:
            yield "a", 1
            yield Many(["b", "c"]), 3

    pairs = list(Lines().read(None))
    assert pairs[0] == ("a", 1) and pairs[1][0].messages == ["b", "c"]
    assert repr(pairs[1][0]) == "Many(2 messages)"
    assert Lines().length() is None
    assert inspect.iscoroutinefunction(Source.commit)


def test_the_error_of_a_declaration_carries_its_hint() -> None:
    with pytest.raises(DeclarationError) as caught:
        make((Node,), {"x": In(int)})
    assert caught.value.hint == "write on_x(self, ...)"
    assert SendError.__doc__


# ---------------------------------------------------------------------------- questions


def test_a_channel_that_asks_and_one_that_serves() -> None:
    class Asks(Node):
        x = In(int)
        users = Call(int, Row, timeout="1.5s", retries=2)

        async def on_x(self, number: int) -> None: ...

    class Answers(Node):
        users = Serve(int, Row, concurrency=3)
        rows = Serve(int, int | str)

        async def on_users(self, number: int, meta: Meta) -> Row: ...

        def on_rows(self, number: int): ...  # type: ignore[no-untyped-def]

    asks, answers = describe(Asks), describe(Answers)
    assert (asks.calls["users"].timeout, asks.calls["users"].retries) == (1.5, 2)
    assert not asks.outputs and not asks.source and asks.tasks
    assert list(answers.inputs) == ["users", "rows"] and not answers.source
    assert answers.handlers["users"] == Handler("on_users", coroutine=True, wants_meta=True)
    assert asks.calls["users"] is Asks.users and Asks().users is not Asks().users


def returning(answer: Any, returned: Any) -> None:
    def on_x(self: Any, number: int) -> Any: ...

    on_x.__annotations__["return"] = returned
    type("Bad", (Node,), {"x": Serve(int, answer), "on_x": on_x})


@pytest.mark.parametrize(
    ("answer", "returned"), [(Row, None), (int, str), (int, str | None), (list[int], list[str])]
)
def test_a_handler_that_surely_does_not_answer(answer: Any, returned: Any) -> None:
    if returned == str | None:
        returning(answer, returned)  # of a union nobody is sure
        return
    with pytest.raises(DeclarationError, match="on_x returns .*, its channel answers with"):
        returning(answer, returned)


@pytest.mark.parametrize(
    ("answer", "returned"), [(Row, Any), (float, int), (Row | None, None), (Row, "Unknown")]
)
def test_a_handler_that_may_answer(answer: Any, returned: Any) -> None:
    returning(answer, returned)


@pytest.mark.parametrize(
    ("declare", "text"),
    [
        (lambda: Call(int, int, timeout=0), "longer than nothing"),
        (lambda: Call(int, int, timeout="soon"), "timeout"),
        (lambda: Call(int, int, retries=-1), "0 or more"),
        (lambda: Call(int, int, retries=True), "0 or more"),
        (lambda: Serve(int, int, concurrency=0), "at least one"),
        (lambda: type("Mute", (Node,), {"x": Serve(int, int)}), "has no handler 'on_x'"),
        (lambda: type("Bad", (Node,), {"send_": Call(int, int), "node": Call(int, int)}), "name"),
    ],
)
def test_a_question_that_is_declared_wrongly(declare: Any, text: str) -> None:
    with pytest.raises(DeclarationError, match=text):
        declare()
