"""What the ends of links are in a replica: how messages are cut, encoded and handled."""

from __future__ import annotations

from typing import Any

from flowkit.calls import Serve
from flowkit.codecs import Codec, codec_for
from flowkit.node import NodeInfo
from flowkit.protocol.publishing import Topics
from flowkit.protocol.routing import Router, extractor, itself
from flowkit.runtime.inlet import Inlet, PlainInlet, Shop
from flowkit.runtime.jobs import JobInlet
from flowkit.runtime.serving import ServeInlet
from flowkit.topology.plan import LinkPlan


def router_of(link: LinkPlan) -> Router:
    """Cuts what is sent on an output link."""
    by = extractor(link.by) if link.by else itself
    if link.pattern == "pubsub":
        return Topics(link.consumers, by, link.topics, link.version)
    return Router(link.route, link.consumers, by, link.version)


def codec_of(info: NodeInfo, link: LinkPlan, out: bool) -> Codec[Any]:
    """The codec of a link's messages, or questions, at its output or its input."""
    channel: Any = {**info.outputs, **info.calls}[link.out] if out else info.inputs[link.into]
    return codec_for(channel.type, link.codec or channel.codec)


def inlet_of(shop: Shop, links: list[LinkPlan], name: str, number: int) -> Inlet:
    """Who calls the handler of input `name`, the `number`th of the node; `links` lead to it."""
    info = shop.node.__flowkit__
    channel = info.inputs[name]
    if isinstance(channel, Serve):
        answer, codec = channel.answer, channel.codec
        answers = {link.index: codec_for(answer, link.codec or codec) for link in links}
        return ServeInlet(shop, channel, number, answers)
    if not info.handlers[name].coroutine and channel.batch is None:
        return PlainInlet(shop, channel, number)
    return JobInlet(shop, channel, number, links)
