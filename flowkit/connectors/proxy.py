"""A proxy with a monitor: passes messages on between foreign peers, and shows them to others."""

from __future__ import annotations

from flowkit.channels import In, Out
from flowkit.node import Node


class Proxy(Node):
    """Passes every message on as it is, frame for frame, and a copy to whoever monitors.

    Its sockets are endpoints: PULL and PUSH, or XSUB and XPUB, with a PUB for the monitors. With
    XPUB and XSUB what subscribers wish for goes the other way, through `wishes` and `subscribe`::

        endpoints:
          - {channel: proxy.inbound, socket: PULL, bind: "tcp://127.0.0.1:5571"}
          - {channel: proxy.outbound, socket: PUSH, bind: "tcp://127.0.0.1:5572"}
          - {channel: proxy.monitor, socket: PUB, bind: "tcp://127.0.0.1:5573"}

    A slow consumer holds the producers up; a slow monitor misses messages, which are counted.
    """

    inbound = In(list[bytes])
    outbound = Out(list[bytes])
    monitor = Out(list[bytes])

    def on_inbound(self, frames: list[bytes]) -> None:
        self.outbound.send(frames)
        self.monitor.send(frames)


class PubSubProxy(Proxy):
    """As `Proxy`, for XSUB and XPUB: subscribes to what its own subscribers want."""

    wishes = In(bytes)
    subscribe = Out(bytes)

    def on_wishes(self, wish: bytes) -> None:
        self.subscribe.send(wish)
