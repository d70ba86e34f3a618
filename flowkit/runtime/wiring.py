"""What is wrong with a link, judged by the classes at its two ends.

Runs in the child process that looks at user code, since it compares their types.
"""

from __future__ import annotations

import dis
import inspect
import sys
import types
from collections.abc import Iterator
from typing import Any

from flowkit.calls import Serve
from flowkit.codecs import codec_for
from flowkit.errors import DeclarationError
from flowkit.importing import did_you_mean
from flowkit.node import NodeInfo
from flowkit.topology.compatible import field_path, mismatch, scalar, type_name
from flowkit.topology.facts import EndpointQuestion, Finding, LinkQuestion


def examine_link(link: LinkQuestion, source: NodeInfo, target: NodeInfo) -> list[Finding]:
    """What is wrong with a link between two channels: codec, types of messages, key."""
    if link.pattern == "request":
        return _request(link, source, target)
    out, into = source.outputs.get(link.out), target.inputs.get(link.into)
    if out is None or into is None or isinstance(into, Serve):
        return []
    whole: list[str | int] = ["links", link.index]
    spot = [*whole, "to", link.target] if link.listed else whole
    findings: list[Finding] = []
    sender, receiver = f"{link.source}.{link.out}", f"{link.into_node}.{link.into}"
    codec = link.codec or out.codec or into.codec
    if link.codec is None and out.codec and into.codec and out.codec != into.codec:
        findings.append(
            Finding(
                spot,
                "E306",
                f"'{sender}' is encoded as {out.codec}, '{receiver}' is decoded as {into.codec}",
                "give both the same codec, or the link one",
            )
        )
        return findings
    reason = None if codec == "pickle" else mismatch(out.type, into.type, json=codec == "json")
    if reason is not None:
        sent, expected = type_name(out.type), type_name(into.type)
        if sent == expected:
            sent, expected = _qualified(out.type), _qualified(into.type)
        findings.append(
            Finding(
                spot,
                "E304",
                f"'{sender}' sends {sent}, '{receiver}' expects {expected}",
                f"{reason}; change one end, or put a node between that converts",
            )
        )
    else:
        findings += _codec(link, spot, codec, (sender, out.type), (receiver, into.type))
    if link.route == "key" or (link.pattern == "pubsub" and (link.by or link.topics)):
        findings += _key(link, whole, source, out.key, out.type, sender)
    return findings


def examine_endpoint(endpoint: EndpointQuestion, info: NodeInfo) -> list[Finding]:
    """Whether the codec of an endpoint can carry what its channels do."""
    for name in endpoint.channels:
        channel = info.inputs.get(name) or info.outputs.get(name)
        if channel is None:
            continue
        try:
            codec_for(channel.type, endpoint.codec or channel.codec)
        except DeclarationError as error:
            where: list[str | int] = ["endpoints", endpoint.index]
            where.append("codec" if endpoint.codec else "channel")
            text = str(error).removesuffix(f"; {error.hint}") if error.hint else str(error)
            return [Finding(where, "E306", f"'{endpoint.node}.{name}': {text}", error.hint)]
    return []


def _request(link: LinkQuestion, source: NodeInfo, target: NodeInfo) -> list[Finding]:
    """What is wrong between a `Call` and a `Serve`: questions go one way, answers the other."""
    call, serve = source.calls.get(link.out), target.inputs.get(link.into)
    if call is None or not isinstance(serve, Serve):
        return []  # the pattern does not fit the channels, which is found elsewhere
    spot: list[str | int] = ["links", link.index]
    if link.listed:
        spot += ["to", link.target]
    asker, server = f"{link.source}.{link.out}", f"{link.into_node}.{link.into}"
    if link.codec is None and call.codec != serve.codec:
        text = (
            f"'{asker}' uses codec {call.codec or 'by type'}, '{server}' {serve.codec or 'by type'}"
        )
        return [Finding(spot, "E306", text, "give both the same codec, or the link one")]
    codec = link.codec or call.codec
    ways = (
        ("asks with", asker, call.type, "expects", server, serve.type),
        ("answers with", server, serve.answer, "expects", asker, call.answer),
    )
    for does, sender, sent, wants, receiver, expected in ways:
        reason = None if codec == "pickle" else mismatch(sent, expected, json=codec == "json")
        if reason is not None:
            return [
                Finding(
                    spot,
                    "E304",
                    f"'{sender}' {does} {type_name(sent)}, '{receiver}' {wants} "
                    f"{type_name(expected)}",
                    f"{reason}; make Call and Serve agree",
                )
            ]
        findings = _codec(link, spot, codec, (sender, sent), (receiver, expected))
        if findings:
            return findings
    return []


def _qualified(kind: Any) -> str:
    module = getattr(kind, "__module__", "")
    return f"{module}.{type_name(kind)}" if module else type_name(kind)


def _codec(
    link: LinkQuestion, spot: list[str | int], codec: str | None, *ends: tuple[str, Any]
) -> list[Finding]:
    for channel, kind in ends:
        try:
            codec_for(kind, codec)
        except DeclarationError as error:
            where = [*spot[:2], "codec"] if link.codec else spot
            text = str(error).removesuffix(f"; {error.hint}") if error.hint else str(error)
            return [Finding(where, "E306", f"'{channel}': {text}", error.hint)]
    return []


def _key(
    link: LinkQuestion,
    whole: list[str | int],
    source: NodeInfo,
    declared: str | None,
    kind: Any,
    sender: str,
) -> list[Finding]:
    path = link.by or declared
    if path is not None:
        wrong = field_path(kind, path)
        if wrong is None:
            return []
        step, owner, known = wrong
        hint = did_you_mean(step, known) if known else f"a {owner} is its own key: remove 'by'"
        where = [*whole, "by"] if link.by else [*whole, "from"]
        text = f"'{path}' is no key of '{sender}': {owner} has no '{step}'"
        return [Finding(where, "E305", text, hint, part=step)]
    if scalar(kind) is not False or _gives_keys(source):
        return []
    return [
        Finding(
            [*whole, "route"],
            "E305",
            f"'{sender}' sends {type_name(kind)}, which has no key to route by",
            f"add 'by: FIELD' to the link, declare {link.out} = Out({type_name(kind)}, key=...), "
            "or give send() a key",
        )
    ]


def _gives_keys(info: NodeInfo) -> bool:
    """Whether any function of the modules the class comes from passes an argument ``key=``."""
    for base in info.cls.__mro__:
        module = sys.modules.get(base.__module__)
        if not written_by_user(base) or module is None:
            continue
        for owner in (module, *(one for one in vars(module).values() if isinstance(one, type))):
            for value in list(vars(owner).values()):
                code = getattr(
                    inspect.unwrap(value) if callable(value) else value, "__code__", None
                )
                if isinstance(code, types.CodeType) and any(
                    _passes_key(one) for one in code_objects(code)
                ):
                    return True
    return False


def _passes_key(code: types.CodeType) -> bool:
    # The names of keyword arguments are a tuple among the constants of the calling code; a call
    # with ``**arguments`` cannot be told, and counts as giving a key.
    return any(isinstance(one, tuple) and "key" in one for one in code.co_consts) or any(
        step.opname == "CALL_FUNCTION_EX" for step in dis.get_instructions(code)
    )


def written_by_user(base: type) -> bool:
    """Whether a base of a node class is not one of flowkit's own."""
    return base is not object and base.__module__ != "flowkit.node"


def code_objects(code: types.CodeType) -> Iterator[types.CodeType]:
    """`code` and all code nested in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from code_objects(constant)
