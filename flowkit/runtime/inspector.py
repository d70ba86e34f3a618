"""The child process that looks at user code: imports classes, reads declarations, compares types.

It reads `Questions` from its standard input and writes `Record`s to the descriptor it is given.
Whatever the imported code prints goes elsewhere, and if it ends the process, the records tell how
far it had come. No constructor of a node is run.
"""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import msgspec

from flowkit.calls import Call, Serve
from flowkit.channels import In
from flowkit.errors import DeclarationError, SettingsError
from flowkit.importing import NotImportable, load_module, load_object
from flowkit.node import NodeInfo, Setting, describe
from flowkit.runtime.settings import convert, examine
from flowkit.runtime.wiring import code_objects, examine_endpoint, examine_link, written_by_user
from flowkit.topology.compatible import type_name
from flowkit.topology.facts import (
    ChannelFacts,
    ClassFacts,
    Finding,
    NodeQuestion,
    Questions,
    SettingFacts,
)


class Began(msgspec.Struct, tag=True):
    """The class of this node, or the module itself, is about to be imported."""

    node: str
    module: str


class Answered(msgspec.Struct, tag=True):
    """What was found out about this node; `facts` is None if its class cannot be used."""

    node: str
    facts: ClassFacts | None
    settings: dict[str, Any]
    findings: list[Finding]


class Listed(msgspec.Struct, tag=True):
    """The node classes that a module defines."""

    module: str
    classes: list[ClassFacts]
    findings: list[Finding]


class Compared(msgspec.Struct, tag=True):
    """What was found out about the links. It is the last record."""

    findings: list[Finding]


Record = Began | Answered | Listed | Compared


def main(descriptor: int) -> None:
    """Answer the questions on standard input; ends the process."""
    questions = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Questions)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    with open(descriptor, "wb", buffering=0) as file:
        for record in answers(questions):
            data = msgspec.msgpack.encode(record)
            file.write(len(data).to_bytes(4, "big") + data)
    # Threads and exit handlers that an import started are not waited for.
    os._exit(0)


def answers(questions: Questions) -> Iterator[Record]:
    """The records that answer `questions`, one class at a time."""
    infos: dict[str, NodeInfo] = {}
    failed: set[str] = set()
    for question in questions.nodes:
        yield Began(question.name, question.use.partition(":")[0])
        info, findings = _import(question, failed)
        if info is None:
            yield Answered(question.name, None, {}, findings)
            continue
        infos[question.name] = info
        settings, more = _settings(question, info)
        findings += more
        if question.use not in failed:
            unsaved = _unsaved(question, info)
            if unsaved is not None:
                failed.add(question.use)
                findings.append(unsaved)
        yield Answered(question.name, class_facts(question.use, info), settings, findings)
    for module in questions.modules:
        yield Began("", module)
        yield _list(module)
    found: list[Finding] = []
    for link in questions.links:
        if link.source in infos and link.into_node in infos:
            found += examine_link(link, infos[link.source], infos[link.into_node])
    for endpoint in questions.endpoints:
        if endpoint.node in infos:
            found += examine_endpoint(endpoint, infos[endpoint.node])
    yield Compared(found)


# -- classes ---------------------------------------------------------------------------------


def _import(question: NodeQuestion, failed: set[str]) -> tuple[NodeInfo | None, list[Finding]]:
    """The class's declarations, or why there are none; each failure is reported once."""
    use = question.use
    module = use.partition(":")[0]
    if use in failed or module in failed:
        return None, []
    code, part, hint = "E301", use, ""
    try:
        found = load_object(use)
    except NotImportable as error:
        message, part, hint = str(error), error.part, error.hint
        failed.add(use)
    except DeclarationError as error:
        code = "E302"
        message, hint = _declaration(error, module)
        failed.add(module)
    except BaseException as error:  # SystemExit and KeyboardInterrupt, too: it is user code
        message, hint = f"importing '{module}' failed: {_last_line(error)}", _where(error)
        part = module
        failed.add(module)
    else:
        try:
            info = describe(found)
            code = "E302"
            if info.abstract:
                message, hint = _abstract(use, info)
            elif info.silent and not question.external:
                message = f"'{use}' has outputs, but nothing that could send"
                hint = (
                    "give it an In, a run(), an @every timer, or make it a Source; or let an "
                    "application attach it: 'external: true'"
                )
            else:
                return info, []
        except DeclarationError as error:
            code = "E302"
            message, hint = f"'{use}' is not a node class", error.hint
        failed.add(use)
    return None, [Finding(["nodes", question.name, "use"], code, message, hint, part)]


def _list(module: str) -> Listed:
    """The node classes defined in `module`, in the order of their definition."""
    try:
        found = load_module(module)
    except NotImportable as error:
        return Listed(module, [], [Finding([], "E301", str(error), error.hint)])
    except BaseException as error:  # as for classes
        message = f"importing '{module}' failed: {_last_line(error)}"
        return Listed(module, [], [Finding([], "E301", message, _where(error))])
    classes = []
    for name, value in vars(found).items():
        local = isinstance(value, type) and value.__module__.startswith(module)
        if not local or name.startswith("_"):
            continue
        try:
            info = describe(value)
        except DeclarationError:
            continue
        if not info.abstract:
            classes.append(class_facts(f"{module}:{name}", info))
    return Listed(module, classes, [])


def _declaration(error: DeclarationError, module: str) -> tuple[str, str]:
    text = str(error)
    if error.hint:
        text = text.removesuffix(f"; {error.hint}")
    return f"'{module}' declares a node wrongly: {text}", error.hint or _where(error)


def _abstract(use: str, info: NodeInfo) -> tuple[str, str]:
    missing = sorted(getattr(info.cls, "__abstractmethods__", ()))
    if missing:
        return f"'{use}' is abstract: {', '.join(missing)} is still to be written", (
            "use a subclass that defines it"
        )
    return f"'{use}' has no channels", "declare at least one In or Out"


def _last_line(error: BaseException) -> str:
    lines = traceback.format_exception_only(error)
    return lines[-1].strip() if lines else type(error).__name__


def _where(error: BaseException) -> str:
    """The file and line of user code that raised."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"in {_relative(error.filename)}, line {error.lineno}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "importlib" not in frame.filename and os.path.dirname(__file__) not in frame.filename
    ]
    frames = [frame for frame in frames if not frame.filename.endswith(("importing.py", "node.py"))]
    if not frames:
        return ""
    return f"in {_relative(frames[-1].filename)}, line {frames[-1].lineno}"


def _relative(path: str) -> str:
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def class_facts(use: str, info: NodeInfo) -> ClassFacts:
    """The declarations of a class as plain data."""
    return ClassFacts(
        use=use,
        doc=info.doc,
        inputs=[
            ChannelFacts(name, type_name(channel.type), channel.codec, answer=_answer(channel))
            for name, channel in info.inputs.items()
        ],
        outputs=[
            ChannelFacts(name, type_name(channel.type), channel.codec, channel.key)
            for name, channel in info.outputs.items()
        ]
        + [
            ChannelFacts(name, type_name(call.type), call.codec, answer=_answer(call))
            for name, call in info.calls.items()
        ],
        settings=[
            SettingFacts(
                setting.name,
                type_name(setting.type),
                None if setting.required else repr(setting.default),
            )
            for setting in info.settings()
        ],
        stateful=info.stateful,
        source=info.source,
        positions=info.positions,
    )


def _answer(channel: In[Any] | Call[Any, Any]) -> str:
    return type_name(channel.answer) if isinstance(channel, Call | Serve) else ""


# -- settings --------------------------------------------------------------------------------


def _settings(question: NodeQuestion, info: NodeInfo) -> tuple[dict[str, Any], list[Finding]]:
    """The settings to run with, as plain data, and what is wrong with them."""
    if question.external:
        return {}, []
    known = {setting.name: setting for setting in info.settings()}
    chosen = {
        name: _choose(known.get(name), value, question.substituted.get(name))
        for name, value in question.settings.items()
    }
    problems, _ = examine(info, chosen)
    findings = []
    for problem in problems:
        where: list[str | int] = ["nodes", question.name]
        if question.settings:
            where.append("with")
        if problem.setting is not None:
            where.append(problem.setting)
        unknown = problem.setting is None or problem.setting not in known
        findings.append(Finding(where, "E303", str(problem), problem.hint, key=unknown))
    return chosen, findings


def _choose(setting: Setting | None, value: Any, retyped: Any) -> Any:
    """`value`, or `retyped` where only that fits the setting."""
    if setting is None or value == retyped:
        return value
    try:
        convert(setting, value)
    except SettingsError:
        try:
            convert(setting, retyped)
        except SettingsError:
            return value
        return retyped
    return value


def _unsaved(question: NodeQuestion, info: NodeInfo) -> Finding | None:
    """A node with inputs that sends from memory and does not say that it has state."""
    if info.stateful or not info.inputs or not info.outputs:
        return None
    starts = list(info.timers)
    if any("finish" in base.__dict__ for base in info.cls.__mro__ if written_by_user(base)):
        starts.append("finish")
    for start in starts:
        if _sends(info, start):
            what = "finish()" if start == "finish" else f"its timer {start}()"
            return Finding(
                ["nodes", question.name, "use"],
                "E307",
                f"{info.cls.__qualname__} sends from {what}, but is not declared stateful",
                f"what it holds is lost if it dies: add 'stateful = True' to "
                f"{info.cls.__qualname__}, so that the run report says so",
            )
    return None


def _sends(info: NodeInfo, method: str) -> bool:
    """Whether `method`, or another method it mentions, mentions an output and a send."""
    pending, seen = [method], set()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        function = getattr(info.cls, name, None)
        code = getattr(function, "__code__", None)
        if code is None:
            continue
        names: set[str] = set()
        for one in code_objects(code):
            names.update(one.co_names)
        if names & set(info.outputs) and names & {"send", "send_many"}:
            return True
        pending += [one for one in names if inspect.isfunction(getattr(info.cls, one, None))]
    return False
