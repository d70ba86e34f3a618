"""Problems of the endpoints: sockets that do not go together, ways they cannot go, addresses.

Pure, as `flowkit.topology.check`, which calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from flowkit.importing import did_you_mean
from flowkit.protocol.sockets import SOCKETS, SUBSCRIBERS, TRANSPORTS, fit
from flowkit.topology.addresses import Address, address
from flowkit.topology.facts import ClassFacts
from flowkit.topology.model import EndpointModel, Topology, local
from flowkit.topology.source import Path, Place

Say = Callable[[Place, str, str, str], None]
"""Report a problem: place, code, message, hint."""


class _Known(NamedTuple):
    """An endpoint's address, and where it stands."""

    model: EndpointModel
    parts: Address
    place: Place


def examine(
    topology: Topology, classes: Mapping[str, ClassFacts], say: Say
) -> set[tuple[str, str, str]]:
    """Report what is wrong; returns the channels that are connected by an endpoint: direction
    ("in" or "out"), node, channel."""
    used: set[tuple[str, str, str]] = set()
    known: list[_Known] = []
    for index, model in enumerate(topology.endpoints):
        if model.socket in SOCKETS:
            check = _Endpoint(topology, classes, say, index, model)
            used |= check.channels()
            check.keys()
            known += check.addresses()
    _pairs(known, say)
    return used


class _Endpoint:
    def __init__(
        self,
        topology: Topology,
        classes: Mapping[str, ClassFacts],
        say: Say,
        index: int,
        model: EndpointModel,
    ) -> None:
        self.topology = topology
        self.classes = classes
        self.model = model
        self.socket = SOCKETS[model.socket]
        self._say = say
        self._path: Path = ("endpoints", index)
        self._ways: set[str] = set()

    def _at(self, *path: str | int, key: bool = False) -> Place:
        marks = self.topology.marks
        whole = (*self._path, *path)
        return marks.key(whole) if key else marks.value(whole)

    # -- channels ------------------------------------------------------------------------------

    def channels(self) -> set[tuple[str, str, str]]:
        """Whether they exist, are of one node, and go the ways of the socket."""
        used: set[tuple[str, str, str]] = set()
        owners = {one.partition(".")[0] for one in self.model.channel}
        complete = True
        for at, text in enumerate(self.model.channel):
            place = self._at("channel", at).within(text)
            node, _, channel = text.partition(".")
            way = self._way(place, node, channel)
            if way is None:
                complete = False
                continue
            used.add((way, node, channel))
            if way in self._ways:
                word = "inputs" if way == "in" else "outputs"
                self._say(place, "E209", f"two {word}: an endpoint has one of each at most", "")
            self._ways.add(way)
            facts = self.classes[node].channel(way, channel)
            if facts is not None and facts.answer:
                word = "Serve" if way == "in" else "Call"
                wrong = f"'{text}' is a {word}, for links with pattern: request"
                self._say(place, "E209", wrong, "declare an In and an Out for the endpoint")
            else:
                self._direction(place, text, way)
        if len(owners) > 1:
            place = self._at("channel")
            text = f"channels of two nodes: {' and '.join(sorted(owners))}"
            self._say(place, "E209", text, "a socket belongs to one process: name one node")
        elif complete and self.model.channel:
            self._missing()
        return used

    def _way(self, place: Place, node: str, channel: str) -> str | None:
        if node not in self.topology.nodes:
            hint = did_you_mean(node, self.topology.nodes)
            self._say(place.within(node), "E201", f"endpoint of unknown node '{node}'", hint)
            return None
        facts = self.classes.get(node)
        if facts is None:
            return None
        for way in ("in", "out"):
            if facts.has(way, channel):
                return way
        names = [one.name for one in [*facts.inputs, *facts.outputs]]
        hint = did_you_mean(channel, names) or (
            f"its channels are {', '.join(names)}" if names else "it has no channels"
        )
        self._say(place.within(channel), "E202", f"node '{node}' has no channel '{channel}'", hint)
        return None

    def _direction(self, place: Place, text: str, way: str) -> None:
        name = self.socket.name
        others = ", ".join(one.name for one in SOCKETS.values() if _goes(one.name, way))
        if way == "in" and self.socket.receives is False:
            wrong = f"'{text}' is an input, and a {name} only sends"
        elif way == "out" and self.socket.sends is False:
            wrong = f"'{text}' is an output, and a {name} only receives"
        else:
            return
        verb = "receive" if way == "in" else "send"
        self._say(place, "E209", wrong, f"sockets that {verb}: {others}")

    def _missing(self) -> None:
        """REQ and REP need both channels."""
        for way, needed in (("in", self.socket.receives), ("out", self.socket.sends)):
            two = self.socket.receives and self.socket.sends
            if not needed or way in self._ways or not (two or not self._ways):
                continue
            word, example = ("input", "requests") if way == "in" else ("output", "answers")
            node = self.model.channel[0].partition(".")[0]
            have = self.model.channel[0]
            self._say(
                self._at("channel"),
                "E209",
                f"a {self.socket.name} both receives and sends, and has no {word} here",
                f"name both: channel: [{have}, {node}.{example}]",
            )

    # -- keys that exclude or need each other --------------------------------------------------

    def keys(self) -> None:
        model, name = self.model, self.socket.name
        if not model.bind and not model.connect:
            self._say(
                self._at(),
                "E106",
                "an endpoint needs 'bind' or 'connect'",
                "bind: tcp://127.0.0.1:5555, or connect: to where the peer listens",
            )
        elif model.bind and model.connect:
            text = "an endpoint binds or connects, not both"
            self._say(self._at("connect", key=True), "E115", text, "make two endpoints of it")
        for key, given, wanted in (
            ("topics", model.topics, SUBSCRIBERS),
            ("identity", model.identity, {"ROUTER", "DEALER", "REQ", "REP"}),
            ("to", model.to, {"ROUTER"}),
        ):
            if given is not None and name not in wanted:
                text = f"'{key}' has no meaning with a {name}"
                self._say(self._at(key, key=True), "E115", text, f"it is for {_or(wanted)}")
        if model.aside and "in" not in self._ways and self._ways:
            text = "'aside' is about the end of an input, and there is none here"
            self._say(self._at("aside", key=True), "E115", text, "remove it")
        if model.peer is not None and not fit(name, model.peer):
            self._refuse_pair(self._at("peer"), name, model.peer)
        owner = model.channel[0].partition(".")[0] if model.channel else ""
        node = self.topology.nodes.get(owner)
        if model.bind and node is not None and node.replicas > 1:
            self._say(
                self._at("bind"),
                "E115",
                f"'{owner}' has {node.replicas} replicas, and one address can be bound once",
                "let the peer bind and the replicas connect, or give the node one replica",
            )
        if model.identity and node is not None and node.replicas > 1:
            self._say(
                self._at("identity"),
                "E115",
                f"'{owner}' has {node.replicas} replicas, and an identity is one socket's",
                "a second one of the same name would be invisible; give the node one replica",
            )

    def _refuse_pair(self, place: Place, one: str, other: str) -> None:
        peers = _or(SOCKETS[one].peers)
        self._say(
            place, "E210", f"a {one} cannot talk to a {other}", f"the peer of a {one}: {peers}"
        )

    # -- addresses -----------------------------------------------------------------------------

    def addresses(self) -> list[_Known]:
        found = []
        key = "bind" if self.model.bind else "connect"
        for at, text in enumerate(self.model.bind or self.model.connect or ()):
            place = self._at(key, at)
            parts = address(local(text))
            if isinstance(parts, str):
                hint = "like tcp://127.0.0.1:5555 or ipc:///run/user/1000/name"
                self._say(place, "E211", f"'{text}' {parts}", hint)
                continue
            if self.socket.name not in TRANSPORTS[parts.transport]:
                text = f"a {self.socket.name} cannot use {parts.transport}, which only publishes"
                self._say(place, "E211", text, "for PUB, SUB, XPUB and XSUB")
            if key == "connect" and not parts.certain:
                text = f"'{text}' is nowhere to connect to"
                self._say(place, "E211", text, "name the host and the port of the peer")
            self._safe(place, key, text, parts)
            found.append(_Known(self.model, parts, place))
        return found

    def _safe(self, place: Place, key: str, text: str, parts: Address) -> None:
        if self._pickled() and parts.transport not in ("ipc", "inproc"):
            self._say(
                self._at("codec") if self.model.codec else self._at("channel"),
                "E115",
                f"codec: pickle over {parts.transport} would let any peer run code",
                "use msgpack or json, or an ipc address",
            )
        if not parts.local and not self.model.insecure:
            what = "anybody who reaches this machine can" if key == "bind" else "who is there can"
            self._say(
                place,
                "E212",
                f"'{text}' is beyond this machine, and nothing protects it: {what} read and write",
                ("bind tcp://127.0.0.1:PORT and tunnel it" if key == "bind" else "tunnel it")
                + ", or add 'insecure: true'",
            )

    def _pickled(self) -> bool:
        if self.model.codec is not None:
            return self.model.codec == "pickle"
        for text in self.model.channel:
            node, _, name = text.partition(".")
            facts = self.classes.get(node)
            for one in [*facts.inputs, *facts.outputs] if facts else []:
                if one.name == name and one.codec == "pickle":
                    return True
        return False


def _pairs(known: list[_Known], say: Say) -> None:
    """Endpoints of one file that meet at an address."""
    for number, one in enumerate(known):
        for other in known[:number]:
            if one.model.bind and other.model.bind:
                if one.parts.meets(other.parts) or other.parts.meets(one.parts):
                    text = f"bound twice: {other.place} and {one.place}"
                    say(one.place, "E211", text, "one of them connects")
                continue
            if not (one.model.bind or other.model.bind):
                continue
            binds, connects = (one, other) if one.model.bind else (other, one)
            if not binds.parts.meets(connects.parts):
                continue
            mine, its = one.model.socket, other.model.socket
            if not fit(mine, its):
                text = f"a {mine} cannot talk to the {its} at {other.place}"
                say(one.place, "E210", text, f"the peer of a {mine}: {_or(SOCKETS[mine].peers)}")


def _goes(name: str, way: str) -> bool:
    socket = SOCKETS[name]
    return (socket.receives if way == "in" else socket.sends) is not False


def _or(names: object) -> str:
    ordered = [name for name in SOCKETS if name in names]  # type: ignore[operator]
    return ordered[0] if len(ordered) == 1 else f"{', '.join(ordered[:-1])} or {ordered[-1]}"
